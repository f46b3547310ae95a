"""The rules of names: what a path is, and how one is made from what a user typed.

Owns: normalising, splitting and the limits of paths. Refuses to know: what exists.

A stored path is absolute, `/`-separated Unicode without empty, `.` or `..` components. A component is 1 to
`NAME_SIZE_MAX` bytes of UTF-8 and may hold anything but `/` and NUL: spaces, newlines and leading dashes are names.
"""

from __future__ import annotations

from dfs.errors import InvalidName

NAME_SIZE_MAX = 255  # bytes of UTF-8 in one component, as in POSIX
PATH_SIZE_MAX = 4096  # bytes of UTF-8 in a whole path
PATH_DEPTH_MAX = 512  # components in a path
ROOT = "/"
SNAPSHOTS = ".snapshot"  # the name under which a directory shows its snapshots; nothing else can have it
SNAPSHOTS_MARK = "/.snapshot"  # in every path that leads into snapshots, and in few others
_NO_NAMES = frozenset({"", ".", ".."})


def normalise(path: str, cwd: str = ROOT) -> str:
    """Return the absolute stored form of `path` as typed in directory `cwd`; raise `InvalidName`.

    `..` of the root is the root. A trailing slash is dropped.
    """
    if not path:
        raise InvalidName("a path is empty; give a name, or / for the root directory")
    if path.startswith("/") and _NO_NAMES.isdisjoint(path[1:].split("/")):  # most are in that form already
        split(path)
        return path
    parts: list[str] = []
    for part in (path if path.startswith("/") else f"{cwd}/{path}").split("/"):
        if part == "..":
            if parts:
                parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    joined = "/" + "/".join(parts)
    split(joined)
    return joined


def split(path: str) -> tuple[str, ...]:
    """Return the components of a stored path (`()` for the root); raise `InvalidName` when a rule is broken."""
    if not path.startswith("/"):
        raise InvalidName(f"path {path!r} is not absolute")
    if path == ROOT:
        return ()
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise InvalidName(f"path {path!r} is not valid Unicode; rename the file to valid UTF-8") from None
    if size > PATH_SIZE_MAX:
        raise InvalidName(f"path of {size} bytes is over the limit of {PATH_SIZE_MAX}: {path[:80]!r}…")
    parts = tuple(path[1:].split("/"))
    if len(parts) > PATH_DEPTH_MAX:
        raise InvalidName(f"path of {len(parts)} components is over the limit of {PATH_DEPTH_MAX}: {path[:80]!r}…")
    if size > NAME_SIZE_MAX or "\0" in path or not _NO_NAMES.isdisjoint(parts):  # else each of them is fine
        for part in parts:
            check_name(part)
    return parts


def check_name(name: str) -> None:
    """Raise `InvalidName` unless `name` may be stored as one component."""
    if name in _NO_NAMES:
        raise InvalidName(f"{name!r} cannot be the name of a file or directory")
    if "/" in name or "\0" in name:
        raise InvalidName(f"name {name!r} holds a slash or a NUL byte")
    if len(name) * 4 > NAME_SIZE_MAX and (size := len(name.encode())) > NAME_SIZE_MAX:
        raise InvalidName(f"name of {size} bytes is over the limit of {NAME_SIZE_MAX}: {name[:60]!r}…")


def join(directory: str, name: str) -> str:
    return f"/{name}" if directory == ROOT else f"{directory}/{name}"


def parent(path: str) -> str:
    return path.rpartition("/")[0] or ROOT


def basename(path: str) -> str:
    """Return the last component of a stored path, `""` for the root."""
    return path.rpartition("/")[2]


def split_snapshot(path: str) -> tuple[str, tuple[str, ...]] | None:
    """Return (directory, components after `.snapshot`) of a stored path that leads into snapshots, else None."""
    if SNAPSHOTS_MARK not in path:
        return None
    parts = split(path)
    if SNAPSHOTS not in parts:
        return None
    index = parts.index(SNAPSHOTS)
    return "/" + "/".join(parts[:index]), parts[index + 1 :]


def is_below(path: str, directory: str) -> bool:
    """Return whether a stored path is `directory` or lies in it."""
    return directory in (ROOT, path) or path.startswith(directory + "/")
