"""Both drivers, as server and as client, in all pairs: they must be indistinguishable on the wire.

Hostile peers are met here too, because each server must treat them alike. Everything runs over loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import pytest

from dfs.checksum import crc32c
from dfs.clock import Deadline
from dfs.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    DeadlineExceeded,
    DfsError,
    NotFound,
    ProtocolError,
)
from dfs.net.aio import AioChannel, AioLimits, AioServer, RequestContext
from dfs.net.auth import ClusterKey
from dfs.net.blocking import Channel
from dfs.net.frames import HEADER_SIZE_MAX, MAGIC, PREFIX_SIZE, VERSION, encode_frame
from dfs.net.listener import Listener, ServeLimits, serve_forever
from dfs.net.messages import Done, ErrorReply, Message, Ping, Pong, Stat, encode
from dfs.net.session import HELLO_SIZE, NONCE_SIZE, PROOF_SIZE, Handshake, Role

KEY = ClusterKey.from_secret(b"s" * 32, "demo")
OTHER_KEY = ClusterKey.from_secret(b"t" * 32, "demo")
PATIENCE_S = 20.0  # far more than anything here needs, far less than the test's own timeout
HANDSHAKE_TIMEOUT_S = 1.5  # where a stranger is to be dropped; whoever is honest has to keep it, too, on a busy machine
HANDSHAKES_MAX = 4
CONNECTIONS_MAX = 3

T = TypeVar("T")


def patience() -> Deadline:
    return Deadline.after(PATIENCE_S)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = patience()
    while not condition():
        deadline.check("waiting for a condition of the test")
        time.sleep(0.005)


class LoopThread:
    """An asyncio loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_S)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()


class Service:
    """What both servers serve."""

    def __init__(self) -> None:
        self.seen: list[Message] = []
        self.release = threading.Event()

    def answer(self, message: Message) -> Message:
        self.seen.append(message)
        if message == Stat("/slow"):
            self.release.wait(PATIENCE_S)
        if message == Stat("/missing"):
            raise NotFound("there is no /missing", path="/missing")
        if message == Stat("/bug"):
            raise RuntimeError("a bug in the handler")
        return Pong("n1", "test", "1") if isinstance(message, Ping) else Done()


@dataclass(frozen=True)
class Patience:
    """How long a server waits for a peer: by default longer than any test, so that a busy machine breaks nothing."""

    handshake_s: float = 10 * PATIENCE_S
    drain_s: float = 1.0


class Server(Protocol):
    service: Service
    address: str

    def close(self) -> None: ...


class BlockingServer:
    def __init__(self, has: Patience) -> None:
        self.service = Service()
        self.listener = Listener.bind("127.0.0.1:0")
        self.address = self.listener.address
        self.stop = threading.Event()
        limits = ServeLimits(
            connections_max=CONNECTIONS_MAX,
            handshakes_max=HANDSHAKES_MAX,
            handshake_timeout_s=has.handshake_s,
            drain_s=has.drain_s,
        )
        self.thread = threading.Thread(target=serve_forever, args=(self.listener, KEY, self._handle, limits, self.stop))
        self.thread.start()

    def _handle(self, channel: Channel) -> None:
        while True:
            request = channel.receive(patience())
            try:
                reply = self.service.answer(request.message)
            except DfsError as error:
                reply = ErrorReply.of(error)
            channel.send(reply, patience(), request_id=request.request_id)

    def close(self) -> None:
        self.service.release.set()
        self.stop.set()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


class AioServerInThread:
    def __init__(self, has: Patience) -> None:
        self.service = Service()
        self.loop = LoopThread()
        self.server = self.loop.run(self._start(has))
        self.address = self.server.address

    async def _start(self, has: Patience) -> AioServer:
        limits = AioLimits(
            connections_max=CONNECTIONS_MAX,
            handshakes_max=HANDSHAKES_MAX,
            handshake_timeout_s=has.handshake_s,
            stall_timeout_s=has.handshake_s,
            drain_s=has.drain_s,
        )
        allowed: frozenset[type[Message]] = frozenset({Ping, Stat})
        return await AioServer.start("127.0.0.1:0", KEY, self._handle, allowed=allowed, limits=limits)

    async def _handle(self, message: Message, context: RequestContext) -> Message:
        if message == Stat("/slow"):
            return await asyncio.to_thread(self.service.answer, message)
        return self.service.answer(message)

    def close(self) -> None:
        self.service.release.set()
        if not self.loop.loop.is_closed():
            self.loop.run(self.server.close())
            self.loop.close()


