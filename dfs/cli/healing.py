"""How far the leader is in healing the cluster, in words and as JSON.

Owns: the words about repair, surplus and balance in `dfs status`. Refuses to know: the rest of it (dfs.cli.health).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dfs.cli import output
from dfs.cli.admin_servers import balance_json, done_text
from dfs.net.parts import HealingStatus, ServerStatus


def healing_lines(healing: HealingStatus) -> Iterator[str]:
    """Yield what is going on; nothing when all is well."""
    none, one, more = healing.waiting
    if one or more or none:
        rate = f", {output.size_text(healing.rate)}/s" if healing.rate else ""
        yield (
            f"repair: {output.count_text(none + one + more, 'chunk')} to copy ({none} without a live replica, {one}"
            f" with one, {more} with more), {output.size_text(healing.waiting_size)}; {healing.copying_count} under"
            f" way{rate}, {done_text(healing.eta_s)}"
        )
        if one:
            yield f"repair: chunks with one live replica: {done_text(healing.safe_eta_s)}"
    if healing.blocked_count:
        yield f"repair: {output.count_text(healing.blocked_count, 'chunk')} cannot be copied: {healing.blocked_reason}"
    if healing.deferred_count:
        waits = "waits" if healing.deferred_count == 1 else "wait"
        yield (
            f"repair: {output.count_text(healing.deferred_count, 'chunk')} {waits} for a silent server to return"
            " (repair_after, or the end of its maintenance)"
        )
    if healing.surplus_count or healing.misplaced_count:
        yield (
            f"surplus: {output.count_text(healing.surplus_count, 'chunk')} with too many replicas;"
            f" {output.count_text(healing.misplaced_count, 'chunk')} in one rack that could be in several"
        )
    yield from _balance_lines(healing)


def _balance_lines(healing: HealingStatus) -> Iterator[str]:
    balance = healing.balance
    if balance.state in ("running", "waiting"):
        why = " (waits for repair)" if balance.state == "waiting" else ""
        rate = f", {output.size_text(balance.rate)}/s" if balance.rate else ""
        yield (
            f"balance: {output.size_text(balance.left_size)} to move{why}{rate}, {done_text(balance.eta_s)};"
            f" fills are {balance.spread * 100:.1f} points apart"
        )
    elif balance.state == "settled":
        yield f"balance: fills are {balance.spread * 100:.1f} points apart; no chunk can be moved to better that"
    elif balance.state == "stopped":
        yield "balance: stopped by an administrator"


def mode_text(server: ServerStatus) -> str:
    """Return the state of a server with what an administrator wants of it."""
    match server.mode:
        case "draining":
            return f"{server.state}, draining: {server.left_count} left"
        case "drained":
            return f"{server.state}, safe to power off"
        case "maintenance":
            return f"{server.state}, maintenance until {output.local_time(server.mode_until_ms)}"
    return server.state


def is_excused(server: ServerStatus) -> bool:
    """Whether its silence is what an administrator wants."""
    return server.mode in ("maintenance", "drained") and server.state in ("late", "dead")


def healing_json(healing: HealingStatus) -> dict[str, Any]:
    """Return the numbers with stable keys."""
    value = {field: getattr(healing, field) for field in healing.__struct_fields__}
    none, one, more = healing.waiting
    return {
        **value,
        "waiting": {"none": none, "one": one, "more": more},
        "eta_s": None if healing.eta_s < 0 else round(healing.eta_s, 1),
        "safe_eta_s": None if healing.safe_eta_s < 0 else round(healing.safe_eta_s, 1),
        "balance": balance_json(healing.balance),
    }
