"""The blocking driver alone: payloads in both directions, files, deadlines and the state of a channel."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfs.clock import Deadline
from dfs.errors import (
    ConfigError,
    ConnectionFailed,
    DeadlineExceeded,
    DiskFailed,
    FrameCorrupt,
    InternalError,
    NotFound,
    ProtocolError,
)
from dfs.net import stream as stream_module
from dfs.net.auth import ClusterKey
from dfs.net.blocking import Channel, expect
from dfs.net.frames import encode_frame
from dfs.net.listener import Listener, ServeLimits, serve_forever
from dfs.net.messages import Done, ErrorReply, Ping, Pong, ReadChunkReply, Stat, WriteData, encode
from dfs.net.sockets import resolve
from dfs.net.stream import READ_AHEAD_SIZE, SocketStream

KEY = ClusterKey.from_secret(b"s" * 32, "demo")
PATIENCE_S = 20.0
Pair = tuple[Channel, Channel]


def patience() -> Deadline:
    return Deadline.after(PATIENCE_S)


def soon() -> Deadline:
    return Deadline.after(0.1)


@contextlib.contextmanager
def channel_pair() -> Iterator[Pair]:
    """Yield both ends of one authenticated connection over loopback."""
    listener = Listener.bind("127.0.0.1:0")
    accepted: list[Channel] = []

    def accept() -> None:
        sock = None
        while sock is None:
            sock = listener.accept()
        accepted.append(Channel.accept(sock, KEY, patience()))

    thread = threading.Thread(target=accept)
    thread.start()
    near = Channel.connect(listener.address, KEY, patience(), bulk=True)
    thread.join(PATIENCE_S)
    listener.close()
    with near, accepted[0] as far:
        yield near, far


@pytest.fixture
def pair() -> Iterator[Pair]:
    with channel_pair() as made:
        yield made


def in_thread(work: object) -> threading.Thread:
    assert callable(work)
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def received_payload(channel: Channel, size: int) -> bytes:
    buffer = bytearray(size)
    channel.receive_into(memoryview(buffer), patience())
    return bytes(buffer)


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 63, READ_AHEAD_SIZE - 36, READ_AHEAD_SIZE, 70_000]), max_size=4),
    header=st.sampled_from([0, 4, READ_AHEAD_SIZE, 100_000]),
    piece=st.sampled_from([1000, 65_536, 1 << 20]),
)
def test_payloads_of_any_size_arrive_between_their_frames(
    pair: Pair, sizes: list[int], header: int, piece: int
) -> None:
    near, far = pair
    payloads = [os.urandom(size) for size in sizes]

    def send() -> None:
        for index, payload in enumerate(payloads):
            near.send(WriteData(bytes(header)), patience(), request_id=index, payload=payload)
        near.send(Ping(), patience())

    sender = in_thread(send)
    for index, payload in enumerate(payloads):
        message, request_id, timeout_ms, size = far.receive(patience())
        assert (message, request_id, size) == (WriteData(bytes(header)), index, len(payload))
        assert 0 < timeout_ms <= PATIENCE_S * 1000
        data = b""
        while len(data) < size:
            data += received_payload(far, min(piece, size - len(data)))
        assert data == payload
    assert far.receive(patience()).message == Ping()
    sender.join(PATIENCE_S)
    assert (near.is_broken, far.is_broken) == (False, False)


def test_file_and_memory_make_one_payload_and_offsets_are_kept(pair: Pair, tmp_path: Path) -> None:
    near, far = pair
    content = os.urandom(3_000_000)
    (tmp_path / "chunk").write_bytes(content)

    def send() -> None:
        with (tmp_path / "chunk").open("rb") as file:
            near.send(ReadChunkReply(0, b"", 0), patience(), payload_size=10 + 2_000_000 + 3)
            near.send_bytes(b"0123456789", patience())
            near.send_file(file.fileno(), 500_000, 2_000_000, patience())
            near.send_bytes(memoryview(b"end"), patience())
            near.send(Done(), patience())

    sender = in_thread(send)
    assert far.receive(patience()).payload_size == 2_000_013
    assert received_payload(far, 2_000_013) == b"0123456789" + content[500_000:2_500_000] + b"end"
    assert far.receive(patience()).message == Done()
    sender.join(PATIENCE_S)


def test_skipped_payload_leaves_the_stream_in_step(pair: Pair) -> None:
    near, far = pair

    def send() -> None:
        for _ in range(2):
            near.send(WriteData(b""), patience(), payload=bytes(300_000))

    sender = in_thread(send)
    for _ in range(2):
        far.skip_payload(far.receive(patience()).payload_size, patience())
    sender.join(PATIENCE_S)
    far.send(Done(), patience())
    assert near.receive(patience()).message == Done()


def test_file_shorter_than_promised_breaks_the_connection_instead_of_padding(pair: Pair, tmp_path: Path) -> None:
    near, _ = pair
    (tmp_path / "chunk").write_bytes(bytes(1000))
    near.send(ReadChunkReply(0, b"", 0), patience(), payload_size=1001)
    with (tmp_path / "chunk").open("rb") as file, pytest.raises(DiskFailed, match="1 bytes too early"):
        near.send_file(file.fileno(), 0, 1001, patience())
    assert near.is_broken


def test_waiting_for_a_silent_peer_ends_at_the_deadline(pair: Pair) -> None:
    near, far = pair
    with pytest.raises(DeadlineExceeded, match="waiting for") as caught:
        near.receive(soon())
    assert caught.value.details == {"address": near.address}
    assert near.is_broken
    assert not far.is_broken


def test_payload_that_stops_half_way_ends_at_the_deadline(pair: Pair) -> None:
    near, far = pair
    near.send(WriteData(b""), patience(), payload_size=200_000)
    near.send_bytes(bytes(100_000), patience())
    far.receive(patience())
    with pytest.raises(DeadlineExceeded):
        far.receive_into(memoryview(bytearray(200_000)), soon())
    assert far.is_broken


@pytest.mark.parametrize("way", ["payload", "send_bytes", "send_file"])
def test_sending_to_a_peer_that_takes_nothing_ends_at_the_deadline(pair: Pair, tmp_path: Path, way: str) -> None:
    near, _ = pair
    size = 128 * 1024 * 1024  # far more than the kernel holds for a connection
    (tmp_path / "chunk").touch()
    os.truncate(tmp_path / "chunk", size)
    if way != "payload":
        near.send(WriteData(b""), patience(), payload_size=size)
    data = bytes(size)
    with (tmp_path / "chunk").open("rb") as file:
        ways: dict[str, Callable[[], None]] = {
            "payload": lambda: near.send(WriteData(b""), Deadline.after(0.3), payload=data),
            "send_bytes": lambda: near.send_bytes(data, Deadline.after(0.3)),
            "send_file": lambda: near.send_file(file.fileno(), 0, size, Deadline.after(0.3)),
        }
        with pytest.raises(DeadlineExceeded, match="sending to"):
            ways[way]()
    assert near.is_broken


def test_connect_ends_at_the_deadline_when_the_network_is_silent() -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # fill the queue of the port: the kernel then ignores who knocks
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        with pytest.raises(DeadlineExceeded, match=r"(connecting to|waiting for) 127"):
            Channel.connect(f"127.0.0.1:{full.getsockname()[1]}", KEY, Deadline.after(0.3))


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "é" * 100])
def test_address_that_no_machine_can_have_is_a_connection_error(host: str) -> None:
    with pytest.raises(ConnectionFailed, match="cannot be the name"):
        Channel.connect(f"{host}:7401", KEY, patience())
    with pytest.raises(ConfigError, match="cannot be the name"):
        Listener.bind(f"{host}:0")


def test_lack_of_descriptors_is_a_connection_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", refused)
    with pytest.raises(ConnectionFailed, match="ulimit"):
        Channel.connect("127.0.0.1:7401", KEY, patience())


def test_address_of_an_unknown_family_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    real, resolved = socket.socket, resolve

    def made(family: int = -1, *arguments: int, **named: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *arguments, **named)

    foreign = (socket.AF_INET6, socket.SOCK_STREAM, 0, ("::1", 7401))
    monkeypatch.setattr(stream_module, "resolve", lambda address: [foreign, *resolved(address)])
    monkeypatch.setattr(socket, "socket", made)
    with channel_pair() as (near, far):
        assert not near.is_broken
        assert not far.is_broken


def test_end_of_the_peer_is_a_connection_error_with_its_address(pair: Pair) -> None:
    near, far = pair
    far.close()
    with pytest.raises(ConnectionFailed, match="it closed the connection") as caught:
        near.receive(patience())
    assert caught.value.details == {"address": near.address}
    assert near.is_broken


def test_wait_readable_tells_data_end_and_deadline_apart(pair: Pair) -> None:
    near, far = pair
    assert not near.wait_readable(Deadline.after(0))
    assert not near.wait_readable(Deadline.after(0.01))
    far.send(Ping(), patience())
    far.send(Done(), patience())
    assert near.wait_readable(patience())
    assert near.receive(patience()).message == Ping()
    assert near.wait_readable(patience())  # whether it waits in the kernel or was read ahead
    assert near.receive(patience()).message == Done()
    assert not near.is_broken
    far.close()
    assert near.wait_readable(patience())


def test_what_a_wait_met_at_the_end_is_told_by_the_next_receive(pair: Pair) -> None:
    near, far = pair
    far._stream._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far._stream._socket.close()  # a reset, not an orderly end
    assert near.wait_readable(patience())
    assert near.wait_readable(Deadline.after(0)), "it has not become silent"
    with pytest.raises(ConnectionFailed, match="reset"):
        near.receive(patience())
    assert near.is_broken


def test_a_wait_reads_ahead_what_a_payload_needs_and_loses_nothing_of_it(pair: Pair) -> None:
    near, far = pair
    body = os.urandom(3 * READ_AHEAD_SIZE)
    for _ in range(3):
        far.send(ErrorReply("conflict", "first"), patience())
        far.send(WriteData(b"1234"), patience(), payload=body)
    for _ in range(3):
        assert near.wait_readable(patience())
        assert isinstance(near.receive(patience()).message, ErrorReply)
        assert near.wait_readable(patience())
        received = near.receive(patience())
        assert received.payload_size == len(body)
        got = bytearray(len(body))
        near.receive_into(memoryview(got), patience())
        assert got == body
    assert not near.wait_readable(Deadline.after(0))


class CountingSocket:
    """A socket that counts what is asked of the kernel."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.counts: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.counts[name] += 1
        return getattr(self._socket, name)


