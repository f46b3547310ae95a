"""The clients of a chaos run: few paths that many fight over, and what each must look like to one client alone.

Owns: the operations, their random choice, and the models that explain their results. Refuses to know: faults.

Two kinds of objects. A *yard* is a directory with three names, in which files are made, moved over each other, deleted
and listed; its state is what stands under each name. A *book* is one file that is written anew as a whole; its state is
which edition it holds, and an edition tells by every byte which one it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import struct
from collections.abc import Callable, Hashable
from typing import Any

from dfs.chaos.history import History
from dfs.chaos.linearizability import Model
from dfs.client import DfsClient
from dfs.errors import Conflict, DfsError

ROOT = "/chaos"  # where a cluster is there for the run alone
NAMES = ("a", "b", "c")
EDITION_SIZES = (0, 100, 70_000, 300_000)  # bytes: empty, one block, two blocks, several chunks of a small chunk size
STILL_BOOK = "stillbook"
READS_MAX = 20  # of a book that is written anew again and again
_HEAD = struct.Struct(">QI")

Ask = Callable[[], Any]


# --- yards: names -----------------------------------------------------------------------------------------


def yard_step(state: Any, name: str, argument: Any) -> tuple[Any, Hashable]:
    """`state`: the value under each of `NAMES`, None where there is nothing."""
    held = dict(zip(NAMES, state, strict=True))
    if name == "list":
        return tuple(key for key in NAMES if held[key] is not None), state
    if name == "look":
        return held[argument] if held[argument] is not None else "missing", state
    if name == "touch":
        key, value = argument
        return "ok", _with(held, {key: value})
    if name == "delete":
        return ("missing", state) if held[argument] is None else ("ok", _with(held, {argument: None}))
    source, target, may_replace = argument  # a move
    if held[source] is None:
        return "missing", state
    if held[target] is not None and not may_replace:
        return "exists", state
    return "ok", _with(held, {source: None, target: held[source]})


def _with(held: dict[str, Any], changes: dict[str, Any]) -> Hashable:
    return tuple({**held, **changes}.values())


YARD = Model((None,) * len(NAMES), yard_step)


class YardWorker:
    """One client of the yards; `step` does one call. A reader only looks, so nothing tells it of another leader."""

    def __init__(
        self, number: int, seed: int, history: History, yards: int, *, is_reader: bool = False, root: str = ROOT
    ) -> None:
        self._weights = (0, 0, 0, 2, 1) if is_reader else (5, 4, 2, 4, 2)
        self._rng = random.Random(f"yard {seed} {number}")  # noqa: S311 - a seed must replay
        self._history, self._yards, self._root = history, yards, root
        self._next_value = number * 1_000_000_000

    def step(self, client: DfsClient) -> None:
        rng = self._rng
        yard = f"{self._root}/yard{rng.randrange(self._yards)}"
        name = rng.choices(("touch", "move", "delete", "look", "list"), self._weights)[0]
        argument: Any = rng.choice(NAMES)
        if name == "touch":
            self._next_value += 1
            argument = (argument, self._next_value)
        elif name == "move":
            argument = (*rng.sample(NAMES, 2), rng.random() < 0.6)
        elif name == "list":
            argument = None
        run_in_yard(self._history, client, yard, name, argument)


def run_in_yard(history: History, client: DfsClient, yard: str, name: str, argument: Any) -> Any:
    """Do one operation and write it down."""
    return history.run(
        yard, name, argument, lambda: _ask_yard(client, yard, name, argument), is_read=name in ("look", "list")
    )


def _ask_yard(client: DfsClient, yard: str, name: str, argument: Any) -> Any:
    if name == "list":
        return tuple(entry.path for entry in client.list(yard))
    if name == "look":
        return client.stat(f"{yard}/{argument}").mtime_ms
    if name == "touch":
        client.touch(f"{yard}/{argument[0]}", mtime_ms=argument[1])
    elif name == "delete":
        client.delete(f"{yard}/{argument}", skip_trash=True)
    else:
        source, target, may_replace = argument
        client.rename(f"{yard}/{source}", f"{yard}/{target}", overwrite=may_replace)
    return "ok"


# --- books: contents ---------------------------------------------------------------------------------------


def book_step(state: Any, name: str, argument: Any) -> tuple[Any, Hashable]:
    """`state`: the edition, None when there is no file."""
    if name == "read":
        return state if state is not None else "missing", state
    if name == "put":
        return "ok", argument
    return ("missing", None) if state is None else ("ok", None)  # delete


BOOK = Model(None, book_step)


def edition_bytes(edition: int, size: int) -> bytes:
    """Return a file that tells by each of its bytes which edition it is."""
    return (_HEAD.pack(edition, size) + hashlib.shake_128(str(edition).encode()).digest(size)) if size else b""


def edition_of(content: bytes) -> int:
    """Return the edition that `content` is a whole copy of; -1 when it is none (a mixture, a half, wrong bytes)."""
    if not content:
        return 0
    if len(content) < _HEAD.size:
        return -1
    edition, size = _HEAD.unpack_from(content)
    is_whole = len(content) == _HEAD.size + size and content == edition_bytes(edition, size)
    return edition if is_whole else -1


class BookWorker:
    """One client of the books; `step` does one call."""

    def __init__(self, number: int, seed: int, history: History, books: int, *, root: str = ROOT) -> None:
        self._rng = random.Random(f"book {seed} {number}")  # noqa: S311 - a seed must replay
        self._history, self._books, self._root = history, books, root
        self._next_edition = (number + 1) * 1_000_000

    def step(self, client: DfsClient) -> None:
        rng = self._rng
        book = f"{self._root}/book{rng.randrange(self._books)}"
        name = rng.choices(("put", "read", "read still", "delete"), (4, 4, 3, 1))[0]
        argument = None
        content = b""
        if name == "read still":
            book, name = f"{self._root}/{STILL_BOOK}{rng.randrange(self._books)}", "read"
        elif name == "put":
            size = rng.choice(EDITION_SIZES)
            self._next_edition += 1
            argument = self._next_edition if size else 0
            content = edition_bytes(argument, size)
        run_in_book(self._history, client, book, name, argument, content)


def run_in_book(
    history: History, client: DfsClient, book: str, name: str, argument: Any = None, content: bytes = b""
) -> Any:
    """Do one operation and write it down."""

    def ask() -> Any:
        if name == "read":
            return edition_of(_read_whole(client, book))
        if name == "put":
            client.put(io.BytesIO(content), book, overwrite=True)
        else:
            client.delete(book, skip_trash=True)
        return "ok"

    return history.run(book, name, argument, ask, is_read=name == "read")


def _read_whole(client: DfsClient, path: str) -> bytes:
    """Read a file; again when it was written anew meanwhile, which `read` says, since it has given bytes away."""
    for _ in range(READS_MAX):
        with contextlib.suppress(Conflict):
            return b"".join(client.read(path))
    return b"".join(client.read(path))


def prepare(history: History, client: DfsClient, yards: int, books: int, *, root: str = ROOT) -> None:
    """Make the directories that the workers expect, and books that nobody will write again: damage has time to show."""
    for number in range(yards):
        client.make_directory(f"{root}/yard{number}", parents=True)
    for number in range(books):
        edition = number + 1
        content = edition_bytes(edition, EDITION_SIZES[-1])
        _must(run_in_book(history, client, f"{root}/{STILL_BOOK}{number}", "put", edition, content), STILL_BOOK)


def last_look(history: History, client: DfsClient, yards: int, books: int, *, root: str = ROOT) -> None:
    """Read everything once more when all is healed; raise the error of a call that fails then."""
    for number in range(yards):
        for name in NAMES:
            _must(run_in_yard(history, client, f"{root}/yard{number}", "look", name), f"yard{number}/{name}")
    for number in range(books):
        for book in (f"book{number}", f"{STILL_BOOK}{number}"):
            _must(run_in_book(history, client, f"{root}/{book}", "read"), book)


def _must(result: Any, what: str) -> None:
    if result is None:
        raise DfsError(f"{what} cannot be used although the cluster is whole")


__all__ = ["BOOK", "YARD", "BookWorker", "YardWorker", "edition_bytes", "edition_of", "last_look", "prepare"]
