"""A whole cluster.ini on this machine: daemons as processes that outlive their starter.

Owns: starting, finding and stopping them. Refuses to know: what the daemons do.
"""

from dfs.local.cluster import LocalCluster

__all__ = ["LocalCluster"]
