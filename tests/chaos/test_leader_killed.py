"""Does every promise hold when the leader dies in whichever phase of a call: before it is written, after it is done, …?

The phases are those of a run in which nobody dies (dfs.testing.chaos.phases): the leader is killed in each of them in
turn, and each time the phase must really have been hit. What a client heard must be true afterwards.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfs.client import DfsClient
from dfs.client.discovery import Masters
from dfs.client.pool import ChannelPool
from dfs.clock import Deadline
from dfs.errors import DfsError
from dfs.ids import new_session_id
from dfs.net.auth import ClusterKey
from dfs.net.messages import Delete, DeleteReply, Message, Mutation, Rename, Stat, StatReply
from dfs.net.parts import CallId
from dfs.testing.chaos.phases import ANSWERED, CHANGE, RECEIVED, Phases
from dfs.testing.cluster import ClusterUnderTest

pytestmark = pytest.mark.timeout(300)
MASTERS = ("m1", "m2", "m3")
CHUNK_SIZE = 64 * 1024
IMPATIENT_S = 0.3  # no leader is elected so soon
PATIENT_S = 60.0
NOT_LOGGED = frozenset({"Allocate"})
ENDS = (RECEIVED, ANSWERED)


class Watched:
    """A cluster whose masters die at the phase that is named."""

    def __init__(self, cluster: ClusterUnderTest, phases: Phases) -> None:
        self.cluster, self._phases = cluster, phases

    def kill_in_every_phase(self, operation: Callable[[int], None], *calls: str) -> None:
        """Do the operation once in peace, and again for each phase of its `calls` with the leader dying there.

        `operation` gets another number each time and checks for itself what must hold. All calls but `Allocate`, which
        is not logged, must be found to have all phases of a change.
        """
        with self._phases.watched():
            operation(0)
        found = [phase for phase in dict.fromkeys(self._phases.seen()) if call_of(phase) in calls]
        expected = {f"{call} {stage}" for call in calls for stage in (ENDS if call in NOT_LOGGED else CHANGE)}
        assert expected <= set(found), f"{expected - set(found)} are not among {found}"
        for number, phase in enumerate(found, 1):
            with self._phases.watched(phase):
                operation(number)
            victim = self._phases.victim()
            assert victim in MASTERS, f"no leader came to {phase!r}, but to {self._phases.seen()}"
            assert phase in self._phases.seen()
            self.cluster.start(victim)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    phases = Phases(tmp_path / "phases")
    settings = {"election_timeout_min": "300 ms", "election_timeout_max": "600 ms"}
    launchers = phases.launchers(MASTERS)
    with ClusterUnderTest(tmp_path, chunk_size=CHUNK_SIZE, settings=settings, launchers=launchers) as cluster:
        yield Watched(cluster, phases)


@pytest.fixture
def client(watched: Watched) -> Iterator[DfsClient]:
    with watched.cluster.client(timeout_s=PATIENT_S) as made:
        yield made


def call_of(phase: str) -> str:
    """Return the call that a phase such as `Rename/2 synced` is of."""
    return phase.partition(" ")[0].partition("/")[0]


def content(client: DfsClient, path: str) -> bytes:
    return b"".join(client.read(path))


def test_leader_killed_in_every_phase_of_put_and_commit(watched: Watched, client: DfsClient) -> None:
    """A file of several chunks is replaced: whoever was told that it is stored finds it, whole, and once."""
    before = os.urandom(2 * CHUNK_SIZE)
    client.put(io.BytesIO(before), "/file")
    stored = [before]

    def replace(_number: int) -> None:
        stored.append(os.urandom(2 * CHUNK_SIZE + 1))
        with watched.cluster.client(timeout_s=PATIENT_S) as fresh:
            status = fresh.put(io.BytesIO(stored[-1]), "/file", overwrite=True)
        assert status.size == len(stored[-1])
        assert content(client, "/file") == stored[-1]

    watched.kill_in_every_phase(replace, "Allocate", "CommitFile")
    assert [status.path for status in client.list("/")] == ["file"]


def test_leader_killed_in_every_phase_of_append(watched: Watched, client: DfsClient) -> None:
    """A tail is opened, takes records, and is sealed by a rename: each record is there once, whole and in order."""

    def append_and_seal(number: int) -> None:
        records = [b"%d-%d." % (number, sequence) * 50 for sequence in range(6)]
        with watched.cluster.client(timeout_s=PATIENT_S) as fresh:
            with fresh.appender(f"/log-{number}") as appender:
                offsets = [appender.append(record).result(PATIENT_S) for record in records[:3]]
                fresh.rename(f"/log-{number}", f"/sealed-{number}")
            with fresh.appender(f"/sealed-{number}") as appender:
                offsets += [appender.append(record).result(PATIENT_S) for record in records[3:]]
        assert offsets == [len(b"".join(records[:index])) for index in range(6)]
        assert content(client, f"/sealed-{number}") == b"".join(records)
        assert not client.exists(f"/log-{number}")

    watched.kill_in_every_phase(append_and_seal, "OpenTail", "Rename")


class Twice:
    """A change by a client that gives up soon, and is sent again under the same id by whoever cares to know."""

    def __init__(self, cluster: ClusterUnderTest) -> None:
        access = cluster.access
        self._pool = ChannelPool(ClusterKey.load(access.secret_file, access.cluster))
        self._masters = Masters(access.cluster, access.masters, self._pool)

    def call(self, make: Callable[[CallId], Mutation], reply: type[Message], look: Callable[[], None]) -> Message:
        """Return its outcome. `look` is called while it is in doubt."""
        message = make(CallId(new_session_id(), 1, 1))
        self._masters.call(Stat("/"), StatReply, Deadline.after(PATIENT_S))  # a connection: the call is sent at once
        first: Message | None = None
        doubt: DfsError | None = None
        try:
            first = self._masters.call(message, reply, Deadline.after(IMPATIENT_S))
        except DfsError as error:
            doubt = error
        assert doubt is None or doubt.may_have_happened, f"it says that nothing happened: {doubt}"
        look()
        outcome = self._masters.call(message, reply, Deadline.after(PATIENT_S))
        assert first in (None, outcome), "the first outcome, and no other, is what a resent call gets"
        assert self._masters.call(message, reply, Deadline.after(PATIENT_S)) == outcome
        return outcome

    def close(self) -> None:
        self._pool.close()


@pytest.fixture
def twice(watched: Watched) -> Iterator[Twice]:
    made = Twice(watched.cluster)
    yield made
    made.close()


def test_leader_killed_in_every_phase_of_rename(watched: Watched, client: DfsClient, twice: Twice) -> None:
    """In doubt it has happened or not, and nothing between; sent again it happens once."""

    def rename(number: int) -> None:
        source, target = f"/from-{number}", f"/to-{number}"
        client.put(io.BytesIO(b"%d" % number), source)

        def look() -> None:
            assert client.exists(source) != client.exists(target)

        twice.call(lambda call: Rename(call, source, target), StatReply, look)
        assert content(client, target) == b"%d" % number
        assert not client.exists(source)

    watched.kill_in_every_phase(rename, "Rename")


def test_leader_killed_in_every_phase_of_delete(watched: Watched, client: DfsClient, twice: Twice) -> None:
    """In doubt the file is there or in the trash; sent again it is in the trash once, and comes back whole."""

    def delete(number: int) -> None:
        path = f"/file-{number}"
        client.put(io.BytesIO(b"%d" % number), path)

        def deleted() -> list[int]:
            return [entry.trash_id for entry in client.list_trash() if entry.path == path]

        def look() -> None:
            assert len(deleted()) == (0 if client.exists(path) else 1)

        twice.call(lambda call: Delete(call, path), DeleteReply, look)
        assert not client.exists(path)
        assert len(deleted()) == 1
        client.undelete(path)
        assert content(client, path) == b"%d" % number

    watched.kill_in_every_phase(delete, "Delete")
