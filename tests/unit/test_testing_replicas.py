"""Does the helper that looks at data directories find exactly the replicas that a store holds?"""

from __future__ import annotations

import contextlib
from pathlib import Path

from dfs.chunk.store import FileStore
from dfs.testing.replicas import put, stored_in


def test_a_replica_that_came_again_after_its_deletion_is_found_once(tmp_path: Path) -> None:
    with contextlib.closing(FileStore([tmp_path], "test", disk_reserve=0, fsync=False, volume_size=1000)) as store:
        first, gone = put(store, b"first" * 100), put(store, b"gone")
        for replica in (first, gone):
            assert store.delete(replica.handle)
        assert stored_in(tmp_path) == []
        put(store, b"first" * 100, first.handle)
        (found,) = stored_in(tmp_path)
        assert (found.handle, found.data()) == (first.handle, b"first" * 100)
