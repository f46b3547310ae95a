"""The administrator's verbs about chunk servers: `admin decommission`, `maintenance`, `remove`, `balance`.

Owns: their options, and what is printed. Refuses to know: how the leader carries them out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from dfs.cli import output
from dfs.cli.context import Cli
from dfs.cli.verb import Verb, json_option, pass_cli
from dfs.errors import ConfigError

if TYPE_CHECKING:
    from dfs.net.messages import BalanceServersReply, DecommissionServerReply

POLL_INTERVAL_S: Final = 0.5
MAINTENANCE_S: Final = 1800.0
FLOWS_SHOWN: Final = 20  # moves listed for people; --json has all


class Duration(click.ParamType):  # type: ignore[type-arg]
    """`30m`, `90 s`, `2h`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from dfs.config import parse_duration

        if isinstance(value, float):
            return value
        try:
            return parse_duration(value)
        except ConfigError as error:
            self.fail(error.message, param, ctx)


def eta_text(seconds: float) -> str:
    """Return a remaining time for people."""
    return "unknown" if seconds < 0 else output.duration_text(seconds)


def done_text(seconds: float) -> str:
    """Return when something ends, for people."""
    return "end not known yet" if seconds < 0 else f"done in {output.duration_text(seconds)}"


# --- decommission


@click.command("decommission", cls=Verb)
@click.argument("name")
@click.option("--plan", "is_plan", is_flag=True, help="Only tell what it would take.")
@click.option("--cancel", "is_cancel", is_flag=True, help="Let the server stay.")
@click.option("--wait", "must_wait", is_flag=True, help="Wait until it is safe to power off.")
@json_option
@pass_cli
def decommission(cli: Cli, name: str, is_plan: bool, is_cancel: bool, must_wait: bool, as_json: bool) -> None:
    """Drain the chunk server NAME: all it holds is copied elsewhere, then it is safe to power off.

    It serves its replicas until then, and gets no new ones. It is refused when the servers left would be too few for
    the replication of files, or too full. `dfs status` shows how far it is; end with `dfs admin remove NAME`.
    """
    if is_plan + is_cancel + must_wait > 1:
        raise click.UsageError("give one of --plan, --cancel and --wait")
    servers = cli.client.servers
    reply = servers.decommission(name, is_plan=is_plan, is_cancel=is_cancel)
    while must_wait and reply.mode != "drained":
        time.sleep(POLL_INTERVAL_S)
        reply = servers.decommission(name)
    if cli.wants_json(as_json):
        names = ("name", "mode", "left_count", "left_size", "servers_left")
        output.print_json(
            {**{key: getattr(reply, key) for key in names}, "eta_s": _json_eta(reply.eta_s), "is_plan": is_plan}
        )
    else:
        for text in _decommission_lines(reply, is_plan=is_plan, is_cancel=is_cancel):
            output.line(text)


def _decommission_lines(reply: DecommissionServerReply, *, is_plan: bool, is_cancel: bool) -> Sequence[str]:
    chunks = output.count_text(reply.left_count, "chunk")
    work = (
        f"{chunks} ({output.size_text(reply.left_size)}) to copy to"
        f" {output.count_text(reply.servers_left, 'other server')}, at least {eta_text(reply.eta_s)} at repair_rate"
    )
    if is_cancel:
        return [f"{reply.name} stays"]
    if is_plan:
        return [f"{reply.name}: {work}; nothing was changed"]
    if reply.mode == "drained":
        return [f"{reply.name} is drained: safe to power off; then `dfs admin remove {reply.name}`"]
    return [f"{reply.name} is draining: {work}", "see `dfs status`, or wait with --wait; undo with --cancel"]


# --- maintenance


@click.command("maintenance", cls=Verb)
@click.argument("switch", type=click.Choice(["on", "off"]))
@click.argument("name")
@click.option("--for", "duration_s", type=Duration(), default=MAINTENANCE_S, metavar="TIME", help="How long (30m).")
@json_option
@pass_cli
def maintenance(cli: Cli, switch: str, name: str, duration_s: float, as_json: bool) -> None:
    """Do not repair what the chunk server NAME holds while it is restarted; ends by itself.

    Without it, a server that is silent for `repair_after` has its chunks copied elsewhere.
    """
    reply = cli.client.servers.maintain(name, duration_s if switch == "on" else 0.0)
    if cli.wants_json(as_json):
        output.print_json({"name": reply.name, "until_ms": reply.until_ms, "single_count": reply.single_count})
        return
    if not reply.until_ms:
        output.line(f"{reply.name}: no maintenance; its silence is repaired as ever")
        return
    output.line(f"{reply.name} is in maintenance until {output.local_time(reply.until_ms)}")
    if reply.single_count:
        output.line(
            f"{output.count_text(reply.single_count, 'chunk')} cannot be read while it is away: it has the only live"
            " replica"
        )


