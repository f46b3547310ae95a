"""Fuzzed files and answers: what lies on a disk beside chunks and logs, and what comes in at the smaller doors.

Owns: those targets. Refuses to know: frames, messages and logs (dfs.testing.fuzz.targets).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from dfs.chaos.history import History
from dfs.chaos.journal import Head, Journal, RunCommand, StartNode, unfinished
from dfs.chaos.report import About, assemble
from dfs.chaos.report import load as load_report
from dfs.chaos.story import Story
from dfs.chaos.verdict import judge
from dfs.checksum import block_checksums, crc32c
from dfs.chunk.identity import DIRECTORY_FORMAT, IDENTITY_FILE, claim
from dfs.chunk.layout import encode_tail
from dfs.chunk.scrub_position import POSITION_FILE, PositionFiles, ScrubPosition
from dfs.chunk.tails.log import encode_frame
from dfs.chunk.tails.seal import Seal, read_seal, write_seal
from dfs.chunk.volumes.records import (
    HEADER_SIZE,
    RecordHeader,
    RecordKind,
    VolumeName,
    decode_index,
    encode_header,
    encode_index,
)
from dfs.chunk.volumes.scan import scan_volume
from dfs.clock import Deadline
from dfs.ids import ChunkHandle
from dfs.local.process import ProcessMark
from dfs.master.raft_checkpoint import CheckpointHead, open_checkpoint, write_checkpoint
from dfs.master.state.machine import MasterState
from dfs.net.auth import ClusterKey
from dfs.net.metrics_port import BadRequestError, request_of
from dfs.net.session import HELLO_SIZE, PROOF_SIZE, Handshake, Role

HANDLE = ChunkHandle(bytes(range(16)))
KEY = ClusterKey.from_secret(b"a secret of more than thirty-two bytes", "fuzz")
VOLUME = VolumeName(1, b"saltsalt")
CLUSTER = "fuzz"
REQUEST_S = 5.0  # nobody waits: the peer has said all that it will say
SERVER_ID = "73" * 16


@cache
def _folder() -> Path:
    """Return a folder in memory, if there is one, that is gone when this process ends."""
    shared = Path("/dev/shm")  # noqa: S108 - the folder in it is our own
    folder = Path(tempfile.mkdtemp(prefix="dfs-fuzz-", dir=shared if shared.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _file(name: str, data: bytes) -> Path:
    path = _folder() / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


# --- volumes ------------------------------------------------------------------------------------------------


def volume(data: bytes) -> None:
    """A volume as it lies on a disk; and the same with the checksum and the offset of every header put right."""
    for content in (data, _headers_put_right(data)):
        fd = os.memfd_create("volume")
        try:
            os.pwrite(fd, content, 0)
            found = scan_volume(fd, len(content), VOLUME)
        finally:
            os.close(fd)
        ends = [0, *(header.offset + header.size for header in found.headers)]
        assert all(header.offset >= end for header, end in zip(found.headers, ends, strict=False)), "records overlap"
        assert found.end == ends[-1] <= len(content), "a record stands behind the end of its volume"


def _headers_put_right(data: bytes) -> bytes:
    fixed, at = bytearray(data), 0
    while at + HEADER_SIZE <= len(fixed):
        fixed[at + 8 : at + 16] = at.to_bytes(8, "little")
        body = bytes(fixed[at : at + HEADER_SIZE - 4])
        fixed[at + HEADER_SIZE - 4 : at + HEADER_SIZE] = crc32c(body, crc32c(VOLUME.salt)).to_bytes(4, "little")
        length = int.from_bytes(body[32:36], "little")
        at += HEADER_SIZE + (length + 48 if 0 < length <= len(fixed) else 0)
    return bytes(fixed)


def volume_index(data: bytes) -> None:
    """The index of a full volume behind a right checksum."""
    headers, _end = decode_index(data + crc32c(data).to_bytes(4, "little"))
    list(headers)


def _volume_sample() -> bytes:
    content = b""
    for number in range(3):
        data = b"x" * (100 + number)
        handle = ChunkHandle(bytes([number]) * 16)
        header = RecordHeader(RecordKind.REPLICA, len(content), handle, len(data), crc32c(data), 7)
        content += encode_header(header, VOLUME.salt) + data
        content += encode_tail(handle, len(data), crc32c(data), block_checksums(data))
    gone = RecordHeader(RecordKind.TOMBSTONE, len(content), ChunkHandle(bytes(16)), 0, 0, 8, 1, 0)
    return content + encode_header(gone, VOLUME.salt)


def _index_sample() -> bytes:
    headers = [encode_header(RecordHeader(RecordKind.TOMBSTONE, 0, HANDLE, 0, 0, 8, 1, 0), VOLUME.salt)]
    return encode_index(headers, HEADER_SIZE)[:-4]


# --- small files --------------------------------------------------------------------------------------------


def seal(data: bytes) -> None:
    """What a tail was sealed as, as it lies on a disk, and behind a right checksum."""
    for content in (data, encode_frame(HANDLE, data)):
        read_seal(_file("seal", content), HANDLE)


def identity(data: bytes) -> None:
    """`server.json` of a data directory."""
    path = _file(f"data/{IDENTITY_FILE}", data)
    _, directories = claim([path.parent], CLUSTER)
    for directory in directories:
        directory.release()


def scrub_position(data: bytes) -> None:
    """Where the scrubber is; it never raises."""
    folder = _file(f"scrub/{POSITION_FILE}", data).parent
    position = PositionFiles(lambda: [folder]).load()
    bytes.fromhex(position.verified)


def checkpoint_file(data: bytes) -> None:
    """A checkpoint of a master as it lies on a disk, and its first frames behind right checksums."""
    _, pieces = open_checkpoint(_file("checkpoint", data))
    for _ in pieces:
        pass


def pid_file(data: bytes) -> None:
    """Which process a daemon is; whatever it says, no process may be taken for it that is not.

    A fuzzer that watches comparisons finds a boot id and a start time in minutes: a file may name a real process.
    """
    mark = ProcessMark.load(_file("pid", data))
    if mark is not None and mark.is_running:
        assert mark == ProcessMark.of(mark.pid), "a process was taken for a daemon that is another one"


def secret(data: bytes) -> None:
    """The secret file."""
    path = _file("secret", data)
    path.chmod(0o600)
    ClusterKey.load(path, CLUSTER)


def undo_journal(data: bytes) -> None:
    """What a chaos run has to undo: a list of steps, or words on why the file cannot be read."""
    path = _file("journals/run.undo", data)
    damaged: dict[Path, str] = {}
    found = unfinished(path.parent, damaged)
    assert len(found) + len(damaged) == 1, "a journal is neither read nor called damaged"
    if found:
        journal = Journal.resume(path)
        assert [step for _, step in reversed(journal.steps)] == list(found[0].steps)
        for number, _ in journal.steps:
            journal.done(number)
        journal.close()
        assert not path.exists(), "all is undone, and the journal is still there"


def chaos_report(data: bytes) -> None:
    """report.json of a chaos run."""
    load_report(_file("report/report.json", data).parent)


def _undo_sample() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal.begin(Path(folder), Head("run", CLUSTER, ("h:1",), "/c/cluster.ini", 7))
        done = journal.add(RunCommand("m1", ("systemctl", "start", "dfs-master@m1")))
        journal.add(StartNode("c1", "/c/cluster.ini"))
        journal.done(done)
        content = journal.path.read_bytes()
        journal.close()
        return content


def _report_sample() -> bytes:
    story = Story(100.0)
    story.ended_s = 101.0
    verdict = judge(History(), (), b"", (), story)
    about = About("run", CLUSTER, is_throw_away=True, seed=7, begun_ms=8, version="1", again="dfs chaos run")
    return msgspec.json.encode(assemble(about, verdict, story, ()))


def _seal_sample() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seal"
        write_seal(path, HANDLE, Seal(5, 7, (), (b"a" * 16,)))
        return path.read_bytes()


def _checkpoint_sample() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        head = CheckpointHead((b"", 6, 1), (b"", 7, 1))
        write_checkpoint(path, head, MasterState().dump(), fsync=False)
        return path.read_bytes()


# --- doors --------------------------------------------------------------------------------------------------


def metrics_request(data: bytes) -> None:
    """What comes in at the metrics port: a request or a refusal."""
    peer, ours = socket.socketpair()
    with peer, ours, contextlib.suppress(BadRequestError):
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        method, target = request_of(ours, Deadline.after(REQUEST_S))
        assert method
        assert target


def welcome(data: bytes) -> None:
    """What a client is answered, at a port and at the local door alike, by somebody without the secret."""
    initiator = Handshake(Role.INITIATOR, KEY.handshake_key, KEY.cluster, bytes(32))
    initiator.start()
    initiator.receive(data[: initiator.needed].ljust(initiator.needed, b"\0"))
    raise AssertionError("a daemon without the secret was believed")


def _welcome_sample() -> bytes:
    """From a daemon with another secret."""
    other = ClusterKey.from_secret(b"another secret, of thirty-two bytes!", "fuzz")
    acceptor = Handshake(Role.ACCEPTOR, other.handshake_key, other.cluster, b"n" * 32)
    hello = Handshake(Role.INITIATOR, KEY.handshake_key, KEY.cluster, bytes(32)).start()
    answer = acceptor.receive(hello)
    assert len(answer) == HELLO_SIZE + PROOF_SIZE
    return answer


@dataclass(frozen=True, slots=True)
class Target:
    """`run` returns or raises an error of the tree for whatever bytes; `samples` are sound ones."""

    run: Callable[[bytes], object]
    samples: tuple[bytes, ...]


_IDENTITY = b'{"format":%d,"cluster":"%s","server_id":"%s","data_dirs":["/a"]}'
FILE_TARGETS: dict[str, Target] = {
    "volume": Target(volume, (_volume_sample(),)),
    "volume_index": Target(volume_index, (_index_sample(),)),
    "seal": Target(seal, (_seal_sample(), _seal_sample()[28:])),
    "identity": Target(identity, (_IDENTITY % (DIRECTORY_FORMAT, CLUSTER.encode(), SERVER_ID.encode()),)),
    "scrub_position": Target(scrub_position, (msgspec.json.encode(ScrubPosition("ab" * 16, 1, 2, 3, 4)),)),
    "checkpoint_file": Target(checkpoint_file, (_checkpoint_sample(),)),
    "pid_file": Target(pid_file, (b"99999999 5 a-boot-id\n",)),
    "secret": Target(secret, (b"0123456789abcdef" * 4 + b"\n",)),
    "undo_journal": Target(undo_journal, (_undo_sample(),)),
    "chaos_report": Target(chaos_report, (_report_sample(),)),
    "metrics_request": Target(metrics_request, (b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", b"HEAD / HTTP/1.0\n\n")),
    "welcome": Target(welcome, (_welcome_sample(),)),
}
