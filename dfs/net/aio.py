"""The asyncio driver: a server that answers many requests at once, and a channel that asks them.

Owns: the public names of the driver, gathered. Refuses to know: anything; aio_server, aio_channel and aio_connection
(what both share) do the work. It runs on any asyncio loop, uvloop too, and is used from that loop only.
"""

from __future__ import annotations

from dfs.net.aio_channel import CALLS_MAX, AioChannel
from dfs.net.aio_server import (
    CONNECTIONS_MAX,
    HANDSHAKES_MAX,
    REQUESTS_MAX,
    AioLimits,
    AioServer,
    Handler,
    RequestContext,
)

__all__ = [
    "CALLS_MAX",
    "CONNECTIONS_MAX",
    "HANDSHAKES_MAX",
    "REQUESTS_MAX",
    "AioChannel",
    "AioLimits",
    "AioServer",
    "Handler",
    "RequestContext",
]
