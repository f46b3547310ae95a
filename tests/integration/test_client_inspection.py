"""Does a verification tell replicas that are damaged, gone, or on a server that does not answer from good ones?"""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest

from dfs.client.inspection import Finding
from dfs.errors import NotFound
from dfs.testing.memory_cluster import MemoryCluster


def test_every_replica_is_verified_where_it_lies(tmp_path: Path) -> None:
    with MemoryCluster(tmp_path, chunk_servers=4) as cluster, cluster.client() as client:
        for name in ("a", "b", "c"):
            client.put(io.BytesIO(name.encode() * 1000), f"/d/{name}", parents=True)
        inspection = client.inspection
        (page,) = inspection.survey("/d", with_tokens=True)
        assert Counter(inspection.verify("/d", page).values()) == {Finding.GOOD: 9}

        holders = {
            chunk.handle: [cluster.chunk_server(page.servers[index].name) for index in chunk.replicas]
            for chunk in page.chunks
        }
        damaged, lost, silent = (chunk.handle for chunk in page.chunks)
        bad, gone, down = holders[damaged][0], holders[lost][0], holders[silent][0]
        down = next(server for server in holders[silent] if server not in (bad, gone))
        bad.damage(damaged)
        gone.store.delete(lost)
        down.stop()
        found = inspection.verify("/d", page)
        assert found[damaged, bad.store.server_id] is Finding.CORRUPT
        assert found[lost, gone.store.server_id] is Finding.ABSENT, "the masters still list it"
        assert {handle for (handle, server), finding in found.items() if finding is Finding.UNASKED} >= {silent}
        assert all(server == down.store.server_id for (_, server), f in found.items() if f is Finding.UNASKED)


def test_a_replica_that_went_in_good_order_meanwhile_is_no_finding(tmp_path: Path) -> None:
    with MemoryCluster(tmp_path) as cluster, cluster.client() as client:
        client.put(io.BytesIO(b"x" * 1000), "/f")
        (page,) = client.inspection.survey("/f", with_tokens=True)
        client.delete("/f", skip_trash=True)
        for server in cluster.chunk_servers:
            server.store.delete(page.chunks[0].handle)
        assert client.inspection.verify("/f", page) == {}


def test_a_survey_ends_where_its_root_is_deleted_under_it(tmp_path: Path) -> None:
    with MemoryCluster(tmp_path) as cluster, cluster.client() as client:
        for name in ("a", "b", "c"):
            client.touch(f"/{name}") if name == "c" else client.make_directory(f"/d/{name}", parents=True)
        pages = client.inspection.survey("/d", page_size=1)
        assert next(pages).directory_count == 1
        client.delete("/d", recursive=True)
        assert list(pages) == []
        with pytest.raises(NotFound):
            next(client.inspection.survey("/d"))


def test_nodes_tell_their_names_versions_and_clocks(tmp_path: Path) -> None:
    with MemoryCluster(tmp_path, masters=3) as cluster, cluster.client() as client:
        addresses = [cluster.config.masters[0].address, cluster.chunk_servers[0].address, "127.0.0.1:1"]
        master, chunk, nobody = client.inspection.ping(addresses, 10.0)
        assert (master.node, master.role, chunk.node, chunk.role) == ("m1", "master", "c1", "chunk")
        assert nobody.error is not None
        for answer in (master, chunk):
            assert answer.clock_offset_s is not None
            assert abs(answer.clock_offset_s) <= answer.clock_error_s + 1.0  # one machine, one clock
