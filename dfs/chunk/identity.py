"""Who owns a data directory: the identity file, the lock, and which directories one chunk server may start with.

Owns: `server.json` and `lock` of each data directory. Refuses to know: chunks, and what a failed disk means.

All data directories of a server carry the same server id. A contradiction (another server, cluster or format, a second
daemon) stops the start: going on would mix up replicas. A directory that is merely missing or broken is left out with
its reason, and the others go on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dfs.decoders import json_decoder
from dfs.errors import ConfigError, DiskFailed
from dfs.ids import ID_SIZE, ServerId, id_text, new_server_id
from dfs.log import get_logger

DIRECTORY_FORMAT = 1
IDENTITY_FILE = "server.json"
LOCK_FILE = "lock"
NEW_DISK_FILE = "new-disk"  # the operator's word that an empty directory replaces a lost disk
IDENTITY_SIZE_MAX = 64 * 1024  # bytes
DATA_DIRS_KNOWN_MAX = 256  # remembered paths; more than a server has disks

log = get_logger(__name__)
_DRAFT_FILE = IDENTITY_FILE + ".new"
_EMPTY_NAMES = frozenset({LOCK_FILE, NEW_DISK_FILE, _DRAFT_FILE, "lost+found"})


class Identity(msgspec.Struct, frozen=True):
    """The content of `server.json`. `data_dirs`: every path that ever was a data directory of this server."""

    format: int
    cluster: str
    server_id: str
    data_dirs: list[str]


_DECODER: msgspec.json.Decoder[Identity] = json_decoder(Identity)
_FIELDS: msgspec.json.Decoder[dict[str, msgspec.Raw]] = json_decoder(dict[str, msgspec.Raw])


@dataclass(slots=True)
class DataDirectory:
    """A data directory at start: `lock_fd` is held while it is ours, `failure` says why it is left out."""

    path: Path
    lock_fd: int = -1
    identity: Identity | None = None
    failure: str = ""
    exists: bool = True
    is_declared_new: bool = False

    def fail(self, reason: str) -> None:
        self.failure = reason
        self.release()

    def release(self) -> None:
        """Let others have the directory."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1


def claim(paths: Sequence[Path], cluster: str) -> tuple[ServerId, list[DataDirectory]]:
    """Lock the data directories, and return the server id and all directories, failed ones included.

    Without any identity a new server is made. Raise `ConfigError` on a contradiction, `DiskFailed` when none is usable.
    """
    directories: list[DataDirectory] = []
    try:
        directories.extend(map(_examine, paths))  # keeps what it has when one of them raises
        server_id = _agree(directories, cluster)
        known = {name for found in directories if found.identity for name in found.identity.data_dirs}
        is_new_server = not any(found.identity for found in directories)
        for found in directories:
            if not found.failure and found.identity is None:
                _check_newcomer(found, known, is_new_server=is_new_server)
        _remember(directories, server_id, cluster, known)
        if all(found.failure for found in directories):
            reasons = "; ".join(found.failure for found in directories)
            raise DiskFailed(f"no data directory is usable: {reasons}")
    except BaseException:
        for found in directories:
            found.release()
        raise
    return server_id, directories


def _examine(path: Path) -> DataDirectory:
    """Look at one directory and lock it when it is ours or empty."""
    found = DataDirectory(path)
    try:
        names = {entry.name for entry in os.scandir(path)}
    except FileNotFoundError:
        found.exists = False
        return found
    except OSError as error:
        found.fail(f"data directory {path} cannot be read: {error.strerror}")
        return found
    if IDENTITY_FILE not in names and not names <= _EMPTY_NAMES:
        strange = min(names - _EMPTY_NAMES)
        raise ConfigError(
            f"data directory {path} is neither empty nor a data directory of dfs (it holds {strange!r}); "
            "give data_dirs an empty directory"
        )
    found.is_declared_new = NEW_DISK_FILE in names
    try:
        _lock(found)
        if IDENTITY_FILE in names:
            found.identity = _read_identity(path)
    except OSError as error:
        found.fail(f"data directory {path} cannot be used: {error.strerror or error}")
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            found.release()
            raise
        found.fail(f"{path / IDENTITY_FILE} is damaged ({error}); copy it from another data directory of this server")
    return found


