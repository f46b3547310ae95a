"""The connections among the masters, as the library's transport.

Owns: which master is connected by which link, dialling, accepting, liveness of links and congestion.
Refuses to know: what a message means (dfs.master.raft_gate) and how it is protected (dfs.master.raft_link).

Of two masters the one with the greater name dials. Nothing leaves before the journal records that it depends on are
durable. Only the configured address is bound.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from pysyncobj.node import Node as LibraryNode
from pysyncobj.transport import Transport

from dfs.errors import AuthenticationFailed
from dfs.jitter import draw
from dfs.log import get_logger
from dfs.master.raft_link import Link, LinkSession, pack_name
from dfs.master.raft_wire import Ping, RaftMessage, encode_raft
from dfs.net.sockets import bind_error, split_bind_address

CONNECT_TIMEOUT_S = 0.5  # a lost SYN is sent again sooner than the kernel would
RETRY_MIN_S, RETRY_MAX_S = 0.05, 0.15  # between two attempts to reach a master
REFUSED_RETRY_S = 2.0  # after a failed authentication, or a bug: a person must act first
PING_AFTER_S = 0.25  # of silence
UNPROVED_LINKS_MAX = 64  # accepted connections that have not authenticated
CLOSING_TURNS = 8  # of the loop: accepted, made, aborted, lost, with some to spare
BACKLOG_HIGH = 8 * 1024 * 1024  # bytes queued to a slow follower before it is left alone
BACKLOG_LOW = 1024 * 1024  # bytes at which it is served again
CHECKPOINT_BACKLOG = 4 * 1024 * 1024  # bytes of a checkpoint on their way to a follower at once

_log = get_logger(__name__)


class TransportUser(Protocol):
    """Who gives meaning to messages. `link_lost` and `link_made` tell of a peer; `term` is the current one."""

    @property
    def term(self) -> int: ...

    @property
    def durable(self) -> int: ...

    @property
    def vote_sequence(self) -> int: ...

    def received(self, peer: str, message: RaftMessage) -> None: ...

    def translate(self, peer: str, message: dict[str, Any]) -> tuple[RaftMessage, int] | None: ...

    def link_made(self, peer: str) -> None: ...

    def link_lost(self, peer: str) -> None: ...


class Node(LibraryNode):  # type: ignore[misc]  # the library has no types
    """The library's name for a master: one object for each, so that it is found in dictionaries without Python code."""

    id = ""  # of the object; the library computes it each time
    _known: ClassVar[dict[str, Node]] = {}
    __eq__ = object.__eq__
    __ne__ = object.__ne__
    __hash__ = object.__hash__

    def __new__(cls, name: str) -> Node:
        return cls._known.get(name) or cls._known.setdefault(name, super().__new__(cls))

    def __init__(self, name: str) -> None:
        self.__dict__.update(_id=name, id=name)