def test_a_call_costs_one_send_and_one_receive_whatever_its_deadline(pair: Pair) -> None:
    near, far = pair

    def answer() -> None:
        with contextlib.suppress(ConnectionFailed):
            while True:
                far.send(Done(), patience(), request_id=far.receive(patience()).request_id)

    thread = threading.Thread(target=answer)
    thread.start()
    counting = CountingSocket(near._stream._socket)
    near._stream._socket = cast(socket.socket, counting)
    calls = 60
    for number in range(calls):
        deadline = Deadline.after(PATIENCE_S + number % 3)
        near.send(Ping(), deadline, request_id=number + 1)
        while not near.wait_readable(deadline.no_later_than(0.9)):
            deadline.check("waiting for an answer")
        assert near.receive(deadline).message == Done()
    assert counting.counts["send"] == calls
    assert calls <= counting.counts["recv_into"] < 2 * calls, "more only where an answer took longer than a timeout"
    assert counting.counts["setsockopt"] <= 2, "one timeout for each direction does for all of them"
    assert set(counting.counts) == {"send", "recv_into", "setsockopt"}
    near.close()
    thread.join(PATIENCE_S)


def test_close_from_another_thread_wakes_the_one_that_waits(pair: Pair) -> None:
    near, _ = pair
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            near.receive(patience())
        except ConnectionFailed as error:
            caught.append(error)

    waiting = in_thread(wait)
    near.close()
    waiting.join(PATIENCE_S)
    assert len(caught) == 1
    assert near.is_broken
    near.close()


