"""The file system as a program sees it: `DfsClient`, thin over the masters' calls and the bulk transfers.

Owns: the public calls, their finite deadlines, and normalising of paths. Refuses to know: how a leader is found, how
bytes move, and any front end.
"""

from __future__ import annotations

import builtins
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeVar

import msgspec

from dfs import paths
from dfs.checksum import Buffer
from dfs.client.access import READ_RULES, ClusterAccess, ReadRules
from dfs.client.admin import ClusterAdmin
from dfs.client.appender import Appender
from dfs.client.calls import Calls
from dfs.client.compaction import Compaction, is_fragmented
from dfs.client.discovery import Masters
from dfs.client.download import Download, FileChecksum
from dfs.client.inspection import Inspection
from dfs.client.lanes import Lanes
from dfs.client.local_replicas import LocalReplicas
from dfs.client.open_file import DfsFile
from dfs.client.ownership import Owner
from dfs.client.packs import Packer, PackEvents, PackItem, PackRules
from dfs.client.plan import ServerHealth
from dfs.client.pool import ChannelPool
from dfs.client.quotas import Quotas
from dfs.client.repacking import Repacking, RepackReport
from dfs.client.replica_reads import ReadCounts, ReplicaReader
from dfs.client.reserve import ChunkReserve
from dfs.client.servers import ServerAdmin
from dfs.client.snapshots import Snapshots
from dfs.client.transfer import Transfer
from dfs.client.unpacking import Unpacker, UnpackEvents, UnpackItem
from dfs.client.upload import Upload
from dfs.clock import Deadline
from dfs.errors import Conflict, DfsError, InvalidArgument, IsADirectory, NotADirectory, NotFound
from dfs.fast_paths import FastPath, is_on
from dfs.net.auth import ClusterKey
from dfs.net.messages import (
    LIST_LIMIT_MAX,
    REPLICATION_MAX,
    Concat,
    Copy,
    Delete,
    DeleteReply,
    Done,
    EmptyTrash,
    EmptyTrashReply,
    GetClusterStatus,
    GetClusterStatusReply,
    GetMasterStatus,
    GetMasterStatusReply,
    ListDirectory,
    ListDirectoryReply,
    ListTrash,
    ListTrashReply,
    LocateMany,
    LocateManyReply,
    MakeDirectory,
    Message,
    Mutation,
    RemoveDirectory,
    Rename,
    SetReplication,
    SetReplicationReply,
    Stat,
    StatReply,
    Touch,
    Truncate,
    Undelete,
)
from dfs.net.parts import CallId, FileStatus, Kind, MasterStatus, TrashEntry

T = TypeVar("T", bound=Message)

TIMEOUT_S = 30.0  # default of every call
PARALLEL = 4  # default number of chunks that are read at once
PARALLEL_MAX = 32
FOLLOW_PAUSE_S = 0.2  # between two looks at a file to which no records are appended
STALE_MAX_S = 86_400.0  # the oldest answer that may be asked for
MASTER_STATUS_TIMEOUT_S = 3.0  # a master that says nothing for so long counts as silent

__all__ = ["DfsClient", "FileChecksum"]


