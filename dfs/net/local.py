"""The local door of a daemon: a Unix socket over which processes of one machine hand each other open files.

Owns: the door's name, listening and connecting there, and how a descriptor travels. Refuses to know: what it is of, and
who may have it. The handshake is that of every connection: being on the same machine proves nothing.

The name is an abstract one made from the daemon's identity. So nothing is left behind by a kill, no path can be too
long, and who is in another network namespace, or on another machine, finds nobody there, and goes over the network.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Final

from dfs.clock import Deadline
from dfs.errors import ConfigError, ConnectionFailed, ProtocolError
from dfs.ids import ServerId, id_text
from dfs.net.auth import ClusterKey
from dfs.net.blocking import Channel, accepted_stream, initiate_stream
from dfs.net.listener import STOP_POLL_S, Listener
from dfs.net.sockets import BACKLOG, connect_error
from dfs.net.stream import SocketStream

_DESCRIPTOR = struct.Struct("@i")
_ROOM: Final = socket.CMSG_LEN(_DESCRIPTOR.size)  # for one descriptor; the kernel closes what does not fit


def door_text(server_id: ServerId) -> str:
    """Return the door of a server in words."""
    return f"the local door of server {id_text(server_id)}"


def _name(server_id: ServerId) -> str:
    return f"\0dfs/{id_text(server_id)}"


class LocalListener(Listener):
    """A bound and listening door."""

    def __init__(self, sock: socket.socket, server_id: ServerId) -> None:
        self._socket = sock
        self.address = door_text(server_id)
        self.port = 0

    def stream(self, sock: socket.socket) -> SocketStream:
        """Return an accepted connection: who enters may bring a descriptor along."""
        return accepted_stream(sock, LocalStream)

    @classmethod
    def open(cls, server_id: ServerId) -> LocalListener:
        """Listen at the door of this server; raise `ConfigError` when that is impossible."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(_name(server_id))
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise ConfigError(f"cannot open {door_text(server_id)}: {error.strerror}") from None
        sock.settimeout(STOP_POLL_S)
        return cls(sock, server_id)


class LocalStream(SocketStream):
    """A stream that may bring a descriptor along, one at a time: a peer costs no more, whatever it sends."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        super().__init__(sock, address)
        self._descriptor: int | None = None

    def _receive_some(self, buffer: memoryview, flags: int) -> int:
        count, extras, _, _ = self._socket.recvmsg_into([buffer], _ROOM, flags | socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in extras:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._keep([fd for (fd,) in _DESCRIPTOR.iter_unpack(data[: len(data) - len(data) % 4])])
        return count

    def _keep(self, came: list[int]) -> None:
        """Keep the one descriptor that came; raise `ProtocolError`, with all of them closed, when it is not the only
        one that waits."""
        waiting = [*came, *([] if self._descriptor is None else [self._descriptor])]
        self._descriptor = None
        if len(waiting) == 1:
            (self._descriptor,) = waiting
            return
        for fd in waiting:
            os.close(fd)
        self.is_broken = True
        raise ProtocolError(f"{self.address} sent a descriptor before the last one was taken")

    def take_descriptor(self) -> int | None:
        fd, self._descriptor = self._descriptor, None
        return fd

    def close(self) -> None:
        if (fd := self.take_descriptor()) is not None:
            with contextlib.suppress(OSError):
                os.close(fd)
        super().close()


class LocalChannel(Channel):
    """A channel through a local door, as whoever entered has it."""

    @classmethod
    def enter(cls, server_id: ServerId, key: ClusterKey, deadline: Deadline) -> LocalChannel:
        """Connect to the door of a server; raise as `Channel.connect`, `ConnectionFailed` when it has none here."""
        address = door_text(server_id)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(deadline.check(f"connecting to {address}"))
            sock.connect(_name(server_id))
        except (TimeoutError, BlockingIOError):
            sock.close()
            raise ConnectionFailed(f"{address} is crowded", address=address) from None
        except OSError as error:
            sock.close()
            raise connect_error(address, error) from None
        stream = LocalStream(sock, address)
        initiate_stream(stream, key, deadline)
        return cls(stream)
