"""A directory with all below it, page by page, though it changes between the pages.

Owns: the order (each directory before its content, by name) and finding the place where the last page ended. Refuses to
know: who asks, and what is told of each entry.

A page costs its own entries, not those before it. What is made or removed meanwhile is seen or not by where it stands;
what stays is seen exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator

from dfs.master.state.nodes import Directory, Node

PAGE = 32  # entries taken from a table at once: below each directory among them the page is taken anew


def entries_after(root: Directory, after: str) -> Iterator[tuple[str, Node]]:
    """Yield (relative path, node) of all below `root` that comes after the relative path `after` ("": all)."""
    stack = _place_of(root, after)
    while stack:
        prefix, directory, last = stack.pop()
        page, has_more = directory.entries.page(last, PAGE)
        for name, node in page:
            yield prefix + name, node
            if isinstance(node, Directory):
                stack.append((prefix, directory, name))
                stack.append((f"{prefix}{name}/", node, ""))
                break
        else:
            if has_more:
                stack.append((prefix, directory, page[-1][0]))


def _place_of(root: Directory, after: str) -> list[tuple[str, Directory, str]]:
    """Return what is left to do behind `after`, the deepest directory last: (prefix, directory, last name done)."""
    stack: list[tuple[str, Directory, str]] = []
    prefix, directory = "", root
    for name in after.split("/") if after else ():
        stack.append((prefix, directory, name))
        child = directory.entries.get(name)
        if not isinstance(child, Directory):
            return stack  # a file, or gone meanwhile
        prefix, directory = f"{prefix}{name}/", child
    return [*stack, (prefix, directory, "")]
