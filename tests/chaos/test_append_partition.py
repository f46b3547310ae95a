"""Does a head that appenders still reach, but masters do not, ever make a second history? Real links, really cut."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dfs.chaos.records import Acknowledged, check_exactly_once, make_record
from dfs.client import DfsClient
from dfs.net.messages import Locate, LocateReply
from dfs.testing.chaos.namespaces import Namespaces, is_permitted
from dfs.testing.cluster import ClusterUnderTest, wait_until

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(not is_permitted(), reason="cutting links needs root and network namespaces"),
]
MASTERS, SERVERS = ("m1", "m2", "m3"), ("c1", "c2", "c3", "c4")
PATH = "/log"


class Writer:
    """Appends record after record until it is told to stop, and notes what it was told."""

    def __init__(self, client: DfsClient, number: int) -> None:
        self.told: list[Acknowledged] = []
        self.failure: Exception | None = None
        self._client, self._number = client, number
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._client.appender(PATH) as appender:
                while not self._stop.is_set():
                    sequence = len(self.told) + 1
                    offset = appender.append(make_record(self._number, sequence, 200)).result(120)
                    self.told.append(Acknowledged(self._number, sequence, offset))
        except Exception as error:  # noqa: BLE001 - a thread root; `end` raises it
            self.failure = error

    def end(self) -> list[Acknowledged]:
        self._stop.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure
        return self.told


def head_of_tail(client: DfsClient, other_than: bytes = b"") -> tuple[str, bytes]:
    """Return the server that orders the open tail, and its handle; wait for one that is not `other_than`."""
    found: list[tuple[str, bytes]] = []

    def is_open() -> bool:  # between a seal and the next record there is none
        reply = client._ask(Locate(PATH), LocateReply)
        found[:] = [(reply.servers[tail.chain[0]].name, tail.handle) for tail in reply.tail]
        return bool(found) and found[0][1] != other_than

    wait_until(is_open, 60, "another tail is open")
    return found[0]


def test_a_head_cut_off_from_all_masters_makes_no_second_history(tmp_path: Path) -> None:
    names = (*MASTERS, *SERVERS)
    with (
        Namespaces(names) as network,
        ClusterUnderTest(
            tmp_path,
            hosts={name: network.address(name) for name in names},
            launchers={name: network.launcher(name) for name in names},
        ) as cluster,
        cluster.client(timeout_s=60) as client,
        cluster.client(timeout_s=60) as other,
    ):
        writers = [Writer(client, 1), Writer(other, 2)]
        wait_until(lambda: all(len(writer.told) > 20 for writer in writers), 60, "both append")
        head, handle = head_of_tail(client)
        for master in MASTERS:
            network.cut(master, head)
            network.cut(head, master)
        head_of_tail(client, other_than=handle)
        done = [len(writer.told) for writer in writers]
        wait_until(
            lambda: all(len(writer.told) > before + 20 for writer, before in zip(writers, done, strict=True)),
            60,
            "both append to the next tail",
        )
        network.heal()
        told = [one for writer in writers for one in writer.end()]
        content = b"".join(client.read(PATH))
        assert len(check_exactly_once(content, told)) == len(told)
