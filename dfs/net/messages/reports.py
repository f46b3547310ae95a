"""What chunk servers tell the leader, and what it orders.

Owns: registrations, heartbeats and full reports. Refuses to know: what the leader makes of them.

Sizes are bytes, times are milliseconds since 1970.
"""

from __future__ import annotations

from dfs.ids import ChunkHandle, ServerId
from dfs.net.messages.base import Message, message
from dfs.net.parts import CopyFailure, CopyReplica, DeleteReplica, DiskReport, ReplicaReport, ScrubStatus

REPORT_PAGE_MAX = 5000  # replicas in one ChunkReport
HEARTBEAT_CHANGES_MAX = 5000  # added and removed replicas in one Heartbeat
COPIES_WAITING_MAX = 512  # orders to copy that one chunk server holds at a time: small ones for more than one heartbeat
ORDERS_MAX = 1000  # orders in one reply


@message(0x0300)
class RegisterServer(Message, frozen=True, array_like=True):
    """First words of a chunk server to a leader. `incarnation` is drawn at each start of the daemon.

    `capacity` 0 is refused. Another live server with the same id is refused (a copied data directory).
    """

    server_id: ServerId
    name: str
    address: str
    rack: str
    incarnation: bytes
    capacity: int


@message(0x0301)
class RegisterServerReply(Message, frozen=True, array_like=True):
    cluster: str


@message(0x0302)
class Heartbeat(Message, frozen=True, array_like=True):
    """Each second. `added` and `removed` are changes since the last acknowledged heartbeat (at most
    HEARTBEAT_CHANGES_MAX together; the rest waits for the next one)."""

    server_id: ServerId
    incarnation: bytes
    capacity: int
    free: int
    chunk_count: int
    active_streams: int
    disks: tuple[DiskReport, ...]
    added: tuple[ReplicaReport, ...] = ()
    removed: tuple[ChunkHandle, ...] = ()
    copying: tuple[ChunkHandle, ...] = ()  # orders to copy that wait or are under way, at most COPIES_WAITING_MAX
    copy_failures: tuple[CopyFailure, ...] = ()  # at most COPIES_WAITING_MAX, told again until acknowledged
    corrupt: tuple[ChunkHandle, ...] = ()  # those of `removed` that were found damaged or gone, not deleted
    disk_wait_ms: int = (
        0  # how long a small synced write took lately on the slowest working disk: slow servers stand out
    )
    scrub: ScrubStatus = ScrubStatus()
    unexpected_count: int = 0  # errors since its start that its code did not expect; each is in its log


@message(0x0303)
class HeartbeatReply(Message, frozen=True, array_like=True):
    """`must_register`: this leader does not know the server: register and report. `must_report`: send a full report."""

    must_register: bool
    must_report: bool
    orders: tuple[DeleteReplica, ...] = ()
    copies: tuple[CopyReplica, ...] = ()  # `copying` of the next heartbeats confirms them; a repeated one is no second
    copy_rate_max: int = 0  # bytes per second that this server may fetch for copies that are not urgent; 0 = no limit


@message(0x0304)
class ChunkReport(Message, frozen=True, array_like=True):
    """A page of a full report, handles ascending. Pages of one `report_id` are sent in order, `page` from 0."""

    server_id: ServerId
    incarnation: bytes
    report_id: int
    page: int
    is_last: bool
    replicas: tuple[ReplicaReport, ...]


@message(0x0305)
class ChunkReportReply(Message, frozen=True, array_like=True):
    orders: tuple[DeleteReplica, ...] = ()