def _lock(found: DataDirectory) -> None:
    found.lock_fd = os.open(found.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(found.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(found.lock_fd, 32, 0).decode("ascii", "replace").strip()
        found.release()
        raise ConfigError(
            f"data directory {found.path} is in use by another chunk server (pid {owner or 'unknown'}); "
            "stop that one, or give this one a directory of its own"
        ) from None
    with contextlib.suppress(OSError):  # the pid is a courtesy; a full disk must still be served
        os.ftruncate(found.lock_fd, 0)
        os.pwrite(found.lock_fd, f"{os.getpid()}\n".encode(), 0)


def _read_identity(path: Path) -> Identity:
    with (path / IDENTITY_FILE).open("rb") as file:
        content = file.read(IDENTITY_SIZE_MAX)
    version = _FIELDS.decode(content).get("format")
    if version is not None and bytes(version) != str(DIRECTORY_FORMAT).encode():
        raise ConfigError(
            f"data directory {path} has format {bytes(version)[:20].decode('ascii', 'replace')}, this version of dfs "
            f"knows format {DIRECTORY_FORMAT}; start the version that made it"
        )
    identity = _DECODER.decode(content)
    if len(bytes.fromhex(identity.server_id)) != ID_SIZE:
        raise ValueError("its server id has the wrong size")
    return identity


def _agree(directories: Sequence[DataDirectory], cluster: str) -> ServerId:
    """Return the one server id of all identities, or a new one when there is none; raise `ConfigError`."""
    first: DataDirectory | None = None
    for found in directories:
        if found.identity is None:
            continue
        if found.identity.cluster != cluster:
            raise ConfigError(
                f"data directory {found.path} belongs to cluster {found.identity.cluster!r}, this is cluster "
                f"{cluster!r}; check data_dirs, or empty the directory if its chunks are not needed"
            )
        if first is None or first.identity is None:
            first = found
        elif found.identity.server_id != first.identity.server_id:
            raise ConfigError(
                f"data directory {found.path} belongs to chunk server {found.identity.server_id}, but {first.path} to "
                f"{first.identity.server_id}; check which disk is mounted where"
            )
    if first is None or first.identity is None:
        server_id = new_server_id()
        log.info(
            "new_chunk_server",
            server=server_id,
            folders=",".join(str(found.path) for found in directories),
            reason="no data directory held an identity; if this server had chunks before, stop it and mount its disks",
        )
        return server_id
    return ServerId(bytes.fromhex(first.identity.server_id))


def _check_newcomer(found: DataDirectory, known: set[str], *, is_new_server: bool) -> None:
    """Take an empty directory in, or say why not: an unmounted disk must not be mistaken for a new one."""
    path = found.path
    if not found.exists:
        if not is_new_server:
            found.fail(f"data directory {path} does not exist; mount its disk, or make it if the disk is new")
            return
        try:
            _make_durably(path)
            _lock(found)
        except OSError as error:
            found.fail(f"data directory {path} cannot be made: {error.strerror}")
    elif str(path) in known and not found.is_declared_new:
        found.fail(
            f"data directory {path} is empty but held chunks of this server before; mount its disk, or, if it is "
            f"a replacement, say so with: touch {path / NEW_DISK_FILE}"
        )


def _remember(directories: Sequence[DataDirectory], server_id: ServerId, cluster: str, known: set[str]) -> None:
    """Write the identity into newcomers first, then the grown list of paths into the others."""
    usable = [found for found in directories if not found.failure]
    paths = sorted(known | {str(found.path) for found in usable})[:DATA_DIRS_KNOWN_MAX]
    identity = Identity(DIRECTORY_FORMAT, cluster, id_text(server_id), paths)
    for found in sorted(usable, key=lambda found: found.identity is not None):
        if found.identity == identity:
            continue
        try:
            _write_identity(found.path, identity)
        except OSError as error:
            if found.identity is None:
                found.fail(f"data directory {found.path} cannot be written: {error.strerror}")
            continue  # an old directory that is full or read-only keeps the shorter list: its chunks still count
        found.identity = identity


def _write_identity(path: Path, identity: Identity) -> None:
    draft = path / _DRAFT_FILE
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, msgspec.json.format(msgspec.json.encode(identity)) + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    draft.rename(path / IDENTITY_FILE)
    (path / NEW_DISK_FILE).unlink(missing_ok=True)
    sync_directory(path)


def _make_durably(path: Path) -> None:
    """Make a directory and its missing parents, so that their names survive a power cut, too."""
    missing = [path, *(parent for parent in path.parents if not parent.exists())]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for made in missing:
        sync_directory(made.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