# --- remove


@click.command("remove", cls=Verb)
@click.argument("name")
@click.option("--force", "is_forced", is_flag=True, help="Give up chunks that have their only replica there.")
@json_option
@pass_cli
def remove(cli: Cli, name: str, is_forced: bool, as_json: bool) -> None:
    """Forget the chunk server NAME, which was drained and stopped, or is dead for good.

    It is refused for a server that runs, and when a chunk has its only registered replica there. Should a removed
    server come back one day, it registers anew, and what it holds is used.
    """
    reply = cli.client.servers.remove(name, is_forced=is_forced)
    if cli.wants_json(as_json):
        output.print_json({field: getattr(reply, field) for field in reply.__struct_fields__})
        return
    lost = f"; {output.count_text(reply.lost_count, 'chunk')} have no replica now" if reply.lost_count else ""
    output.line(f"{reply.name} is forgotten, with {output.count_text(reply.replica_count, 'replica')}{lost}")


# --- balance


@click.command("balance", cls=Verb)
@click.option("--plan", "is_plan", is_flag=True, help="Only show the moves and how long they take.")
@click.option("--stop", "is_stop", is_flag=True, help="Stop, also the automatic balance, until it is started again.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 100, min_open=True),
    default=10.0,
    metavar="PERCENT",
    help="How far fills may be apart, in percentage points (10).",
)
@json_option
@pass_cli
def balance(cli: Cli, is_plan: bool, is_stop: bool, threshold: float, as_json: bool) -> None:
    """Move chunks from the fullest chunk servers to the emptiest, until all are filled alike.

    A server receives at most `balance_rate`; repair goes first. It goes on by itself: see `dfs status`. With
    `balance = yes` in cluster.ini a spread of more than 10 points is balanced without being asked.
    """
    if is_plan and is_stop:
        raise click.UsageError("give --plan or --stop, not both")
    action = "plan" if is_plan else "stop" if is_stop else "start"
    reply = cli.client.servers.balance(action, threshold / 100)
    if cli.wants_json(as_json):
        output.print_json(_balance_json(action, reply))
        return
    for text in _balance_lines(action, reply, threshold):
        output.line(text)


def _balance_json(action: str, reply: BalanceServersReply) -> dict[str, Any]:
    return {
        "action": action,
        "balance": balance_json(reply.status),
        "moves": [{"source": move.source, "target": move.target, "size": move.size} for move in reply.moves],
        "eta_s": _json_eta(reply.eta_s),
    }


def balance_json(status: Any) -> dict[str, Any]:
    """Return a BalanceStatus with stable keys."""
    value = {field: getattr(status, field) for field in status.__struct_fields__}
    return {**value, "spread": round(status.spread, 4), "eta_s": _json_eta(status.eta_s)}


def _balance_lines(action: str, reply: BalanceServersReply, threshold: float) -> Sequence[str]:
    spread = f"{reply.status.spread * 100:.1f}"
    if action == "stop":
        return [f"balance is stopped; fills are {spread} points apart"]
    if not reply.moves:
        return [f"nothing to move: fills are {spread} points apart, {threshold:g} are allowed"]
    total = output.size_text(sum(move.size for move in reply.moves))
    head = f"{total} to move, at least {eta_text(reply.eta_s)} at balance_rate; fills are {spread} points apart"
    rows = [(move.source, "->", move.target, output.size_text(move.size)) for move in reply.moves[:FLOWS_SHOWN]]
    more = len(reply.moves) - len(rows)
    tail = [f"and {more} more"] if more > 0 else []
    end = [] if action == "plan" else ["it goes on by itself: see `dfs status`; end it with --stop"]
    return [head, *output.table(rows, (3,)), *tail, *end]


def _json_eta(seconds: float) -> float | None:
    return None if seconds < 0 else round(seconds, 1)


SERVER_VERBS: Final = (decommission, maintenance, remove, balance)
