"""A real process whose power can fail: a mirror beside its data directory that holds only what it has synced.

Owns: the mirror, kept up by the process itself inside its calls of fsync, and the directory that a power cut leaves.
Refuses to know: what the files mean.

Model, as in virtual_disk: bytes survive once fsync or fdatasync of their file returned, names once fsync of their
directory did; all else is gone. A file whose name was synced and whose bytes were not is empty. Kill the process at
any moment, then `lose_power`: what a sync had half done is half there, as on a disk.

The files are those that the modules given to `install` open; they must use `os.pwrite` or sync whole files.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import stat
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

_Ranges = list[tuple[int, int]]  # offset, size


class SyncedDisk:
    """The mirror of `folder` in `mirror`. In place of the module `os` for who writes there; else it is the module."""

    def __init__(self, folder: Path, mirror: Path) -> None:
        self._folder, self._mirror = folder.resolve(), mirror.resolve()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._written: dict[int, _Ranges] = {}  # by descriptor: not yet synced
        for name in ("files", "ids", "names"):
            (self._mirror / name).mkdir(parents=True, exist_ok=True)
        os.register_at_fork(after_in_child=self._forget_lock)

    def _forget_lock(self) -> None:
        """Another thread of the parent may have held it, which the child does not have."""
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    # --- what the process calls instead of the functions of os

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        is_new = bool(flags & os.O_CREAT) and (bool(flags & os.O_TRUNC) or not Path(path).exists())
        descriptor = os.open(path, flags, mode)
        with self._lock:
            self._written.pop(descriptor, None)  # of a closed one with the same number
            if is_new:
                self._name_anew(os.fstat(descriptor).st_ino)
        return descriptor

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        count = os.pwrite(descriptor, data, offset)
        with self._lock:
            self._written.setdefault(descriptor, []).append((offset, count))
        return count

    def fdatasync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)
        self._keep(descriptor)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)
        self._keep(descriptor)

    # --- the mirror

    def _name_anew(self, inode: int) -> str:
        """Give a file an identity of its own: the kernel uses the numbers of deleted ones again."""
        identity = f"{inode}.{os.getpid()}.{next(self._numbers)}"
        _replace(self._mirror / "ids" / str(inode), identity.encode())
        return identity

    def _identity(self, inode: int) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            return (self._mirror / "ids" / str(inode)).read_text()
        return None

    def _keep(self, descriptor: int) -> None:
        """Copy what the sync has brought to the disk: before it returns, so before anybody relies on it."""
        facts = os.fstat(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if stat.S_ISDIR(facts.st_mode):
            if path.is_relative_to(self._folder):
                self._keep_names(path)
            return
        with self._lock:
            ranges = self._written.pop(descriptor, [])
            identity = self._identity(facts.st_ino)
            if identity is None or (not ranges and path.suffix == ".tmp"):  # a draft: nobody relies on its name yet
                identity, ranges = self._name_anew(facts.st_ino), []
            ranges = ranges or [(0, facts.st_size)]  # not written by `pwrite`: all of it
            with (self._mirror / "files" / identity).open("ab"):
                pass
        with path.open("rb") as source, (self._mirror / "files" / identity).open("r+b") as target:
            for offset, size in ranges:
                source.seek(offset)
                target.seek(offset)
                target.write(source.read(size))

    def _keep_names(self, folder: Path) -> None:
        names: dict[str, str] = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                kind = "folder" if entry.is_dir() else (self._identity(entry.inode()) or "never synced")
                names[entry.name] = kind
        inside = folder.relative_to(self._folder)
        _replace(_listing(self._mirror, "" if inside == Path() else str(inside)), json.dumps(names).encode())


def _replace(path: Path, data: bytes) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.draft")
    draft.write_bytes(data)
    draft.rename(path)


def _listing(mirror: Path, inside: str) -> Path:
    """Return the file with the synced names of a folder."""
    return mirror / "names" / f"%{inside.replace('/', '%')}"


def install(folder: Path, mirror: Path, modules: list[ModuleType]) -> SyncedDisk:
    """Let modules write through a mirror, in this process and the children that it forks."""
    disk = SyncedDisk(folder, mirror)
    for module in modules:
        vars(module)["os"] = disk
    return disk


def lose_power(folder: Path, mirror: Path) -> None:
    """Leave in `folder` only what had been synced. The process must be dead."""
    shutil.rmtree(folder)
    _restore(folder, "", mirror)
    shutil.rmtree(mirror)
    _adopt(folder, mirror)


def _restore(folder: Path, inside: str, mirror: Path) -> None:
    target = folder / inside
    target.mkdir(parents=True)
    listing = _listing(mirror, inside)
    if not listing.exists():
        return
    for name, kind in json.loads(listing.read_bytes()).items():
        if kind == "folder":
            _restore(folder, f"{inside}/{name}".lstrip("/"), mirror)
            continue
        kept = mirror / "files" / kind
        (target / name).write_bytes(kept.read_bytes() if kept.exists() else b"")


def _adopt(folder: Path, mirror: Path) -> None:
    """Begin a mirror with all that is there: it is on the disk."""
    disk = SyncedDisk(folder, mirror)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            identity = disk._name_anew(path.stat().st_ino)
            shutil.copyfile(path, disk._mirror / "files" / identity)
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        disk._keep_names(path.resolve())
