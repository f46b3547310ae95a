"""What an administrator does with chunk servers: drain, maintenance, removal, balance.

Owns: the calls to the leader. Refuses to know: how it carries them out, and output.
"""

from __future__ import annotations

from typing import TypeVar

from dfs import paths
from dfs.client.discovery import Masters
from dfs.clock import Deadline
from dfs.net.messages import (
    BalanceServers,
    BalanceServersReply,
    DecommissionServer,
    DecommissionServerReply,
    EndTail,
    EndTailReply,
    Message,
    RemoveServer,
    RemoveServerReply,
    SetMaintenance,
    SetMaintenanceReply,
)

REMOVE_TIMEOUT_S = 300.0  # the map of a large cluster is walked, and each replica dropped

T = TypeVar("T", bound=Message)


class ServerAdmin:
    """The chunk servers of one cluster, each by its name or id. Get one from `DfsClient.servers`. Thread-safe."""

    def __init__(self, masters: Masters, timeout_s: float) -> None:
        self._masters, self._timeout_s = masters, timeout_s

    def decommission(self, name: str, *, is_plan: bool = False, is_cancel: bool = False) -> DecommissionServerReply:
        """Begin to drain a server (or only plan it, or let it stay); raise `Conflict` when it cannot go."""
        return self._ask(DecommissionServer(name, is_plan, is_cancel), DecommissionServerReply)

    def maintain(self, name: str, duration_s: float) -> SetMaintenanceReply:
        """Bear the silence of a server for `duration_s`; 0 ends that."""
        return self._ask(SetMaintenance(name, duration_s), SetMaintenanceReply)

    def remove(self, name: str, *, is_forced: bool = False) -> RemoveServerReply:
        """Forget a server that does not run; raise `Conflict` when chunks have their only replica there."""
        timeout_s = max(self._timeout_s, REMOVE_TIMEOUT_S)
        return self._masters.call(RemoveServer(name, is_forced), RemoveServerReply, Deadline.after(timeout_s))

    def balance(self, action: str, threshold: float) -> BalanceServersReply:
        """`action`: plan, start or stop; `threshold`: the spread of fills that may be left, as a share."""
        return self._ask(BalanceServers(action, threshold), BalanceServersReply)

    def end_tail(self, path: str, *, gives_up: bool = False, is_forced: bool = False) -> EndTailReply:
        """Seal the open tail of a file, or give its records up; raise `Conflict` while a server may have them."""
        return self._ask(EndTail(paths.normalise(path), gives_up, is_forced), EndTailReply)

    def _ask(self, message: Message, reply: type[T]) -> T:
        return self._masters.call(message, reply, Deadline.after(self._timeout_s))
