"""The socket options, the address forms and the wording of socket errors that both drivers share.

Owns: what a dfs socket is set to, and how the operating system's errors become ours. Refuses to know: frames and
handshakes.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from functools import lru_cache
from typing import Any

from dfs.config import split_address
from dfs.errors import ConfigError, ConnectionFailed, DeadlineExceeded, DfsError

_CREDENTIALS = struct.Struct("@iII")  # of SO_PEERCRED: process, user, group

KEEPALIVE_IDLE_S = 60  # then the kernel probes: a peer whose power failed does not hold a connection for ever
KEEPALIVE_INTERVAL_S = 15
KEEPALIVE_PROBES = 4
BACKLOG = 256  # connections that the kernel may hold before they are accepted


def tune(sock: socket.socket, *, is_bulk: bool) -> None:
    """Set the options of a connection, or of a listening socket whose connections inherit them.

    Small frames leave at once (TCP_NODELAY). Bulk connections ask for the cubic congestion control, because BBR, which
    some systems default to, paces a loopback to a third of its speed. Buffer sizes stay with the kernel: it grows them
    to what the path needs, a fixed size would switch that off.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    with contextlib.suppress(OSError, AttributeError):  # none of these is needed for correctness
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    if is_bulk:
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")


def split_bind_address(address: str) -> tuple[str, int]:
    """Return (host, port) to listen at; unlike a configured address the port may be 0: any free one."""
    if address.endswith(":0"):
        return split_address(f"{address}1")[0], 0
    return split_address(address)


def listening_socket(address: str, *, is_bulk: bool) -> socket.socket:
    """Return a socket that listens at `host:port` (port 0: any free one); raise `ConfigError` when it cannot."""
    host, port = split_bind_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, name = found[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise bind_error(address, error) from None
    except UnicodeError:
        raise ConfigError(f"cannot listen at {address}: that cannot be the name of a machine") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tune(sock, is_bulk=is_bulk)
        sock.bind(name)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise bind_error(address, error) from None
    return sock


def resolve(address: str) -> list[tuple[int, int, int, Any]]:
    """Return (family, type, protocol, name) for each way to reach `address`; raise `ConnectionFailed`."""
    host, port = split_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise connect_error(address, error) from None
    except UnicodeError:  # the name service takes labels of 1 to 63 characters only
        raise ConnectionFailed(
            f"cannot connect to {address}: that cannot be the name of a machine; check the spelling", address=address
        ) from None
    return [(family, kind, protocol, name) for family, kind, protocol, _, name in found]


def address_text(name: object) -> str:
    """Return `host:port` of a socket name as getpeername gives it."""
    if not isinstance(name, tuple) or len(name) < 2:
        return "unknown"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def peer_text(sock: socket.socket) -> str:
    """Return how to call the peer of an accepted connection; raise OSError when it is gone."""
    if sock.family == socket.AF_UNIX:
        pid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
        return f"process {pid} of this machine"
    return address_text(sock.getpeername())


@lru_cache(maxsize=1024)
def is_own_address(address: str) -> bool:
    """Whether `host:port` is of this machine (of its network namespace): only then can one listen there."""
    try:
        family, kind, protocol, name = resolve(address)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind((name[0], 0, *name[2:]))
    except (OSError, DfsError):
        return False
    return True


def connect_error(address: str, error: OSError) -> DfsError:
    """Return our error for a connection that could not be made. A timeout without errno is ours: the deadline."""
    if isinstance(error, TimeoutError) and error.errno is None:
        return DeadlineExceeded(
            f"the deadline passed while connecting to {address}; is the machine up, and does a firewall drop the port?",
            address=address,
        )
    if isinstance(error, socket.gaierror):
        why = f"its name cannot be resolved ({error.strerror}); check the spelling and the name service"
    elif isinstance(error, ConnectionRefusedError):
        why = "nobody listens there; is the daemon running?"
    elif error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        why = "there is no route to it; check the network and the address"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        why = "this process has no free file descriptors; raise its limit (ulimit -n)"
    elif error.errno == errno.ETIMEDOUT:
        why = "it does not answer; is the machine up, and does a firewall drop the port?"
    else:
        why = error.strerror or str(error) or type(error).__name__
    return ConnectionFailed(f"cannot connect to {address}: {why}", address=address)


def lost_error(address: str, error: OSError | None) -> DfsError:
    """Return our error for a connection that broke; `None` = the peer closed it."""
    why = "it closed the connection" if error is None else error.strerror or str(error) or type(error).__name__
    return ConnectionFailed(f"lost the connection to {address}: {why}; the node may have stopped", address=address)


def bind_error(address: str, error: OSError) -> DfsError:
    """Return our error for an address that cannot be listened at."""
    if error.errno == errno.EADDRINUSE:
        why = "another process uses it; is the daemon running already, or does another cluster have it?"
    elif error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        why = "this machine does not have that address; correct it in cluster.ini"
    elif error.errno == errno.EACCES:
        why = "ports below 1024 need more rights; choose a higher one in cluster.ini"
    else:
        why = error.strerror or str(error)
    return ConfigError(f"cannot listen at {address}: {why}")


def is_self_connected(sock: socket.socket) -> bool:
    """Say whether TCP connected the socket to itself, as can happen at a free port of the ephemeral range."""
    return bool(sock.getsockname() == sock.getpeername())
