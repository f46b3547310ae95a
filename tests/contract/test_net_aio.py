"""The asyncio driver alone: many calls at once, and the limits that keep one peer from harming the others."""

from __future__ import annotations

import asyncio
import gc
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dfs.clock import Deadline
from dfs.errors import Conflict, ConnectionFailed, DeadlineExceeded, InternalError, Overloaded, ProtocolError
from dfs.net import aio_channel, aio_server
from dfs.net.aio import AioChannel, AioLimits, AioServer, RequestContext
from dfs.net.aio_connection import WRITE_BUFFER_MAX, FrameConnection
from dfs.net.answers import Answer as Promise
from dfs.net.auth import ClusterKey
from dfs.net.frames import encode_frame
from dfs.net.messages import Done, ErrorReply, ListTrash, Message, Ping, Stat, encode
from dfs.net.session import HELLO_SIZE, NONCE_SIZE, PROOF_SIZE, Handshake, Role

KEY = ClusterKey.from_secret(b"s" * 32, "demo")
PATIENCE_S = 20.0
ALLOWED: frozenset[type[Message]] = frozenset({Ping, Stat})
Answer = Callable[[Message, RequestContext], Awaitable[Message]]


def patience() -> Deadline:
    return Deadline.after(PATIENCE_S)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)


def serve(answer: Answer, work: Callable[[AioServer], Awaitable[None]], **limits: Any) -> None:
    """Run `work` beside a server that answers with `answer`."""

    async def run() -> None:
        made = AioLimits(**{"drain_s": 1.0, **limits})
        server = await AioServer.start("127.0.0.1:0", KEY, answer, allowed=ALLOWED, limits=made)
        try:
            await work(server)
        finally:
            await server.close()
            assert server.connection_count == 0

    asyncio.run(run())


async def raw_client(address: str, *, receive_buffer: int = 0) -> socket.socket:
    """Return an authenticated socket of the test's own, to misbehave with."""
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await loop.sock_connect(sock, (host, int(port)))
    handshake = Handshake(Role.INITIATOR, KEY.handshake_key, KEY.cluster, secrets.token_bytes(NONCE_SIZE))
    await loop.sock_sendall(sock, handshake.start())
    reply = b""
    while len(reply) < HELLO_SIZE + PROOF_SIZE:
        reply += await loop.sock_recv(sock, HELLO_SIZE + PROOF_SIZE - len(reply))
    await loop.sock_sendall(sock, handshake.receive(reply))
    return sock


