"""dfs: a distributed file system in the line of GFS. Masters hold the names, chunk servers the bytes.

Owns: the version. Refuses to know: everything else; import `dfs.client` for the library.
"""

from __future__ import annotations

__version__ = "0.1.0"
