"""Can an administrator replace, hand over, export and import the masters of a real cluster without losing a name?"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.client.admin import MasterAnswer
from dfs.errors import NoQuorum
from dfs.net.parts import MasterStatus
from dfs.testing.cluster import ClusterUnderTest, wait_until

pytestmark = pytest.mark.timeout(240)
CONTENT = bytes(range(256)) * 1000
WAIT_S = 60.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterUnderTest]:
    with ClusterUnderTest(tmp_path, chunk_servers=2, settings={"replication": "2"}) as running:
        yield running


def statuses(cluster: ClusterUnderTest) -> dict[str, MasterStatus]:
    with cluster.client(timeout_s=3) as client:
        return {answer.name: answer.status for answer in client.admin.masters() if answer.status is not None}


def status_of(cluster: ClusterUnderTest, name: str) -> MasterStatus:
    """Return what a master says of itself, waiting for it: it may have to start on a busy machine."""
    found: dict[str, MasterStatus] = {}

    def answers() -> bool:
        found.update(statuses(cluster))
        return name in found

    wait_until(answers, WAIT_S, f"{name} answers")
    return found[name]


def fill(cluster: ClusterUnderTest) -> list[str]:
    """Store files; return all paths."""
    with cluster.client() as client:
        for number in range(20):
            client.make_directory(f"/d{number}/e", parents=True)
        client.put(io.BytesIO(CONTENT), "/d1/file")
        client.put(io.BytesIO(b"gone"), "/d2/gone")
        client.delete("/d2/gone")
        return [path for path, _ in client.walk("/")]


def check_whole(cluster: ClusterUnderTest, paths: list[str]) -> None:
    with cluster.client() as client:
        assert [path for path, _ in client.walk("/")] == paths
        assert b"".join(client.read("/d1/file")) == CONTENT
        assert [entry.path for entry in client.list_trash()] == ["/d2/gone"]


def replace(cluster: ClusterUnderTest, name: str) -> None:
    """Kill a master, empty its folder, start it again and wait until it is a member that has all."""
    cluster.kill(name)
    shutil.rmtree(cluster.config.master(name).data_dir)
    cluster.start(name)

    def is_back() -> bool:
        found = statuses(cluster)
        lead = max((status.commit for status in found.values() if status.role == "leader"), default=None)
        return name in found and found[name].role == "follower" and lead is not None and found[name].applied >= lead

    wait_until(is_back, WAIT_S, f"{name} is back")


def test_a_master_killed_and_wiped_is_replaced_and_another_may_die_then(cluster: ClusterUnderTest) -> None:
    paths = fill(cluster)
    leader = cluster.leader()
    replaced, *_ = (name for name in ("m2", "m3", "m1") if name != leader)
    replace(cluster, replaced)
    cluster.kill(leader)
    check_whole(cluster, paths)
    with cluster.client() as client:
        client.make_directory("/zz")
    cluster.start(leader)
    cluster.wait_healthy(WAIT_S)
    cluster.kill(cluster.leader())
    check_whole(cluster, [*paths, "/zz"])


def test_a_leader_killed_and_wiped_is_replaced_too(cluster: ClusterUnderTest) -> None:
    paths = fill(cluster)
    replace(cluster, cluster.leader())
    check_whole(cluster, paths)


def test_an_empty_master_alone_with_one_that_lags_behind_undoes_nothing(cluster: ClusterUnderTest) -> None:
    """Without the guard the two would elect a leader that has not heard of the last directory."""
    leader = cluster.leader()
    lagging, wiped = (name for name in ("m1", "m2", "m3") if name != leader)
    cluster.kill(lagging)
    with cluster.client() as client:
        client.make_directory("/acknowledged")
    cluster.kill(leader)
    cluster.kill(wiped)
    shutil.rmtree(cluster.config.master(wiped).data_dir)
    cluster.start(lagging)
    cluster.start(wiped)
    for name in (lagging, wiped):
        status_of(cluster, name)
    with cluster.client(timeout_s=5) as client, pytest.raises(NoQuorum):
        client.list_trash().__next__()
    assert status_of(cluster, wiped).role == "joining"
    cluster.start(leader)
    with cluster.client(timeout_s=WAIT_S) as client:
        assert [entry.path for entry in client.list("/")] == ["acknowledged"]
    wait_until(lambda: status_of(cluster, wiped).role != "joining", WAIT_S, "the wiped master is a member")


def test_admin_verbs_show_the_masters_and_hand_the_leadership_over(cluster: ClusterUnderTest) -> None:
    paths = fill(cluster)
    shown = json.loads(cluster.run_cli("admin", "masters", "--json").stdout)
    assert [master["name"] for master in shown] == ["m1", "m2", "m3"]
    assert {master["raft_address"] for master in shown} == {master.raft_address for master in cluster.config.masters}
    old = next(master["name"] for master in shown if master["role"] == "leader")
    target = next(master["name"] for master in shown if master["role"] == "follower")
    done = cluster.run_cli("admin", "transfer-leader", target)
    assert done.stdout.decode().startswith(f"{target} leads instead of {old}, after "), done.stderr
    assert cluster.leader() == target
    assert cluster.run_cli("admin", "transfer-leader", target).stdout.decode() == f"{target} leads already\n"
    back = cluster.run_cli("admin", "transfer-leader", "--json")
    assert back.returncode == 0, back.stderr
    assert json.loads(back.stdout)["old_leader"] == target
    check_whole(cluster, paths)
    unknown = cluster.run_cli("admin", "transfer-leader", "m9")
    assert unknown.returncode == 1
    assert b"no master 'm9' answers; those that do: m1, m2, m3" in unknown.stderr
    cluster.kill(old)
    table = cluster.run_cli("admin", "masters")
    assert table.returncode == 1
    assert f"{old}    silent" in table.stdout.decode()


def test_checkpoints_are_written_when_asked_for(cluster: ClusterUnderTest) -> None:
    fill(cluster)
    done = cluster.run_cli("admin", "checkpoint", "--all", "--json")
    written = json.loads(done.stdout)
    assert [one["master"] for one in written] == ["m1", "m2", "m3"]
    assert all(one["index"] > 20 and one["size"] > 1000 for one in written)
    for name, status in statuses(cluster).items():
        assert status.checkpoint_index >= next(one["index"] for one in written if one["master"] == name)
    assert cluster.run_cli("admin", "checkpoint", "m2").stdout.decode().startswith("m2: checkpoint ")
    assert cluster.run_cli("admin", "checkpoint", "m9").returncode == 1


def test_an_exported_state_starts_a_new_cluster_that_exports_the_same(cluster: ClusterUnderTest) -> None:
    paths = fill(cluster)
    exported = cluster.folder / "state.jsonl"
    done = cluster.run_cli("admin", "export", str(exported))
    assert done.returncode == 0, done.stderr
    lines = exported.read_bytes().splitlines()
    assert cluster.run_cli("admin", "export", str(exported)).returncode == 1, "it does not replace a file"
    in_use = cluster.run_cli("admin", "import", str(exported))
    assert in_use.returncode == 1
    assert b"is not empty" in in_use.stderr
    for name in cluster.names():
        cluster.stop(name)
    for master in cluster.config.masters:
        master.data_dir.rename(master.data_dir.with_suffix(".old"))
    damaged = cluster.folder / "damaged.jsonl"
    damaged.write_bytes(exported.read_bytes().replace(b"/d1/", b"/d9/", 1))
    refused = cluster.run_cli("admin", "import", str(damaged))
    assert refused.returncode == 1
    assert b"nothing was changed" in refused.stderr
    assert not any(master.data_dir.exists() for master in cluster.config.masters)
    assert cluster.run_cli("admin", "import", str(exported)).returncode == 0
    cluster.up()
    check_whole(cluster, paths)
    again = cluster.run_cli("admin", "export").stdout.splitlines()
    assert stable(again) == stable(lines)
    replace(cluster, "m2")  # its log begins after the imported state: it needs the checkpoint
    assert status_of(cluster, "m2").checkpoint_index > 0
    leader = cluster.leader()
    cluster.kill("m1" if leader == "m2" else leader)
    check_whole(cluster, paths)


def stable(lines: list[bytes]) -> list[bytes]:
    """Return the records that only a change of names makes different: no header, sessions or trailer."""
    return [line for line in lines[1:-1] if json.loads(line)["type"] != "session"]


def test_masters_tell_their_names_and_where_they_are(cluster: ClusterUnderTest) -> None:
    with cluster.client() as client:
        answers: list[MasterAnswer] = client.admin.masters()
    assert {answer.name: answer.address for answer in answers} == {m.name: m.address for m in cluster.config.masters}
    assert all(answer.error is None for answer in answers)
