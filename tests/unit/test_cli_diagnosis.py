"""Do `explain`, `doctor` and `admin report` gather what they tell, at every level of health, and end as documented?"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import Result

from dfs import __version__
from dfs.client.inspection import NodeAnswer
from dfs.config import load_config
from dfs.errors import ConnectionFailed, NoQuorum
from dfs.net.auth import make_secret
from dfs.net.parts import ScrubStatus, ServerLoad, SpaceStatus
from dfs.testing.memory_client import MemoryClient, healthy_status

Run = Callable[..., Result]
NO_SPACE = SpaceStatus(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def kill(client: MemoryClient, name: str, age_s: float) -> None:
    whole = healthy_status(NO_SPACE)
    client.status_reply = msgspec.structs.replace(
        whole,
        servers=tuple(
            msgspec.structs.replace(
                server, state="dead", heartbeat_age_s=age_s, info=msgspec.structs.replace(server.info, is_alive=False)
            )
            if server.info.name == name
            else server
            for server in whole.servers
        ),
    )


# --- explain ------------------------------------------------------------------------------------------


def test_explain_tells_of_a_file_what_happens_next(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"12345"), "/f")
    assert run("explain", "/f").output.endswith("  Next: nothing is to be done.\n")
    kill(client, "c2", 31.0)
    result = run("explain", "/f")
    assert result.exit_code == 0
    assert "c2 (rack r0, 127.0.0.1:7422) is dead: silent for 31s\n" in result.output
    assert "are copied to c4 from 1m00s on, in about 29s." in result.output
    value = json.loads(run("explain", "--json", "/f").output)
    assert (value["state"], value["chunks"][0]["live"], value["chunks"][0]["goal"]) == ("file", 2, 3)
    assert value["text"][-1].startswith("  Next: c2 is silent")


def test_explain_tells_of_a_directory_which_files_are_in_danger(client: MemoryClient, run: Run) -> None:
    for number in range(12):
        client.put(io.BytesIO(b"12345"), f"/d/f{number:02}", parents=True)
    kill(client, "c1", 5.0)
    result = run("explain", "/d")
    assert "12 chunks can be read, with fewer live replicas than wanted.\n" in result.output
    assert "It concerns 12 files: /d/f00, /d/f01, " in result.output
    assert " and others.\n" in result.output


def test_explain_tells_of_what_was_deleted_and_of_what_never_was(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"12345"), "/d/f", parents=True)
    client.delete("/d", recursive=True)
    deleted = run("explain", "/d/f")
    assert deleted.exit_code == 0
    assert "The directory /d above it was deleted" in deleted.output
    assert "`dfs undelete /d` brings it back until" in deleted.output
    never = run("explain", "/nope")
    assert never.exit_code == 3
    assert "nothing that was deleted from there is in the trash" in never.output
    client.put(io.BytesIO(b"again"), "/d/f", parents=True)
    client.delete("/d/f")
    client.put(io.BytesIO(b"once more"), "/d/f")
    assert "A file of 5 B was deleted from here" in run("explain", "/d/f").output
    client.down = NoQuorum("no master leads")
    assert run("explain", "/d/f").exit_code == 4


# --- admin report -------------------------------------------------------------------------------------


def test_report_tells_of_the_cluster_and_of_each_server(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"12345"), "/f")
    first = healthy_status(NO_SPACE).servers[0].info.server_id
    scrub = ScrubStatus(7, 7 << 20, 1, 0.25, 1_700_000_000_000)
    client.inspection.reply = msgspec.structs.replace(
        client.inspection.reply, loads=(ServerLoad(first, 2, 15, 3, 4, scrub),)
    )
    result = run("admin", "report")
    assert result.exit_code == 0
    assert "Capacity:                 40.0 GiB on live servers\n" in result.output
    assert "Live:                     5 B in 1 file, 0 directories\n" in result.output
    assert "Masters:                  m1 leader, m2 follower, m3 follower\n" in result.output
    assert "\nc1 (127.0.0.1:7421, rack r1)\n  State:                  alive, heartbeat 0.4s ago\n" in result.output
    assert "  Disk wait:              15 ms for a small synced write\n" in result.output
    assert "25 % of this lap, last lap ended 2023-11-14" in result.output
    assert "7 replicas (7.0 MiB) verified since the start, 1 corrupt\n" in result.output
    value = json.loads(run("admin", "report", "--json").output)
    assert value["rules"]["repair_after_s"] == 60.0
    assert value["chunk_servers"][0]["work"]["scrub"]["corrupt_count"] == 1
    assert value["chunk_servers"][1]["work"] is None


def test_report_shows_the_dead_or_the_living_when_asked(client: MemoryClient, run: Run) -> None:
    kill(client, "c2", 31.0)
    assert "4 alive" not in run("admin", "report").output
    dead = run("admin", "report", "-dead").output
    assert "\nc2 (" in dead
    assert "\nc1 (" not in dead
    live = run("admin", "report", "--live").output
    assert "\nc1 (" in live
    assert "\nc2 (" not in live
    assert run("admin", "report", "--live", "--dead").exit_code == 2


# --- doctor -------------------------------------------------------------------------------------------


@pytest.fixture
def cluster_ini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cluster.ini beside the default's secret; its nodes are on this machine, and never ran."""
    from dfs.config import EMBEDDED_DEFAULT

    path = tmp_path / "cluster.ini"
    path.write_text(EMBEDDED_DEFAULT)
    config = load_config(path)
    config.secret_file.parent.mkdir()
    make_secret(config.secret_file)
    return path


