"""The tails of one chunk server, and what it answers about them.

Owns: which tails are here, the messages 0x0410 to 0x041b, tokens, the way down the chain, and sealed replicas made of
tails. Refuses to know: how a round is ordered and stored (dfs.chunk.tails.open_tail), and files (docs/adr/0015).

A tail is open only in the process that made it. One that is found on disk at the start takes nothing more: it only says
what it holds, and can be published.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from dfs.checksum import BLOCK_SIZE, Buffer, block_checksums, combine_blocks, crc32c
from dfs.chunk.layout import CHUNK_SIZE_MAX, Tail
from dfs.chunk.peers import PeerConnections
from dfs.chunk.replicas import ChunkStore, Replica
from dfs.chunk.streams import APPENDS_SIZE_MAX, ByteBudget
from dfs.chunk.tails.folders import TailFolders, tail_handle
from dfs.chunk.tails.log import TAIL_SUFFIX, TailFile, TailLog, TailStart, check_records, read_data
from dfs.chunk.tails.open_tail import ROUND_SIZE_MAX, Forward, OpenTail, check_read
from dfs.chunk.tails.seal import Seal, read_seal, seal_path, write_seal
from dfs.clock import Deadline
from dfs.errors import (
    ChainBroken,
    ChunkCorrupt,
    ChunkExists,
    ChunkNotFound,
    DfsError,
    DiskFailed,
    DiskFull,
    InvalidArgument,
    LimitExceeded,
    Overloaded,
    ProtocolError,
    StaleReplica,
    TailClosed,
)
from dfs.ids import ChunkHandle, ServerId, id_text
from dfs.log import get_logger
from dfs.net.auth import Rights
from dfs.net.blocking import Channel, Received, expect
from dfs.net.buffers import BufferPool
from dfs.net.messages import (
    GROUP_SIZE_MAX,
    RECORDS_PER_CHUNK_MIN,
    REPLICATION_MAX,
    TAIL_REPORT_MAX,
    TAIL_WAIT_MAX_MS,
    AppendRecords,
    CreateTail,
    CreateTailReply,
    ErrorReply,
    FenceTail,
    FenceTailReply,
    Message,
    PublishTail,
    PublishTailReply,
    ReadTail,
    ReadTailReply,
    ReplicateRecords,
    ReplicateRecordsReply,
)
from dfs.net.parts import HeldTail, RecordGroup

TAILS_MAX = 1024  # open at the same time on one server
PAYLOAD_TIMEOUT_S = 30.0  # for the records of a request whose head is here
REPLY_TIMEOUT_S = 30.0  # for a peer to take a reply
CREATE_TIMEOUT_S = 5.0  # for the rest of a chain to make its tails
TAIL_PAYLOAD_MAX = CHUNK_SIZE_MAX // RECORDS_PER_CHUNK_MIN  # bytes with one message: the largest possible record
assert TAIL_PAYLOAD_MAX >= ROUND_SIZE_MAX
COMBINED_RECORDS_MAX = 4096  # of a tail, whose checksums are combined in less time than their bytes are read again
LARGE_RECORD_SIZE = 64 * 1024  # bytes of a record, on average, from which each is received and checked by itself
BUFFERS_KEPT = 8  # of GROUP_SIZE_MAX each, for large records on their way through here; what is more is made anew
PUBLISH_PIECE_SIZE = 16 * BLOCK_SIZE  # bytes written at a time

TAIL_MESSAGES = (AppendRecords, CreateTail, FenceTail, PublishTail, ReadTail, ReplicateRecords)

log = get_logger(__name__)
CheckToken = Callable[[bytes, ChunkHandle, Rights], None]


class TailService:
    """All tails of one server; `answer` runs in the thread of a connection."""

    def __init__(
        self,
        folders: TailFolders | Sequence[Path],
        store: ChunkStore,
        peers: PeerConnections,
        check_token: CheckToken,
    ) -> None:
        """`folders`: where tails are kept, one for each disk; they are made when missing."""
        self._store = store
        self._peers = peers
        self._check_token = check_token
        self._budget = ByteBudget("records", APPENDS_SIZE_MAX)
        self._buffers = BufferPool(GROUP_SIZE_MAX, BUFFERS_KEPT)
        self._lock = threading.Lock()
        self._publishing = threading.Lock()  # one at a time: it takes a whole chunk of memory
        self._open: dict[ChunkHandle, OpenTail] = {}
        self._paths: dict[ChunkHandle, Path] = {}
        self._folders = folders if isinstance(folders, TailFolders) else TailFolders(folders)
        for path in self._folders.load():
            if (handle := tail_handle(path)) is not None:
                is_of_format_1 = not path.suffix
                self._paths[handle] = path if is_of_format_1 else path.with_suffix(TAIL_SUFFIX)
        if self._paths:
            log.info("tails_found", count=len(self._paths))

    # --- messages -------------------------------------------------------------------------------------------

    def answer(self, channel: Channel, received: Received) -> None:
        """Answer one of TAIL_MESSAGES; raise only when the connection cannot be used any more."""
        message, size = received.message, received.payload_size
        groups = message.groups if isinstance(message, ReplicateRecords) else ()
        if isinstance(message, AppendRecords):
            groups = (message.group,)
        if size > TAIL_PAYLOAD_MAX or size != sum(sum(group.lengths) for group in groups):
            raise ProtocolError(f"{type(message).__name__} came with {size} bytes that are not its records'")
        payload: bytes | None = None
        try:
            # A round of another server must not wait for memory: that server's own rounds may be what it waits for.
            with self._budget.lent(size if isinstance(message, AppendRecords) else 0):
                data = self._buffers.take(size)
                receive_records(channel, groups, data)
                reply, payload = self._carry_out(message, data)
        except DfsError as error:
            if channel.is_broken:  # lost, or only refused before its payload was read
                if not isinstance(error, Overloaded):
                    raise
                channel.skip_payload(size, Deadline.after(PAYLOAD_TIMEOUT_S))
            log.debug("tail_request_refused", code=error.code, reason=error.message)
            reply = ErrorReply.of(error)
        channel.send(reply, Deadline.after(REPLY_TIMEOUT_S), request_id=received.request_id, payload=payload)

    def reply(self, request: Message, data: Buffer) -> tuple[Message, bytes | None]:
        """Carry one of TAIL_MESSAGES out; return the reply with its payload, or raise."""
        match request:
            case AppendRecords():
                check_records((request.group,), data)
            case ReplicateRecords():
                check_records(request.groups, data)
        return self._carry_out(request, data)

    def _carry_out(self, request: Message, data: Buffer) -> tuple[Message, bytes | None]:
        """Do so with records that were checked."""
        match request:
            case AppendRecords():
                self._check_token(request.token, request.handle, Rights.APPEND)
                return self._opened(request.handle).append(request, data), None
            case ReplicateRecords():
                self._check_token(request.token, request.handle, Rights.APPEND)
                return ReplicateRecordsReply(self._opened(request.handle).replicate(request, data)), None
            case ReadTail():
                self._check_token(request.token, request.handle, Rights.READ)
                return self._read(request)
            case CreateTail():
                self._check_token(request.token, request.handle, Rights.SEAL)
                return self._create(request), None
            case FenceTail():
                self._check_token(request.token, request.handle, Rights.SEAL)
                return self._fence(request.handle), None
            case PublishTail():
                self._check_token(request.token, request.handle, Rights.SEAL)
                return self._publish(request.handle, request.length), None
            case _:
                raise ProtocolError(f"{type(request).__name__} is not about tails")

    def _opened(self, handle: ChunkHandle) -> OpenTail:
        with self._lock:
            tail, is_known = self._open.get(handle), handle in self._paths
        if tail is not None:
            return tail
        if is_known:
            raise TailClosed(f"this server restarted since tail {id_text(handle)} was made; ask for the next one")
        raise TailClosed(f"there is no tail {id_text(handle)} here; ask a master for the present one")

    # --- making -----------------------------------------------------------------------------------------------

    def _create(self, request: CreateTail) -> CreateTailReply:
        if len(request.chain) >= REPLICATION_MAX or len(set(request.chain)) != len(request.chain):
            raise InvalidArgument(f"a chain of {len(request.chain) + 1} servers is not possible")
        if self._store.space().free < request.size_max:
            raise DiskFull("there is no room for another tail here; write elsewhere")
        folder = self._folders.choose(request.size_max)  # asks the disks: not under the lock
        start = TailStart(request.base, request.size_max, request.record_size_max, request.appenders)
        with self._lock:
            if request.handle in self._paths:
                raise ChunkExists(f"tail {id_text(request.handle)} was made here before; use a new handle")
            if len(self._open) >= TAILS_MAX:
                raise LimitExceeded(f"this server has {TAILS_MAX} open tails, the most it allows; write elsewhere")
            path = self._paths[request.handle] = folder / f"{id_text(request.handle)}{TAIL_SUFFIX}"
        try:
            file = TailFile.create(path, request.handle, start)
        except OSError as error:
            with self._lock:
                del self._paths[request.handle]
            raise self._folders.judge(path, error, f"making tail {path}") from None
        forward = self._forward_to(request.chain[0]) if request.chain else None
        try:
            below = self._create_below(request) if request.chain else ()
        except ChainBroken:
            self.drop(request.handle)
            raise
        judge, check_room = partial(self._folders.judge, path), partial(self._folders.check_room, path)
        tail = OpenTail(file, start.ledger(), forward, judge, is_head=request.is_head, check_room=check_room)
        with self._lock:
            self._open[request.handle] = tail
        log.info("tail_made", handle=request.handle, servers=len(below) + 1)
        return CreateTailReply((self._store.server_id, *below))

    def _create_below(self, request: CreateTail) -> tuple[ServerId, ...]:
        address, *rest = request.chain
        message = CreateTail(
            request.handle,
            request.token,
            tuple(rest),
            request.base,
            request.size_max,
            request.record_size_max,
            request.appenders,
            is_head=False,
        )
        try:
            deadline = Deadline.after(CREATE_TIMEOUT_S)
            channel = self._peers.take(address, deadline)
            try:
                reply = expect(channel.call(message, deadline), CreateTailReply)
            except BaseException:
                channel.close()
                raise
            self._peers.give(channel)
        except DfsError as error:
            failed = error.details.get("failed") or address
            raise ChainBroken(f"chunk server {failed} made no tail: {error.message}", failed=failed) from None
        return reply.servers

    def _forward_to(self, address: str) -> Forward:
        """Return how a round reaches the next server of a chain."""

        def forward(message: ReplicateRecords, data: Buffer, deadline: Deadline) -> _Sent:
            with _blamed(address):
                channel = self._peers.take(address, deadline)
                try:
                    channel.send(message, deadline, payload=data)
                except BaseException:
                    channel.close()
                    raise
            return _Sent(self._peers, channel, message.offset + len(data), deadline)

        return forward

    # --- reading ------------------------------------------------------------------------------------------------

    def _read(self, request: ReadTail) -> tuple[Message, bytes | None]:
        tail = self._opened(request.handle)
        wait_s = min(max(0, request.wait_ms), TAIL_WAIT_MAX_MS) / 1000
        committed = tail.wait_committed(max(0, request.offset), wait_s)
        check_read(request.offset, committed)
        if request.size_max <= 0 or request.offset == committed:
            return ReadTailReply(committed, request.offset, (), ()), None
        size_max = min(request.size_max, GROUP_SIZE_MAX)
        start, lengths, crcs, data = tail.read(request.offset, committed, size_max)
        return ReadTailReply(committed, start, tuple(lengths), tuple(crcs)), data

    # --- sealing ------------------------------------------------------------------------------------------------

    def _fence(self, handle: ChunkHandle) -> FenceTailReply:
        with self._lock:
            tail, path = self._open.get(handle), self._paths.get(handle)
        if path is None:
            length = self._made_of(handle).length
            return FenceTailReply(self._store.server_id, length, is_fresh=False, published_length=length)
        seal = self._seal_of(path, handle)
        if tail is not None:
            length = tail.fence()
        else:
            length = seal.length if seal is not None else self._load(path, handle).length
        replica = self._store.replica(handle)
        published = seal.length if seal is not None else replica.length if replica is not None else -1
        log.info("tail_fenced", handle=handle, length=length, is_fresh=tail is not None)
        return FenceTailReply(self._store.server_id, length, tail is not None, published)

    def _made_of(self, handle: ChunkHandle) -> Replica:
        """Return the replica of a tail that was sealed and dropped: masters ask for it whose state was put back."""
        replica = self._store.replica(handle)
        if replica is not None:
            return replica
        if unseen := self._folders.unseen():
            raise DiskFailed(
                f"there is no tail {id_text(handle)} on the disks of this server that work; it may be in "
                f"{', '.join(map(str, unseen))}: mend or mount that, and start this server again"
            )
        words = f"there is no tail {id_text(handle)} on this server"
        raise ChunkNotFound(words, server=id_text(self._store.server_id))  # so that none speaks for another

    def _load(self, path: Path, handle: ChunkHandle, *, is_checked: bool = False) -> TailLog:
        with self._errors_judged(path, "reading"):
            return TailLog(path, handle, is_checked=is_checked)

    def _load_to_seal(self, path: Path, handle: ChunkHandle, length: int, *, is_fresh: bool) -> TailLog:
        """Read a tail; few records that this process wrote itself are checked by the caller, all at once."""
        if is_fresh:
            log = self._load(path, handle, is_checked=True)
            if log.record_count(length) <= COMBINED_RECORDS_MAX:
                return log
        return self._load(path, handle)

    def _seal_of(self, path: Path, handle: ChunkHandle) -> Seal | None:
        with self._errors_judged(path, "reading"):
            return read_seal(seal_path(path, handle), handle)

    @contextlib.contextmanager
    def _errors_judged(self, path: Path, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._folders.judge(path, error, f"{doing} tail {path}") from None

    def _publish(self, handle: ChunkHandle, length: int) -> PublishTailReply:
        """Make a sealed replica of the first `length` bytes; again gives the same, another length is refused."""
        with self._lock:
            tail, path = self._open.get(handle), self._paths.get(handle)
        if path is None:
            made = self._made_of(handle)
            _check_published(made, handle, length)
            return PublishTailReply(self._store.server_id, length, made.crc, (), ())
        if tail is not None:
            tail.end()
        with self._publishing:
            seal = self._seal_of(path, handle)
            replica = self._store.replica(handle)
            for known in (seal, replica):
                if known is not None:
                    _check_published(known, handle, length)
            content = None if seal is not None else self._load_to_seal(path, handle, length, is_fresh=tail is not None)
            checksums = b"" if replica is not None else self._checksums(path, length, content)
            if content is not None:
                crc = replica.crc if replica is not None else combine_blocks(checksums, length)
                if content.record_count(length) <= COMBINED_RECORDS_MAX and content.crc(length) != crc:
                    raise ChunkCorrupt(f"tail {id_text(handle)} is damaged: its records do not have their checksums")
                ledger = content.ledger(length)
                seal = Seal(length, crc, ledger.changed(), ledger.closed())
            assert seal is not None, "it was there, or it was made"
            if replica is None:
                if combine_blocks(checksums, length) != seal.crc:
                    raise ChunkCorrupt(f"tail {id_text(handle)} is damaged: its bytes are not those that were sealed")
                self._make_replica(path, Tail(handle, length, seal.crc, checksums), seal, content)
        log.info("tail_published", handle=handle, length=length)
        return PublishTailReply(self._store.server_id, length, seal.crc, seal.appenders, seal.closed)

    def _checksums(self, path: Path, length: int, content: TailLog | None) -> bytes:
        """Return the checksum list of the first bytes of a tail, read from its file."""
        with self._errors_judged(path, "reading"):
            if content is not None and path.suffix != TAIL_SUFFIX:
                return block_checksums(content.content(length))
            return b"".join(map(block_checksums, read_data(path, length))) if length else b""

    def _make_replica(self, path: Path, tail: Tail, seal: Seal, content: TailLog | None) -> None:
        """Let the file of a tail become the sealed replica, or copy it into one.

        The seal comes first: what is cut off the file is the journal.
        """
        handle, length = tail.handle, tail.length
        if content is None or path.suffix == TAIL_SUFFIX:
            with self._errors_judged(path, "sealing"):
                write_seal(seal_path(path, handle), handle, seal)
            if length and not self._store.adopt(path, tail):
                with self._errors_judged(path, "reading"):
                    data = b"".join(read_data(path, length))
                self._write_replica(handle, memoryview(data), tail.checksums, tail.crc)
        elif length:
            with self._errors_judged(path, "reading"):
                data = content.content(length)
            self._write_replica(handle, memoryview(data), tail.checksums, tail.crc)

    def _write_replica(self, handle: ChunkHandle, data: memoryview, checksums: bytes, crc: int) -> None:
        writer = self._store.create(handle)
        try:
            for start in range(0, len(data), PUBLISH_PIECE_SIZE):
                piece = data[start : start + PUBLISH_PIECE_SIZE]
                first = start // BLOCK_SIZE * 4
                writer.write(piece, checksums[first : first + -(-len(piece) // BLOCK_SIZE) * 4])
            writer.check(len(data), crc)
            writer.publish()
        finally:
            writer.discard()

    # --- reports --------------------------------------------------------------------------------------------------

    def held(self) -> tuple[HeldTail, ...]:
        """Return what is here, as much as fits into one report."""
        with self._lock:
            handles = list(self._paths)[:TAIL_REPORT_MAX]
            lengths = {handle: tail.durable for handle, tail in self._open.items()}
        return tuple(HeldTail(handle, lengths.get(handle, -1)) for handle in handles)

    def drop(self, handle: ChunkHandle) -> None:
        """Remove a tail at the leader's word."""
        with self._lock:
            path, tail = self._paths.pop(handle, None), self._open.pop(handle, None)
        if tail is not None:
            tail.fence()
        if path is not None:
            with contextlib.suppress(OSError):  # the next start finds it again, and reports it again
                path.unlink(missing_ok=True)
                seal_path(path, handle).unlink(missing_ok=True)
            log.info("tail_dropped", handle=handle)


