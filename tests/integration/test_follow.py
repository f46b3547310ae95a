"""Does `dfs tail -f` print each record once and in order, while another process appends and the tail's owner is killed?

Owns: real processes: the command that follows, the one that appends, and the daemons. Refuses to know: how a tail is
sealed (tests/integration/test_record_append.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.chaos.records import Acknowledged, check_exactly_once, make_record, parse_records
from dfs.cli.wall import EXIT_INTERRUPTED
from dfs.errors import DfsError
from dfs.testing.append_chaos import PATH, locate, read_journal
from dfs.testing.cluster import ClusterUnderTest, wait_until

pytestmark = pytest.mark.timeout(240)
CHUNK_SIZE = 256 * 1024  # bytes: the records below fill several
RECORDS, SIZE_MAX = 2000, 20_000
PATIENCE_S = 120.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterUnderTest]:
    with ClusterUnderTest(tmp_path, chunk_size=CHUNK_SIZE) as made:
        yield made


def begin(cluster: ClusterUnderTest, output: Path, *words: str) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "DFS_CONFIG": str(cluster.config_path), "DFS_SETTINGS": str(cluster.folder / "settings")}
    with output.open("wb") as file:
        # What runs behind a shell's `&` inherits that Ctrl-C is not meant for it; the command is to hear it.
        command = ["env", "--default-signal=INT", sys.executable, "-P", "-m", *words]
        return subprocess.Popen(command, env=environ, stdout=file, stderr=subprocess.PIPE)


def owner_of_the_tail(cluster: ClusterUnderTest) -> str:
    """Return the name of the server that orders the records; "" while no tail is open."""
    with cluster.client() as client:
        reply = locate(client, PATH)
    return reply.servers[reply.tail[0].chain[0]].name if reply.tail else ""


def test_a_follower_prints_all_across_roll_overs_and_the_death_of_the_tails_owner(
    cluster: ClusterUnderTest, tmp_path: Path
) -> None:
    printed, journal = tmp_path / "printed", tmp_path / "acks-1"
    first = make_record(2, 1, 100)
    with cluster.client() as client:
        client.append_record(PATH, first)
    follower = begin(cluster, printed, "dfs", "tail", "-f", "-c", "+1", PATH)
    words = ["dfs.testing.append_chaos", "--appender", "1", "--config", str(cluster.config_path)]
    words += ["--journal", str(journal), "--records", str(RECORDS), "--seed", "7", "--size-max", str(SIZE_MAX)]
    appender: subprocess.Popen[bytes] | None = None
    try:
        wait_until(lambda: printed.read_bytes() == first, PATIENCE_S, "it follows (a busy machine is slow to start it)")
        appender = begin(cluster, tmp_path / "appender", *words)
        wait_until(lambda: printed.stat().st_size > CHUNK_SIZE, PATIENCE_S, "more than a chunk is printed")
        assert appender.poll() is None, "printed while it grows, not at its end"
        victim: list[str] = []

        def has_owner() -> bool:
            try:
                victim[:] = [owner_of_the_tail(cluster)]
            except DfsError:
                return False
            return bool(victim[0])

        wait_until(has_owner, PATIENCE_S, "a tail is open", interval_s=0.01)
        told = len(read_journal(journal, 1))
        cluster.kill(victim[0])
        assert appender.wait(PATIENCE_S) == 0, appender.communicate()
        acknowledged = read_journal(journal, 1)
        assert told < len(acknowledged) == RECORDS, "its owner was killed while records were appended"
        with cluster.client() as client:
            content = b"".join(client.read(PATH))
            wait_until(lambda: printed.stat().st_size >= len(content), PATIENCE_S, "all is printed")
            assert client.stat(PATH).extent_count >= 3, "it rolled over"
        assert follower.poll() is None, "it follows until it is told to end"
        assert printed.read_bytes() == content
        assert len(check_exactly_once(content, [*acknowledged, Acknowledged(2, 1, 0)])) == RECORDS + 1
        sealed = cluster.run_cli("admin", "tail", PATH)
        assert sealed.returncode == 0, sealed.stderr
        assert b"sealed" in sealed.stdout
        assert b"has no open tail" in cluster.run_cli("admin", "tail", PATH).stdout
    finally:
        if appender is not None:
            appender.kill()
            appender.communicate()
        follower.send_signal(signal.SIGINT)
        _, errors = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == EXIT_INTERRUPTED
    assert errors == b"\ndfs: tail: interrupted\n", "it never had to tell that the file was another one"
    assert len(parse_records(printed.read_bytes())) == RECORDS + 1
