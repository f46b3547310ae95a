"""When released space is free again, in words.

Owns: that clause. Refuses to know: what is released, and why chunks stay for a while (readers may still be at work).
"""

from __future__ import annotations

from dfs.cli import output
from dfs.cli.context import Cli
from dfs.errors import DfsError


def grace_text(cli: Cli) -> str:
    """Return `, off the disks in about 10m00s`; nothing when the leader does not tell its times."""
    try:
        grace_s = cli.client.inspection.report().rules.garbage_grace_s
    except DfsError:
        return ""  # the deletion itself has succeeded: no reason to fail
    return f", off the disks in about {output.duration_text(grace_s)}" if grace_s else ", off the disks at once"