def test_unread_payload_and_unsent_promise_are_bugs_that_break_the_channel(pair: Pair) -> None:
    near, far = pair
    near.send(WriteData(b""), patience(), payload_size=5)
    assert near.is_broken
    with pytest.raises(InternalError, match="5 bytes of a promised payload were not sent"):
        near.send(Ping(), patience())
    with pytest.raises(InternalError, match="6 bytes were to be sent where 5"):
        near.send_bytes(b"123456", patience())
    near.send_bytes(b"12345", patience())
    far.receive(patience())
    with pytest.raises(InternalError, match="5 bytes of the last payload were not read"):
        far.receive(patience())
    with pytest.raises(InternalError, match="6 bytes were to be read where 5"):
        far.receive_into(memoryview(bytearray(6)), patience())


def test_error_reply_is_raised_and_leaves_the_channel_usable(pair: Pair) -> None:
    near, far = pair

    def serve() -> None:
        for reply in (ErrorReply.of(NotFound("no /a", path="/a")), Done()):
            request = far.receive(patience())
            far.send(reply, patience(), request_id=request.request_id)

    serving = in_thread(serve)
    with pytest.raises(NotFound, match="no /a"):
        near.call(Stat("/a"), patience())
    assert not near.is_broken
    assert near.call(Stat("/b"), patience()) == Done()
    serving.join(PATIENCE_S)


def test_answer_to_another_request_is_refused(pair: Pair) -> None:
    near, far = pair
    serving = in_thread(lambda: far.send(Done(), patience(), request_id=far.receive(patience()).request_id + 1))
    with pytest.raises(ProtocolError, match="answered request 2"):
        near.call(Ping(), patience())
    assert near.is_broken
    serving.join(PATIENCE_S)


