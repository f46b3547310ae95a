"""How long the Raft log of this process takes for what it does on its disk.

Owns: two histograms of the process (there is one log in it). Refuses to know: who shows them (dfs.master.metrics).
"""

from __future__ import annotations

from typing import Final

from dfs.measures import Times

SYNCS: Final = Times()  # a synced write of the journal
CHECKPOINTS: Final = Times()  # a checkpoint, from the fork to its name on the disk
