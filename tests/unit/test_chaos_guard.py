"""Does the guard of `dfs chaos` let a fault strike only where names and bytes stay available?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dfs.chaos.guard import (
    BLIND_S_MAX,
    SILENT_S_MAX,
    SINGLE_S_MAX,
    ClusterView,
    MasterView,
    ServerView,
    Weakest,
    alarm,
    objection,
    refusals,
    troubles,
)
from dfs.chaos.scenario import KINDS, Fault

SERVERS = tuple(ServerView(f"c{n}", "alive") for n in (1, 2, 3, 4))
MASTERS = (MasterView("m1", "leader"), MasterView("m2", "follower"), MasterView("m3", "follower"))
WHOLE = ClusterView(1.0, MASTERS, SERVERS, replication=3)
STRONG = Weakest("/f", 3)


def fault(kind: str, count: int = 1) -> Fault:
    return Fault(1.0, 2.0, KINDS[kind], 0.5, count)


def server(name: str, state: str, mode: str = "") -> tuple[ServerView, ...]:
    return tuple(ServerView(name, state, mode) if one.name == name else one for one in SERVERS)


def master(name: str, role: str, silent_s: float = 0.0) -> tuple[MasterView, ...]:
    return tuple(MasterView(name, role, silent_s) if one.name == name else one for one in MASTERS)


def test_a_whole_cluster_may_be_broken_by_every_kind() -> None:
    assert refusals(WHOLE, KINDS.values(), 1, STRONG) == []
    assert [objection(WHOLE, fault(kind), ["m1" if "server" not in kind else "c1"], (), 1) for kind in KINDS] == [
        ""
    ] * len(KINDS)
    assert alarm(WHOLE, (), 1) == ""


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (replace(WHOLE, masters=master("m3", "", 0.1)), "m3 does not answer"),
        (replace(WHOLE, masters=master("m3", "joining")), "m3 is joining"),
        (replace(WHOLE, masters=master("m1", "follower")), "no master leads"),
        (replace(WHOLE, servers=server("c2", "late")), "c2 is late"),
        (replace(WHOLE, servers=server("c2", "alive", "draining")), "mode draining"),
        (replace(WHOLE, servers=server("c2", "alive", "maintenance")), "mode maintenance"),
        (replace(WHOLE, servers=(ServerView("c1", "alive", has_bad_disk=True),)), "disk"),
        (replace(WHOLE, servers=()), "no chunk server"),
        (replace(WHOLE, under_replicated=1), "under-replicated"),
        (replace(WHOLE, missing=2), "no live replica"),
        (replace(WHOLE, blind_s=0.5), "leader does not answer"),
    ],
)
def test_a_cluster_that_is_not_whole_is_refused(view: ClusterView, words: str) -> None:
    assert any(words in found for found in refusals(view, [KINDS["kill-leader"]], 1, STRONG))
    assert objection(view, fault("kill-server"), ["c1"], (), 1) != ""


def test_a_run_that_could_take_the_last_replica_or_the_quorum_is_refused() -> None:
    servers, masters = [KINDS["kill-server"]], [KINDS["kill-leader"]]
    assert "setrep" in refusals(WHOLE, servers, 1, Weakest("/precious", 1))[0]
    assert refusals(WHOLE, masters, 1, Weakest("/precious", 1)) == []
    assert "replication 3" in refusals(WHOLE, servers, 3, STRONG)[0]
    assert refusals(WHOLE, servers, 2, STRONG) == []
    alone = replace(WHOLE, masters=MASTERS[:1])
    assert "quorum" in refusals(alone, masters, 1, STRONG)[0]
    assert refusals(alone, servers, 1, STRONG) == []
    pair = replace(WHOLE, masters=MASTERS[:2])
    assert "quorum" in refusals(pair, masters, 1, STRONG)[0]


def test_only_one_master_is_away_at_a_time() -> None:
    view = replace(WHOLE, masters=master("m2", "", 0.2))
    assert "more than one master" in objection(view, fault("kill-leader"), ["m1"], {"m2"}, 1)
    assert objection(view, fault("kill-server"), ["c1"], {"m2"}, 1) == "", "the other side may be broken meanwhile"


def test_no_more_servers_are_away_than_was_allowed() -> None:
    view = replace(WHOLE, servers=server("c1", "dead"))
    assert objection(view, fault("kill-server"), ["c2"], {"c1"}, 1) != ""
    assert objection(view, fault("kill-server"), ["c2"], {"c1"}, 2) == ""
    assert objection(WHOLE, fault("kill-server", 2), ["c2", "c3"], (), 1) != ""


def test_no_server_is_touched_while_a_chunk_waits_for_repair() -> None:
    away = replace(WHOLE, servers=server("c1", "dead"), under_replicated=5)
    assert objection(away, fault("pause-server"), ["c2"], {"c1"}, 2) != ""
    assert objection(away, fault("kill-leader"), ["m1"], {"c1"}, 2) == "", "masters hold no chunks"
    assert objection(replace(WHOLE, single=1), fault("pause-server"), ["c2"], (), 1) != ""


@pytest.mark.parametrize(
    ("view", "away"),
    [
        (replace(WHOLE, masters=master("m3", "", SILENT_S_MAX + 1)), ("m2",)),
        (replace(WHOLE, blind_s=BLIND_S_MAX + 1), ()),
        (replace(WHOLE, missing=1), ("c1",)),
        (replace(WHOLE, servers=server("c2", "dead")), ("c1",)),
        (replace(WHOLE, servers=server("c2", "alive", "draining")), ()),
        (replace(WHOLE, single=3, single_s=SINGLE_S_MAX + 1), ("c1",)),
        (WHOLE, ("c1", "c2")),
    ],
)
def test_what_the_run_did_not_do_stops_it(view: ClusterView, away: tuple[str, ...]) -> None:
    assert alarm(view, away, 1) != ""


@pytest.mark.parametrize(
    ("view", "away"),
    [
        (replace(WHOLE, masters=master("m3", "", SILENT_S_MAX + 9)), ("m3",)),
        (replace(WHOLE, masters=master("m3", "", SILENT_S_MAX - 1)), ()),
        (replace(WHOLE, masters=master("m1", "", 3.0), blind_s=3.0), ("m1",)),
        (replace(WHOLE, servers=server("c1", "dead"), under_replicated=9), ("c1",)),
        (replace(WHOLE, servers=server("c2", "late")), ()),
        (replace(WHOLE, single=3, single_s=SINGLE_S_MAX - 1), ("c1",)),
    ],
)
def test_what_the_run_did_and_passing_slowness_do_not_stop_it(view: ClusterView, away: tuple[str, ...]) -> None:
    assert alarm(view, away, 1) == ""


def test_with_two_replicas_one_left_is_expected_while_a_server_is_away() -> None:
    view = replace(WHOLE, replication=2, servers=server("c1", "dead"), single=7, single_s=SINGLE_S_MAX + 1)
    assert alarm(view, {"c1"}, 1) == ""
    assert alarm(view, (), 1) != ""


def test_nodes_that_are_away_are_excused_by_their_name_alone() -> None:
    view = replace(WHOLE, servers=server("c1", "dead"), masters=master("m2", "", 1.0))
    assert troubles(view, {"c1", "m2"}) == []
    assert troubles(view, {"c1"}) == ["master m2 does not answer"]