class DfsClient:
    """One process's access to a cluster. Thread-safe; use it as a context manager, or `close` it. A child of a fork
    needs one of its own.

    Every `path` is absolute or taken from `/`. `timeout_s` bounds a metadata call as a whole, and the time for which a
    bulk transfer may make no progress at all. With `stale_s` what stat, list and reads of content tell may be so old:
    any master answers then that can prove it, also while none leads. Errors are those of dfs.errors.
    """

    def __init__(
        self,
        access: ClusterAccess,
        *,
        timeout_s: float = TIMEOUT_S,
        replication: int = 0,
        parallel: int = PARALLEL,
        stale_s: float = 0.0,
        reads: ReadRules = READ_RULES,
    ) -> None:
        if not timeout_s > 0:
            raise InvalidArgument(f"a timeout of {timeout_s} s is not positive; nothing could ever succeed")
        if not 1 <= parallel <= PARALLEL_MAX:
            raise InvalidArgument(f"{parallel} parallel transfers are asked for; allowed are 1 to {PARALLEL_MAX}")
        if not 0 <= stale_s <= STALE_MAX_S:
            raise InvalidArgument(f"an age of {stale_s} s cannot be allowed; from 0 to {STALE_MAX_S:.0f} can")
        _check_replication(replication)
        self._stale_ms = math.ceil(stale_s * 1000)
        self._access = access
        self._timeout_s = timeout_s
        self._replication = replication
        self._parallel = parallel
        key = ClusterKey.load(access.secret_file, access.cluster)
        self._owner = Owner()
        self._pool = ChannelPool(key)
        self._local = LocalReplicas(key, is_used=reads.local)
        self._masters = Masters(access.cluster, access.masters, self._pool)
        self._calls = Calls(self._masters)
        health = ServerHealth()
        reader = ReplicaReader(self._pool, health, self._local, timeout_s, rack=reads.rack, is_hedged=reads.hedged)
        self._lanes = Lanes(key)
        self._transfer = Transfer(self._pool, health, reader, self._lanes)
        self._reserve = ChunkReserve(self._masters, health) if is_on(FastPath.RESERVE) else None

    def __enter__(self) -> DfsClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; calls after it fail."""
        if not self._owner.is_here:
            return  # they are those of the process that made this: to end them here would end them there
        self._pool.close()
        self._local.close()
        self._lanes.close()

    @property
    def read_counts(self) -> ReadCounts:
        """How the reads of this client were served."""
        return self._transfer.reader.counts

    # --- looking ------------------------------------------------------------------------------------

    def stat(self, path: str) -> FileStatus:
        """Return what is known about a file or directory; raise `NotFound`."""
        path = paths.normalise(path)
        reply = self._look(Stat(path, self._stale_ms), StatReply)
        return self._download().status(path) if reply.is_open else reply.status

    def exists(self, path: str) -> bool:
        """Return whether `path` names a file or directory."""
        try:
            self.stat(path)
        except (NotFound, NotADirectory):
            return False
        return True

    def list(self, path: str) -> Iterator[FileStatus]:
        """Yield the entries of a directory by name, fetched in pages; their `path` is the name only."""
        path, after = paths.normalise(path), ""
        while True:
            reply = self._look(ListDirectory(path, after, LIST_LIMIT_MAX, self._stale_ms), ListDirectoryReply)
            yield from reply.entries
            if not reply.has_more or not reply.entries:
                return
            after = reply.entries[-1].path

    def walk(self, path: str) -> Iterator[tuple[str, FileStatus]]:
        """Yield (full path, status with the full path) of all that is below a directory, itself left out.

        Depth first, sorted by name in each directory, a directory before its content. For a file: the file alone.
        What other clients delete meanwhile is left out.
        """
        root = self.stat(path)
        if root.kind is Kind.FILE:
            yield root.path, root
            return
        stack = [(root.path, self.list(root.path))]
        while stack:
            directory, entries = stack[-1]
            try:
                entry = next(entries, None)
            except (NotFound, NotADirectory):
                if len(stack) == 1:
                    raise
                entry = None
            if entry is None:
                stack.pop()
                continue
            full = paths.join(directory, entry.path)
            yield full, _with_path(entry, full)
            if entry.kind is Kind.DIRECTORY:
                stack.append((full, self.list(full)))

    # --- changing names -------------------------------------------------------------------------------

    def make_directory(self, path: str, *, parents: bool = False) -> FileStatus:
        """Make a directory; with `parents` its missing ancestors too, and an existing one is fine."""
        path = paths.normalise(path)
        return self._change(lambda call: MakeDirectory(call, path, parents), StatReply).status

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory."""
        path = paths.normalise(path)
        self._change(lambda call: RemoveDirectory(call, path), Done)

    def delete(self, path: str, *, recursive: bool = False, skip_trash: bool = False) -> DeleteReply:
        """Move a file (or with `recursive` a directory) to the trash, or release it at once with `skip_trash`."""
        path = paths.normalise(path)
        return self._change(lambda call: Delete(call, path, recursive, skip_trash), DeleteReply)

    def rename(self, source: str, target: str, *, overwrite: bool = False) -> FileStatus:
        """Move `source` to the full new path `target`, atomically; a file there is replaced with `overwrite`."""
        source, target = paths.normalise(source), paths.normalise(target)
        return self._change(lambda call: Rename(call, source, target, overwrite), StatReply).status

    def copy(self, source: str, target: str, *, recursive: bool = False, overwrite: bool = False) -> FileStatus:
        """Copy without moving a byte: the copy shares the chunks."""
        source, target = paths.normalise(source), paths.normalise(target)
        return self._change(lambda call: Copy(call, source, target, recursive, overwrite), StatReply).status

    def touch(self, path: str, *, mtime_ms: int = 0, no_create: bool = False) -> FileStatus:
        """Set the time of a file (0 = now), which is made empty when missing unless `no_create`."""
        path = paths.normalise(path)
        return self._change(lambda call: Touch(call, path, mtime_ms, no_create), StatReply).status

    def set_replication(self, path: str, replication: int, *, recursive: bool = False) -> int:
        """Set the replication goal of a file, or of all files below a directory; return the number of files."""
        _check_replication(replication, least=1)
        path = paths.normalise(path)
        reply = self._change(lambda call: SetReplication(call, path, replication, recursive), SetReplicationReply)
        return reply.file_count

    # --- content ----------------------------------------------------------------------------------------

    def put(
        self,
        source: Path | BinaryIO,
        path: str,
        *,
        overwrite: bool = False,
        parents: bool = False,
        replication: int | None = None,
        mtime_ms: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> FileStatus:
        """Store a local file or a stream as `path`, atomically: readers see all of it or nothing.

        A stream is read once, from where it stands to its end. `progress` gets the number of newly stored bytes; the
        numbers sum to the size. Raises `Conflict` when a source file changed while it was read; then nothing is stored.
        """
        _check_replication(replication or 0)
        return self._upload().put(
            source,
            paths.normalise(path),
            overwrite=overwrite,
            parents=parents,
            replication=replication or self._replication,
            mtime_ms=mtime_ms,
            progress=progress,
        )

    def append(
        self,
        source: Path | BinaryIO,
        path: str,
        *,
        create: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> FileStatus:
        """Add a local file or a stream at the end of `path`, as one atomic range; `create` makes a missing file.

        Each call makes an extent of its own; when a file has got very many small ones they are merged.
        """
        path = paths.normalise(path)
        status = self._upload().append(source, path, create=create, replication=self._replication, progress=progress)
        return self._merged(path, status)

    def appender(self, path: str, *, create: bool = True, identity: bytes | None = None) -> Appender:
        """Return an appender of records to a file; `identity` continues an earlier one. The caller closes it."""
        return Appender(
            self._masters,
            self._pool,
            paths.normalise(path),
            timeout_s=self._timeout_s,
            create=create,
            identity=identity,
        )

    def append_record(self, path: str, data: Buffer) -> int:
        """Append one record, exactly once, and return its offset; for many records use an `appender`."""
        with self.appender(path) as appender:
            return appender.append(data).result()

    def follow(self, path: str, *, offset: int = 0, pause_s: float = FOLLOW_PAUSE_S) -> Iterator[bytes]:
        """Yield the content from an offset on, then what is appended as it commits, for ever.

        While no records are appended the masters are asked every `pause_s` whether that has begun.
        Raise `Conflict` when the file is replaced or becomes shorter, `NotFound` when it is deleted.
        """
        return self._download().follow(paths.normalise(path), offset, pause_s)

    def get(
        self,
        path: str,
        target: Path | BinaryIO,
        *,
        overwrite: bool = True,
        offset: int = 0,
        length: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> FileStatus:
        """Fetch a file, or `length` bytes of it from `offset`, verified; return its status.

        A `Path` target appears complete under its name or not at all. A stream gets the bytes in order. `progress` gets
        the number of newly fetched bytes (a negative one when the file changed meanwhile and the get starts again).
        """
        return self._download().get(
            paths.normalise(path), target, overwrite=overwrite, offset=offset, length=length, progress=progress
        )

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> Iterator[memoryview]:
        """Yield the content in order, verified, in pieces of up to 4 MiB that belong to the caller."""
        return self._download().read(paths.normalise(path), offset=offset, length=length)

    def open(self, path: str) -> DfsFile:
        """Return the present version of a file as an open file: a binary stream, and reads at any place.

        The caller closes it, before this client.
        """
        return self._download().open(paths.normalise(path))

    def checksum(self, path: str) -> FileChecksum:
        """Return the CRC32C of the content, composed from the chunks' checksums; only parts of chunks are read."""
        return self._download().checksum(paths.normalise(path))

    def write_at(
        self,
        path: str,
        offset: int,
        data: bytes | memoryview | Path | BinaryIO,
        *,
        version: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> FileStatus:
        """Put bytes over those of an existing file from `offset` on, atomically; past its end it grows.

        `offset` is at most the file's size: there are no holes. With `version` only if the file still has that one
        (`Conflict`). Each call makes new chunks of its own; when a file has got very many small ones they are merged.
        """
        path = paths.normalise(path)
        source = io.BytesIO(data) if isinstance(data, bytes | memoryview) else data
        status = self.stat(path)
        if status.kind is Kind.DIRECTORY:
            raise IsADirectory(f"{path!r} is a directory; only files can be written to")
        status = self._upload().write(
            source,
            path,
            offset=offset,
            replication=status.replication,
            version=version,
            is_same_content=False,
            progress=progress,
        )
        return self._merged(path, status)

    def _merged(self, path: str, status: FileStatus) -> FileStatus:
        """Merge the extents of a file that has very many small ones; return its status."""
        if not is_fragmented(status):
            return status
        try:
            return self.compact(path)
        except Conflict:  # somebody else writes, too: whoever writes last merges
            return self.stat(path)

    def compact(self, path: str) -> FileStatus:
        """Merge runs of small extents of a file into whole chunks; its content stays. Raise `Conflict` when it changes
        meanwhile: what was merged until then stays merged."""
        path = paths.normalise(path)
        chunk_size = self.cluster_status().chunk_size
        return Compaction(self._download(), self._upload()).run(path, chunk_size)

    def truncate(self, path: str, size: int) -> FileStatus:
        """Cut a file to its first `size` bytes, atomically; a longer size than its own is refused: no holes."""
        path = paths.normalise(path)
        return self._change(lambda call: Truncate(call, path, size), StatReply).status

    def concat(self, target: str, sources: Sequence[str], *, keep_sources: bool = False) -> FileStatus:
        """Add the content of `sources` at the end of the file `target`, atomically, moving no byte; the sources vanish
        unless `keep_sources`."""
        target, named = paths.normalise(target), tuple(paths.normalise(source) for source in sources)
        return self._change(lambda call: Concat(call, target, named, keep_sources), StatReply).status

    # --- snapshots and quotas ---------------------------------------------------------------------------------

    @property
    def snapshots(self) -> Snapshots:
        """Snapshots of directories; their content is read below `DIRECTORY/.snapshot/NAME`."""
        return Snapshots(self._masters, self._calls, self._timeout_s, self.list)

    @property
    def quotas(self) -> Quotas:
        """Limits of directories."""
        return Quotas(self._masters, self._calls, self._timeout_s)

    # --- many small files ----------------------------------------------------------------------------------

    def put_many(
        self,
        items: Iterable[PackItem],
        events: PackEvents,
        *,
        overwrite: bool = False,
        parents: bool = False,
        replication: int | None = None,
        keeps_time: bool = False,
    ) -> None:
        """Store many small local files, packed into shared chunks and committed by the hundred.

        Each is stored as by `put`, or fails by itself; `events` tells of each, also of those too large to be packed,
        which are left to the caller. `keeps_time`: with their local modification times.
        """
        _check_replication(replication or 0)
        rules = PackRules(
            overwrite=overwrite, parents=parents, replication=replication or self._replication, keeps_time=keeps_time
        )
        Packer(self._upload(), rules, events).run(items)

    def locate_many(self, path: str) -> Iterator[LocateManyReply]:
        """Yield what is below a directory with the places of all content, page by page, directories before their
        content."""
        path, after = paths.normalise(path), ""
        while True:
            reply = self._look(LocateMany(path, after, stale_ms=self._stale_ms), LocateManyReply)
            yield reply
            if not reply.has_more or not reply.files:
                return
            after = reply.files[-1].path

    def get_many(
        self,
        pages: Iterable[tuple[LocateManyReply, builtins.list[UnpackItem]]],
        events: UnpackEvents,
        *,
        overwrite: bool = True,
    ) -> None:
        """Fetch small files of pages that `locate_many` gave, read from their chunks in long runs.

        Each appears complete or not at all; `events` tells of each, also of those that are left to an ordinary get.
        Take only files for which `is_packable` holds.
        """
        Unpacker(self._transfer, events, overwrite=overwrite).run(pages)

    def repack(self, path: str) -> RepackReport:
        """Store the small files of half-empty shared chunks below a directory anew, so that deleted ones give their
        space back; nobody sees a change of content. What others change meanwhile is left alone."""
        path = paths.normalise(path)
        repacking = Repacking(self._transfer, self._upload(), self._calls, self._timeout_s)
        return repacking.run(path, lambda: self.locate_many(path))

    # --- trash --------------------------------------------------------------------------------------------

    def undelete(self, path: str, *, trash_id: int = 0) -> FileStatus:
        """Put back what was deleted from `path` (`trash_id` 0: the newest); raise `NotFound` or `AlreadyExists`."""
        path = paths.normalise(path)
        return self._change(lambda call: Undelete(call, path, trash_id), StatReply).status

    def list_trash(self) -> Iterator[TrashEntry]:
        """Yield the trash, oldest entries first."""
        after = 0
        while True:
            reply = self._ask(ListTrash(after), ListTrashReply)
            yield from reply.entries
            if not reply.has_more or not reply.entries:
                return
            after = reply.entries[-1].trash_id

    def empty_trash(self, trash_id: int = 0) -> EmptyTrashReply:
        """Release one trash entry, or all of them (0); return how many and how much."""
        count = size = 0
        while True:
            reply = self._change(lambda call: EmptyTrash(call, trash_id), EmptyTrashReply)
            count, size = count + reply.entry_count, size + reply.size
            if not reply.has_more or not reply.entry_count:
                return EmptyTrashReply(count, size, reply.has_more)

    # --- the cluster ----------------------------------------------------------------------------------------

    def cluster_status(self) -> GetClusterStatusReply:
        """Return the leader's view of chunk servers and space."""
        return self._ask(GetClusterStatus(), GetClusterStatusReply)

    def master_statuses(self) -> builtins.list[MasterStatus | tuple[str, DfsError]]:
        """Return what each known master says of itself, or (address, error) for one that does not answer."""
        deadline = Deadline.after(min(self._timeout_s, MASTER_STATUS_TIMEOUT_S))

        def ask(address: str) -> MasterStatus | tuple[str, DfsError]:
            try:
                return self._masters.ask(address, GetMasterStatus(), GetMasterStatusReply, deadline).master
            except DfsError as error:
                return address, error

        addresses = self._masters.addresses
        with ThreadPoolExecutor(len(addresses), "dfs-status") as executor:
            return [*executor.map(ask, addresses)]

    @property
    def admin(self) -> ClusterAdmin:
        """What administrators do with the masters."""
        return ClusterAdmin(self._masters, self._timeout_s)

    @property
    def servers(self) -> ServerAdmin:
        """What administrators do with the chunk servers."""
        return ServerAdmin(self._masters, self._timeout_s)

    @property
    def inspection(self) -> Inspection:
        """What administrators look at to know how well files are kept."""
        return Inspection(self._masters, self._pool, self._timeout_s)

    # --- inside -----------------------------------------------------------------------------------------------

    def _upload(self) -> Upload:
        return Upload(
            self._masters,
            self._calls,
            self._transfer,
            self._timeout_s,
            parallel=min(2, self._parallel),
            reserve=self._reserve,
        )

    def _download(self) -> Download:
        return Download(
            self._masters, self._pool, self._transfer, self._timeout_s, parallel=self._parallel, stale_ms=self._stale_ms
        )

    def _look(self, message: Message, reply: type[T]) -> T:
        """Ask what may be as old as this client allows."""
        ask = self._masters.call_any if self._stale_ms else self._masters.call
        return ask(message, reply, Deadline.after(self._timeout_s))

    def _ask(self, message: Message, reply: type[T]) -> T:
        return self._masters.call(message, reply, Deadline.after(self._timeout_s))

    def _change(self, build: Callable[[CallId], Mutation], reply: type[T]) -> T:
        return self._calls.call(build, reply, Deadline.after(self._timeout_s))


def _check_replication(replication: int, *, least: int = 0) -> None:
    if not least <= replication <= REPLICATION_MAX:
        raise InvalidArgument(f"a replication of {replication} is not possible; allowed are 1 to {REPLICATION_MAX}")


def _with_path(status: FileStatus, path: str) -> FileStatus:
    return msgspec.structs.replace(status, path=path)
