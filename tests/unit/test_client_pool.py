"""Is a connection that was cut off while it was lent, or that another process has too, never lent again?"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import warnings
from collections.abc import Callable, Iterator

import pytest

from dfs.client.calls import Calls
from dfs.client.discovery import Masters
from dfs.client.lanes import Lane, Lanes
from dfs.client.parallel import Cancellation
from dfs.client.plan import ServerHealth
from dfs.client.pool import ChannelPool
from dfs.client.reserve import ChunkReserve
from dfs.clock import Deadline
from dfs.errors import ConnectionFailed, DfsError
from dfs.ids import ServerId
from dfs.net.auth import ClusterKey
from dfs.net.blocking import Channel
from dfs.net.messages import MakeDirectory, Stat, StatReply
from dfs.net.parts import ServerInfo
from dfs.net.stream import SocketStream

NOBODY = "127.0.0.1:1"  # where a new connection is refused
KEY = ClusterKey.from_secret(b"x" * 32, "test")


@contextlib.contextmanager
def connected() -> Iterator[tuple[Channel, socket.socket]]:
    mine, theirs = socket.socketpair()
    with theirs, Channel(SocketStream(mine, NOBODY)) as channel:
        yield channel, theirs


def test_a_connection_that_worked_a_moment_ago_is_lent_again() -> None:
    pool = ChannelPool(KEY)
    with connected() as (channel, _):
        pool.give(NOBODY, channel)
        assert pool.take(NOBODY, Deadline.after(5.0)) is channel


def test_a_connection_that_was_cut_off_behind_its_last_reply_is_not_lent_again() -> None:
    pool, cancellation = ChannelPool(KEY), Cancellation()
    with connected() as (channel, _):
        with cancellation.watched(channel):
            cancellation.cancel()  # the transfer ends while this part of it has all it wanted, and looks at no flag
        pool.give(NOBODY, channel)
        with pytest.raises(ConnectionFailed):
            pool.take(NOBODY, Deadline.after(5.0))
        assert channel.fileno() == -1


# --- forks ----------------------------------------------------------------------------------------------


def in_child(work: Callable[[], object]) -> str:
    """Return what `work` failed with in a forked child."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():  # from 3.12 on fork warns when there are threads; the child uses none of them
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        signal.alarm(20)  # it must not wait for ever
        try:
            work()
            os.write(writer, b"nothing")
        except DfsError as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as words:
        told = words.read().decode()
    assert os.waitpid(child, 0) == (child, 0)
    return told


def test_a_connection_is_not_shared_with_a_forked_child() -> None:
    pool = ChannelPool(KEY)
    with connected() as (channel, _):
        pool.give(NOBODY, channel)
        told = in_child(lambda: pool.take(NOBODY, Deadline.after(5.0)))
        assert told.startswith("InvalidArgument")
        assert "make a new one in each process" in told
        assert pool.take(NOBODY, Deadline.after(5.0)) is channel


@pytest.mark.parametrize("use", ["call", "read", "change", "reserve"])
def test_a_client_is_not_shared_with_a_forked_child_whatever_its_other_threads_are_doing(use: str) -> None:
    """A lock that one of them holds at the fork is held in the child for ever."""
    masters = Masters("test", (NOBODY,), ChannelPool(KEY), unreachable_grace_s=0.0)
    masters._silent_until_s[NOBODY] = float("inf")
    calls, reserve = Calls(masters), ChunkReserve(masters, ServerHealth())
    deadline = Deadline.after(20.0)
    uses: dict[str, Callable[[], object]] = {
        "call": lambda: masters.call(Stat("/"), StatReply, deadline),
        "read": lambda: masters.call_any(Stat("/"), StatReply, deadline),
        "change": lambda: calls.call(lambda call: MakeDirectory(call, "/d"), StatReply, deadline),
        "reserve": lambda: reserve.take(3, deadline),
    }
    shelf = reserve._shelf(3)
    with masters._lock, calls._lock, reserve._lock, shelf.lock:
        assert "make a new one in each process" in in_child(uses[use])
    with pytest.raises(ConnectionFailed):
        uses[use]()


@pytest.mark.usefixtures("all_fast_paths")
def test_lent_memory_is_not_shared_with_a_forked_child(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = Lanes(KEY)
    server = ServerInfo(ServerId(b"s" * 16), "c1", NOBODY, "", is_alive=True)
    monkeypatch.setattr(Lane, "enter", lambda _self, _server, _key: "a door")

    def write() -> bytes:
        with lanes.entered([server]) as entered:
            assert entered is not None
            _, view = entered[0].slot(0, 5)
            view[:] = b"child" if os.getpid() != mine else b"ours!"
            return bytes(view)

    mine = os.getpid()
    assert write() == b"ours!"
    assert in_child(write).startswith("InvalidArgument")
    with lanes.entered([server]) as entered:
        assert entered is not None
        assert bytes(entered[0].slot(0, 5)[1]) == b"ours!"
    lanes.close()
