"""What the leader tells those who look after a cluster: surveys of files and their chunks, and what servers work on.

Owns: the answers to SurveyFiles and GetReport. Refuses to know: what is healthy (that is for who asks to judge).

Both are reads behind a barrier; a page of a survey is of one instant, and small, so that the loop serves others between
two pages.
"""

from __future__ import annotations

from dfs import paths
from dfs.clock import Clock
from dfs.config import ClusterConfig
from dfs.errors import InvalidArgument
from dfs.ids import ChunkHandle
from dfs.master.access import ServerTable
from dfs.master.healing.liveness import ClusterView
from dfs.master.leadership import Leadership
from dfs.master.reports import Reports
from dfs.master.state.file_walk import FoundFile
from dfs.master.state.machine import MasterState
from dfs.master.state.tails import TailRecord
from dfs.net.aio import RequestContext
from dfs.net.auth import ClusterKey, Rights, sign_token
from dfs.net.messages import SURVEY_STEPS_MAX, GetReport, GetReportReply, Message, SurveyFiles, SurveyFilesReply
from dfs.net.parts import HealingRules, ServerLoad, SurveyedChunk, SurveyedExtent, SurveyedFile


class DiagnosisDesk:
    """The leader's answers to those who look after the cluster."""

    def __init__(
        self,
        *,
        config: ClusterConfig,
        state: MasterState,
        view: ClusterView,
        reports: Reports,
        leadership: Leadership,
        key: ClusterKey,
        clock: Clock,
    ) -> None:
        self._config, self._state, self._view, self._reports = config, state, view, reports
        self._leadership, self._key, self._clock = leadership, key, clock

    async def survey(self, message: SurveyFiles, context: RequestContext) -> Message:
        """Answer with one page of files and their chunks."""
        if not 1 <= message.limit <= SURVEY_STEPS_MAX or message.extents_told < 0:
            raise InvalidArgument(
                f"a page of {message.limit} entries was asked for, behind {message.extents_told} extents; "
                f"1 to {SURVEY_STEPS_MAX} go in one page"
            )
        await self._leadership.barrier(context.deadline)
        page = self._state.walk_page(message.path, message.after, message.extents_told, message.limit)
        table = ServerTable(self._state, self._view, self._clock.monotonic())
        chunks = _ChunkTable(self._state, table, self._token_maker(is_wanted=message.with_tokens))
        root = paths.normalise(message.path)
        files = tuple(
            chunks.surveyed(found, self._tail_of(root, found) if message.with_tails else None) for found in page.files
        )
        return SurveyFilesReply(
            files,
            tuple(chunks.rows),
            table.infos(),
            page.directory_count,
            page.after,
            page.extents_told,
            page.has_more,
        )

    def _tail_of(self, root: str, found: FoundFile) -> TailRecord | None:
        """Return the open tail of a file whose extents are told to their end; a tail is no extent yet."""
        if found.first_extent + len(found.extents) < found.extent_count:
            return None
        return self._state.tails.at(paths.join(root, found.path) if found.path else root)

    def _token_maker(self, *, is_wanted: bool) -> _TokenMaker | None:
        if not is_wanted:
            return None
        return _TokenMaker(self._key, self._clock.wall_ms() + round(self._config.token_lifetime_s * 1000))

    async def report(self, _message: GetReport, context: RequestContext) -> Message:
        """Answer with what each server said last of its work, and the times that healing goes by."""
        await self._leadership.barrier(context.deadline)
        config, now_s = self._config, self._clock.monotonic()
        waiting = {server_id: len(book) for server_id, book in self._reports.books().items()}
        heard = [(server.server_id, self._view.get(server.server_id)) for server in self._state.servers()]
        loads = tuple(
            ServerLoad(
                server_id,
                seen.active_streams,
                seen.disk_wait_ms,
                len(seen.copying),
                waiting.get(server_id, 0),
                seen.scrub,
            )
            for server_id, seen in heard
            if seen is not None and seen.has_heartbeat
        )
        rules = HealingRules(
            config.heartbeat_interval_s,
            config.dead_after_s,
            config.repair_after_s,
            config.garbage_grace_s,
            self._state.trash_keep_ms / 1000,
        )
        return GetReportReply(self._clock.wall_ms(), max(0.0, now_s - self._view.began_s), rules, loads)


class _TokenMaker:
    """Makes READ tokens that expire together."""

    def __init__(self, key: ClusterKey, expires_ms: int) -> None:
        self._key, self._expires_ms = key, expires_ms

    def token(self, handle: ChunkHandle) -> bytes:
        return sign_token(self._key, handle, Rights.READ, self._expires_ms)


class _ChunkTable:
    """The `chunks` of one reply: each is written once and referred to by index."""

    def __init__(self, state: MasterState, servers: ServerTable, tokens: _TokenMaker | None) -> None:
        self._state, self._servers, self._tokens = state, servers, tokens
        self._indexes: dict[ChunkHandle, int] = {}
        self.rows: list[SurveyedChunk] = []

    def index(self, handle: ChunkHandle) -> int:
        index = self._indexes.get(handle)
        if index is None:
            index = self._indexes[handle] = len(self.rows)
            self.rows.append(self._row(handle))
        return index

    def _row(self, handle: ChunkHandle) -> SurveyedChunk:
        chunk = self._state.chunk(handle)
        token = b"" if self._tokens is None else self._tokens.token(handle)
        if chunk is None:  # the invariants of the state forbid it; told as a chunk without any replica
            return SurveyedChunk(handle, 0, 0, 1, (), token)
        found = (self._servers.index(server_id) for server_id in chunk.servers)
        replicas = tuple(index for index in found if index is not None)
        return SurveyedChunk(handle, chunk.length, chunk.crc, chunk.goal, replicas, token)

    def _tail_index(self, tail: TailRecord, goal: int) -> int:
        found = (self._servers.index(server_id) for server_id in tail.servers)
        replicas = tuple(index for index in found if index is not None)
        self.rows.append(SurveyedChunk(tail.handle, 0, 0, goal, replicas, is_open=True))
        return len(self.rows) - 1

    def surveyed(self, found: FoundFile, tail: TailRecord | None) -> SurveyedFile:
        file = found.file
        extents = tuple(SurveyedExtent(self.index(handle), offset, length) for handle, offset, length in found.extents)
        if tail is not None:
            extents += (SurveyedExtent(self._tail_index(tail, file.replication), 0, 0),)
        return SurveyedFile(
            found.path, file.size, file.replication, file.version, found.extent_count, found.first_extent, extents
        )
