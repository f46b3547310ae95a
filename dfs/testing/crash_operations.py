"""The operations of a client that take more than one step, as `dfs.testing.crash_points` interrupts them.

Owns: one line for each of them. Refuses to know: how they are interrupted, and what is judged.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from dfs.client import DfsClient
from dfs.client.packs import PackEvents, PackItem
from dfs.errors import DfsError
from dfs.fast_paths import FastPath, is_on
from dfs.testing.crash_points import CHUNK_SIZE, RECORD_SIZE, Operation, Scope

SMALL, LARGE = b"small" * 100, bytes(range(256)) * 600  # one message; three chunks


def _put(client: DfsClient, path: str, data: bytes) -> None:
    client.put(io.BytesIO(data), path, overwrite=True, parents=True)


def _nothing(client: DfsClient, directory: str) -> None:
    """The directory is all that is needed."""


def _one(client: DfsClient, directory: str) -> None:
    _put(client, f"{directory}/a", LARGE)


def _tree(client: DfsClient, directory: str) -> None:
    for name, data in (("t/a", SMALL), ("t/b", LARGE), ("t/d/c", SMALL[:7])):
        _put(client, f"{directory}/{name}", data)


def _many_extents(client: DfsClient, directory: str) -> None:
    for number in range(6):
        client.append(io.BytesIO(SMALL[number:]), f"{directory}/a")


def _grown(client: DfsClient, directory: str) -> None:
    client.append_record(f"{directory}/log", b"first record\n" * 1000)


def _snapshot(client: DfsClient, directory: str) -> None:
    _tree(client, directory)
    client.snapshots.create(directory, "s")
    _put(client, f"{directory}/t/b", SMALL)
    client.delete(f"{directory}/t/a", skip_trash=True)


def _trashed(client: DfsClient, directory: str) -> None:
    _tree(client, directory)
    client.delete(f"{directory}/t", recursive=True)


def _half_empty_pack(client: DfsClient, directory: str) -> None:
    _put_many(client, directory, 40, 5000)
    for number in range(30):
        client.delete(f"{directory}/{number}", skip_trash=True)


def _put_many(client: DfsClient, directory: str, count: int = 6, size: int = 900) -> None:
    failures: list[DfsError] = []

    def by_itself(item: PackItem) -> None:
        client.put(item.source, item.path)

    events = PackEvents(lambda _item, _size: None, lambda _item, error: failures.append(error), by_itself)
    with tempfile.TemporaryDirectory(prefix="dfs-crash-") as name:
        for number in range(count):
            (Path(name) / str(number)).write_bytes(bytes([number]) * size)
        items = [PackItem(Path(name) / str(number), f"{directory}/{number}") for number in range(count)]
        client.put_many(items, events)
    if failures:
        raise failures[0]


class _RollOver:
    """Five records of a quarter of a chunk: the tail is full before the last ones."""

    def __init__(self) -> None:
        self.acknowledged = 0  # bytes

    def act(self, client: DfsClient, directory: str) -> None:
        self.acknowledged = 0
        with client.appender(f"{directory}/log") as appender:
            for number in range(5):
                appender.append(bytes([number]) * RECORD_SIZE).result(60)
                self.acknowledged += RECORD_SIZE


def _repack(client: DfsClient, directory: str) -> None:
    report = client.repack(directory)
    is_packed = is_on(FastPath.PACKING)
    assert report.file_count + report.conflict_count or not is_packed, "there was something to move"


def _empty_trash(client: DfsClient, directory: str) -> None:
    ids = [entry.trash_id for entry in client.list_trash() if entry.path.startswith(directory + "/")]
    client.empty_trash(ids[0])


_ROLL_OVER = _RollOver()

OPERATIONS: dict[str, Operation] = {
    "put-small": Operation(_nothing, lambda c, d: _put(c, f"{d}/a", SMALL)),
    "put-large": Operation(_nothing, lambda c, d: _put(c, f"{d}/a", LARGE)),
    "put-replace": Operation(_one, lambda c, d: _put(c, f"{d}/a", LARGE[::-1])),
    "put-many": Operation(_nothing, _put_many, scope=Scope.FILE),
    "append": Operation(_one, lambda c, d: c.append(io.BytesIO(LARGE), f"{d}/a")),
    "append-record": Operation(_grown, lambda c, d: c.append_record(f"{d}/log", b"second record\n" * 1000)),
    "write-at": Operation(_one, lambda c, d: c.write_at(f"{d}/a", 1000, SMALL)),
    "truncate": Operation(_one, lambda c, d: c.truncate(f"{d}/a", CHUNK_SIZE + 7)),
    "compact": Operation(_many_extents, lambda c, d: c.compact(f"{d}/a"), is_visible=False),
    "concat": Operation(_tree, lambda c, d: c.concat(f"{d}/t/a", [f"{d}/t/b", f"{d}/t/d/c"])),
    "copy": Operation(_one, lambda c, d: c.copy(f"{d}/a", f"{d}/b")),
    "copy-tree": Operation(_tree, lambda c, d: c.copy(f"{d}/t", f"{d}/u", recursive=True)),
    "rename": Operation(_tree, lambda c, d: c.rename(f"{d}/t", f"{d}/u")),
    "rename-growing": Operation(_grown, lambda c, d: c.rename(f"{d}/log", f"{d}/log.1")),
    "delete": Operation(_tree, lambda c, d: c.delete(f"{d}/t", recursive=True)),
    "delete-at-once": Operation(_tree, lambda c, d: c.delete(f"{d}/t", recursive=True, skip_trash=True)),
    "undelete": Operation(_trashed, lambda c, d: c.undelete(f"{d}/t")),
    "expunge": Operation(_trashed, _empty_trash),
    "snapshot-create": Operation(_tree, lambda c, d: c.snapshots.create(d, "s")),
    "snapshot-restore": Operation(_snapshot, lambda c, d: c.snapshots.restore(d, "s", safety_name="before")),
    "snapshot-remove": Operation(_snapshot, lambda c, d: c.snapshots.remove(d, "s")),
    "set-replication": Operation(_tree, lambda c, d: c.set_replication(f"{d}/t", 2, recursive=True)),
    "append-roll-over": Operation(
        _grown, _ROLL_OVER.act, scope=Scope.RECORD, acknowledged=lambda: _ROLL_OVER.acknowledged
    ),
    "repack": Operation(_half_empty_pack, _repack, is_visible=False),
}