def _check_published(known: Seal | Replica, handle: ChunkHandle, length: int) -> None:
    if known.length != length:
        raise StaleReplica(f"tail {id_text(handle)} was published with {known.length} bytes, not {length}")


def receive_records(channel: Channel, groups: Sequence[RecordGroup], view: memoryview) -> None:
    """Fill `view` with the payload; raise `ChunkCorrupt` when it is read to its end and is not these records.

    A large record is checked while the next one is on its way.
    """
    size, deadline = len(view), Deadline.after(PAYLOAD_TIMEOUT_S)
    count = sum(len(group.lengths) for group in groups)
    if not 1 < count <= size // LARGE_RECORD_SIZE:
        channel.receive_into(view, deadline)
        check_records(groups, view)
        return
    position, is_sound = 0, True
    for group in groups:
        for index, length in enumerate(group.lengths):
            piece = view[position : position + max(0, length)]
            channel.receive_into(piece, deadline)
            position += len(piece)
            is_sound = is_sound and index < len(group.crcs) and crc32c(piece) == group.crcs[index]
    channel.receive_into(view[position:], deadline)
    if not is_sound:
        check_records(groups, view)  # says what is wrong
        raise ChunkCorrupt("a record does not match its checksum on arrival; send it again")


class _Sent:
    """A round that was sent to the next server (contract: dfs.chunk.tails.open_tail.Receipt)."""

    def __init__(self, peers: PeerConnections, channel: Channel, length: int, deadline: Deadline) -> None:
        self._peers, self._channel, self._length, self._deadline = peers, channel, length, deadline
        self._is_over = False

    def wait(self) -> None:
        address = self._channel.address
        with _blamed(address):
            reply = expect(self._channel.receive(self._deadline).message, ReplicateRecordsReply)
            if reply.length != self._length:
                raise ProtocolError(f"{address} holds {reply.length} bytes after a round that ends at {self._length}")
        self._is_over = True
        self._peers.give(self._channel)

    def abandon(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._channel.close()


@contextlib.contextmanager
def _blamed(address: str) -> Iterator[None]:
    """Name the server of the chain that failed."""
    try:
        yield
    except DfsError as error:
        failed = error.details.get("failed") or address
        raise ChainBroken(f"chunk server {failed} failed in the chain: {error.message}", failed=failed) from None