def test_last_words_of_a_peer_reach_the_caller(pair: Pair) -> None:
    near, far = pair
    serving = in_thread(lambda: far.send_last_words(ProtocolError("unknown message type 0x0999"), patience()))
    with pytest.raises(ProtocolError, match="0x0999"):
        near.call(Ping(), patience())
    assert near.is_broken
    serving.join(PATIENCE_S)


def test_damaged_frame_is_refused_and_names_the_peer(pair: Pair) -> None:
    near, far = pair
    frame = bytearray(encode_frame(Ping.type_code, encode(Ping())))
    frame[-1] ^= 1
    far._stream.send(bytes(frame), patience())
    with pytest.raises(FrameCorrupt, match=near.address):
        near.receive(patience())
    assert near.is_broken


def test_expect_narrows_or_explains() -> None:
    assert expect(Done(), Done) == Done()
    with pytest.raises(ProtocolError, match="Pong was expected, Done came"):
        expect(Done(), Pong)
    with pytest.raises(NotFound):
        expect(ErrorReply.of(NotFound("no /a")), Pong)


def test_stranger_that_waited_longest_makes_room_before_its_time_is_up() -> None:
    listener, stop = Listener.bind("127.0.0.1:0"), threading.Event()
    limits = ServeLimits(handshakes_max=2, handshake_timeout_s=10 * PATIENCE_S, drain_s=1.0)
    serving = in_thread(lambda: serve_forever(listener, KEY, lambda _: None, limits, stop))
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", listener.port)
        oldest, _, newest = [stack.enter_context(socket.create_connection(address, PATIENCE_S)) for _ in range(3)]
        assert oldest.recv(1) == b""
        newest.setblocking(False)
        with pytest.raises(BlockingIOError):
            newest.recv(1)
    stop.set()
    serving.join(PATIENCE_S)
    assert not serving.is_alive()


def test_address_in_use_or_foreign_is_a_config_error_that_says_what_to_do() -> None:
    listener = Listener.bind("127.0.0.1:0")
    with pytest.raises(ConfigError, match="another process uses it"):
        Listener.bind(listener.address)
    listener.close()
    with pytest.raises(ConfigError, match="does not have that address"):
        Listener.bind("192.0.2.1:0")
    with pytest.raises(ConfigError):
        Listener.bind("nonsense")


@pytest.mark.skipif(not hasattr(socket, "TCP_CONGESTION"), reason="this system has no choice of congestion control")
def test_bulk_connection_is_tuned_for_bulk(pair: Pair) -> None:
    for channel in pair:
        sock = channel._stream._socket
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        default = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
        if default.exists() and "cubic" in default.read_text():
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"cubic"


# --- the end, from another thread ---------------------------------------------------------------------


class SlowSocket:
    """A socket that is shut down slowly: the kernel has not heard of it when another thread closes the stream."""

    def __init__(self, sock: socket.socket) -> None:
        self.is_shutting, self.may_shut = threading.Event(), threading.Event()
        self.numbers: list[tuple[int, int]] = []  # when it was asked to, and when the kernel hears of it
        self._socket = sock

    def shutdown(self, how: int) -> None:
        number = self._socket.fileno()
        if not self.is_shutting.is_set():  # the first time
            self.is_shutting.set()
            self.may_shut.wait(PATIENCE_S)
        self.numbers.append((number, self._socket.fileno()))
        self._socket.shutdown(how)

    def __getattr__(self, name: str) -> object:
        return getattr(self._socket, name)


def test_a_number_that_was_given_back_is_not_shut_down() -> None:
    mine, theirs = socket.socketpair()
    stream = SocketStream(mine, "a peer")
    slow = SlowSocket(mine)
    stream._socket = cast(socket.socket, slow)
    number = mine.fileno()
    interrupter = threading.Thread(target=stream.interrupt)
    interrupter.start()
    assert slow.is_shutting.wait(PATIENCE_S)
    is_closed = threading.Event()
    closer = threading.Thread(target=lambda: (stream.close(), is_closed.set()))  # type: ignore[func-returns-value]
    closer.start()
    is_closed.wait(0.2)  # a stream that is closed now is shut down under a number that anybody may have
    slow.may_shut.set()
    interrupter.join(PATIENCE_S)
    closer.join(PATIENCE_S)
    stream.interrupt()
    theirs.close()
    assert (number, number) in slow.numbers
    assert all(before == after for before, after in slow.numbers)
    assert mine.fileno() == -1