class RaftTransport(Transport):  # type: ignore[misc]  # the library has no types
    """Links by peer name. The library calls `send`; the gate calls `put` and `broadcast`."""

    def __init__(self, *, name: str, peers: Mapping[str, str], key: bytes, dead_after_s: float) -> None:
        super().__init__(None, None, [])
        self._name, self._address, self._key = name, peers[name], key
        self._addresses = {peer: address for peer, address in peers.items() if peer != name}
        self._members = frozenset(peers)
        for member in peers:
            pack_name(member)
        self._dead_after_s = dead_after_s
        self._nodes = {peer: Node(peer) for peer in self._addresses}
        self._links: dict[str, Link] = {}
        self._unproved: set[Link] = set()
        self._server: asyncio.Server | None = None
        self._dialers: list[asyncio.Task[None]] = []
        self._user: TransportUser | None = None
        self._on_messages: Callable[[], None] = lambda: None
        self._is_closed = False

    @property
    def ready(self) -> bool:
        return True

    @property
    def peers(self) -> tuple[str, ...]:
        return tuple(self._addresses)

    @property
    def connected(self) -> tuple[str, ...]:
        return tuple(self._links)

    @property
    def user(self) -> TransportUser:
        assert self._user is not None
        return self._user

    async def start(self, user: TransportUser, on_messages: Callable[[], None]) -> None:
        """Listen and dial; raise `ConfigError` when the address cannot be bound."""
        self._user, self._on_messages = user, on_messages
        loop = asyncio.get_running_loop()
        host, port = split_bind_address(self._address)
        try:
            self._server = await loop.create_server(self._accept, host, port)
        except OSError as error:
            raise bind_error(self._address, error) from None
        for peer in self._addresses:
            if self._name > peer:
                self._dialers.append(loop.create_task(self._dial_forever(peer), name=f"raft-dial-{peer}"))

    def close(self) -> None:
        self._is_closed = True
        for dialer in self._dialers:
            dialer.cancel()
        if self._server is not None:
            self._server.close()
        for link in [*self._links.values(), *self._unproved]:
            link.abort()

    async def drain(self) -> None:
        """Let connections that were just being made when `close` was called be made and dropped, not leaked."""
        for _ in range(CLOSING_TURNS):
            await asyncio.sleep(0)

    # --- making links -----------------------------------------------------------------------------------------

    def _accept(self) -> Link:
        link = Link(self, LinkSession(self._key, self._name, self._members, None))
        if len(self._unproved) >= UNPROVED_LINKS_MAX:
            oldest = min(self._unproved, key=lambda other: other.received_at_s)
            oldest.abort()
            self._unproved.discard(oldest)
        self._unproved.add(link)
        if self._is_closed:
            link.abort()
        return link

    async def _dial_forever(self, peer: str) -> None:
        while not self._is_closed:
            try:
                link = None if peer in self._links else await self._dial(peer)
                is_hopeless = link is not None and isinstance(link.failure, AuthenticationFailed)
            except Exception:  # noqa: BLE001 - the root of a task: without it these two masters never meet again
                _log.exception("raft_dial_failed", peer=peer)
                is_hopeless = True
            pause_s = REFUSED_RETRY_S if is_hopeless else RETRY_MIN_S + draw() * (RETRY_MAX_S - RETRY_MIN_S)
            await asyncio.sleep(pause_s)

    async def _dial(self, peer: str) -> Link | None:
        """Connect and wait until the link is up or has failed."""
        host, port = split_bind_address(self._addresses[peer])
        link = Link(self, LinkSession(self._key, self._name, self._members, peer))
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.create_connection(lambda: link, host, port)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await link.settled.wait()
        except (OSError, TimeoutError):
            return None
        finally:
            if not link.is_up:
                link.abort()
        return link

    def link_up(self, link: Link) -> None:
        peer = link.peer
        self._unproved.discard(link)
        if self._is_closed:
            link.abort()
            return
        old = self._links.pop(peer, None)
        if old is not None:
            old.abort()
            self._forget(peer)
        self._links[peer] = link
        _log.info("raft_link_up", peer=peer, address=link.address)
        self.user.link_made(peer)
        self._onNodeConnected(self._nodes[peer])
        self._on_messages()

    def link_down(self, link: Link) -> None:
        self._unproved.discard(link)
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            _log.info("raft_link_down", peer=link.peer, address=link.address)
            self._forget(link.peer)

    def _forget(self, peer: str) -> None:
        if not self._is_closed:
            self._onNodeDisconnected(self._nodes[peer])
            self.user.link_lost(peer)

    def link_messages(self, link: Link, messages: list[RaftMessage]) -> None:
        peer = link.peer
        if self._is_closed or self._links.get(peer) is not link:
            return  # an old link of a master that has connected anew
        for message in messages:
            self.user.received(peer, message)
        self._on_messages()

    # --- sending ----------------------------------------------------------------------------------------------

    def send(self, node: Any, message: dict[str, Any]) -> bool:
        """Queue a message of the library."""
        peer = str(node.id)
        link = self._links.get(peer)
        if link is None:
            return False
        if message["type"] == "append_entries":
            if message.get("serialized", message) is None:  # no piece to send now: the library would ask on and on
                self._pause(link)
                return False
            if link.backlog > BACKLOG_HIGH:
                self._pause(link)
        translated = self.user.translate(peer, message)
        if translated is None:
            return False
        return self.put(peer, *translated)

    def put(self, peer: str, message: RaftMessage, needed: int) -> bool:
        """Queue a message that may leave when journal record `needed` is durable."""
        link = self._links.get(peer)
        if link is None:
            return False
        link.queue(needed, encode_raft(message))
        return True

    def broadcast(self, message: RaftMessage) -> None:
        encoded, needed = encode_raft(message), self.user.vote_sequence
        for link in self._links.values():
            link.queue(needed, encoded)

    def flush(self) -> None:
        for link in tuple(self._links.values()):
            if link.has_waiting:
                link.flush(self.user.durable)

    # --- congestion and liveness ----------------------------------------------------------------------------------

    def _pause(self, link: Link) -> None:
        """Show a slow follower to the library as disconnected until its backlog has gone."""
        if not link.is_paused:
            link.is_paused = True
            self._onNodeDisconnected(self._nodes[link.peer])

    def is_congested(self, peer: str) -> bool:
        link = self._links.get(peer)
        return link is not None and (link.is_paused or link.backlog > CHECKPOINT_BACKLOG)

    def check_links(self) -> None:
        """Serve followers that have caught up, drop silent links, say something on idle ones."""
        now = time.monotonic()
        for peer, link in list(self._links.items()):
            if link.is_paused and link.backlog < BACKLOG_LOW:
                link.is_paused = False
                self._onNodeConnected(self._nodes[peer])
            if now - link.received_at_s > self._dead_after_s:
                _log.warning("raft_link_silent", peer=peer, address=link.address, silent_s=now - link.received_at_s)
                link.abort()
            elif now - link.sent_at_s > PING_AFTER_S:
                link.queue(0, encode_raft(Ping(self.user.term)))
