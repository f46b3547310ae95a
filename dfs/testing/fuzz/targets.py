"""What is fuzzed: each target takes any bytes and raises only when a parser did what it must not do.

Owns: the targets, and sound samples to begin from. Refuses to know: where the bytes come from.

Checksums are put right where a fuzzer would never guess them: behind them are parsers, too, and a disk or a peer that
lies with a right checksum must not crash anybody either.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from pathlib import Path

import msgspec

from dfs.checksum import block_checksums, block_count, crc32c
from dfs.chunk.layout import decode_tail, encode_tail
from dfs.chunk.tails.log import (
    JOURNAL_START,
    Round,
    TailStart,
    check_records,
    encode_round,
    encode_start,
    parse_tail,
)
from dfs.client.settings import Settings
from dfs.config import parse_config
from dfs.config_default import EMBEDDED_DEFAULT
from dfs.errors import DfsError
from dfs.ids import ChunkHandle, ServerId, SessionId
from dfs.master.export import export_lines
from dfs.master.raft_records import Kind, Replay, encode_head, encode_record, parse_head
from dfs.master.raft_wire import Ping, RequestVote, decode_body, encode_raft, join_bodies
from dfs.master.restore import load_export
from dfs.master.state.commands import PutServer, encode_command
from dfs.master.state.machine import MasterState
from dfs.net.auth import ClusterKey
from dfs.net.frames import FrameParser, encode_frame
from dfs.net.messages import CommitFile, Heartbeat, MakeDirectory, Rename, ReplicateRecords, Stat, Touch, decode, encode
from dfs.net.parts import AppenderState, CallId, NewChunk, NewExtent, RecordGroup
from dfs.net.session import HELLO_SIZE, Handshake, Role
from dfs.testing.fuzz.file_targets import FILE_TARGETS, Target

HANDLE = ChunkHandle(bytes(range(16)))
SERVER = ServerId(b"s" * 16)
KEY = ClusterKey.from_secret(b"a secret of more than thirty-two bytes", "fuzz")
NOW_MS = 1_700_000_000_000


def _frames(data: bytes) -> None:
    parser = FrameParser()
    for head, header in parser.feed(data):
        decode(head.type_code, header)


def _messages(data: bytes) -> None:
    """The number of a message and its header, as behind a right frame."""
    message = decode(int.from_bytes(data[:2], "big"), data[2:])
    assert decode(message.type_code, encode(message)) == message, "a message changes by being sent on"


def _hello(data: bytes) -> None:
    acceptor = Handshake(Role.ACCEPTOR, KEY.handshake_key, KEY.cluster, bytes(32))
    acceptor.receive(data[:HELLO_SIZE].ljust(HELLO_SIZE, b"\0"))
    rest = data[HELLO_SIZE:]
    assert not acceptor.is_done, "a hello alone opens no connection"
    acceptor.receive(rest[: acceptor.needed].ljust(acceptor.needed, b"\0"))
    raise AssertionError("a peer without the secret was let in")


def _raft(data: bytes) -> None:
    decode_body(data)


def _journal(data: bytes) -> None:
    """The payloads of records, behind right checksums: kind, two numbers and a payload each."""
    segment = encode_head(1, 0, 7, "m1")
    head = parse_head(segment)
    assert head is not None
    for start in range(0, len(data), 24):
        kind = Kind(list(Kind)[data[start] % len(Kind)])
        a, b = data[start + 1 : start + 2], data[start + 2 : start + 3]
        segment += encode_record(kind, int.from_bytes(a), int.from_bytes(b), data[start + 3 : start + 24], salt=7)
    Replay().read_segment(segment, head, None, "a segment")


def _segment(data: bytes) -> None:
    """A whole segment as it lies on disk, and its head behind a right checksum."""
    payload = data[:64]
    parse_head(encode_record(Kind.HEAD, 1, 0, payload, salt=0))
    head = parse_head(data)
    if head is not None:
        Replay().read_segment(data, head, None, "a segment")


def _checkpoint(data: bytes) -> None:
    """The pieces of a checkpoint, behind right checksums; each begins with its size."""
    pieces = []
    while data:
        size = int.from_bytes(data[:2], "big")
        pieces.append(data[2 : 2 + size])
        data = data[2 + size :]
    state, again = MasterState(), MasterState()
    state.load(pieces)
    again.load(state.dump())
    assert list(again.dump()) == list(state.dump()), "a state changes by being dumped and loaded"


def _commands(data: bytes) -> None:
    """Log entries; each begins with its size. Whatever they say, the state stays sound and meets no bug."""
    state = MasterState()
    while data:
        size = int.from_bytes(data[:2], "big")
        state.apply_encoded(data[2 : 2 + size])
        data = data[2 + size :]
    assert state.fault is None, state.fault
    state.check_invariants()


def _export(data: bytes) -> None:
    load_export(data.splitlines(keepends=True), "an export")


def _tail(data: bytes) -> None:
    """The end of a replica's file; the first two bytes are the length that its size promises."""
    decode_tail(data[2:], int.from_bytes(data[:2], "big"), HANDLE)


def _tail_log(data: bytes) -> None:
    """The file of a tail that records are appended to: behind two bytes of length its data, then its journal."""
    size = int.from_bytes(data[:2], "big")
    fd = os.memfd_create("tail")
    try:
        os.pwrite(fd, data[2 : 2 + size], 0)
        os.pwrite(fd, data[2 + size :], JOURNAL_START)
        parse_tail(fd, HANDLE)
    finally:
        os.close(fd)


