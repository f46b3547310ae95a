"""From local bytes to a file: store chunks, in parallel and again where a chain failed, then commit them at once.

Owns: the course of one put, append or overwrite in place, and the tries of a chunk. Refuses to know: how a chain is
talked to, how a leader is found, and how a local file is read. An upload that stops before its commit leaves garbage
that the masters collect.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from dfs import paths
from dfs.checksum import BLOCK_SIZE
from dfs.client.allocation import Allocator
from dfs.client.calls import Calls
from dfs.client.discovery import Masters
from dfs.client.local_files import PIECE_SIZE, SourceFile, StreamChunk, open_source
from dfs.client.parallel import Cancellation, Meter, in_order
from dfs.client.plan import ChunkRange, backoff_s, split_source
from dfs.client.reserve import ChunkReserve
from dfs.client.transfer import Transfer
from dfs.client.write_target import ChunkNotWritten
from dfs.clock import Deadline
from dfs.errors import (
    AlreadyExists,
    ChainBroken,
    Conflict,
    InvalidArgument,
    IsADirectory,
    LimitExceeded,
    NotADirectory,
    NotFound,
    QuotaExceeded,
    Retry,
)
from dfs.ids import ServerId
from dfs.jitter import draw
from dfs.net.messages import (
    COMMIT_CHUNKS_MAX,
    STORE_SIZE_MAX,
    AppendExtents,
    CommitFile,
    ListQuotas,
    ListQuotasReply,
    Message,
    Mutation,
    Stat,
    StatReply,
    WriteRange,
)
from dfs.net.parts import CallId, FileStatus, Kind, NewChunk, NewExtent

T = TypeVar("T", bound=Message)
CHUNK_TRIES_MAX = 6  # chains tried for one chunk
CHECK_FIRST_SIZE = 1024 * 1024  # bytes; before storing more than that it is asked whether the name may be taken


@dataclass(frozen=True, slots=True)
class _Part:
    """One chunk in the making, as a `ChunkSource` (dfs.client.write_target)."""

    index: int
    offset: int
    length: int
    pieces: Callable[[], Iterator[memoryview]]
    fill: Callable[[int, memoryview], None]


class Upload:
    """Stores one source; made for each call."""

    def __init__(
        self,
        masters: Masters,
        calls: Calls,
        transfer: Transfer,
        timeout_s: float,
        *,
        parallel: int,
        reserve: ChunkReserve | None = None,
    ) -> None:
        self._masters = masters
        self._calls = calls
        self._transfer = transfer
        self._timeout_s = timeout_s
        self._parallel = parallel
        self._reserve = reserve

    def put(
        self,
        source: Path | BinaryIO,
        path: str,
        *,
        overwrite: bool,
        parents: bool,
        replication: int,
        mtime_ms: int,
        progress: Callable[[int], None] | None,
    ) -> FileStatus:
        """Store and commit a file."""

        def check(size: int) -> None:
            old = self._check_put(path, overwrite=overwrite, parents=parents)
            self._check_quota(path, size * max(1, replication) - old)

        chunks = self._store(source, path, replication, check, progress)
        return self.commit(
            lambda call: CommitFile(
                call,
                path,
                chunks,
                _extents(chunks),
                replication,
                overwrite=overwrite,
                parents=parents,
                mtime_ms=mtime_ms,
            ),
            StatReply,
        ).status

    def append(
        self,
        source: Path | BinaryIO,
        path: str,
        *,
        create: bool,
        replication: int,
        progress: Callable[[int], None] | None,
    ) -> FileStatus:
        """Store chunks and commit them as the new end of a file."""

        def check(size: int) -> None:
            self._check_append(path, create=create)
            self._check_quota(path, size * max(1, replication))

        chunks = self._store(source, path, replication, check, progress)
        return self.commit(lambda call: AppendExtents(call, path, chunks, _extents(chunks), create), StatReply).status

    def write(
        self,
        source: Path | BinaryIO,
        path: str,
        *,
        offset: int,
        replication: int,
        version: int,
        is_same_content: bool,
        progress: Callable[[int], None] | None,
    ) -> FileStatus:
        """Store chunks and commit them over the bytes of a file from `offset` on."""

        def check(size: int) -> None:
            self._check_quota(path, (self._check_write(path, offset) + size) * replication)

        chunks = self._store(source, path, replication, check, progress)
        return self.commit(
            lambda call: WriteRange(call, path, offset, chunks, _extents(chunks), version, is_same_content), StatReply
        ).status

    def commit(self, build: Callable[[CallId], Mutation], reply: type[T]) -> T:
        """Make stored chunks a part of files, exactly once; raise as the masters do."""
        try:
            return self._calls.call(build, reply, Deadline.after(self._timeout_s))
        except Conflict:  # it may be that the chunks are too old by the masters' clock, which may have been set
            if self._reserve is not None:
                self._reserve.forget()
            raise

    # --- the chunks ---------------------------------------------------------------------------------------

    def _store(
        self,
        source: Path | BinaryIO,
        path: str,
        replication: int,
        check: Callable[[int], None],
        progress: Callable[[int], None] | None,
    ) -> tuple[NewChunk, ...]:
        """Store all bytes of a source in new chunks; return them in order."""
        allocator = Allocator(self._masters, self._transfer.health, replication, self._timeout_s, self._reserve)
        meter, cancellation = Meter(progress), Cancellation()

        def store(part: _Part) -> NewChunk:
            return self._store_part(part, path, allocator, meter.part(), cancellation)

        with open_source(source) as opened:
            if isinstance(opened, SourceFile):
                if opened.size > CHECK_FIRST_SIZE:
                    check(opened.size)
                parts, window = _file_parts(opened, allocator, path), 2 * self._parallel
            else:  # its chunks are kept in memory: no more of them than are being sent
                parts, window = _stream_parts(opened, allocator, path, check), self._parallel
            chunks = tuple(in_order(store, parts, cancellation, workers=self._parallel, window=window))
            if isinstance(opened, SourceFile):
                opened.check_unchanged()
        allocator.check_commit_time()
        return chunks

    def store_pack(self, data: memoryview, name: str, replication: int, cancellation: Cancellation) -> NewChunk:
        """Store bytes as one chunk; `name` says in errors what they are."""
        allocator = Allocator(self._masters, self._transfer.health, replication, self._timeout_s, self._reserve)

        def pieces() -> Iterator[memoryview]:
            return (data[start : start + PIECE_SIZE] for start in range(0, len(data), PIECE_SIZE))

        def fill(position: int, view: memoryview) -> None:
            view[:] = data[position : position + len(view)]

        part = _Part(0, 0, len(data), pieces, fill)
        return self._store_part(part, name, allocator, lambda _sent: None, cancellation)

    def _store_part(
        self,
        part: _Part,
        path: str,
        allocator: Allocator,
        reached: Callable[[int], None],
        cancellation: Cancellation,
    ) -> NewChunk:
        """Store one chunk, under a new handle and on other servers for each try."""
        failed: dict[ServerId, None] = {}
        stories: list[str] = []
        while True:
            cancellation.check()
            target = allocator.take(failed)
            try:
                if part.length > STORE_SIZE_MAX:
                    return self._transfer.write_chunk(target, part, reached, cancellation)
                (piece,) = part.pieces()
                chunk = self._transfer.store_chunk(target, piece, cancellation)
                reached(part.length)
                return chunk
            except ChunkNotWritten as failure:
                failed.update((server.server_id, None) for server in failure.failed)
                stories.append(f"try {len(stories) + 1}: {failure.error.message}")
                if failure.error.retry is Retry.NEVER:
                    raise failure.error from None
            if len(stories) >= CHUNK_TRIES_MAX:
                raise ChainBroken(
                    f"bytes {part.offset} to {part.offset + part.length} of {path!r} could not be stored on any chain "
                    f"of chunk servers ({'; '.join(stories)}); see `dfs status` for servers that are down or full"
                )
            time.sleep(backoff_s(len(stories), draw()))

    # --- asking before storing much -------------------------------------------------------------------------

    def _check_put(self, path: str, *, overwrite: bool, parents: bool) -> int:
        """Raise what the commit would raise; it still has the last word. Return the stored size of what is replaced."""
        try:
            status = self._stat(path)
        except NotFound:
            if not parents and self._stat(paths.parent(path)).kind is Kind.FILE:
                raise NotADirectory(f"{paths.parent(path)!r} is a file; {path!r} cannot be stored in it") from None
            return 0
        if status.kind is Kind.DIRECTORY:
            raise IsADirectory(f"{path!r} is a directory; give the name of a file in it")
        if not overwrite:
            raise AlreadyExists(f"{path!r} exists already; allow overwriting, or choose another name")
        return status.stored_size

    def _check_append(self, path: str, *, create: bool) -> None:
        try:
            status = self._stat(path)
        except NotFound:
            if not create:
                raise
            return
        if status.kind is Kind.DIRECTORY:
            raise IsADirectory(f"{path!r} is a directory; only files can be appended to")

    def _check_write(self, path: str, offset: int) -> int:
        """Return how far from the end the write begins, as a negative number: so much of it adds nothing."""
        status = self._stat(path)
        if status.kind is Kind.DIRECTORY:
            raise IsADirectory(f"{path!r} is a directory; only files can be written to")
        if offset > status.size:
            raise InvalidArgument(f"{path!r} has {status.size} bytes; writing at {offset} would leave a gap")
        return offset - status.size

    def _check_quota(self, path: str, growth: int) -> None:
        """Raise `QuotaExceeded` when so many more stored bytes cannot fit, before they travel in vain."""
        if growth <= 0:
            return
        try:
            message = ListQuotas(paths.parent(path), "", is_effective=True)
            reply = self._masters.call(message, ListQuotasReply, Deadline.after(self._timeout_s))
        except (NotFound, NotADirectory):
            return  # its directory is yet to be made, or the commit will tell
        for quota in reply.entries:
            if 0 < quota.stored_size < quota.stored_size_used + growth:
                raise QuotaExceeded(
                    f"the quota of {quota.path!r} is {quota.stored_size} bytes with all replicas; "
                    f"{quota.stored_size_used} are used, {growth} more are wanted for {path!r}. Remove some files, or "
                    f"have the quota raised: dfs quota set --bytes SIZE {quota.path!r}",
                    directory=quota.path,
                )

    def _stat(self, path: str) -> FileStatus:
        return self._masters.call(Stat(path), StatReply, Deadline.after(self._timeout_s)).status


def _file_parts(file: SourceFile, allocator: Allocator, path: str) -> Iterator[_Part]:
    if not file.size:
        return
    chunk_size = allocator.chunk_size()
    count = -(-file.size // chunk_size)
    _check_count(count, chunk_size, path)
    allocator.expect(count)
    for piece in split_source(file.size, chunk_size):

        def pieces(piece: ChunkRange = piece) -> Iterator[memoryview]:
            return file.pieces(piece.offset, piece.length)

        def fill(position: int, view: memoryview, piece: ChunkRange = piece) -> None:
            file.read_into(view, piece.offset + position)

        yield _Part(piece.index, piece.offset, piece.length, pieces, fill)


def _stream_parts(stream: BinaryIO, allocator: Allocator, path: str, check: Callable[[int], None]) -> Iterator[_Part]:
    """Yield the chunks of a stream as they come; a part's memory is free when nobody holds the part any more."""
    index, offset, chunk_size = 0, 0, CHECK_FIRST_SIZE
    while True:
        chunk = StreamChunk()
        if not index:  # an empty stream needs no chunk, a short one no question
            if not chunk.fill(stream, BLOCK_SIZE):
                return
            chunk_size = allocator.chunk_size()
            little = min(chunk_size, CHECK_FIRST_SIZE)
            chunk.fill(stream, little)
            if chunk.length == little:
                check(0)
        if not chunk.fill(stream, chunk_size):
            return
        _check_count(index + 1, chunk_size, path)
        yield _Part(index, offset, chunk.length, chunk.pieces, chunk.copy_into)
        if chunk.length < chunk_size:
            return
        index, offset = index + 1, offset + chunk.length


def _check_count(count: int, chunk_size: int, path: str) -> None:
    if count > COMMIT_CHUNKS_MAX:
        raise LimitExceeded(
            f"{path!r} would need more than {COMMIT_CHUNKS_MAX} chunks of {chunk_size} bytes in one call; store it in "
            "parts"
        )


def _extents(chunks: tuple[NewChunk, ...]) -> tuple[NewExtent, ...]:
    return tuple(NewExtent(index, 0, chunk.length) for index, chunk in enumerate(chunks))
