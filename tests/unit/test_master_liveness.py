"""The soft view of chunk servers: who counts as alive, who may register, and what changed."""

from __future__ import annotations

from dfs.ids import ServerId
from dfs.master.healing.liveness import NEVER_HEARD_S, ClusterView, Liveness, Transition
from dfs.net.messages import Heartbeat
from dfs.net.parts import DiskReport

A, B = ServerId(b"a" * 16), ServerId(b"b" * 16)
HOME, AWAY = "10.0.0.1:7500", "10.0.0.2:7500"


def view() -> ClusterView:
    fresh = ClusterView(heartbeat_interval_s=1.0, dead_after_s=10.0)
    fresh.reset(100.0)
    return fresh


def beat(server_id: ServerId, incarnation: bytes = b"1", free: int = 500) -> Heartbeat:
    return Heartbeat(server_id, incarnation, 1000, free, 3, 1, (DiskReport("/d", 1000, free, 3, "ok"),))


def test_a_silent_server_becomes_late_then_dead_and_a_heartbeat_brings_it_back() -> None:
    it = view()
    it.register(A, b"1", HOME, 1000, 100.0)
    assert it.liveness(A, 103.0) is Liveness.ALIVE
    assert it.liveness(A, 103.1) is Liveness.LATE
    assert it.liveness(A, 110.0) is Liveness.LATE
    assert it.liveness(A, 110.1) is Liveness.DEAD
    assert it.heard(beat(A), 120.0)
    assert it.liveness(A, 120.0) is Liveness.ALIVE


def test_a_new_leader_presumes_unheard_servers_for_dead_after_only() -> None:
    it = view()
    assert it.liveness(A, 110.0) is Liveness.LATE
    assert it.offered([A, B], 110.0) == {A, B}
    assert it.liveness(A, 110.1) is Liveness.DEAD
    assert it.offered([A, B], 110.1) == set()
    assert it.age_s(A, 105.0) == NEVER_HEARD_S


def test_a_reset_forgets_who_was_heard() -> None:
    it = view()
    it.register(A, b"1", HOME, 1000, 100.0)
    it.reset(200.0)
    assert it.get(A) is None
    assert not it.heard(beat(A), 200.0)
    assert it.liveness(A, 201.0) is Liveness.LATE


def test_a_heartbeat_of_another_incarnation_is_not_taken() -> None:
    it = view()
    it.register(A, b"1", HOME, 1000, 100.0)
    assert not it.heard(beat(A, b"2"), 105.0)
    assert it.age_s(A, 105.0) == 5.0


def test_a_restart_at_the_same_address_is_accepted_at_once() -> None:
    it = view()
    it.register(A, b"1", HOME, 1000, 100.0)
    assert it.twin_of(A, b"2", HOME, 100.1) is None
    it.register(A, b"2", HOME, 1000, 100.1)
    assert it.known(A, b"2") is not None
    assert it.known(A, b"1") is None


def test_a_copied_identity_is_refused_while_the_first_one_lives() -> None:
    it = view()
    it.register(A, b"1", HOME, 1000, 100.0)
    twin = it.twin_of(A, b"2", AWAY, 102.0)
    assert twin is not None
    assert twin.address == HOME
    assert it.twin_of(A, b"2", AWAY, 102.1) is None, "silent for more than two heartbeats: it moved"


def test_the_same_incarnation_registers_again_without_losing_its_heartbeat() -> None:
    it = view()
    it.register(A, b"1", HOME, 1000, 100.0)
    it.heard(beat(A), 101.0)
    it.register(A, b"1", HOME, 1000, 102.0)
    server = it.known(A, b"1")
    assert server is not None
    assert server.has_heartbeat
    assert it.age_s(A, 102.0) == 0.0


def test_a_wiped_server_makes_its_former_identity_dead_at_once() -> None:
    it = view()
    it.register(A, b"1", HOME, 1000, 100.0)
    it.register(B, b"2", HOME, 1000, 101.0)
    assert it.liveness(A, 101.0) is Liveness.DEAD
    assert it.liveness(B, 101.0) is Liveness.ALIVE
    assert not it.heard(beat(A), 101.5), "the former identity has to register again"


def test_promises_fade_with_heartbeats() -> None:
    it = view()
    it.register(A, b"1", HOME, 1000, 100.0)
    for _ in range(4):
        it.promise(A, 100)
    it.promise(B, 100)  # unknown: nothing to count
    it.heard(beat(A), 101.0)
    server = it.get(A)
    assert server is not None
    assert (server.promised_size, server.promised_count) == (200, 2)
    it.heard(beat(A), 102.0)
    it.heard(beat(A), 103.0)
    assert (server.promised_size, server.promised_count) == (50, 0)


def test_transitions_are_told_once() -> None:
    it = view()
    it.register(A, b"1", HOME, 1000, 100.0)
    assert it.transitions([A, B], 100.0) == [Transition(A, None, Liveness.ALIVE), Transition(B, None, Liveness.LATE)]
    assert it.transitions([A, B], 101.0) == []
    assert it.transitions([A, B], 105.0) == [Transition(A, Liveness.ALIVE, Liveness.LATE)]
    assert it.transitions([A, B], 111.0) == [
        Transition(A, Liveness.LATE, Liveness.DEAD),
        Transition(B, Liveness.LATE, Liveness.DEAD),
    ]
    it.heard(beat(A), 112.0)
    assert it.transitions([A, B], 112.0) == [Transition(A, Liveness.DEAD, Liveness.ALIVE)]


def test_a_pause_of_the_master_is_not_a_silence_of_the_servers() -> None:
    it = view()
    it.register(A, b"1", HOME, 1000, 100.0)
    it.register(B, b"2", AWAY, 1000, 100.0)
    it.heard(beat(B, b"2"), 160.0)  # its heartbeat was the first thing done after the pause
    it.forgive(58.0, 160.0)
    assert it.liveness(A, 160.0) is Liveness.ALIVE
    assert it.age_s(A, 160.0) == 2.0
    assert it.age_s(B, 161.0) == 1.0, "nobody was heard in the future"
