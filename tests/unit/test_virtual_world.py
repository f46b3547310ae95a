"""Do the virtual loop, disk and network behave like the bad days of real ones?"""

from __future__ import annotations

import asyncio
import random
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from dfs.master import raft_journal
from dfs.master.raft_journal import Journal
from dfs.testing.raft_world import RAFT_PORT, _InstantThread, _NetLoop
from dfs.testing.virtual_disk import SECTOR_SIZE, VirtualDisk, VirtualOs, VirtualPath
from dfs.testing.virtual_loop import Machine, MachineDied, VirtualLoop, current_machine
from dfs.testing.virtual_net import VirtualNet

# --- the loop


def make_loop() -> VirtualLoop:
    return VirtualLoop()  # type: ignore[abstract]  # what is not there is not used


def test_waiting_costs_no_time_and_happens_in_order() -> None:
    loop, seen = make_loop(), []

    async def wait(seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((seconds, loop.time()))

    async def main() -> None:
        await asyncio.gather(wait(3600), wait(5), wait(60))

    loop.run(main())
    assert seen == [(5, 5), (60, 60), (3600, 3600)]


def test_killed_machine_does_nothing_more() -> None:
    loop, seen = make_loop(), []
    machine = Machine(loop, "m1")

    async def count() -> None:
        while True:
            await asyncio.sleep(1)
            assert current_machine() is machine
            seen.append(loop.time())

    async def main() -> None:
        machine.spawn(count())
        await asyncio.sleep(2.5)
        machine.kill()
        await asyncio.sleep(10)

    loop.run(main())
    loop.close()
    assert seen == [1, 2]
    assert not loop.errors


def test_paused_machine_catches_up_in_order() -> None:
    loop, seen = make_loop(), []
    machine = Machine(loop, "m1")

    async def main() -> None:
        for moment in (1, 2, 3):
            loop.call_later(moment, lambda moment=moment: seen.append((moment, loop.time())), context=machine.context)
        machine.pause()
        await asyncio.sleep(10)
        machine.resume()
        await asyncio.sleep(0.1)

    loop.run(main())
    assert seen == [(1, 10), (2, 10), (3, 10)]


def test_machines_have_their_own_clocks() -> None:
    loop = make_loop()
    fast, late = Machine(loop, "m1", clock_rate=1.1), Machine(loop, "m2", clock_start_s=500)
    loop.run(asyncio.sleep(100))
    late.jump_clock(7)
    assert fast.monotonic() == pytest.approx(110)
    assert late.monotonic() == pytest.approx(607)


def test_run_that_waits_for_nothing_is_told() -> None:
    loop = make_loop()

    async def wait_for_ever() -> None:
        await loop.create_future()

    with pytest.raises(AssertionError, match="nothing will ever happen"):
        loop.run(wait_for_ever())
    loop.close()


# --- the disk


def make_disk(seed: int = 1) -> tuple[VirtualDisk, VirtualOs, VirtualPath]:
    rng = random.Random(seed)
    disk = VirtualDisk(rng)
    disk.root().mkdir()
    return disk, VirtualOs(lambda _machine: rng), disk.root() / "file"


def write(system: VirtualOs, path: VirtualPath, data: bytes, *, sync: bool, offset: int = 0) -> None:
    descriptor = system.open(path, system.O_RDWR | system.O_CREAT)
    system.pwrite(descriptor, data, offset)
    if sync:
        system.fdatasync(descriptor)
    system.close(descriptor)


def sync_names(system: VirtualOs, path: VirtualPath) -> None:
    descriptor = system.open(path, system.O_RDONLY | system.O_DIRECTORY)
    system.fsync(descriptor)
    system.close(descriptor)


def test_synced_bytes_under_a_synced_name_survive_every_power_cut() -> None:
    for seed in range(50):
        disk, system, path = make_disk(seed)
        write(system, path, b"safe", sync=True)
        sync_names(system, disk.root())
        disk.lose_power()
        assert path.read_bytes() == b"safe"


def test_unsynced_bytes_are_lost_torn_by_sectors_or_kept() -> None:
    found = set()
    for seed in range(200):
        disk, system, path = make_disk(seed)
        write(system, path, b"a" * 2 * SECTOR_SIZE, sync=True)
        sync_names(system, disk.root())
        write(system, path, b"b" * 2 * SECTOR_SIZE, sync=False)
        disk.lose_power()
        data = path.read_bytes()
        found.add((data[:SECTOR_SIZE], data[SECTOR_SIZE:]))
    old, new = b"a" * SECTOR_SIZE, b"b" * SECTOR_SIZE
    assert found == {(old, old), (old, new), (new, old), (new, new)}


def test_name_that_was_not_synced_may_be_missing() -> None:
    found = set()
    for seed in range(50):
        disk, system, path = make_disk(seed)
        write(system, path, b"data", sync=True)
        disk.lose_power()
        found.add(path.exists())
    assert found == {False, True}


def test_kill_loses_only_what_python_had_buffered() -> None:
    disk, system, path = make_disk()
    write(system, path, b"data", sync=False)
    file = (disk.root() / "other").open("wb")
    file.write(b"in the buffer")
    assert path.read_bytes() == b"data"
    assert (disk.root() / "other").read_bytes() == b""


def test_power_fails_at_the_chosen_operation() -> None:
    disk, system, path = make_disk()
    cuts: list[bool] = []
    disk.on_power_cut = lambda: cuts.append(True)
    disk.operations_left = 2  # the new name and the write
    with pytest.raises(MachineDied):
        write(system, path, b"data", sync=True)
    assert cuts == [True]


def test_full_disk_refuses_growth_but_not_rewriting() -> None:
    disk, system, path = make_disk()
    write(system, path, b"data", sync=True)
    disk.capacity = disk.used
    write(system, path, b"DATA", sync=True)
    with pytest.raises(OSError, match="No space"):
        write(system, path, b"more", sync=True, offset=4)


def test_journal_writes_again_what_a_failed_sync_left_in_memory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a failed sync once, keeps the page and calls it clean: a later sync proves nothing."""
    for seed in range(20):  # a kernel that forgets, and one that keeps
        disk, system, _ = make_disk(seed)
        monkeypatch.setattr(raft_journal, "os", system)
        monkeypatch.setattr(raft_journal, "threading", SimpleNamespace(Thread=_InstantThread, Lock=threading.Lock))
        folder: Any = disk.root() / "log"
        journal = Journal(folder, name="m1", segment_size=8192)
        journal.set_vote(1, None)
        journal.append(b"command", 1, 1)
        disk.fails_next_sync = True
        with pytest.raises(OSError, match="Input/output"):
            journal._write_batch(journal._take_buffer())
        believed = Journal(folder, name="m1", segment_size=8192).entries
        disk.lose_power()
        assert Journal(folder, name="m1", segment_size=8192).entries == believed


# --- the network


class Peer(asyncio.Protocol):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard = b""
        self.is_lost = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True

    def say(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


class Pair:
    """Two connected machines."""

    def __init__(self) -> None:
        self.loop = _NetLoop()  # type: ignore[abstract]  # what is not there is not used
        self.net = self.loop.net = VirtualNet(self.loop, random.Random(1), delay_s=0.01)
        self.net.name_host("10.0.0.1", "m1")
        self.machines = [Machine(self.loop, name) for name in ("m1", "m2")]
        self.server, self.client = Peer(), Peer()

    async def connect(self) -> None:
        await self.machines[0].spawn(self.loop.create_server(lambda: self.server, "10.0.0.1", RAFT_PORT))
        await self.machines[1].spawn(self.loop.create_connection(lambda: self.client, "10.0.0.1", RAFT_PORT))
        await asyncio.sleep(1)


def test_bytes_of_a_connection_arrive_once_and_in_order() -> None:
    pair = Pair()

    async def main() -> None:
        await pair.connect()
        for number in range(200):
            pair.machines[1].run(pair.client.say, b"%d," % number)
        await asyncio.sleep(10)

    pair.loop.run(main())
    assert pair.server.heard == b"".join(b"%d," % number for number in range(200))


def test_one_way_partition_holds_bytes_until_it_heals() -> None:
    pair = Pair()

    async def main() -> None:
        await pair.connect()
        pair.net.block("m2", "m1")
        pair.machines[1].run(pair.client.say, b"held")
        pair.machines[0].run(pair.server.say, b"passes")
        await asyncio.sleep(10)
        assert (pair.server.heard, pair.client.heard) == (b"", b"passes")
        pair.net.heal()
        await asyncio.sleep(1)

    pair.loop.run(main())
    assert pair.server.heard == b"held"


def test_killed_process_resets_its_connections_and_a_power_cut_does_not() -> None:
    for is_silent in (False, True):
        pair = Pair()

        async def main(pair: Pair = pair, is_silent: bool = is_silent) -> None:
            await pair.connect()
            pair.machines[0].kill()
            pair.net.drop_machine(pair.machines[0], silently=is_silent)
            await asyncio.sleep(10)

        pair.loop.run(main())
        assert pair.client.is_lost is not is_silent


def test_bytes_sent_to_a_forgotten_connection_are_answered_with_a_reset() -> None:
    pair = Pair()

    async def main() -> None:
        await pair.connect()
        pair.machines[0].kill()
        pair.net.drop_machine(pair.machines[0], silently=True)
        pair.machines[1].run(pair.client.say, b"hello?")
        await asyncio.sleep(10)

    pair.loop.run(main())
    assert pair.client.is_lost
