"""Storing and fetching whole trees: what to do for each entry, found while the workers are at it.

Owns: the walks (local and remote), which entries are skipped, and the tally. Refuses to know: names of options, output.

A tree is never held in memory: each walk keeps one listing per level. Symbolic links are not followed, neither read
from (put) nor written through (get).
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dfs import paths
from dfs.cli.wall import LocalError
from dfs.client.unpacking import UnpackItem
from dfs.errors import AlreadyExists
from dfs.net.messages import LocateManyReply
from dfs.net.parts import Kind

if TYPE_CHECKING:
    from dfs.client import DfsClient

OnFailure = Callable[[str, BaseException], None]


@dataclass(slots=True)
class Tally:
    """What was done so far; counted from any thread."""

    file_count: int = 0
    directory_count: int = 0
    size: int = 0
    skipped_count: int = 0  # links, sockets, devices
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add_file(self, size: int) -> None:
        with self.lock:
            self.file_count += 1
            self.size += size

    def add_directory(self) -> None:
        with self.lock:
            self.directory_count += 1

    def add_skipped(self) -> None:
        with self.lock:
            self.skipped_count += 1


@dataclass(frozen=True, slots=True)
class LocalEntry:
    """A file to store, or a directory that no file brings about (`is_directory`)."""

    source: Path
    target: str
    size: int
    is_directory: bool


def local_size(root: Path) -> int:
    """Return the bytes of all regular files below; what cannot be read counts nothing."""
    total = 0
    stack = [str(root)]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue  # the walk that stores will meet it again and report it
    return total


def local_entries(
    root: Path, target: str, tally: Tally, skip: Callable[[str], None], failed: OnFailure
) -> Iterator[LocalEntry]:
    """Yield what is below a local directory, sorted by name; directories only when they are empty.

    A file's commit makes the directories above it, so that a tree costs one call per file.
    """
    stack = [(root, target)]
    while stack:
        directory, remote = stack.pop()
        try:
            with os.scandir(directory) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            failed(str(directory), error)
            continue
        tally.add_directory()
        below: list[tuple[Path, str]] = []
        is_empty = True
        for entry in entries:
            path, child = Path(entry.path), paths.join(remote, entry.name)
            if entry.is_dir(follow_symlinks=False):
                below.append((path, child))
                is_empty = False
            elif entry.is_file(follow_symlinks=False):
                is_empty = False
                try:
                    size = entry.stat(follow_symlinks=False).st_size
                except OSError as error:
                    failed(entry.path, error)
                    continue
                yield LocalEntry(path, child, size, is_directory=False)
            else:
                tally.add_skipped()
                skip(f"{entry.path}: {_what(entry)} is not stored")
        if is_empty:
            yield LocalEntry(directory, remote, 0, is_directory=True)
        stack.extend(reversed(below))


def _what(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "a symbolic link"
    mode = entry.stat(follow_symlinks=False).st_mode
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def make_root(client: DfsClient, path: str, *, parents: bool) -> None:
    """Make the remote root of a tree; an existing directory is fine."""
    try:
        client.make_directory(path, parents=parents)
    except AlreadyExists:
        if client.stat(path).kind is not Kind.DIRECTORY:
            raise LocalError(f"{path!r} exists and is a file; a directory cannot go there") from None


def remote_pages(
    client: DfsClient, root: str, target: Path, tally: Tally, failed: OnFailure
) -> Iterator[tuple[LocateManyReply, list[UnpackItem]]]:
    """Yield the files below a remote directory, page by page, and make its directories under `target` on the way."""
    if not _make_local(root, target, failed):
        return
    tally.add_directory()
    skipped = ""  # a directory, with "/", that could not be made here: nothing below it is fetched
    for page in client.locate_many(root):
        items: list[UnpackItem] = []
        for file in page.files:
            if skipped and file.path.startswith(skipped):
                continue
            path = paths.join(root, file.path)
            try:
                parent, _, name = file.path.rpartition("/")
                local = local_child(target / parent, name)
            except LocalError as error:
                failed(path, error)
                skipped = f"{file.path}/"
                continue
            if file.kind is Kind.FILE:
                items.append(UnpackItem(file, path, local))
            elif _make_local(path, local, failed):
                tally.add_directory()
            else:
                skipped = f"{file.path}/"
        yield page, items


def local_child(directory: Path, name: str) -> Path:
    """Return the local path of a remote name, directly in `directory`; raise `LocalError` when there is none."""
    if name in ("", ".", "..") or "/" in name or "\0" in name or os.sep in name:
        raise LocalError(f"the name {name!r} would leave the target directory; it is not fetched")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise LocalError(f"the name {name!r} cannot be written in this machine's encoding; it is not fetched") from None
    return directory / name


def _make_local(path: str, target: Path, failed: OnFailure) -> bool:
    try:
        if target.is_symlink():
            raise LocalError(f"{str(target)!r} is a symbolic link; nothing is written through it")
        target.mkdir(exist_ok=True)
    except (OSError, LocalError) as error:
        failed(path, error)
        return False
    return True
