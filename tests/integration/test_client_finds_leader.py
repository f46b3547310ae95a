"""Does a client find the leader among dead, paused, foreign and leaderless masters? Scripted ones on real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from dfs.client import discovery
from dfs.client.calls import Calls
from dfs.client.discovery import Masters
from dfs.client.pool import ChannelPool
from dfs.clock import Deadline
from dfs.errors import (
    AlreadyExists,
    AuthenticationFailed,
    ConnectionFailed,
    DeadlineExceeded,
    DfsError,
    InvalidArgument,
    NoQuorum,
    NotEnoughServers,
    NotFound,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
)
from dfs.net.auth import ClusterKey
from dfs.net.blocking import Channel
from dfs.net.listener import Listener, ServeLimits, serve_forever
from dfs.net.messages import (
    Done,
    ErrorReply,
    GetMasterStatus,
    GetMasterStatusReply,
    MakeDirectory,
    Message,
    Ping,
    Pong,
    Stat,
    StatReply,
)
from dfs.net.parts import CallId, MasterStatus

KEY = ClusterKey.from_secret(b"s" * 32, "test")
OTHER_KEY = ClusterKey.from_secret(b"x" * 32, "test")
PONG = Pong("m", "master", "1")
SHORT_S = 1.0  # for what ends at its deadline: long enough for a busy machine to get there


class ScriptedMaster:
    """Answers what `script` says: a message, an error to send, or None for silence; `HangUp` closes the connection."""

    def __init__(self, script: Callable[[Message], Message | DfsError | None], key: ClusterKey = KEY) -> None:
        self.script = script
        self.heard: list[Message] = []
        listener = Listener.bind("127.0.0.1:0")
        self.address = listener.address
        self._stop = threading.Event()
        limits = ServeLimits(drain_s=0.3)
        self._thread = threading.Thread(target=serve_forever, args=(listener, key, self._serve, limits, self._stop))
        self._thread.start()

    def _serve(self, channel: Channel) -> None:
        while True:
            received = channel.receive(Deadline.after(30))
            self.heard.append(received.message)
            try:
                answer = self.script(received.message)
            except HangUp:
                return
            if isinstance(answer, DfsError):
                answer = ErrorReply.of(answer)
            if answer is None:
                self._stop.wait(30)
                return
            channel.send(answer, Deadline.after(5), request_id=received.request_id)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


class HangUp(Exception):
    """The master dies before it answers."""


class Cluster:
    def __init__(self) -> None:
        self.started: list[ScriptedMaster] = []
        self.pools: list[ChannelPool] = []
        self._held: list[socket.socket] = []

    def start(self, script: Callable[[Message], Message | DfsError | None], key: ClusterKey = KEY) -> ScriptedMaster:
        self.started.append(ScriptedMaster(script, key))
        return self.started[-1]

    def dead_address(self) -> str:
        """Return an address where nobody listens, nor will while the test lasts."""
        held = socket.socket()
        self._held.append(held)
        held.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{held.getsockname()[1]}"

    def masters(self, *addresses: str, attempt_timeout_s: float = 60.0, unreachable_grace_s: float = 0.2) -> Masters:
        """`attempt_timeout_s` is short where a master is silent; all others have time on a busy machine."""
        self.pools.append(ChannelPool(KEY))
        return Masters(
            "test",
            addresses,
            self.pools[-1],
            attempt_timeout_s=attempt_timeout_s,
            unreachable_grace_s=unreachable_grace_s,
        )

    def close(self) -> None:
        for pool in self.pools:
            pool.close()
        for master in self.started:
            master.stop()
        for held in self._held:
            held.close()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Who is silent here is so after the greeting, and never when asked who leads: neither needs a short patience."""
    monkeypatch.setattr(discovery, "CONNECT_TIMEOUT_S", 60.0)
    monkeypatch.setattr(discovery, "OPINION_TIMEOUT_S", 60.0)
    running = Cluster()
    yield running
    running.close()


def status_of(role: str) -> MasterStatus:
    return MasterStatus("m", role, 1, 1, 1, "m", "1", 1.0)


def ping(masters: Masters, timeout_s: float = 60.0) -> Pong:
    return masters.call(Ping(), Pong, Deadline.after(timeout_s))


def make(masters: Masters, timeout_s: float = 60.0) -> Done:
    return Calls(masters).call(lambda call: MakeDirectory(call, "/x"), Done, Deadline.after(timeout_s))


def points_to(address: str) -> Callable[[Message], DfsError]:
    return lambda _: NotLeader("not me", leader=address)


# --- finding ------------------------------------------------------------------------------------------------


def test_one_reachable_follower_is_enough_to_find_the_leader(cluster: Cluster) -> None:
    leader = cluster.start(lambda _: PONG)
    follower = cluster.start(points_to(leader.address))
    masters = cluster.masters(cluster.dead_address(), follower.address, cluster.dead_address())
    assert ping(masters) == PONG
    assert leader.address in masters.addresses


