"""The client library: everything a program does with the file system goes through `DfsClient`.

Owns: the public names of the library. Refuses to know: how they are built. They are loaded when first used, so that
`dfs pwd`, which needs the settings only, does not pay for the network code.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfs.client.access import ClusterAccess, ReadRules
    from dfs.client.filesystem import DfsClient, FileChecksum

__all__ = ["ClusterAccess", "DfsClient", "FileChecksum", "ReadRules"]


_PLACES = {"ClusterAccess": "access", "DfsClient": "filesystem", "FileChecksum": "filesystem", "ReadRules": "access"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
