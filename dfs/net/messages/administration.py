"""What an administrator asks of the leader about chunk servers: drain, maintenance, removal, balance, stuck tails.

Owns: these calls and their replies. Refuses to know: how the leader carries them out.

None of them needs exactly-once: each says what shall be, and saying it twice is saying it once. A server is named by
its name, or by its id in hex where several have one name.
"""

from __future__ import annotations

from dfs.net.messages.base import Message, message
from dfs.net.parts import BalanceStatus, PlannedMove

MAINTENANCE_MAX_S = 7 * 86400.0  # a longer one is a server that nobody will bring back
MOVES_SHOWN_MAX = 1000  # planned moves in one BalanceReply


@message(0x0120)
class DecommissionServer(Message, frozen=True, array_like=True):
    """Drain a chunk server: copy all it holds elsewhere. `is_plan`: only tell; `is_cancel`: let it serve on.

    `Conflict` when the servers left would be too few or too full."""

    name: str
    is_plan: bool = False
    is_cancel: bool = False


@message(0x0121)
class DecommissionServerReply(Message, frozen=True, array_like=True):
    name: str
    mode: str  # as in ServerStatus
    left_count: int  # chunks that need a copy elsewhere
    left_size: int
    servers_left: int  # that can take them
    eta_s: float  # at the repair rate; -1.0 when it cannot be told


@message(0x0122)
class SetMaintenance(Message, frozen=True, array_like=True):
    """Do not repair what this server holds for `duration_s`, though it may be silent; 0 ends that."""

    name: str
    duration_s: float


@message(0x0123)
class SetMaintenanceReply(Message, frozen=True, array_like=True):
    name: str
    until_ms: int  # 0: no maintenance
    single_count: int  # chunks of which every other replica is gone: a failure of this server makes them unreadable


@message(0x0124)
class RemoveServer(Message, frozen=True, array_like=True):
    """Forget a server that does not run. `Conflict` when a chunk has its only registered replica there, unless
    `is_forced`."""

    name: str
    is_forced: bool = False


@message(0x0125)
class RemoveServerReply(Message, frozen=True, array_like=True):
    name: str
    server_id: str  # hex
    replica_count: int  # replicas that the map forgot
    lost_count: int  # chunks that have no replica now


@message(0x0126)
class BalanceServers(Message, frozen=True, array_like=True):
    """`action`: plan (only tell), start, stop. `threshold`: the spread of fills that is left, as a share (0.1)."""

    action: str
    threshold: float = 0.1


@message(0x0127)
class BalanceServersReply(Message, frozen=True, array_like=True):
    status: BalanceStatus
    moves: tuple[PlannedMove, ...]
    eta_s: float  # at the balance rate; -1.0 when it cannot be told


@message(0x0170)
class EndTail(Message, frozen=True, array_like=True):
    """Seal the open tail of a file now; with `gives_up` end it without its bytes when no server of its chain has it.

    `Conflict` when one may have it, being silent, unless `is_forced`."""

    path: str
    gives_up: bool = False
    is_forced: bool = False


@message(0x0171)
class EndTailReply(Message, frozen=True, array_like=True):
    outcome: str  # none, sealed, given_up
    length: int  # bytes that became part of the file
    reported_length: int  # bytes that its head told this leader last; 0: nothing was heard
    servers: tuple[str, ...]  # names of its chain