def _old_tail_log(data: bytes) -> None:
    """The same in its first format: all of it a journal, data behind each head."""
    fd = os.memfd_create("tail")
    try:
        os.pwrite(fd, data, 0)
        parse_tail(fd, HANDLE, is_inline=True)
    finally:
        os.close(fd)


def _records(data: bytes) -> None:
    """A round of records from another server: a head, and behind its first two bytes of length the data."""
    size = int.from_bytes(data[:2], "big")
    message = decode(ReplicateRecords.type_code, data[2 : 2 + size])
    if isinstance(message, ReplicateRecords):
        check_records(message.groups, data[2 + size :])


def _records_sample() -> bytes:
    group = RecordGroup(b"a" * 16, 1, 1, (3, 2), (crc32c(b"abc"), crc32c(b"de")))
    head = encode(ReplicateRecords(HANDLE, b"token", 7, (group,)))
    return len(head).to_bytes(2, "big") + head + b"abcde"


def _tail_log_sample() -> bytes:
    group = RecordGroup(b"a" * 16, 1, 1, (3, 2), (crc32c(b"abc"), crc32c(b"de")))
    start = TailStart(100, 1000, 250, (AppenderState(b"b" * 16, 3, (7,)),))
    return b"\0\5abcde" + encode_start(HANDLE, start) + encode_round(HANDLE, Round(0, (group,)))


def _old_tail_log_sample() -> bytes:
    group = RecordGroup(b"a" * 16, 1, 1, (3, 2), (crc32c(b"abc"), crc32c(b"de")))
    start = TailStart(100, 1000, 250, (AppenderState(b"b" * 16, 3, (7,)),))
    frames = []
    for head, data in ((start, b""), (Round(0, (group,)), b"abcde")):
        encoded = msgspec.msgpack.encode(head)
        sizes = struct.pack("<II", len(encoded), len(data))
        frames.append(HANDLE + sizes + struct.pack("<I", crc32c(encoded, crc32c(sizes))) + encoded + data)
    return b"".join(frames)


def _config(data: bytes) -> None:
    parse_config(data.decode("utf-8", "replace"), Path("/nowhere/cluster.ini"))


def _settings(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metadata.json"
        path.write_bytes(data)
        settings = Settings.load(path)
        settings.save(path)
        assert Settings.load(path) == settings, "settings change by being saved"


# --- samples ------------------------------------------------------------------------------------------------


def _call(sequence: int) -> CallId:
    return CallId(SessionId(b"S" * 16), sequence, sequence)


_MUTATIONS = (
    MakeDirectory(_call(1), "/a/b", True),
    Touch(_call(2), "/a/f", 5),
    CommitFile(_call(3), "/a/g", (NewChunk(HANDLE, 10, 7, (SERVER,)),), (NewExtent(0, 0, 10),), 1),
    Rename(_call(4), "/a/f", "/a/b/h"),
)
_COMMANDS = [
    encode_command(NOW_MS, PutServer(SERVER, "c1", "h:1", "r")),
    *(encode_command(NOW_MS, m) for m in _MUTATIONS),
]


def _sized(pieces: list[bytes]) -> bytes:
    return b"".join(len(piece).to_bytes(2, "big") + piece for piece in pieces)


def _state() -> MasterState:
    state = MasterState()
    for command in _COMMANDS:
        state.apply_encoded(command)
    return state


def _messages_samples() -> tuple[bytes, ...]:
    heartbeat = Heartbeat(SERVER, b"i" * 16, 100, 50, 1, 0, ())
    known = (Stat("/a"), heartbeat, *_MUTATIONS)
    return tuple(message.type_code.to_bytes(2, "big") + encode(message) for message in known)


def _tail_sample() -> bytes:
    data = b"x" * 300
    checksums = block_checksums(data)
    assert len(checksums) == 4 * block_count(len(data))
    return len(data).to_bytes(2, "big") + encode_tail(HANDLE, len(data), 0, checksums)


TARGETS: dict[str, Target] = {
    "frames": Target(_frames, (encode_frame(Stat.type_code, encode(Stat("/a")), request_id=7, timeout_ms=5),)),
    "messages": Target(_messages, _messages_samples()),
    "hello": Target(_hello, (Handshake(Role.INITIATOR, KEY.handshake_key, KEY.cluster, bytes(32)).start(),)),
    "raft": Target(_raft, (join_bodies([encode_raft(RequestVote(1, 2, 1, False)), encode_raft(Ping(1))]),)),
    "journal": Target(_journal, (bytes(range(96)),)),
    "segment": Target(_segment, (encode_head(1, 0, 7, "m1") + encode_record(Kind.VOTE, 3, 0, b"m2", salt=7),)),
    "checkpoint": Target(_checkpoint, (_sized(list(_state().dump())),)),
    "commands": Target(_commands, (_sized(_COMMANDS),)),
    "export": Target(_export, (b"".join(export_lines(_state().dump(), cluster="fuzz", log_index=7)),)),
    "tail": Target(_tail, (_tail_sample(),)),
    "tail_log": Target(_tail_log, (_tail_log_sample(),)),
    "old_tail_log": Target(_old_tail_log, (_old_tail_log_sample(),)),
    "records": Target(_records, (_records_sample(),)),
    "config": Target(_config, (EMBEDDED_DEFAULT.encode(),)),
    "settings": Target(_settings, (b'{"cwd": "/", "masters": ["h:1"], "replication": 2}',)),
    **FILE_TARGETS,
}


def check(name: str, data: bytes) -> None:
    """Run a target; an error of the tree is an answer, anything else is raised."""
    with contextlib.suppress(DfsError):
        TARGETS[name].run(data)
