"""The replicated state of the masters: commands in, replies out, and queries beside them.

Owns: dispatch, exactly-once, the state clock, queries, dump and load. Refuses to know: clocks, random numbers, IO,
logging, which servers live, and how commands get here.

Rule 1: only `apply` changes it. Rule 2: the same commands give the same replies and the same dump on every master, also
when one of them was loaded from a dump in between. Rule 3: `apply` never raises; a command that fails changed nothing.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeVar

import msgspec

from dfs.errors import Conflict, DfsError, InternalError, InvalidArgument, IsADirectory, NotADirectory, Overloaded
from dfs.ids import ChunkHandle, ServerId
from dfs.master.state import (
    checkpoint,
    content_commands,
    duty_commands,
    extents,
    packed_commands,
    quota_commands,
    quotas,
    range_commands,
    server_commands,
    snapshot_commands,
    tail_commands,
    tree_commands,
)
from dfs.master.state.commands import (
    BeginTail,
    ChangeReplicas,
    CommitTail,
    ExpireSessions,
    ExpireTrash,
    ForgetAppenders,
    ForgetGarbage,
    ForgetServer,
    PutServer,
    SetBalance,
    SetOptions,
    SetServerMode,
    TrimReplicas,
    decode_command,
)
from dfs.master.state.file_walk import WalkPage, walk_page
from dfs.master.state.invariants import check_invariants
from dfs.master.state.loading import StateLoading
from dfs.master.state.namespace import shown, status_of, statuses_of
from dfs.master.state.nodes import Directory, File, Node
from dfs.master.state.parts import TIME_MAX_MS, StateParts
from dfs.master.state.subtree import entries_after
from dfs.master.state.tails import TailRecord, TailTable
from dfs.master.state.views import ChunkView, Extent, ExtentsView, GarbageChunk, RegisteredServer, ReplicaTally
from dfs.net.messages import (
    LIST_LIMIT_MAX,
    LOCATE_EXTENTS_MAX,
    LOCATE_FILE_EXTENTS_MAX,
    QUOTAS_PAGE_MAX,
    SNAPSHOTS_PAGE_MAX,
    AppendExtents,
    CommitFile,
    CommitMany,
    Concat,
    Copy,
    CreateSnapshot,
    Delete,
    EmptyTrash,
    ErrorReply,
    MakeDirectory,
    Message,
    Mutation,
    RemoveDirectory,
    RemoveSnapshot,
    Rename,
    RestoreSnapshot,
    SetQuota,
    SetReplication,
    Touch,
    Truncate,
    Undelete,
    WriteRange,
)
from dfs.net.parts import FileStatus, QuotaStatus, SnapshotStatus, SpaceStatus, TrashEntry

__all__ = ["ChunkView", "Extent", "ExtentsView", "GarbageChunk", "MasterState", "RegisteredServer"]

KeyT = TypeVar("KeyT")
TALLIES_PER_PIECE = 300  # judged between two breaths of the loop: about 3 ms
TRASH_KEEP_MS = 3 * 24 * 60 * 60 * 1000
REPLICATION = 3

_HANDLERS: dict[type[Message], Callable[[StateParts, Any], Message]] = {
    MakeDirectory: tree_commands.make_directory,
    RemoveDirectory: tree_commands.remove_directory,
    Delete: tree_commands.delete,
    Rename: tree_commands.rename,
    Copy: tree_commands.copy,
    Touch: tree_commands.touch,
    Undelete: tree_commands.undelete,
    EmptyTrash: tree_commands.empty_trash,
    CommitFile: content_commands.commit_file,
    AppendExtents: content_commands.append_extents,
    SetReplication: content_commands.set_replication,
    CommitMany: packed_commands.commit_many,
    Truncate: range_commands.truncate,
    Concat: range_commands.concat,
    WriteRange: range_commands.write_range,
    CreateSnapshot: snapshot_commands.create_snapshot,
    RemoveSnapshot: snapshot_commands.remove_snapshot,
    RestoreSnapshot: snapshot_commands.restore_snapshot,
    SetQuota: quota_commands.set_quota,
    PutServer: duty_commands.put_server,
    ChangeReplicas: duty_commands.change_replicas,
    ExpireTrash: duty_commands.expire_trash,
    ForgetGarbage: duty_commands.forget_garbage,
    ExpireSessions: duty_commands.expire_sessions,
    SetOptions: duty_commands.set_options,
    SetServerMode: server_commands.set_server_mode,
    ForgetServer: server_commands.forget_server,
    TrimReplicas: server_commands.trim_replicas,
    SetBalance: server_commands.set_balance,
    BeginTail: tail_commands.begin_tail,
    CommitTail: tail_commands.commit_tail,
    ForgetAppenders: tail_commands.forget_appenders,
}


class MasterState:
    """The state machine of `dfs.master.replicated_log`. One thread; queries see the state between two commands.

    The two options must be the same on all masters until a `SetOptions` command replaces them: leave the defaults, and
    let the leader propose its configuration.
    """

    def __init__(self, *, trash_keep_ms: int = TRASH_KEEP_MS, replication: int = REPLICATION) -> None:
        self._parts = StateParts(trash_keep_ms, replication)
        self._applied = 0  # commands since the start of this process; notices changes during a dump
        self.fault: str | None = None  # the traceback of the last bug met in a handler; the daemon logs it

    # --- commands

    def apply(self, now_ms: int, command: Message) -> Message:
        """Apply one command at the leader's time; return its reply or an `ErrorReply`. Never raises."""
        parts = self._parts
        self._applied += 1
        try:
            if not 0 <= now_ms <= TIME_MAX_MS:
                raise InvalidArgument(f"the command's time {now_ms} ms is not between 1970 and the year 9999")
            handler = _HANDLERS.get(type(command))
            if handler is None:
                raise InvalidArgument(f"{type(command).__name__} is not a command")
            parts.tick(now_ms)
            apply = self._apply_once if isinstance(command, Mutation) else self._run
            reply = apply(command, handler)
            parts.step()
        except DfsError as error:
            return ErrorReply.of(error)
        except Exception as error:  # noqa: BLE001 - one that escaped would be re-applied by the log for ever
            return self._report(error, command)
        return reply

    def apply_encoded(self, command: bytes) -> Message:
        """Apply a log entry; one that cannot be decoded changes nothing and gives an `ErrorReply`. Never raises."""
        try:
            now_ms, decoded = decode_command(command)
        except DfsError as error:
            return ErrorReply.of(error)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            return ErrorReply.of(InvalidArgument(f"a log entry is not a command: {error}"))
        return self.apply(now_ms, decoded)

    def _apply_once(self, command: Any, handler: Callable[[StateParts, Any], Message]) -> Message:
        parts = self._parts
        known = parts.sessions.begin(command.call, parts.clock_ms)
        if known is not None:
            return known
        parts.tails.check_sealed(command)  # its refusal is no result: nothing was applied, the same call comes again
        try:
            reply = handler(parts, command)
        except DfsError as error:
            reply = ErrorReply.of(error)
            if error.code == Overloaded.code:
                return reply  # no result: nothing was applied, and the same call comes again
        parts.sessions.finish(command.call, reply)
        return reply

    def _run(self, command: Message, handler: Callable[[StateParts, Any], Message]) -> Message:
        try:
            return handler(self._parts, command)
        except DfsError as error:
            return ErrorReply.of(error)

    def _report(self, error: Exception, command: Message) -> ErrorReply:
        """Answer for a bug; every master meets it alike, so the log must go on."""
        self.fault = "".join(traceback.format_exception(error))
        name = type(command).__name__
        return ErrorReply.of(InternalError(f"{name} met a bug in the master ({type(error).__name__}); see its log"))

    # --- dump and load

    def dump(self) -> Iterator[bytes]:
        """Yield the state in pieces of bounded size.

        Nothing may be applied meanwhile (`InternalError` when it was): dump in a forked child, or in one go.
        """
        applied = self._applied
        for piece in checkpoint.dump(self._parts):
            yield piece
            if applied != self._applied:
                raise InternalError("a command was applied during a dump; dump in a forked child or without a pause")

    def load(self, pieces: Iterable[bytes]) -> None:
        """Replace the state by a dumped one; raise `StorageCorrupt` and change nothing when it is damaged."""
        self._exchange(checkpoint.load(pieces))

    def begin_load(self, pieces: Iterable[bytes]) -> StateLoading:
        """Return the steps that load a dumped state beside this one and then replace it; commands may go on meanwhile.

        Pieces are taken when the steps need them. What goes on is lost at the exchange, as with `load`.
        """
        return StateLoading(pieces, self._exchange)

    def _exchange(self, parts: StateParts) -> StateParts:
        old, self._parts = self._parts, parts
        self._applied += 1
        return old

    def check_invariants(self) -> None:
        """Raise AssertionError with the story unless all parts agree. O(state): for tests and fsck."""
        check_invariants(self._parts)

    # --- queries

    @property
    def clock_ms(self) -> int:
        """The state clock: the latest leader's time that a command brought; it never goes back."""
        return self._parts.clock_ms

    @property
    def trash_keep_ms(self) -> int:
        return self._parts.trash_keep_ms

    @property
    def replication(self) -> int:
        """The default for files that are created without one."""
        return self._parts.replication

    @property
    def orphan_grace_ms(self) -> int:
        """How long after its allocation a chunk may be committed."""
        return self._parts.orphan_grace_ms

    @property
    def horizon_ms(self) -> int:
        """A chunk allocated before it that is not known now will never be."""
        return self._parts.horizon_ms

    def begin_another_life(self) -> None:
        """Count as born at the next command: what is unknown and older than that is kept. Before any log only."""
        self._parts.born_ms = 0

    @property
    def born_ms(self) -> int:
        """No chunk of this state was allocated before; none at all when its life begins at its next command."""
        return self._parts.born_ms or TIME_MAX_MS

    def stat(self, path: str) -> FileStatus:
        return status_of(path, self._parts.find(path))

    def list_directory(self, path: str, after: str, limit: int) -> tuple[tuple[FileStatus, ...], bool]:
        """Return at most `limit` entries named after `after`, by name, and whether there are more."""
        _check_limit(limit, LIST_LIMIT_MAX)
        node = self._parts.find(path)
        if isinstance(node, File):
            raise NotADirectory(f"{shown(path)} is a file")
        entries, has_more = node.entries.page(after, limit)
        return statuses_of(entries), has_more

    def extents(self, path: str, first_extent: int, count: int, version: int) -> ExtentsView:
        """Return at most `count` extents from number `first_extent` on; `version` 0 is the present one."""
        _check_limit(count, LOCATE_EXTENTS_MAX)
        if first_extent < 0:
            raise InvalidArgument(f"there is no extent number {first_extent}")
        node = self._parts.find(path)
        if isinstance(node, Directory):
            raise IsADirectory(f"{shown(path)} is a directory")
        if version and not self._parts.tails.is_beginning(node, version):
            raise Conflict(f"{shown(path)} changed: it has version {node.version}, {version} was asked for; begin anew")
        first_offset, found = extents.window(node.extents, node.size, first_extent, count)
        has_more = first_extent + count < extents.count(node.extents)
        return ExtentsView(status_of(path, node), first_offset, found, has_more)

    @property
    def tails(self) -> TailTable:
        """Open tails and appenders; for reading only."""
        return self._parts.tails

    def room_at(self, path: str) -> tuple[int, str]:
        """Return how many stored bytes the quotas above a path leave, and the directory whose it is ("": none has)."""
        return self._parts.quotas.room(self._parts.namespace.look(path))

    def walk_page(self, path: str, after: str, extents_told: int, limit: int) -> WalkPage:
        """Return a page of the files at and below `path`, see dfs.master.state.file_walk."""
        return walk_page(self._parts.find(path), after, extents_told, limit)

    def content_below(self, path: str, after: str) -> Iterator[tuple[str, Node, tuple[Extent, ...] | None]]:
        """Yield (relative path, node, extents) of what is below a directory and comes after `after`.

        The extents are None where they are more than a reply tells, or not all: records are being appended to the file.
        Take a bounded number; apply nothing in between.
        """
        root = self._parts.find(path)
        tails, above = self._parts.tails, path.rstrip("/")
        if isinstance(root, File):
            raise NotADirectory(f"{shown(path)} is a file")
        return (
            (name, node, _few_extents(node, tails.at(f"{above}/{name}")) if isinstance(node, File) else ())
            for name, node in entries_after(root, after)
        )

    def chunk(self, handle: ChunkHandle) -> ChunkView | None:
        return self._parts.chunks.view(handle)

    def is_garbage(self, handle: ChunkHandle) -> bool:
        """Whether the chunk was released and some server has not confirmed yet that it is gone."""
        return self._parts.chunks.is_garbage(handle)

    def is_garbage_on(self, handle: ChunkHandle, server_id: ServerId) -> bool:
        """Whether the chunk was released and this server has not confirmed yet that it is gone."""
        return self._parts.chunks.is_garbage_on(handle, server_id)

    def garbage_handles(self) -> list[ChunkHandle]:
        """Return the handles of all garbage, a snapshot for walks in slices."""
        return self._parts.chunks.garbage_handles()

    def garbage(self, start_at: int = 0) -> Iterator[GarbageChunk]:
        """Yield released chunks, oldest first, from number `start_at` on (skipping a million takes 10 ms).

        Take a bounded number, and apply nothing in between.
        """
        return self._parts.chunks.garbage(start_at)

    def chunk_handles(self) -> list[ChunkHandle]:
        """Return all known handles; of a million, 30 ms: walks on the loop take `chunk_handle_pieces`."""
        return list(chain.from_iterable(self._parts.chunks.handles()))

    def chunk_handle_pieces(self, first_piece: int = 0) -> Iterator[list[ChunkHandle]]:
        """Yield all known handles in pieces, each as of its moment; commands may be applied in between.

        A chunk that is known from the first piece to the last is in one of them. Of a million, 4,000 are in a piece.
        The pieces begin with number `first_piece`, go round, and are always as many.
        """
        return self._parts.chunks.handles(first_piece)

    def select_chunks(
        self, handles: Iterable[ChunkHandle], wanted: Mapping[tuple[tuple[ServerId, ...], int], KeyT]
    ) -> list[tuple[ChunkHandle, KeyT]]:
        """Return those of `handles` whose (registered servers, goal) is a key of `wanted`, each with its value."""
        return self._parts.chunks.select(handles, wanted)

    def replica_tallies(self) -> Iterator[list[ReplicaTally]]:
        """Yield a row for each combination of servers and goal that chunks have, in pieces as of their moments."""
        sets = self._parts.chunks.replica_sets()
        for start in range(0, len(sets), TALLIES_PER_PIECE):
            piece = sets[start : start + TALLIES_PER_PIECE]
            yield [ReplicaTally(found.servers, found.goal, found.count, found.size) for found in piece if found.count]

    def tallies_on(self, server_id: ServerId) -> list[ReplicaTally]:
        """Return the rows of `replica_tallies` that name a server, O(replica sets)."""
        named = (found for found in self._parts.chunks.replica_sets() if server_id in found.servers)
        return [ReplicaTally(found.servers, found.goal, found.count, found.size) for found in named]

    def garbage_count_of(self, server_id: ServerId) -> int:
        """Return how many chunks of garbage this server has not confirmed to be gone."""
        return self._parts.chunks.garbage_count_of(server_id)

    @property
    def balance(self) -> tuple[int, int]:
        """What an administrator wants of balance: the mode and the threshold of `SetBalance`."""
        return self._parts.balance_mode, self._parts.balance_threshold_ppm

    def handles_on(self, server_id: ServerId) -> Iterator[list[ChunkHandle]]:
        """Yield the handles of the chunks registered on a server, in pieces as `chunk_handle_pieces` does."""
        return self._parts.chunks.handles_on(server_id)

    def servers(self) -> tuple[RegisteredServer, ...]:
        """Return all registered servers, in the order they joined."""
        return self._parts.servers.all()

    def server(self, server_id: ServerId) -> RegisteredServer | None:
        return self._parts.servers.get(server_id)

    def space(self, live: Collection[ServerId] | None) -> SpaceStatus:
        """Return the counters, O(replica sets). `live` None takes every registered server for alive."""
        parts, root = self._parts, self._parts.namespace.root
        stored = under = under_live = missing = 0
        for registered, alive, goal, count, size in parts.chunks.tallies(live):
            stored += registered * size
            under += count if registered < goal else 0
            under_live += count if alive < goal else 0
            missing += 0 if alive else count
        return SpaceStatus(
            file_count=root.file_count,
            directory_count=root.directory_count,
            live_size=root.size,
            trash_size=parts.trash.size,
            trash_count=len(parts.trash),
            chunk_count=len(parts.chunks),
            chunk_stored_size=stored,
            garbage_count=parts.chunks.garbage_count,
            garbage_stored_size=parts.chunks.garbage_stored_size,
            under_replicated=under,
            under_replicated_live=under_live,
            missing=missing,
            snapshot_count=parts.snapshots.count,
            snapshot_size=parts.snapshots.size,
        )

    def live_replica_counts(self, live: Collection[ServerId], most: int) -> list[int]:
        """Return how many chunks have 0, 1, … live replicas; the last number is of those with `most` or more."""
        counts = [0] * (most + 1)
        for _, alive, _, count, _ in self._parts.chunks.tallies(live):
            counts[min(alive, most)] += count
        return counts

    @property
    def session_count(self) -> int:
        return len(self._parts.sessions)

    def list_trash(self, after: int, limit: int) -> tuple[tuple[TrashEntry, ...], bool]:
        """Return at most `limit` entries with ids above `after`, oldest first, and whether there are more."""
        _check_limit(limit, LIST_LIMIT_MAX)
        return self._parts.trash.page(after, limit, self._parts.trash_keep_ms)

    def list_snapshots(self, path: str, after: tuple[str, str]) -> tuple[tuple[SnapshotStatus, ...], bool]:
        """Return a page of the snapshots of `path` and of directories in it, and whether there are more."""
        self._parts.find(path)
        return self._parts.snapshots.page(path, after, SNAPSHOTS_PAGE_MAX)

    def list_quotas(self, path: str, after: str, *, is_effective: bool) -> tuple[tuple[QuotaStatus, ...], bool]:
        """Return a page of the quotas of `path` and of what is in it (or what it is in), and whether there are more."""
        parts = self._parts
        parts.find(path)
        known = parts.quotas.paths_above(path) if is_effective else parts.quotas.paths_below(path)
        found: list[QuotaStatus] = []
        for directory in known:
            quota, node = parts.quotas.get(directory), parts.namespace.find(directory)
            if directory > after and quota is not None and isinstance(node, Directory):
                found.append(quotas.status(directory, quota, node))
            if len(found) > QUOTAS_PAGE_MAX:
                return tuple(found[:-1]), True
        return tuple(found), False

    @property
    def trash_count(self) -> int:
        """Return the number of trash entries, at once: `space` is O(replica sets)."""
        return len(self._parts.trash)

    def next_trash_expiry_ms(self) -> int | None:
        """Return when the state clock makes `ExpireTrash` worth proposing; that is now while a release is going on."""
        parts = self._parts
        if parts.has_steps:
            return parts.clock_ms
        oldest_ms = parts.trash.oldest_ms()
        return None if oldest_ms is None else oldest_ms + parts.trash_keep_ms

    def has_idle_sessions(self, idle_ms: int) -> bool:
        return self._parts.sessions.has_idle(idle_ms, self._parts.clock_ms)


def _few_extents(file: File, tail: TailRecord | None) -> tuple[Extent, ...] | None:
    if tail is not None or extents.count(file.extents) > LOCATE_FILE_EXTENTS_MAX:
        return None
    return extents.window(file.extents, file.size, 0, LOCATE_FILE_EXTENTS_MAX)[1]


def _check_limit(limit: int, limit_max: int) -> None:
    if not 1 <= limit <= limit_max:
        raise InvalidArgument(f"{limit} entries were asked for; 1 to {limit_max} are possible")
