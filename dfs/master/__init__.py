"""The masters: the names and places of the cluster as Raft-replicated state."""