def test_the_leader_is_remembered(cluster: Cluster) -> None:
    leader = cluster.start(lambda _: PONG)
    follower = cluster.start(points_to(leader.address))
    masters = cluster.masters(follower.address, leader.address)
    for _ in range(5):
        ping(masters)
    assert len(follower.heard) == 1
    assert len(leader.heard) == 5


def test_masters_that_point_at_each_other_do_not_trap_a_client(cluster: Cluster) -> None:
    first = cluster.start(lambda _: NotLeader("not me", leader=second.address))
    second = cluster.start(points_to(first.address))
    with pytest.raises(NoQuorum):
        ping(cluster.masters(first.address, second.address), timeout_s=SHORT_S)
    assert len(first.heard) < 30


def test_an_election_is_waited_for(cluster: Cluster) -> None:
    answers: Iterator[Message | DfsError] = iter([NoQuorum("no leader"), NotLeader("not me"), PONG])
    master = cluster.start(lambda _: next(answers))
    assert ping(cluster.masters(master.address)) == PONG


def test_a_silent_leader_costs_one_attempt_and_not_the_whole_time(cluster: Cluster) -> None:
    paused = cluster.start(lambda _: None)
    leader = cluster.start(lambda _: PONG)
    masters = cluster.masters(paused.address, leader.address, attempt_timeout_s=2 * SHORT_S)
    assert ping(masters) == PONG
    assert len(paused.heard) == 1
    for _ in range(3):
        ping(masters)
    assert len(paused.heard) == 1


def test_a_leader_that_is_slow_gets_more_time_when_asked_again(cluster: Cluster) -> None:
    def slowly(_: Message) -> Message:
        time.sleep(0.5)
        return PONG

    master = cluster.start(slowly)
    assert ping(cluster.masters(master.address, attempt_timeout_s=0.2)) == PONG


def test_a_kept_connection_that_died_is_replaced(cluster: Cluster) -> None:
    master = cluster.start(lambda _: PONG)
    masters = cluster.masters(master.address)
    ping(masters)
    master.script = lambda _: (_ for _ in ()).throw(HangUp())
    with pytest.raises(DfsError):
        ping(masters, timeout_s=0.2)
    master.script = lambda _: PONG
    assert ping(masters) == PONG


# --- failing --------------------------------------------------------------------------------------------------


def test_masters_that_cannot_be_reached_are_all_named(cluster: Cluster) -> None:
    addresses = [cluster.dead_address() for _ in range(3)]
    with pytest.raises(ConnectionFailed) as caught:
        ping(cluster.masters(*addresses), timeout_s=30)
    assert all(address in caught.value.message for address in addresses)
    assert len(caught.value.message) <= 250


def test_no_leader_until_the_deadline_tells_who_said_what_and_how_many_are_needed(cluster: Cluster) -> None:
    alone = cluster.start(lambda _: NotLeader("I follow nobody"))
    gone = cluster.dead_address()
    with pytest.raises(NoQuorum) as caught:
        ping(cluster.masters(alone.address, gone, cluster.dead_address()), timeout_s=SHORT_S)
    for words in ("no quorum", f"{alone.address}: has no leader", f"{gone}: nobody listens", "2 of 3 run"):
        assert words in caught.value.message
    assert len(caught.value.message) <= 250


def test_a_call_leaves_a_silent_leader_as_soon_as_another_master_leads(cluster: Cluster) -> None:
    is_elected = threading.Event()
    paused = cluster.start(lambda _: None)

    def answer(message: Message) -> Message | DfsError:
        if isinstance(message, GetMasterStatus):
            status = GetMasterStatusReply(status_of("leader" if is_elected.is_set() else "follower"), "test")
            is_elected.set()  # in time for the next question
            return status
        return PONG if is_elected.is_set() else NotLeader("not me", leader=paused.address)

    new_leader = cluster.start(answer)
    masters = cluster.masters(paused.address, new_leader.address, attempt_timeout_s=6.0)
    assert ping(masters, timeout_s=60.0) == PONG
    asked = [type(message) for message in new_leader.heard]
    assert asked == [GetMasterStatus, GetMasterStatus, Ping], "it was asked twice, after a quarter of the time each"
    assert [type(message) for message in paused.heard] == [Ping]


def test_a_slow_leader_is_asked_once_while_nobody_else_leads(cluster: Cluster) -> None:
    was_doubted = threading.Event()

    def answer_late(_: Message) -> Message:
        assert was_doubted.wait(60)
        return PONG

    def follow(message: Message) -> Message | DfsError:
        assert isinstance(message, GetMasterStatus), "the call itself goes nowhere else"
        was_doubted.set()
        return GetMasterStatusReply(status_of("follower"), "test")

    slow = cluster.start(answer_late)
    follower = cluster.start(follow)
    assert ping(cluster.masters(slow.address, follower.address, attempt_timeout_s=4.0), timeout_s=60.0) == PONG
    assert [type(message) for message in slow.heard] == [Ping]


def test_a_silent_master_is_said_to_be_silent_for_the_time_it_had(cluster: Cluster) -> None:
    master = cluster.start(lambda _: None)
    with pytest.raises(ConnectionFailed, match=r"no answer within (0\.\d+|1) s"):
        ping(cluster.masters(master.address), timeout_s=SHORT_S)


