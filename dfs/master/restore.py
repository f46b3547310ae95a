"""Put an exported state into the empty data directory of a master that does not run.

Owns: the order of verifying and writing, so that a directory is complete or untouched. Refuses to know: the line format
(dfs.master.export), and who copies the export to which machine. Why so: docs/adr/0008-import-is-offline.md.

Every master of the cluster gets the same state at the same place of the same log, so none of them needs the others.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from dfs.errors import AlreadyExists, DfsError, StorageCorrupt
from dfs.master.export import import_pieces
from dfs.master.raft_checkpoint import CheckpointFolder, CheckpointHead, write_checkpoint
from dfs.master.raft_join import write_marker
from dfs.master.raft_journal import Journal, disk_error, sync_directory
from dfs.master.raft_records import Entry
from dfs.master.state.machine import MasterState

NOTHING = b"\x01"  # a log entry without commands
FIRST_INDEX = 1000  # not 1: an empty master's log, which begins there, must not seem to agree with this one
PREVIOUS: Entry = (NOTHING, FIRST_INDEX, 1)
LAST: Entry = (NOTHING, FIRST_INDEX + 1, 1)  # the imported state stands for the log up to here
FOLDER = "raft"
DRAFT = "raft.import"


def load_export(lines: Iterable[bytes], source: str) -> MasterState:
    """Return the state of an export, verified whole; raise `StorageCorrupt` that says what is wrong with it.

    It begins another life: chunks that were stored after the export are foreign to it, and not its to delete.
    """
    state = MasterState()
    try:
        state.load(import_pieces(lines))
    except StorageCorrupt as error:
        why = error.__cause__ if isinstance(error.__cause__, DfsError) else error
        raise StorageCorrupt(f"{source} cannot be imported, and nothing was changed: {why}") from error
    state.begin_another_life()
    return state


def check_empty(data_dir: Path, name: str) -> None:
    """Raise `AlreadyExists` unless a state may be put into this data directory."""
    try:
        found = sorted(path.name for path in data_dir.iterdir() if path.name != DRAFT) if data_dir.exists() else []
    except OSError as error:
        raise disk_error(error, data_dir, "looking into the data directory") from error
    if found:
        raise AlreadyExists(
            f"the data directory {data_dir} of master {name} is not empty ({', '.join(found[:5])}); an import "
            "makes a new cluster: stop all masters and move every data_dir of theirs away first (keep "
            "them!), then import again"
        )


def install(state: MasterState, data_dir: Path, name: str) -> int:
    """Write the state as the master's checkpoint, its journal and its marker; return the checkpoint's size in bytes."""
    check_empty(data_dir, name)
    draft = data_dir / DRAFT
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True, mode=0o700)
        checkpoints = CheckpointFolder(draft / "checkpoints", fsync=True)
        file = checkpoints.folder / "imported.tmp"
        write_checkpoint(file, CheckpointHead(PREVIOUS, LAST), state.dump(), fsync=True)
        size = file.stat().st_size
        checkpoints.publish(file, LAST[1])
        _write_journal(draft / "log", name)
        write_marker(draft, name, fsync=True)
        sync_directory(draft)
        draft.rename(data_dir / FOLDER)
        sync_directory(data_dir)
    except OSError as error:
        if isinstance(error, DfsError):
            raise
        raise disk_error(error, data_dir, "writing the imported state") from error
    return size


def _write_journal(folder: Path, name: str) -> None:
    journal = Journal(folder, name=name, fsync=True)
    journal.attach(lambda *_: None, lambda: None, lambda _: None)  # what was written is read back below
    journal.set_vote(LAST[2], None)
    journal.append(*PREVIOUS)
    journal.append(*LAST)
    journal.close()
    kept = Journal(folder, name=name, fsync=True)
    kept.close()
    if (kept.term, kept.entries) != (LAST[2], [PREVIOUS, LAST]):
        raise disk_error(OSError(5, "Input/output error"), folder, "reading the new journal back")
