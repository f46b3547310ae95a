"""A chunk server in this process for tests: a real store on one folder, a real port on loopback, no heartbeats.

Owns: its start and end, and the words of a client that tests say to it again and again. Refuses to know: masters.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dfs.chunk.disk import measure_space
from dfs.chunk.replicas import Space
from dfs.chunk.service import ChunkService
from dfs.chunk.store import FileStore
from dfs.client.write_target import WriteTarget
from dfs.clock import Deadline
from dfs.errors import DfsError
from dfs.ids import ChunkHandle, new_chunk_handle
from dfs.local.ports import free_ports
from dfs.net.auth import ClusterKey, Rights, sign_token
from dfs.net.blocking import Channel, expect
from dfs.net.listener import Listener, ServeLimits, serve_forever
from dfs.net.local import LocalListener
from dfs.net.messages import ErrorReply, ReadChunk, ReadChunkReply
from dfs.net.parts import ServerInfo

KEY = ClusterKey.from_secret(b"0" * 64, "test")
LIMITS = ServeLimits(drain_s=0.0)


class LoopbackChunkServer:
    """A chunk server on one temporary directory, or on several."""

    def __init__(self, path: Path, *others: Path) -> None:
        self.path = path
        self.free: int | None = None
        self.store = FileStore([path, *others], "test", disk_reserve=0, fsync=False, probe=self._probe)
        self.listener = Listener.bind(f"127.0.0.1:{free_ports(1)[0]}")  # which nobody gets after its end
        self.address = self.listener.address
        self.service = ChunkService(store=self.store, key=KEY, name=path.name, address=self.address)
        self.connections = 0
        self.talking: set[Channel] = set()  # whose threads have not ended
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._door: threading.Thread | None = None

    def open_door(self) -> None:
        """Let clients of this machine in by the local door."""
        arguments = (LocalListener.open(self.store.server_id), KEY, self.service.door.handle, LIMITS, self._stop)
        self._door = threading.Thread(target=serve_forever, args=arguments, daemon=True)
        self._door.start()

    def _probe(self, path: Path) -> Space:
        return measure_space(path) if self.free is None else Space(10**9, self.free)

    def _serve(self) -> None:
        serve_forever(self.listener, KEY, self._handle, LIMITS, self._stop)

    def _handle(self, channel: Channel) -> None:
        self.connections += 1
        self.talking.add(channel)
        try:
            self.service.handle(channel)
        finally:
            self.talking.discard(channel)

    def close(self) -> None:
        self._stop.set()
        self.listener.close()
        self._thread.join(20)
        if self._door is not None:
            self._door.join(20)
        self.service.close()
        self.store.close()

    def temporaries(self) -> list[str]:
        return [path.name for path in (self.path / "tmp").iterdir()]


@contextlib.contextmanager
def loopback_servers(folder: Path, *names: str) -> Iterator[list[LoopbackChunkServer]]:
    """Run one server for each name, each on a directory of its own below `folder`."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(LoopbackChunkServer(folder / name))) for name in names]


def wait_until(condition: Callable[[], bool], deadline: Deadline) -> None:
    """Return as soon as `condition()` holds; raise `DeadlineExceeded` when it does not in time."""
    while not condition():
        deadline.check("waiting for a condition of a test")
        time.sleep(0.005)


def soon(seconds: float = 20.0) -> Deadline:
    return Deadline.after(seconds)


def token(handle: ChunkHandle, rights: Rights, lifetime_s: float = 60.0) -> bytes:
    return sign_token(KEY, handle, rights, int((time.time() + lifetime_s) * 1000))


def info(server: LoopbackChunkServer) -> ServerInfo:
    """Return a server as clients are told of it."""
    return ServerInfo(server.store.server_id, server.path.name, server.address, "", is_alive=True)


def target_on(servers: list[LoopbackChunkServer], lifetime_s: float = 60.0) -> WriteTarget:
    """Return a fresh chunk for these servers, in chain order."""
    handle = new_chunk_handle()
    return WriteTarget(handle, token(handle, Rights.WRITE, lifetime_s), tuple(map(info, servers)))


def read(
    channel: Channel, handle: ChunkHandle, offset: int, length: int, rights: bytes | None = None
) -> tuple[ReadChunkReply, bytes]:
    request = ReadChunk(handle, rights or token(handle, Rights.READ), offset, length)
    channel.send(request, soon(), request_id=3)
    received = channel.receive(soon())
    reply = expect(received.message, ReadChunkReply)
    data = bytearray(received.payload_size)
    channel.receive_into(memoryview(data), soon())
    return reply, bytes(data)


def refusal(channel: Channel) -> DfsError:
    received = channel.receive(soon())
    assert isinstance(received.message, ErrorReply), received
    return received.message.error()
