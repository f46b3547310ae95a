"""Are replicas that are flipped, cut, deleted or outdated found and replaced, and is every read right meanwhile?"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from dfs.chunk.tails.folders import TAIL_FOLDER
from dfs.chunk.volumes.volumes import VOLUME_CHUNK_MAX
from dfs.client import DfsClient
from dfs.ids import id_text
from dfs.testing.append_chaos import locate
from dfs.testing.cluster import ClusterUnderTest, wait_until
from dfs.testing.replicas import StoredReplica

pytestmark = pytest.mark.timeout(180)
WAIT_S = 90.0
FLIPPED, CUT, DELETED = 20, 5, 5
SERVERS = ("c1", "c2", "c3", "c4")
FOUND = re.compile(r" (?:replica_quarantined|replica_vanished) .*?\bpath=\S*/([0-9a-f]{32})")
SCRUBBED = re.compile(r" scrub_found_damage .*?\bhandle=([0-9a-f]{32})")
SETTINGS = {"scrub_period": "6 s", "scrub_rate": "64 MiB", "garbage_grace": "1 s"}


@pytest.fixture
def cluster() -> Iterator[ClusterUnderTest]:
    with ClusterUnderTest(masters=1, settings=SETTINGS) as cluster:
        yield cluster


def stored(cluster: ClusterUnderTest) -> list[tuple[str, StoredReplica]]:
    """Return every replica on the disks of the cluster, with the name of its server."""
    return [(name, replica) for name in SERVERS for replica in cluster.replicas(name)]


def contents(cluster: ClusterUnderTest) -> Counter[bytes]:
    """Return the bytes of every replica on disk; one that goes at this moment is not there."""
    found: Counter[bytes] = Counter()
    for _, replica in stored(cluster):
        with contextlib.suppress(FileNotFoundError):
            found[replica.data()] += 1
    return found


def damage(cluster: ClusterUnderTest, files: dict[str, bytes], rng: random.Random) -> dict[str, str]:
    """Damage one replica of each file behind the servers' backs; return the chunk of each path."""
    by_content: dict[bytes, list[StoredReplica]] = {}
    for _, replica in stored(cluster):
        by_content.setdefault(replica.data(), []).append(replica)
    chosen = {path: rng.choice(by_content[content]) for path, content in files.items()}
    large = [path for path, replica in chosen.items() if replica.path.suffix != ".vol"]
    cut, deleted = large[:CUT], large[CUT : CUT + DELETED]  # a volume holds replicas of other files, too
    assert len(cut) + len(deleted) == CUT + DELETED
    for path in cut:
        os.truncate(chosen[path].path, rng.randrange(chosen[path].length))
    for path in deleted:
        chosen[path].path.unlink()
    flipped = [replica for path, replica in chosen.items() if path not in (*cut, *deleted)]
    assert len(flipped) == FLIPPED
    assert {replica.path.suffix for replica in flipped} == {"", ".vol"}, "replicas in files and in volumes are hit"
    for replica in flipped:
        replica.damage(rng.random())
    return {path: id_text(replica.handle) for path, replica in chosen.items()}


