"""The registry of chunk servers: every one that joined and was not removed, by id.

Owns: names, addresses, racks and wanted modes of servers, and their limits. Refuses to know: which of them live.
"""

from __future__ import annotations

from dataclasses import replace

from dfs.errors import InvalidArgument, LimitExceeded
from dfs.ids import ID_SIZE, ServerId
from dfs.master.state.views import RegisteredServer

SERVERS_MAX = 10_000
LABEL_SIZE_MAX = 255  # bytes of UTF-8 in a name, an address or a rack


class ServerRegistry:
    """Servers in the order they joined. One object stands for each id, so that chunk records share it."""

    def __init__(self) -> None:
        self._servers: dict[ServerId, RegisteredServer] = {}

    def __contains__(self, server_id: ServerId) -> bool:
        return server_id in self._servers

    def get(self, server_id: ServerId) -> RegisteredServer | None:
        return self._servers.get(server_id)

    def all(self) -> tuple[RegisteredServer, ...]:
        return tuple(self._servers.values())

    def put(self, server: RegisteredServer) -> None:
        """Add a server or change its labels; raise `InvalidArgument` or `LimitExceeded`."""
        if len(server.server_id) != ID_SIZE:
            raise InvalidArgument(f"a server id has {ID_SIZE} bytes, not {len(server.server_id)}")
        for what, label in (("name", server.name), ("address", server.address), ("rack", server.rack)):
            _check_label(what, label)
        if server.server_id not in self._servers and len(self._servers) >= SERVERS_MAX:
            raise LimitExceeded(f"{SERVERS_MAX} chunk servers are registered, the most a cluster can have")
        old = self._servers.get(server.server_id)
        if old is not None:  # what an administrator wants of it outlives a new address
            server = replace(server, is_leaving=old.is_leaving, maintenance_until_ms=old.maintenance_until_ms)
        self._servers[server.server_id] = server

    def set_mode(self, server_id: ServerId, *, is_leaving: bool, maintenance_until_ms: int) -> None:
        """Change what is wanted of a known server."""
        self._servers[server_id] = replace(
            self._servers[server_id], is_leaving=is_leaving, maintenance_until_ms=maintenance_until_ms
        )

    def remove(self, server_id: ServerId) -> None:
        del self._servers[server_id]


def _check_label(what: str, label: str) -> None:
    try:
        size = len(label.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"the {what} of a server is not valid Unicode: {label[:60]!r}") from None
    if size > LABEL_SIZE_MAX or (not size and what != "rack"):
        raise InvalidArgument(f"the {what} of a server has {size} bytes; 1 to {LABEL_SIZE_MAX} are allowed")