class Client(Protocol):
    def call(self, message: Message, deadline: Deadline) -> Message: ...
    def close(self) -> None: ...


class AioClient:
    """An AioChannel with the manners of a Channel."""

    def __init__(self, address: str, key: ClusterKey, deadline: Deadline) -> None:
        self.loop = LoopThread()
        try:
            self.channel = self.loop.run(AioChannel.connect(address, key, deadline))
        except BaseException:
            self.loop.close()
            raise

    def call(self, message: Message, deadline: Deadline) -> Message:
        return self.loop.run(self.channel.call(message, deadline))

    def close(self) -> None:
        if not self.loop.loop.is_closed():
            self.loop.run(self.channel.close())
            self.loop.close()


Connect = Callable[[str, ClusterKey, Deadline], Client]


@pytest.fixture
def patience_of_server() -> Patience:
    return Patience()


dropping_strangers = pytest.mark.parametrize("patience_of_server", [Patience(HANDSHAKE_TIMEOUT_S)], ids=["soon"])


@pytest.fixture(params=[BlockingServer, AioServerInThread], ids=["to_blocking", "to_aio"])
def server(request: pytest.FixtureRequest, patience_of_server: Patience) -> Iterator[Server]:
    started: Server = request.param(patience_of_server)
    yield started
    started.close()