def check_bytes(client: DfsClient, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        assert b"".join(client.read(path)) == content, path


def test_every_damaged_replica_is_found_and_replaced_and_no_read_ever_sees_it(cluster: ClusterUnderTest) -> None:
    rng = random.Random(7)
    sizes = [rng.randrange(1, VOLUME_CHUNK_MAX) for _ in range(10)]
    sizes += [rng.randrange(VOLUME_CHUNK_MAX + 1, 2 * VOLUME_CHUNK_MAX) for _ in range(FLIPPED + CUT + DELETED - 10)]
    files = {f"/file{number}": rng.randbytes(size) for number, size in enumerate(sizes)}
    read = dict(list(files.items())[::2])  # damage to the others is for the scrubber to find
    with cluster.client() as client:
        for path, content in files.items():
            client.put(io.BytesIO(content), path)
        wanted = Counter(dict.fromkeys(files.values(), 3))
        wait_until(lambda: contents(cluster) == wanted, WAIT_S, "all is on disk")
        damaged = damage(cluster, files, rng)
        assert contents(cluster) != wanted
        check_bytes(client, read)

        def is_replaced() -> bool:
            check_bytes(client, read)
            return contents(cluster) == wanted

        wait_until(is_replaced, WAIT_S, "each file has three good replicas on disk, and no other one is left")
        logs = "".join(cluster.log_of(name) for name in SERVERS)
        assert logs.count(" chunk_copied ") >= len(damaged)
        check_who_found_it(logs, set(damaged.values()), {damaged[path] for path in read})
        kept = [server.disks[0].quarantined_count for server in client.cluster_status().servers]
        assert sum(kept) >= FLIPPED + CUT, "what was damaged can be looked at"
        check_bytes(client, files)

        def is_clean() -> bool:
            return cluster.run_cli("fsck", "/").returncode == 0

        wait_until(is_clean, WAIT_S, "fsck finds nothing")
        assert cluster.run_cli("status").returncode == 0


def check_who_found_it(logs: str, damaged: set[str], read: set[str]) -> None:
    """Assert that each damaged replica was found once, some by the readers, and by the scrubber what they did not."""
    found, by_scrubber = FOUND.findall(logs), set(SCRUBBED.findall(logs))
    assert (len(found), set(found)) == (FLIPPED + CUT + DELETED, damaged)
    by_readers = damaged - by_scrubber
    assert damaged - read <= by_scrubber, "nobody read these"
    assert by_readers, "the readers found some, long before the scrubber came by"
    assert by_readers <= read
    print(f"{len(damaged)} damaged replicas: readers found {len(by_readers)}, the scrubber {len(by_scrubber)}")  # noqa: T201


def tails_of(cluster: ClusterUnderTest, name: str) -> list[str]:
    (disk,) = cluster.config.chunk_server(name).data_dirs
    return sorted(path.name for path in (disk / TAIL_FOLDER).glob("*"))


def is_one_history(cluster: ClusterUnderTest, client: DfsClient, paths: list[str]) -> bool:
    """Whether each chunk of these files has three replicas on disk, and all of them the same bytes.

    Other chunks may be there: what a put left on two servers, when the third was dead, waits for the orphans' grace.
    """
    by_handle: dict[bytes, list[bytes]] = {
        extent.handle: [] for path in paths for extent in locate(client, path).extents
    }
    for _, replica in stored(cluster):
        if replica.handle in by_handle:
            with contextlib.suppress(FileNotFoundError):
                by_handle[replica.handle].append(replica.data())
    return all(len(copies) == 3 and len(set(copies)) == 1 for copies in by_handle.values())


def test_a_server_that_missed_deletes_and_appends_serves_nothing_stale_and_loses_it(cluster: ClusterUnderTest) -> None:
    rng = random.Random(8)
    gone = {f"/gone{number}": rng.randbytes(1 + number * 60_000) for number in range(10)}
    grown = {f"/grown{number}": rng.randbytes(100_000) for number in range(3)}
    log = [rng.randbytes(500) for _ in range(20)]
    with cluster.client() as client, client.appender("/log") as appender:
        for path, content in (gone | grown).items():
            client.put(io.BytesIO(content), path)
        for record in log[:10]:
            appender.append(record).result()
        victim = next(name for name in SERVERS if tails_of(cluster, name))
        held = {replica.data() for replica in cluster.replicas(victim)}
        assert held & set(gone.values())
        cluster.kill(victim)
        for path in gone:
            client.delete(path, skip_trash=True)
        for path in grown:
            more = rng.randbytes(50_000)
            client.append(io.BytesIO(more), path)
            grown[path] += more
        for record in log[10:]:
            appender.append(record).result()
        cluster.start(victim)

        used = [*grown, "/log"]

        def is_rid_of_it() -> bool:
            check_bytes(client, grown)
            assert b"".join(client.read("/log")) == b"".join(log)
            is_rid = not contents(cluster).keys() & set(gone.values())
            return is_rid and not tails_of(cluster, victim) and is_one_history(cluster, client, used)

        wait_until(is_rid_of_it, WAIT_S, f"{victim} has lost what it missed the end of")
        for path in gone:
            assert not client.exists(path)
