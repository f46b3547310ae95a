"""Look into a cluster's health: surveys page by page, replicas verified where they lie, nodes asked for themselves.

Owns: which node is asked what, in parallel and within limits. Refuses to know: what is healthy (dfs.client.fsck), and
output.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from dfs import paths
from dfs.client.discovery import Masters
from dfs.client.pool import ChannelPool, exchange
from dfs.clock import SYSTEM_CLOCK, Clock, Deadline
from dfs.errors import ChunkCorrupt, ChunkNotFound, DfsError, DiskFailed, NotADirectory, NotFound, Overloaded
from dfs.ids import ChunkHandle, ServerId
from dfs.net.blocking import expect
from dfs.net.messages import (
    SURVEY_STEPS_MAX,
    GetReport,
    GetReportReply,
    Message,
    Ping,
    Pong,
    SurveyFiles,
    SurveyFilesReply,
    VerifyReplica,
    VerifyReplicaReply,
)
from dfs.net.parts import ServerInfo, SurveyedChunk

VERIFY_TIMEOUT_S = 120.0  # for one replica: the largest chunk from a slow disk that others use, too
VERIFY_SERVERS_MAX = 32  # chunk servers that verify for us at the same time, one replica each
NODES_MAX = 64  # nodes asked for themselves at the same time
SETTLE_S = 2.5  # heartbeats after which the masters know of a replica that went in good order

_OF_ONE_REPLICA = (ChunkCorrupt, DiskFailed, Overloaded)  # errors that say nothing about the server's other replicas
ReplyT = TypeVar("ReplyT", bound=Message)


class Finding(enum.Enum):
    """What a chunk server found when it verified a replica."""

    GOOD = "good"
    CORRUPT = "corrupt"  # it is in its quarantine now
    ABSENT = "absent"  # it does not have what the masters think it has
    UNASKED = "unasked"  # it could not be asked


Findings = dict[tuple[ChunkHandle, ServerId], Finding]


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """What the node at `address` said. `clock_offset_s`: its time of day minus ours, known to ±`clock_error_s`."""

    address: str
    node: str = ""
    role: str = ""
    version: str = ""
    clock_offset_s: float | None = None
    clock_error_s: float = 0.0
    error: DfsError | None = None


class Inspection:
    """The eyes of administrators. Get one from `DfsClient.inspection`. Thread-safe."""

    def __init__(self, masters: Masters, pool: ChannelPool, timeout_s: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self._masters, self._pool, self._timeout_s, self._clock = masters, pool, timeout_s, clock

    def report(self) -> GetReportReply:
        """Return what the leader knows of the servers' work, and the cluster's times."""
        return self._masters.call(GetReport(), GetReportReply, Deadline.after(self._timeout_s))

    # --- surveys ------------------------------------------------------------------------------------

    def survey(
        self, path: str, *, with_tokens: bool = False, with_tails: bool = False, page_size: int = SURVEY_STEPS_MAX
    ) -> Iterator[SurveyFilesReply]:
        """Yield all files at and below `path` with their chunks, in pages, each of one instant.

        `with_tails`: the open tail of a file that records are appended to comes as its last extent.

        Raise `NotFound` when there is nothing at `path`; when it goes away later, that is where the survey ends.
        """
        path, after, told = paths.normalise(path), "", 0
        page = self._page(SurveyFiles(path, after, told, page_size, with_tokens, with_tails))
        while True:
            yield page
            if not page.has_more or (page.after, page.extents_told) == (after, told):
                return
            after, told = page.after, page.extents_told
            try:
                page = self._page(SurveyFiles(path, after, told, page_size, with_tokens, with_tails))
            except (NotFound, NotADirectory):
                return

    def _page(self, message: SurveyFiles) -> SurveyFilesReply:
        return self._masters.call(message, SurveyFilesReply, Deadline.after(self._timeout_s))

    def verify(self, path: str, page: SurveyFilesReply) -> Findings:
        """Let the chunk servers verify every live replica of a page of a survey of `path` made `with_tokens`.

        All servers work at the same time, each on one replica at a time. A replica that is not there and that the
        masters do not list any more a moment later went in good order: it is left out.
        """
        work: dict[int, list[SurveyedChunk]] = {}
        for chunk in page.chunks:
            for index in () if chunk.is_open else chunk.replicas:  # an open one is verified when it is sealed
                if page.servers[index].is_alive:
                    work.setdefault(index, []).append(chunk)
        found: Findings = {}
        if not work:
            return found
        with ThreadPoolExecutor(min(len(work), VERIFY_SERVERS_MAX), "dfs-verify") as executor:
            jobs = [executor.submit(self._verify_on, page.servers[index], chunks) for index, chunks in work.items()]
            for job in jobs:
                found.update(job.result())
        absent = [key for key, finding in found.items() if finding is Finding.ABSENT]
        if absent:
            listed = self._listed_still(path, page, {handle for handle, _ in absent})
            for key in absent:
                if key not in listed:
                    del found[key]
        return found

    def _verify_on(self, server: ServerInfo, chunks: Sequence[SurveyedChunk]) -> Findings:
        found: Findings = {}
        for number, chunk in enumerate(chunks):
            key = (chunk.handle, server.server_id)
            deadline = Deadline.after(max(self._timeout_s, VERIFY_TIMEOUT_S))
            try:
                reply = self._ask(
                    server.address, VerifyReplica(chunk.handle, chunk.token), VerifyReplicaReply, deadline
                )
                found[key] = Finding.GOOD if reply.is_good else Finding.CORRUPT
            except ChunkNotFound:
                found[key] = Finding.ABSENT
            except DfsError as error:
                found[key] = Finding.UNASKED
                if not isinstance(error, _OF_ONE_REPLICA):  # it does not answer: the others would wait as long
                    rest = chunks[number + 1 :]
                    found.update({(other.handle, server.server_id): Finding.UNASKED for other in rest})
                    break
        return found

    def _listed_still(
        self, path: str, page: SurveyFilesReply, handles: set[ChunkHandle]
    ) -> set[tuple[ChunkHandle, ServerId]]:
        """Return the replicas of these chunks that the masters still list after a moment."""
        time.sleep(SETTLE_S)
        by_index = {index: chunk.handle for index, chunk in enumerate(page.chunks) if chunk.handle in handles}
        listed: set[tuple[ChunkHandle, ServerId]] = set()
        for file in page.files:
            if not any(extent.chunk in by_index for extent in file.extents):
                continue
            try:
                for again in self.survey(paths.join(path, file.path) if file.path else path):
                    listed |= {
                        (chunk.handle, again.servers[index].server_id)
                        for chunk in again.chunks
                        if chunk.handle in handles
                        for index in chunk.replicas
                    }
            except (NotFound, NotADirectory):
                continue  # the file went meanwhile, and its chunks with it
        return listed

    # --- nodes ----------------------------------------------------------------------------------------

    def ping(self, addresses: Iterable[str], timeout_s: float) -> list[NodeAnswer]:
        """Ask the nodes at `addresses` for themselves, all at once, each within `timeout_s`."""
        wanted = list(addresses)
        if not wanted:
            return []
        with ThreadPoolExecutor(min(len(wanted), NODES_MAX), "dfs-ping") as executor:
            return [*executor.map(lambda address: self._ping(address, timeout_s), wanted)]

    def _ping(self, address: str, timeout_s: float) -> NodeAnswer:
        deadline = Deadline.after(timeout_s)
        try:
            with self._pool.channel(address, deadline) as channel:
                begun_ms, begun_s = self._clock.wall_ms(), self._clock.monotonic()
                pong = expect(exchange(channel, Ping(), deadline), Pong)
                half_s = (self._clock.monotonic() - begun_s) / 2  # the answer was made somewhere on the way
        except DfsError as error:
            return NodeAnswer(address, error=error)
        offset_s = (pong.now_ms - begun_ms) / 1000 - half_s if pong.now_ms else None
        return NodeAnswer(address, pong.node, pong.role, pong.version, offset_s, half_s + 0.001)

    def _ask(self, address: str, message: Message, reply: type[ReplyT], deadline: Deadline) -> ReplyT:
        with self._pool.channel(address, deadline, bulk=True) as channel:
            return expect(exchange(channel, message, deadline), reply)
