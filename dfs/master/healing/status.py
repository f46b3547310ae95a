"""How far healing is, in the numbers that `dfs status` shows.

Owns: the sums and times of the status, and the mode of a server. Refuses to know: the words for people (dfs.cli).
"""

from __future__ import annotations

from dfs.config import ClusterConfig
from dfs.master.healing.balance import plan_balance, spread_of
from dfs.master.healing.duties import fills_of, is_repairing, wanted_threshold
from dfs.master.healing.lookout import Lookout
from dfs.master.healing.orders import Healing
from dfs.master.healing.progress import UNKNOWN_S
from dfs.master.healing.standing import Roster, Standing
from dfs.master.healing.survey import Survey, Work
from dfs.master.state.commands import BALANCE_STOPPED
from dfs.master.state.machine import MasterState
from dfs.master.state.views import RegisteredServer
from dfs.net.parts import BalanceStatus, HealingStatus


def healing_status(
    config: ClusterConfig, state: MasterState, lookout: Lookout, healing: Healing, now_s: float
) -> HealingStatus:
    """Return what the newest survey and the orders under way say."""
    survey = lookout.survey
    if survey is None:
        return HealingStatus()
    meter = healing.repairs
    return HealingStatus(
        waiting=tuple(survey.waiting),
        waiting_size=survey.waiting_size,
        deferred_count=survey.deferred_count,
        blocked_count=survey.blocked_count,
        blocked_reason=_why_blocked(lookout.roster()) if survey.blocked_count else "",
        copying_count=len(healing.copies),
        copied_count=meter.count,
        copied_size=meter.size,
        failed_count=meter.failed_count,
        rate=round(meter.rate(now_s)),
        eta_s=meter.eta_s(survey.waiting_size, now_s),
        safe_eta_s=meter.eta_s(survey.single_size, now_s),
        surplus_count=survey.surplus_count,
        misplaced_count=survey.misplaced_count,
        is_surveyed=True,
        balance=balance_status(config, state, lookout, healing, now_s),
    )


def balance_status(
    config: ClusterConfig, state: MasterState, lookout: Lookout, healing: Healing, now_s: float
) -> BalanceStatus:
    survey = lookout.survey
    if survey is None:
        return BalanceStatus()
    mode, _ = state.balance
    fills = fills_of(survey, lookout.roster(), healing, state)
    spread = spread_of(fills)
    threshold = wanted_threshold(config, state)
    if threshold is None:
        return BalanceStatus("stopped" if mode == BALANCE_STOPPED else "off", 0.0, spread)
    moving = sum(order.plan.chunk.length for order in healing.copies if order.plan.work is Work.MOVE)
    left = moving + sum(flow.size for flow in plan_balance(fills, threshold))
    shown = "running" if left else "even"
    if left and is_repairing(survey):
        shown = "waiting"
    elif left and healing.is_settled:
        shown = "settled"
    meter = healing.moves
    return BalanceStatus(shown, threshold, spread, left, round(meter.rate(now_s)), meter.eta_s(left, now_s))


def server_mode(state: MasterState, server: RegisteredServer, survey: Survey | None, wall_ms: int) -> str:
    """Return what an administrator wants of a server, and whether it is so far."""
    if server.is_leaving:
        is_drained = (
            survey is not None
            and (member := survey.roster.get(server.server_id)) is not None
            and member.standing is Standing.LEAVING  # the survey knows that it leaves
            and server.server_id not in survey.left
            and not any(server.server_id in tail.servers for tail in state.tails.all())  # records that nobody else has
        )
        return "drained" if is_drained else "draining"
    return "maintenance" if wall_ms < server.maintenance_until_ms else ""


def seconds(size: int, rate: int) -> float:
    """Return how long `size` bytes take at a configured rate, `UNKNOWN_S` when that is no limit."""
    if not size:
        return 0.0
    return size / rate if rate else UNKNOWN_S


def _why_blocked(roster: Roster) -> str:
    """Say why no server can take a copy."""
    words = []
    for member in roster:
        if member.standing is Standing.LEAVING:
            words.append(f"{member.name} is being drained")
        elif not member.standing.is_live:
            words.append(f"{member.name} is away")
        elif not member.room:
            words.append(f"{member.name} takes nothing (late, full, or not heard yet)")
    able = len(roster.takers)
    text = f"{able} chunk server{'' if able == 1 else 's'} can take copies, and they hold these chunks already"
    return f"{text}; {'; '.join(words[:8])}" if words else f"{text}: add servers, or lower the replication (dfs setrep)"
