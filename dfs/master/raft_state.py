"""The replicated state as a pysyncobj object: the one name under which the master meets its Raft library.

Owns: which implementation of `ReplicatedLog` a master runs. Refuses to know: how it works (dfs.master.raft_node and the
other raft_* modules, which alone know pysyncobj).
"""

from __future__ import annotations

from dfs.master.raft_node import HardenedRaftLog as RaftLog

__all__ = ["RaftLog"]