def test_doctor_without_any_configuration_says_how_to_get_one(run: Run) -> None:
    result = run("doctor", connected=False)
    assert result.exit_code == 1
    assert result.output.startswith("FAIL  config    cluster.ini: no cluster is known")
    assert result.output.endswith("0 OK, 0 WARN, 1 FAIL\n")


def test_doctor_names_the_key_of_a_wrong_configuration(cluster_ini: Path, run: Run) -> None:
    cluster_ini.write_text(cluster_ini.read_text().replace("dead_after = 10 s", "dead_after = 10"))
    result = run("doctor", connected=False)
    assert result.exit_code == 1
    assert "[cluster] dead_after" in result.output


def test_doctor_is_useful_when_nothing_runs(cluster_ini: Path, client: MemoryClient, run: Run) -> None:
    offline = run("doctor", "--offline", "--json", connected=False)
    findings = json.loads(offline.output)["findings"]
    assert {finding["topic"] for finding in findings} == {"config", "secret", "layout", "disk", "limits", "memory"}
    assert "m1: " in next(finding["where"] for finding in findings if finding["topic"] == "disk")
    down = ConnectionFailed("nobody listens there")
    client.masters = [(f"127.0.0.1:740{number}", down) for number in (1, 2, 3)]
    result = run("doctor", "-q")
    assert result.exit_code == 1
    assert "FAIL  ports     c4 (127.0.0.1:7424): nobody listens there\n      why: " in result.output
    assert "FAIL  quorum    masters: 0 of 3 masters take part, 2 are needed; none leads\n" in result.output
    assert "OK  " not in result.output


def test_doctor_looks_at_the_rest_when_half_of_the_cluster_is_down(
    cluster_ini: Path, client: MemoryClient, run: Run
) -> None:
    config = load_config(cluster_ini)
    client.masters = [*client.masters[:2], ("127.0.0.1:7403", ConnectionFailed("nobody listens there"))]
    kill(client, "c4", 31.0)
    up = {master.address: master.name for master in config.masters[:2]}
    up |= {server.address: server.name for server in config.chunk_servers[:3]}
    client.inspection.answers = {
        address: NodeAnswer(address, name, "x", __version__, 0.0, 0.001) for address, name in up.items()
    }
    result = run("doctor")
    assert "OK    ports     c1, c2, c3, m1, m2: reachable, and they know the secret\n" in result.output
    assert "FAIL  ports     m3 (127.0.0.1:7403): nobody listens there\n" in result.output
    assert "WARN  quorum    masters: 2 of 3 masters take part, 2 are needed; m1 leads\n" in result.output
    assert "FAIL  servers   c4 (127.0.0.1:7424): dead: silent for 31 s\n" in result.output


def test_doctor_stops_at_a_secret_that_opens_no_door(cluster_ini: Path, client: MemoryClient, run: Run) -> None:
    load_config(cluster_ini).secret_file.chmod(0o644)
    result = run("doctor")
    assert result.exit_code == 1
    assert "FAIL  secret" in result.output
    assert "quorum" not in result.output
    assert client.calls == []