def test_a_wrong_secret_is_said_at_once(cluster: Cluster) -> None:
    master = cluster.start(lambda _: PONG, OTHER_KEY)
    with pytest.raises(AuthenticationFailed):
        ping(cluster.masters(master.address, cluster.dead_address()), timeout_s=60)


def test_one_master_of_a_foreign_secret_does_not_hide_the_others(cluster: Cluster) -> None:
    foreign = cluster.start(lambda _: PONG, OTHER_KEY)
    leader = cluster.start(lambda _: PONG)
    assert ping(cluster.masters(foreign.address, leader.address)) == PONG


def test_the_leader_s_final_error_is_handed_out_at_once(cluster: Cluster) -> None:
    leader = cluster.start(lambda _: NotFound("/x is not there"))
    with pytest.raises(NotFound):
        cluster.masters(leader.address).call(Stat("/x"), StatReply, Deadline.after(60))
    assert len(leader.heard) == 1


def test_an_overloaded_leader_is_asked_again_and_its_word_is_the_error_at_the_end(cluster: Cluster) -> None:
    answers: Iterator[Message | DfsError] = iter([Overloaded("later"), PONG])
    leader = cluster.start(lambda _: next(answers))
    assert ping(cluster.masters(leader.address)) == PONG
    leader.script = lambda _: NotEnoughServers("no server")
    with pytest.raises(NotEnoughServers):
        ping(cluster.masters(leader.address), timeout_s=SHORT_S)


def test_an_impatient_call_hands_out_what_a_patient_one_waits_for(cluster: Cluster) -> None:
    leader = cluster.start(lambda _: NotEnoughServers("no server"))
    with pytest.raises(NotEnoughServers):
        cluster.masters(leader.address).call(Ping(), Pong, Deadline.after(60), is_patient=False)
    assert len(leader.heard) == 1


def test_a_closed_client_says_so_at_once(cluster: Cluster) -> None:
    leader = cluster.start(lambda _: PONG)
    masters = cluster.masters(leader.address)
    ping(masters)
    cluster.pools[-1].close()
    with pytest.raises(InvalidArgument, match="closed"):
        ping(masters, timeout_s=60)


# --- exactly once -----------------------------------------------------------------------------------------------


def calls_heard(*masters: ScriptedMaster) -> set[CallId]:
    return {message.call for master in masters for message in master.heard if isinstance(message, MakeDirectory)}


def test_a_call_whose_reply_was_lost_is_resent_under_the_same_id(cluster: Cluster) -> None:
    deaths = iter([True, True, False])

    def script(_: Message) -> Message:
        if next(deaths):
            raise HangUp
        return Done()

    leader = cluster.start(script)
    assert make(cluster.masters(leader.address)) == Done()
    assert len(leader.heard) == 3
    assert len(calls_heard(leader)) == 1


def test_a_call_to_a_paused_leader_goes_to_the_next_one_under_the_same_id(cluster: Cluster) -> None:
    paused = cluster.start(lambda _: None)
    new_leader = cluster.start(lambda _: Done())
    assert make(cluster.masters(paused.address, new_leader.address, attempt_timeout_s=SHORT_S)) == Done()
    assert len(calls_heard(paused, new_leader)) == 1


def test_an_unknown_outcome_is_asked_for_again_under_the_same_id(cluster: Cluster) -> None:
    replies: Iterator[Message | DfsError] = iter(
        [OutcomeUnknown("?"), NotLeader("election"), AlreadyExists("the first")]
    )
    leader = cluster.start(lambda _: next(replies))
    with pytest.raises(AlreadyExists):
        make(cluster.masters(leader.address))
    assert len(leader.heard) == 3
    assert len(calls_heard(leader)) == 1


def test_a_change_that_never_got_an_answer_may_have_happened(cluster: Cluster) -> None:
    master = cluster.start(lambda _: None)
    with pytest.raises(DeadlineExceeded, match="may have happened") as caught:
        make(cluster.masters(master.address), timeout_s=SHORT_S)
    assert caught.value.may_have_happened
    assert master.address in caught.value.message


def test_a_change_that_every_master_refused_did_not_happen(cluster: Cluster) -> None:
    master = cluster.start(lambda _: NotLeader("not me"))
    with pytest.raises(NoQuorum):
        make(cluster.masters(master.address), timeout_s=SHORT_S)


def test_an_unanswered_change_is_not_sent_again_when_its_session_may_be_forgotten(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr("dfs.client.discovery.boot_s", lambda: now_s[0])

    def sleeps(_: Message) -> Message:
        now_s[0] += 2 * 3600.0  # the client's computer sleeps before the reply arrives
        raise HangUp

    master = cluster.start(sleeps)
    masters = cluster.masters(master.address, unreachable_grace_s=5.0)
    with pytest.raises(DeadlineExceeded) as caught:
        make(masters, timeout_s=30.0)
    assert caught.value.may_have_happened
    assert len(master.heard) == 1
