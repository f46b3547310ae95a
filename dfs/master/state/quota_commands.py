"""Handler of the mutation of quotas.

Owns: its rules. Refuses to know: how use is counted, and where growth is checked.
"""

from __future__ import annotations

from dfs.errors import InvalidArgument, LimitExceeded, NotADirectory
from dfs.master.state.namespace import check_changeable, shown
from dfs.master.state.nodes import File
from dfs.master.state.parts import NODES_MAX, SIZE_TOTAL_MAX, StateParts
from dfs.master.state.quotas import QUOTAS_MAX, Quota, status
from dfs.net.messages import QuotaReply, SetQuota


def set_quota(parts: StateParts, command: SetQuota) -> QuotaReply:
    check_changeable(command.path)
    node = parts.namespace.find(command.path)
    if isinstance(node, File):
        raise NotADirectory(f"{shown(command.path)} is a file; quotas are for directories")
    if not -1 <= command.names <= NODES_MAX:
        raise InvalidArgument(f"a quota of {command.names} names is not possible; 1 to {NODES_MAX} are, 0 lifts it")
    if not -1 <= command.stored_size <= SIZE_TOTAL_MAX:
        raise InvalidArgument(f"a quota of {command.stored_size} bytes is not possible; 1 to {SIZE_TOTAL_MAX} are")
    known = parts.quotas.get(command.path)
    if known is None and len(parts.quotas) >= QUOTAS_MAX and (command.names > 0 or command.stored_size > 0):
        raise LimitExceeded(f"{QUOTAS_MAX} directories have a quota, the most that can; clear some")
    known = known or Quota(0, 0)
    quota = Quota(
        known.names if command.names < 0 else command.names,
        known.stored_size if command.stored_size < 0 else command.stored_size,
    )
    parts.quotas.set(command.path, quota)
    return QuotaReply(status(command.path, quota, node))