@pytest.fixture(params=[Channel.connect, AioClient], ids=["from_blocking", "from_aio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    made: list[Client] = []

    def opened(address: str, key: ClusterKey, deadline: Deadline) -> Client:
        made.append(request.param(address, key, deadline))
        return made[-1]

    yield opened
    for client in made:
        client.close()


# --- what honest peers see ------------------------------------------------------------------------------


def test_calls_are_answered_in_all_pairs(server: Server, connect: Connect) -> None:
    client = connect(server.address, KEY, patience())
    assert client.call(Ping(), patience()) == Pong("n1", "test", "1")
    asked: list[Message] = [Stat("/" + "x" * size) for size in (0, 1, 16_384, 1_000_000)]
    for message in asked:
        assert client.call(message, patience()) == Done()
    assert server.service.seen == [Ping(), *asked]


def test_error_of_the_handler_arrives_as_itself(server: Server, connect: Connect) -> None:
    client = connect(server.address, KEY, patience())
    with pytest.raises(NotFound, match="there is no /missing") as caught:
        client.call(Stat("/missing"), patience())
    assert caught.value.details == {"path": "/missing"}
    assert client.call(Ping(), patience()) == Pong("n1", "test", "1")


def test_bug_in_a_handler_harms_its_own_caller_only(
    server: Server, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    client, other = connect(server.address, KEY, patience()), connect(server.address, KEY, patience())
    with pytest.raises(DfsError):
        client.call(Stat("/bug"), patience())
    assert other.call(Ping(), patience()) == Pong("n1", "test", "1")
    wait_until(lambda: any(record.exc_info for record in caplog.records))
    assert "a bug in the handler" in caplog.text


def test_call_without_answer_ends_at_its_deadline(server: Server, connect: Connect) -> None:
    client = connect(server.address, KEY, patience())
    with pytest.raises(DeadlineExceeded, match=r"127\.0\.0\.1"):
        client.call(Stat("/slow"), Deadline.after(0.2))


def test_call_after_its_deadline_is_not_sent(server: Server, connect: Connect) -> None:
    client = connect(server.address, KEY, patience())
    with pytest.raises(DeadlineExceeded):
        client.call(Ping(), Deadline.after(0))
    assert server.service.seen == []


def test_server_that_stops_ends_waiting_calls_with_a_named_error(server: Server, connect: Connect) -> None:
    client = connect(server.address, KEY, patience())
    client.call(Ping(), patience())
    server.close()
    with pytest.raises(ConnectionFailed, match="lost the connection") as caught:
        client.call(Ping(), patience())
    assert caught.value.details["address"] == server.address


@pytest.mark.parametrize("patience_of_server", [Patience(drain_s=PATIENCE_S)], ids=["at_leisure"])
def test_request_in_progress_is_answered_before_the_server_stops(server: Server, connect: Connect) -> None:
    client = connect(server.address, KEY, patience())
    replies: list[Message] = []
    asking = threading.Thread(target=lambda: replies.append(client.call(Stat("/slow"), patience())))
    asking.start()
    wait_until(lambda: server.service.seen == [Stat("/slow")])
    server.close()  # lets the handler go on, then stops
    asking.join(PATIENCE_S)
    assert replies == [Done()]


def test_nobody_listening_is_a_connection_error_that_names_the_address(connect: Connect) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConnectionFailed, match="is the daemon running") as caught:
            connect(address, KEY, patience())
    assert caught.value.details == {"address": address}


def test_peer_that_never_answers_a_connect_costs_no_more_than_the_deadline(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DeadlineExceeded):
        connect(f"127.0.0.1:{silent.getsockname()[1]}", KEY, Deadline.after(0.2))


def test_connect_to_a_port_of_another_service_is_named_as_that(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as web:

        def greet() -> None:
            sock, _ = web.accept()
            with sock:
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\nServer: not dfs\r\nConnection: close\r\n\r\n" * 2)
                sock.recv(1000)

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(ProtocolError, match="another service's port"):
            connect(f"127.0.0.1:{web.getsockname()[1]}", KEY, patience())
        thread.join(PATIENCE_S)


# --- what strangers see -----------------------------------------------------------------------------------


def raw(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def read_to_end(sock: socket.socket) -> bytes:
    """Return all bytes until the peer ends the connection, in whichever way; fail when it does not."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            data += piece
    return data


def authenticated_raw(address: str, key: ClusterKey = KEY) -> socket.socket:
    """Return a socket past the handshake, to misbehave with."""
    sock = raw(address)
    handshake = Handshake(Role.INITIATOR, key.handshake_key, key.cluster, secrets.token_bytes(NONCE_SIZE))
    sock.sendall(handshake.start())
    reply = b""
    while len(reply) < HELLO_SIZE + PROOF_SIZE:
        reply += sock.recv(HELLO_SIZE + PROOF_SIZE - len(reply))
    sock.sendall(handshake.receive(reply))
    return sock


def assert_unharmed(server: Server, connect: Connect) -> None:
    """The server saw nothing of the stranger and serves others."""
    assert server.service.seen == []
    assert connect(server.address, KEY, patience()).call(Ping(), patience()) == Pong("n1", "test", "1")


def test_wrong_secret_is_explained_to_the_client_and_logged_by_the_server(
    server: Server, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(AuthenticationFailed, match="compare the secret file and the cluster name") as caught:
        connect(server.address, OTHER_KEY, patience())
    assert caught.value.details == {"address": server.address}
    wait_until(lambda: "connection_refused" in caplog.text)
    (record,) = [record for record in caplog.records if record.getMessage() == "connection_refused"]
    assert record.levelno == logging.WARNING
    assert "127.0.0.1:" in str(vars(record))
    assert_unharmed(server, connect)


@pytest.mark.parametrize(
    "words",
    [
        encode_frame(Ping.type_code, encode(Ping()), request_id=1),
        encode_frame(Ping.type_code, encode(Ping()), request_id=1) * 1000,
        b"GET / HTTP/1.1\r\nHost: dfs\r\n\r\n" + b"x" * 100,
        bytes(4096),
        b"DFSh\x01\x01\x01\x00" + bytes(NONCE_SIZE) + bytes(PROOF_SIZE) + encode_frame(Ping.type_code, b"\x90"),
    ],
    ids=["a_frame", "many_frames", "http", "zeros", "hello_and_guessed_proof"],
)
@dropping_strangers
def test_stranger_never_reaches_a_handler(server: Server, connect: Connect, words: bytes) -> None:
    with raw(server.address) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(words)
        answer = read_to_end(sock)
    assert len(answer) in (0, HELLO_SIZE + PROOF_SIZE)  # at most a challenge
    assert_unharmed(server, connect)


def test_random_bytes_never_crash_or_hang_a_server(server: Server, connect: Connect) -> None:
    for size in (1, 39, 40, 41, 72, 5000):
        with raw(server.address) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(secrets.token_bytes(size))
                sock.shutdown(socket.SHUT_WR)
            assert read_to_end(sock) == b""
    assert_unharmed(server, connect)


@pytest.mark.parametrize("sent", [0, 1, HELLO_SIZE - 1, HELLO_SIZE], ids="after_{}_bytes".format)
@dropping_strangers
def test_silent_stranger_is_dropped_at_the_deadline(server: Server, connect: Connect, sent: int) -> None:
    handshake = Handshake(Role.INITIATOR, OTHER_KEY.handshake_key, "demo", secrets.token_bytes(NONCE_SIZE))
    with raw(server.address) as sock:
        sock.sendall(handshake.start()[:sent])
        assert len(read_to_end(sock)) == (HELLO_SIZE + PROOF_SIZE if sent == HELLO_SIZE else 0)
    assert_unharmed(server, connect)


@dropping_strangers
def test_dripping_stranger_is_dropped_although_it_keeps_sending(server: Server, connect: Connect) -> None:
    with raw(server.address) as sock:
        started = time.monotonic()
        sock.settimeout(0.1)
        dripped = 0
        with contextlib.suppress(ConnectionError):
            for byte in b"DFSh" + bytes(10_000):
                sock.sendall(bytes([byte]))
                dripped += 1
                try:
                    if not sock.recv(1):
                        break
                except TimeoutError:
                    pass
                assert time.monotonic() - started < PATIENCE_S
        assert 0 < dripped < HELLO_SIZE
    assert_unharmed(server, connect)


@dropping_strangers
def test_strangers_who_hold_connections_open_keep_nobody_out(server: Server, connect: Connect) -> None:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(raw(server.address)) for _ in range(HANDSHAKES_MAX * 3)]
        assert connect(server.address, KEY, patience()).call(Ping(), patience()) == Pong("n1", "test", "1")
        for sock in held:
            assert read_to_end(sock) == b""


def test_connections_beyond_the_cap_are_refused_and_the_others_live_on(server: Server, connect: Connect) -> None:
    clients = [connect(server.address, KEY, patience()) for _ in range(CONNECTIONS_MAX)]
    for client in clients:
        client.call(Ping(), patience())
    with pytest.raises(DfsError):
        connect(server.address, KEY, patience()).call(Ping(), patience())
    for client in clients:
        assert client.call(Ping(), patience()) == Pong("n1", "test", "1")
    clients[0].close()
    wait_until(lambda: can_call(server, connect))


def can_call(server: Server, connect: Connect) -> bool:
    try:
        return connect(server.address, KEY, patience()).call(Ping(), patience()) == Pong("n1", "test", "1")
    except DfsError:
        return False


# --- what authenticated peers that break the format see ---------------------------------------------------


def test_oversized_frame_is_refused_from_its_prefix(server: Server, connect: Connect) -> None:
    fields = struct.pack("<4sBBHQIIII", MAGIC, VERSION, 0, Stat.type_code, 1, 0, HEADER_SIZE_MAX + 1, 0, 0)
    with authenticated_raw(server.address) as sock:
        sock.sendall(fields + struct.pack("<I", crc32c(fields)))
        read_to_end(sock)  # returns: the server did not wait for the announced bytes
    assert_unharmed(server, connect)


def test_damaged_frame_ends_the_connection_and_reaches_nobody(server: Server, connect: Connect) -> None:
    frame = encode_frame(Ping.type_code, encode(Ping()), request_id=1)
    for position in (0, 5, 8, 20, PREFIX_SIZE - 1, PREFIX_SIZE):
        damaged = bytearray(frame)
        damaged[position] ^= 0x10
        with authenticated_raw(server.address) as sock:
            sock.sendall(damaged)
            read_to_end(sock)
    assert_unharmed(server, connect)


def test_frames_sent_with_the_proof_are_served(server: Server) -> None:
    """The initiator knows after the acceptor's proof that it will be believed; it need not wait."""
    sock = raw(server.address)
    with sock:
        handshake = Handshake(Role.INITIATOR, KEY.handshake_key, KEY.cluster, secrets.token_bytes(NONCE_SIZE))
        sock.sendall(handshake.start())
        proof = handshake.receive(sock.recv(HELLO_SIZE + PROOF_SIZE, socket.MSG_WAITALL))
        sock.sendall(proof + encode_frame(Ping.type_code, encode(Ping()), request_id=5))
        expected = encode_frame(Pong.type_code, encode(Pong("n1", "test", "1")), request_id=5)
        answer = sock.recv(len(expected), socket.MSG_WAITALL)
    assert answer[8:16] == expected[8:16]
    assert answer[PREFIX_SIZE:] == expected[PREFIX_SIZE:]