def test_many_calls_share_a_connection_and_late_answers_find_their_calls() -> None:
    async def answer(message: Message, context: RequestContext) -> Message:
        assert isinstance(message, Stat)
        for _ in range(int(message.path) % 5):  # answers leave in another order than requests came
            await asyncio.sleep(0)
        return ErrorReply("conflict", message.path, {"request": str(context.request_id)})

    async def work(server: AioServer) -> None:
        channel = await AioChannel.connect(server.address, KEY, patience())
        calls = [channel.call(Stat(str(index)), patience()) for index in range(300)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [str(error) for error in errors] == [str(index) for index in range(300)]
        await channel.close()

    serve(answer, work)


def test_answers_that_need_no_task_find_their_calls() -> None:
    waiting: list[Promise] = []

    def answer(message: Message, context: RequestContext) -> Promise:
        assert isinstance(message, Stat)
        promise = Promise()
        match int(message.path) % 3:
            case 0:
                promise.give(Done())
            case 1:
                promise.fail(Conflict(message.path))
            case _:
                waiting.append(promise)
        return promise

    async def work(server: AioServer) -> None:
        channel = await AioChannel.connect(server.address, KEY, patience())
        count = 3 * aio_server.REQUESTS_MAX
        calls = [asyncio.ensure_future(channel.call(Stat(str(index)), patience())) for index in range(count)]
        await until(lambda: len(waiting) == count // 3 and sum(call.done() for call in calls) == 2 * count // 3)
        for number, promise in enumerate(reversed(waiting)):
            if number % 2:
                promise.give(Done())
            else:
                promise.fail(ZeroDivisionError("a bug"))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert outcomes[0::3] == [Done()] * (count // 3)
        assert [str(error) for error in outcomes[1::3]] == [str(index) for index in range(1, count, 3)]
        late = list(reversed(outcomes[2::3]))
        assert late[1::2] == [Done()] * (count // 6)
        assert all(isinstance(error, InternalError) for error in late[0::2])
        assert not server.answers
        await channel.close()

    serve(answer, work)


def test_more_requests_than_the_stack_is_deep_are_answered_at_once() -> None:
    def answer(message: Message, context: RequestContext) -> Promise:
        promise = Promise()
        promise.give(Done())
        return promise

    async def work(server: AioServer) -> None:
        sock, count = await raw_client(server.address), 5_000
        sock.setblocking(True)
        frame = encode_frame(Ping.type_code, encode(Ping()), request_id=7)
        reply = encode_frame(Done.type_code, encode(Done()), request_id=7)
        loop = asyncio.get_running_loop()
        sending = loop.run_in_executor(None, sock.sendall, frame * count)
        got = await loop.run_in_executor(None, sock.recv, count * len(reply), socket.MSG_WAITALL)
        await sending
        assert got == reply * count
        sock.close()

    serve(answer, work)


def test_answers_that_are_known_at_once_pile_up_no_higher_than_the_write_buffer_and_leave_the_loop_its_turns() -> None:
    given = of_turn = most = 0
    reply = ErrorReply("conflict", "x" * 50_000)

    def end_turn() -> None:
        nonlocal most, of_turn
        most, of_turn = max(most, of_turn), 0

    def answer(message: Message, context: RequestContext) -> Promise:
        nonlocal given, of_turn
        if not of_turn:
            asyncio.get_running_loop().call_soon(end_turn)
        given += 1
        of_turn += 1
        promise = Promise()
        promise.give(reply)
        return promise

    async def work(server: AioServer) -> None:
        loop = asyncio.get_running_loop()
        sock, count = await raw_client(server.address), 1_500
        sock.setblocking(True)
        frame = encode_frame(Ping.type_code, encode(Ping()), request_id=7)
        expected = encode_frame(reply.type_code, encode(reply), request_id=7)
        assert count * len(expected) > WRITE_BUFFER_MAX
        await loop.run_in_executor(None, sock.sendall, frame * count)
        await until(lambda: given > 0)
        await asyncio.sleep(0.05)  # time enough to begin what must not be begun
        assert given < count, "more is begun than the peer takes"
        got = await loop.run_in_executor(None, sock.recv, count * len(expected), socket.MSG_WAITALL)
        assert got == expected * count
        assert given == count
        assert 0 < most <= 8, "other connections wait for this one"
        sock.close()

    serve(answer, work, requests_max=8)


def test_an_answer_that_fails_while_its_server_closes_is_told_to_its_caller_and_to_nobody_else() -> None:
    promise, is_asked = Promise(), asyncio.Event()
    stray: list[dict[str, Any]] = []

    def answer(message: Message, context: RequestContext) -> Promise:
        is_asked.set()
        return promise

    async def work(server: AioServer) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: stray.append(context))
        channel = await AioChannel.connect(server.address, KEY, patience())
        call = asyncio.ensure_future(channel.call(Ping(), patience()))
        async with asyncio.timeout(PATIENCE_S):
            await is_asked.wait()
        closing = asyncio.ensure_future(server.close())
        await asyncio.sleep(0.01)
        promise.fail(Conflict("it leads no more"))
        with pytest.raises(Conflict, match="no more"):
            await call
        await closing
        await channel.close()
        del closing
        gc.collect()

    serve(answer, work, drain_s=PATIENCE_S)
    assert stray == []


def test_a_server_that_closes_waits_for_its_answers_as_long_as_it_may() -> None:
    promise, is_asked = Promise(), asyncio.Event()

    def answer(message: Message, context: RequestContext) -> Promise:
        is_asked.set()
        return promise

    async def work(server: AioServer) -> None:
        channel = await AioChannel.connect(server.address, KEY, patience())
        call = asyncio.ensure_future(channel.call(Ping(), patience()))
        async with asyncio.timeout(PATIENCE_S):
            await is_asked.wait()
        closing = asyncio.ensure_future(server.close())
        await asyncio.sleep(0.01)
        assert not closing.done()
        promise.give(Done())
        assert await call == Done()
        await closing
        await channel.close()

    serve(answer, work, drain_s=PATIENCE_S)


def test_requests_in_progress_are_bounded_per_connection() -> None:
    running = most = 0
    gate = asyncio.Event()

    async def answer(message: Message, context: RequestContext) -> Message:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        return Done()

    async def work(server: AioServer) -> None:
        channel = await AioChannel.connect(server.address, KEY, patience())
        calls = [asyncio.create_task(channel.call(Ping(), patience())) for _ in range(50)]
        await until(lambda: running == 3)
        other = await AioChannel.connect(server.address, KEY, patience())
        call = asyncio.create_task(other.call(Ping(), patience()))
        await until(lambda: running == 4)  # a full connection does not hold up another one
        gate.set()
        assert await asyncio.gather(*calls, call) == [Done()] * 51
        assert most <= 6
        await channel.close()
        await other.close()

    serve(answer, work, requests_max=3)


def test_peer_that_does_not_take_its_replies_is_cut_off() -> None:
    async def answer(message: Message, context: RequestContext) -> Message:
        return ErrorReply("conflict", "x" * 500_000)

    async def work(server: AioServer) -> None:
        loop = asyncio.get_running_loop()
        sock = await raw_client(server.address, receive_buffer=4096)
        with sock:
            asking = b"".join(encode_frame(Ping.type_code, encode(Ping()), request_id=n) for n in range(400))
            await loop.sock_sendall(sock, asking)
            await until(lambda: server.connection_count == 1)
            await until(lambda: server.connection_count == 0)
        channel = await AioChannel.connect(server.address, KEY, patience())
        with pytest.raises(Conflict, match="xxx"):
            await channel.call(Ping(), patience())
        await channel.close()

    serve(answer, work, stall_timeout_s=1.5, requests_max=8)  # the one that takes its reply has to keep it, too


@pytest.mark.parametrize("size", [1, 35, 36, 40])
def test_frame_left_unfinished_by_an_authenticated_peer_is_cut_off(size: int) -> None:
    async def answer(message: Message, context: RequestContext) -> Message:
        return Done()

    async def work(server: AioServer) -> None:
        loop = asyncio.get_running_loop()
        frame = encode_frame(Stat.type_code, encode(Stat("/" + "a" * 100)), request_id=1)
        with await raw_client(server.address) as sock:
            await loop.sock_sendall(sock, frame + frame[:size])
            await until(lambda: server.connection_count == 1)
            await until(lambda: server.connection_count == 0)

    serve(answer, work, stall_timeout_s=0.2)


def test_stranger_that_waited_longest_makes_room_before_its_time_is_up() -> None:
    async def answer(message: Message, context: RequestContext) -> Message:
        return Done()

    async def work(server: AioServer) -> None:
        strangers = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
        async with asyncio.timeout(PATIENCE_S):
            assert await strangers[0][0].read() == b""
        assert server.connection_count == 2
        assert server.refusals.total == 1
        for _, writer in strangers:
            writer.close()
        await until(lambda: server.connection_count == 0)

    serve(answer, work, handshakes_max=2, handshake_timeout_s=10 * PATIENCE_S)


def test_replies_of_one_turn_of_the_loop_leave_in_one_write() -> None:
    class FakeTransport(asyncio.Transport):
        def __init__(self) -> None:
            super().__init__()
            self.written: list[bytes] = []
            self.socket, self.other = socket.socketpair()

        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return self.socket if name == "socket" else ("10.0.0.1", 7)

        def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
            pass

        def get_write_buffer_size(self) -> int:
            return 0

        def is_closing(self) -> bool:
            return False

        def write(self, data: bytes | bytearray | memoryview) -> None:
            self.written.append(bytes(data))

    async def run() -> None:
        connection, transport = FrameConnection(Role.ACCEPTOR, KEY), FakeTransport()
        connection.connection_made(transport)
        for index in range(10):
            connection.write(b"%d" % index)
        assert transport.written == []
        await asyncio.sleep(0)
        assert transport.written == [b"0123456789"]
        connection.write(b"later")
        await asyncio.sleep(0)
        assert transport.written == [b"0123456789", b"later"]
        connection.write(b"first")
        connection.write(b"alone", is_alone=True)  # it neither waits nor overtakes
        assert transport.written[2:] == [b"firstalone"]
        await asyncio.sleep(0)
        assert transport.written[3:] == []
        connection.connection_lost(None)
        transport.socket.close()
        transport.other.close()

    asyncio.run(run())


def test_message_that_is_not_allowed_is_refused_and_the_connection_lives_on() -> None:
    seen: list[Message] = []

    async def answer(message: Message, context: RequestContext) -> Message:
        seen.append(message)
        return Done()

    async def work(server: AioServer) -> None:
        channel = await AioChannel.connect(server.address, KEY, patience())
        for refused in (ListTrash(), Done()):
            with pytest.raises(ProtocolError, match=f"{type(refused).__name__} is not accepted"):
                await channel.call(refused, patience())
        assert await channel.call(Ping(), patience()) == Done()
        assert seen == [Ping()]
        await channel.close()

    serve(answer, work)


def test_handler_that_outlives_its_deadline_is_cancelled_and_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio_server, "REQUEST_GRACE_S", 0.05)
    cancelled = asyncio.Event()

    async def answer(message: Message, context: RequestContext) -> Message:
        try:
            await asyncio.sleep(PATIENCE_S)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return Done()

    async def work(server: AioServer) -> None:
        channel = await AioChannel.connect(server.address, KEY, patience())
        with pytest.raises(DeadlineExceeded, match=channel.address):
            await channel.call(Ping(), Deadline.after(0.1))
        async with asyncio.timeout(PATIENCE_S):
            await cancelled.wait()
        await channel.close()

    serve(answer, work)
    assert "request_cancelled" in caplog.text


def test_late_reply_and_cancelled_call_harm_no_other_call() -> None:
    gate = asyncio.Event()

    async def answer(message: Message, context: RequestContext) -> Message:
        if isinstance(message, Stat):
            await gate.wait()
        return Done()

    async def work(server: AioServer) -> None:
        channel = await AioChannel.connect(server.address, KEY, patience())
        with pytest.raises(DeadlineExceeded):
            await channel.call(Stat("/late"), Deadline.after(0.05))
        task = asyncio.create_task(channel.call(Stat("/cancelled"), patience()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        assert await channel.call(Ping(), patience()) == Done()
        await channel.close()

    serve(answer, work)


def test_calls_that_wait_when_the_connection_is_lost_fail_with_the_address() -> None:
    started = 0

    async def answer(message: Message, context: RequestContext) -> Message:
        nonlocal started
        started += 1
        await asyncio.sleep(PATIENCE_S)
        return Done()

    async def work(server: AioServer) -> None:
        channel = await AioChannel.connect(server.address, KEY, patience())
        calls = [asyncio.create_task(channel.call(Ping(), patience())) for _ in range(3)]
        await until(lambda: started == 3)
        await server.close()
        for call in calls:
            with pytest.raises(ConnectionFailed) as caught:
                await call
            assert caught.value.details == {"address": server.address}
        assert channel.is_broken
        await channel.close()

    serve(answer, work, drain_s=0.1)


def test_calls_of_one_channel_are_bounded_by_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio_channel, "CALLS_MAX", 2)
    gate = asyncio.Event()

    async def answer(message: Message, context: RequestContext) -> Message:
        await gate.wait()
        return Done()

    async def work(server: AioServer) -> None:
        channel = await AioChannel.connect(server.address, KEY, patience())
        calls = [asyncio.create_task(channel.call(Ping(), patience())) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="2 calls"):
            await channel.call(Ping(), patience())
        gate.set()
        assert await asyncio.gather(*calls) == [Done(), Done()]
        await channel.close()

    serve(answer, work)


def test_reply_that_is_too_large_becomes_an_error_reply() -> None:
    async def answer(message: Message, context: RequestContext) -> Message:
        return ErrorReply("conflict", "x" * 9_000_000)

    async def work(server: AioServer) -> None:
        channel = await AioChannel.connect(server.address, KEY, patience())
        with pytest.raises(ProtocolError, match="ask for less"):
            await channel.call(Ping(), patience())
        await channel.close()

    serve(answer, work)


def test_payload_at_a_port_that_takes_none_ends_the_connection() -> None:
    async def answer(message: Message, context: RequestContext) -> Message:
        raise InternalError("never reached")

    async def work(server: AioServer) -> None:
        loop = asyncio.get_running_loop()
        with await raw_client(server.address) as sock:
            await loop.sock_sendall(sock, encode_frame(Ping.type_code, encode(Ping()), payload_size=5))
            async with asyncio.timeout(PATIENCE_S):
                try:
                    assert await loop.sock_recv(sock, 100) == b""
                except ConnectionResetError:
                    pass  # an end, too

    serve(answer, work)


def test_context_carries_the_callers_deadline_and_a_default_when_it_says_none() -> None:
    left: list[float] = []

    async def answer(message: Message, context: RequestContext) -> Message:
        left.append(context.deadline.remaining_s())
        assert context.peer.startswith("127.0.0.1:")
        return Done()

    async def work(server: AioServer) -> None:
        loop = asyncio.get_running_loop()
        channel = await AioChannel.connect(server.address, KEY, patience())
        await channel.call(Ping(), Deadline.after(5))
        await channel.call(Ping(), Deadline.after(10_000))
        with await raw_client(server.address) as sock:
            await loop.sock_sendall(sock, encode_frame(Ping.type_code, encode(Ping())))
            await until(lambda: len(left) == 3)
        await channel.close()

    serve(answer, work)
    assert 0 < left[0] <= 5
    assert 5 < left[1] <= aio_server.REQUEST_TIMEOUT_MAX_S
    assert 5 < left[2] <= aio_server.REQUEST_TIMEOUT_S
