"""How far each chunk server can be counted on at one moment: for reads, for the goal of a chunk, for new replicas.

Owns: what silence, draining and maintenance mean for replicas, and who can take how much. Refuses to know: clocks
(moments are arguments), chunks, and what is done about it.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from dfs.ids import ServerId
from dfs.master.healing.liveness import ClusterView, Liveness, ServerView
from dfs.master.state.views import RegisteredServer


class Standing(enum.Enum):
    """What a replica on a server is worth."""

    PRESENT = "present"  # can be read, counts for the goal
    LEAVING = "leaving"  # can be read, does not count: the server is being drained
    AWAITED = "awaited"  # silent, not for long enough to be given up
    EXCUSED = "excused"  # silent in its maintenance: counts, until that ends
    LOST = "lost"  # given up

    @property
    def is_live(self) -> bool:
        return self in (Standing.PRESENT, Standing.LEAVING)


@dataclass(frozen=True, slots=True)
class Member:
    """One registered server at one moment. `room`: bytes of the largest replica that it can take now, 0 for none."""

    server_id: ServerId
    name: str
    address: str
    rack: str
    standing: Standing
    room: int = 0
    free: int = 0
    load: int = 0  # streams, and chunks promised to writers
    is_prompt: bool = True  # alive and not slow
    is_confirmed: bool = False  # what it holds was reported in full to this leader
    is_staying: bool = True  # neither being drained nor replaced: dead or not, replicas belong there


class Roster:
    """All registered servers at one moment."""

    def __init__(self, members: Iterable[Member]) -> None:
        self._members = {member.server_id: member for member in members}
        self.takers = tuple(member for member in self._members.values() if member.room > 0)
        self.staying_count = sum(member.is_staying for member in self._members.values())
        self.racks_with_room = frozenset(member.rack for member in self.takers)

    def get(self, server_id: ServerId) -> Member | None:
        return self._members.get(server_id)

    def __getitem__(self, server_id: ServerId) -> Member:
        return self._members[server_id]

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def members_of(self, server_ids: Iterable[ServerId]) -> list[Member]:
        """Return the registered ones of these."""
        return [member for server_id in server_ids if (member := self._members.get(server_id)) is not None]


def make_roster(
    servers: Iterable[RegisteredServer],
    view: ClusterView,
    *,
    now_s: float,
    wall_ms: int,
    repair_after_s: float,
    confirmed: Collection[ServerId],
) -> Roster:
    """Judge every registered server. `confirmed`: those whose full reports this leader has taken in."""
    registered = list(servers)
    running = {seen.address for server in registered if (seen := view.get(server.server_id)) is not None}
    members = []
    for server in registered:
        seen = view.get(server.server_id)
        liveness = view.liveness(server.server_id, now_s)
        standing = _standing(server, liveness, view.silence_s(server.server_id, now_s), wall_ms, repair_after_s)
        is_replaced = seen.is_replaced if seen is not None else server.address in running
        if is_replaced:  # another identity runs at its address: its data is not there any more
            standing = Standing.LOST
        stays = wall_ms >= server.maintenance_until_ms  # or it may be away soon, and what it got with it
        takes = seen is not None and standing is Standing.PRESENT and liveness is Liveness.ALIVE and stays
        members.append(
            Member(
                server.server_id,
                server.name,
                server.address,
                server.rack,
                standing,
                room=room_of(seen) if takes and seen is not None else 0,
                free=seen.free if seen is not None else 0,
                load=seen.active_streams + seen.promised_count if seen is not None else 0,
                is_prompt=liveness is Liveness.ALIVE and not view.is_slow(server.server_id),
                is_confirmed=server.server_id in confirmed,
                is_staying=not (server.is_leaving or is_replaced),
            )
        )
    return Roster(members)


def room_of(seen: ServerView) -> int:
    """Return the bytes of the largest replica that a server can take: one disk has to hold it whole."""
    if not seen.has_heartbeat:
        return 0
    best = max((disk.free for disk in seen.disks if disk.state == "ok"), default=0)
    return max(0, min(best, seen.free))


def _standing(
    server: RegisteredServer, liveness: Liveness, silence_s: float, wall_ms: int, repair_after_s: float
) -> Standing:
    if liveness is not Liveness.DEAD:
        return Standing.LEAVING if server.is_leaving else Standing.PRESENT
    if server.is_leaving:
        return Standing.LOST
    if wall_ms < server.maintenance_until_ms:
        return Standing.EXCUSED
    return Standing.AWAITED if silence_s <= repair_after_s else Standing.LOST
