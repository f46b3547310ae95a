"""The table of verbs: where each lives, one line about it, and the other names it answers to.

Owns: the verbs' names, groups and aliases. Refuses to know: what they do; nothing is imported before it is used.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Entry(NamedTuple):
    """`module` and `attribute` are where the click command is; `help` is what `dfs --help` says."""

    section: str
    module: str
    attribute: str
    help: str


def _section(title: str, *verbs: tuple[str, str, str]) -> dict[str, Entry]:
    return {
        name: Entry(title, f"dfs.cli.{module}", f"{name.replace('-', '_')}_verb", text) for name, module, text in verbs
    }


VERBS: Final[dict[str, Entry]] = {
    **_section(
        "Look around",
        ("pwd", "navigation", "Print the remote current directory."),
        ("cd", "navigation", "Change the remote current directory."),
        ("ls", "listing", "List directories and files."),
        ("tree", "navigation", "Draw a directory tree."),
        ("find", "find", "Search a tree by name, type, size or age."),
        ("stat", "properties", "Show all that is known about a path."),
        ("du", "properties", "Show how much space paths take."),
        ("df", "properties", "Show the space of the cluster."),
        ("count", "properties", "Count directories, files and bytes."),
        ("test", "properties", "Test what a path is; the answer is the exit code."),
        ("checksum", "properties", "Print checksums of files."),
    ),
    **_section(
        "Read and write",
        ("put", "put", "Store local files or directories."),
        ("get", "get", "Fetch files or directories."),
        ("append", "put", "Add local files at the end of a file."),
        ("cat", "reading", "Print files."),
        ("head", "reading", "Print the beginning of files."),
        ("tail", "reading", "Print the end of files."),
    ),
    **_section(
        "Change",
        ("mkdir", "directories", "Make directories."),
        ("rmdir", "directories", "Remove empty directories."),
        ("rm", "files", "Move files or directories to the trash."),
        ("cp", "files", "Copy inside the cluster; no bytes move."),
        ("mv", "files", "Move or rename."),
        ("touch", "files", "Set times, make empty files."),
        ("truncate", "ranges", "Cut files short."),
        ("concat", "ranges", "Join files; no bytes move."),
        ("compact", "ranges", "Merge the small extents of files."),
        ("setrep", "files", "Set the number of replicas."),
        ("snapshot", "snapshots", "Keep a directory as it is; list, compare, go back."),
        ("quota", "quotas", "Limit the names and bytes below a directory."),
        ("undelete", "trash", "Bring back what was deleted."),
        ("trash", "trash", "List or empty the trash."),
        ("expunge", "trash", "Empty the trash: give the space back now."),
    ),
    **_section(
        "The cluster",
        ("up", "cluster", "Start a whole cluster on this machine."),
        ("down", "cluster", "Stop the cluster on this machine."),
        ("status", "cluster", "Show the health of masters and chunk servers."),
        ("fsck", "fsck", "Check how well files are kept: missing, under-replicated, corrupt."),
        ("explain", "explain", "Say in words where a path's bytes are, and what happens next."),
        ("doctor", "doctor", "Check configuration, clocks, disks, ports, versions, quorum."),
        ("admin", "admin", "Look after masters and chunk servers."),
        ("chaos", "chaos", "Break a cluster within safe bounds, and judge whether it kept its promises."),
        ("master", "daemons", "Run one master in the foreground."),
        ("chunk", "daemons", "Run one chunk server in the foreground."),
    ),
    **_section(
        "This program",
        ("config", "settings", "Show or change your settings."),
        ("completion", "completion", "Print the shell completion script."),
        ("help", "manual", "Show help about a verb."),
        ("version", "manual", "Print the version."),
    ),
}

HIDDEN: Final[dict[str, Entry]] = _section(
    "Other names", ("moveFromLocal", "put", "Store local files and remove them here.")
)

# Other names, with the options that their users expect to be on.
ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "delete": ("rm",),
    "del": ("rm",),
    "rmr": ("rm", "-r"),
    "lsr": ("ls", "-l", "-R"),
    "ll": ("ls", "-l"),
    "copyFromLocal": ("put", "-r"),
    "copyToLocal": ("get", "-r"),
    "appendToFile": ("append",),
    "touchz": ("touch",),
    "rename": ("mv",),
    "copy": ("cp",),
    "dus": ("du", "-s"),
    "createSnapshot": ("snapshot", "create"),
    "deleteSnapshot": ("snapshot", "rm"),
    "lsSnapshottableDir": ("snapshot", "ls"),
    "snapshotDiff": ("snapshot", "diff"),
    "setQuota": ("quota", "set"),
    "clrQuota": ("quota", "clear"),
}
