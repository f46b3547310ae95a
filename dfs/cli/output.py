"""What verbs print: escaped names, human sizes and times, tables, columns and JSON.

Owns: the text forms of names, numbers and records, and the stable JSON keys of a file.
Refuses to know: where the values come from, and exit codes.
"""

from __future__ import annotations

import json
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from dfs.net.parts import FileStatus

# Control characters, invisible and direction-changing format characters, line separators, lone surrogates.
_CONTROLS: Final = (
    "\\x00-\\x1f\\x7f-\\x9f\\u00ad\\u061c\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff\\ufff9-\\ufffb"
    "\\ud800-\\udfff"
)
_UNSAFE_NAME: Final = re.compile(f"[{_CONTROLS}\\\\]")
_UNSAFE_TEXT: Final = re.compile(f"[{_CONTROLS}]")
_SHORT_ESCAPES: Final = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}
_BINARY_UNITS: Final = "KMGTPE"


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    return _SHORT_ESCAPES.get(character) or (
        f"\\x{ord(character):02x}" if ord(character) < 0x100 else f"\\u{ord(character):04x}"
    )


def display(name: str) -> str:
    """Return a name for people: control characters as `\\n`, `\\x1b`, `\\u202e`, and a backslash doubled."""
    return _UNSAFE_NAME.sub(_escape, name)


def escape_controls(text: str) -> str:
    """Return a sentence with its control characters escaped; backslashes stay."""
    return _UNSAFE_TEXT.sub(_escape, text)


def width(text: str) -> int:
    """Return how many terminal cells a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def human_size(size: int) -> str:
    """Return a size as `ls -h` prints it: 1023, 1.5K, 12M, rounded up; powers of 1024."""
    scale, unit = 1, ""
    for candidate in _BINARY_UNITS:
        if size < scale * 1024:
            break
        scale, unit = scale * 1024, candidate
    if not unit:
        return str(size)
    tenths = -(-size * 10 // scale)
    if tenths < 100:
        return f"{tenths // 10}.{tenths % 10}{unit}"
    whole = -(-size // scale)
    if whole == 1024 and unit != _BINARY_UNITS[-1]:
        return f"1.0{_BINARY_UNITS[_BINARY_UNITS.index(unit) + 1]}"
    return f"{whole}{unit}"


def size_text(size: float) -> str:
    """Return a size for a sentence: 17 B, 45.3 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def size_column(size: int, *, human: bool) -> str:
    return human_size(size) if human else str(size)


def count_text(count: int, noun: str, plural: str = "") -> str:
    """Return `1 file`, `2 files`, `2 directories`."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def local_time(time_ms: int) -> str:
    """Return a time of day in this machine's zone, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(time_ms / 1000))


def utc_time(time_ms: int) -> str:
    """Return an ISO 8601 time in UTC with milliseconds: what JSON carries."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(time_ms // 1000))}.{time_ms % 1000:03d}Z"


def duration_text(seconds: float) -> str:
    """Return 0.4s, 12s, 3m05s, 2h07m, 5d03h."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def line(text: str = "") -> None:
    """Print one line to stdout; buffered, so that ten thousand of them are one write."""
    sys.stdout.write(text + "\n")


def raw(name: str) -> None:
    """Print the exact bytes of a name and a NUL, for `xargs -0`."""
    sys.stdout.flush()
    sys.stdout.buffer.write(name.encode("utf-8", "surrogateescape") + b"\0")


def table(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> Iterator[str]:
    """Yield aligned lines; columns numbered in `right` are flushed right, the last column is not padded."""
    if not rows:
        return
    to_right = frozenset(right)
    widths = [max(width(row[index]) for row in rows) for index in range(len(rows[0]))]
    for row in rows:
        cells = []
        for index, cell in enumerate(row):
            gap = " " * (widths[index] - width(cell))
            if index in to_right:
                cells.append(gap + cell)
            else:
                cells.append(cell if index == len(row) - 1 else cell + gap)
        yield "  ".join(cells) if row[-1] else "  ".join(cells).rstrip()


def columns(names: Sequence[str], line_width: int) -> Iterator[str]:
    """Yield lines with the names in columns, read downwards as `ls` does."""
    if not names:
        return
    widths = [width(name) + 2 for name in names]
    count = len(names)
    for column_count in range(max(1, min(count, line_width // 3)), 0, -1):
        row_count = -(-count // column_count)
        column_widths = [max(widths[start : start + row_count]) for start in range(0, count, row_count)]
        if sum(column_widths) - 2 <= line_width or column_count == 1:
            break
    for row in range(row_count):
        indexes = range(row, count, row_count)
        cells = [names[i] + " " * (column_widths[c] - widths[i] + 2) for c, i in enumerate(indexes[:-1])]
        yield "".join(cells) + names[indexes[-1]]


def print_json(value: Any) -> None:
    """Print one JSON document, indented."""
    line(json.dumps(value, ensure_ascii=False, indent=2))


class JsonArray:
    """A JSON array that is printed element by element, one per line."""

    def __init__(self) -> None:
        self._is_empty = True

    def add(self, value: Any) -> None:
        sys.stdout.write("[\n" if self._is_empty else ",\n")
        self._is_empty = False
        sys.stdout.write(json.dumps(value, ensure_ascii=False))

    def close(self) -> None:
        sys.stdout.write("[]\n" if self._is_empty else "\n]\n")


@contextmanager
def json_array() -> Iterator[JsonArray]:
    """Yield an array to add to; it is closed even when an error ends the verb, so that the output stays JSON."""
    array = JsonArray()
    try:
        yield array
    finally:
        array.close()


def file_json(status: FileStatus, path: str) -> dict[str, Any]:
    """Return the stable JSON form of a file or directory at the stored path `path`."""
    return {
        "path": path,
        "name": path.rpartition("/")[2],
        "type": status.kind.name.lower(),
        "size": status.size,
        "stored_size": status.stored_size,
        "mtime": utc_time(status.mtime_ms),
        "mtime_ms": status.mtime_ms,
        "inode": status.inode,
        "version": status.version,
        "replication": status.replication,
        "extent_count": status.extent_count,
        "file_count": status.file_count,
        "directory_count": status.directory_count,
    }
