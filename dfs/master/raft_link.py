"""One authenticated connection between two masters.

Owns: the handshake, the frame format, its keyed checksums and limits, and what waits to be sent.
Refuses to know: Raft, pysyncobj, who should be connected to whom and what a message means.

Handshake (fixed sizes, nothing is believed before it is proved; all over HMAC-SHA256 with the cluster's Raft key):

    dialer -> acceptor   hello      magic version reserved nonce, own name, name of the master it wants
    acceptor -> dialer   challenge  magic version reserved nonce, proof over both nonces and both names
    dialer -> acceptor   proof      the same under the dialer's label

Then frames `u32 size, body, 16 bytes of keyed BLAKE2b over (counter, body)`, each direction under its own key of this
connection, so that nothing can be forged, replayed, reordered or dropped in the middle unnoticed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import struct
import time
from collections import deque
from itertools import chain
from typing import Protocol, cast

from dfs.errors import AuthenticationFailed, ConfigError, DfsError, FrameTooLarge, ProtocolError, VersionMismatch
from dfs.log import get_logger
from dfs.master.raft_wire import RaftMessage, decode_body, join_bodies

MAGIC = b"DFSr"
VERSION = 1
NAME_SIZE_MAX = 64  # bytes of a master's name
FRAME_SIZE_MAX = 32 * 1024 * 1024  # bytes; two entries of the largest command with room
FRAME_SIZE_GOAL = 1024 * 1024  # bytes after which waiting messages go into the next frame
HANDSHAKE_TIMEOUT_S = 5.0
WRITE_BUFFER_HIGH = 8 * 1024 * 1024  # bytes
_NONCE_SIZE = 32
_PROOF_SIZE = 32
_MAC_SIZE = 16
_SIZE = struct.Struct("<I")
_HELLO = struct.Struct(f"<4sBB{_NONCE_SIZE}s{NAME_SIZE_MAX}s{NAME_SIZE_MAX}s")  # magic version reserved nonce from to
_CHALLENGE = struct.Struct(f"<4sBB{_NONCE_SIZE}s{_PROOF_SIZE}s")

_log = get_logger(__name__)


def pack_name(name: str) -> bytes:
    """Return the fixed-size form of a master's name; raise `ConfigError`."""
    data = name.encode()
    if not data or len(data) > NAME_SIZE_MAX or b"\0" in data:
        raise ConfigError(f"the master name {name!r} must have 1 to {NAME_SIZE_MAX} bytes and no NUL")
    return data.ljust(NAME_SIZE_MAX, b"\0")


class LinkSession:
    """The bytes of one connection without IO: handshake first, then frames both ways. Any error is final.

    `wanted` is the name of the master to reach, None at the accepting side, which learns `peer` from the handshake.
    """

    def __init__(self, key: bytes, own: str, members: frozenset[str], wanted: str | None) -> None:
        self._key, self._own, self._members = key, own, members
        self._is_dialer = wanted is not None
        self._nonce = os.urandom(_NONCE_SIZE)
        self._hello = b""
        self._transcript = b""
        self._buffer = bytearray()
        self._send_key = self._receive_key = b""
        self._sent = self._received = 0
        self.peer = wanted
        self.is_up = False
        if wanted is not None:
            self._hello = _HELLO.pack(MAGIC, VERSION, 0, self._nonce, pack_name(own), pack_name(wanted))

    def start(self) -> bytes:
        """Return what this side says first."""
        return self._hello

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Return the frame bodies completed by `data`, and what is to be answered to a handshake step."""
        self._buffer += data
        answer = b"" if self.is_up else self._shake()
        return (self._take_bodies() if self.is_up else []), answer

    def seal(self, body: bytes) -> bytes:
        mac = self._mac(self._send_key, self._sent, body)
        self._sent += 1
        return b"".join((_SIZE.pack(len(body) + _MAC_SIZE), body, mac))

    # --- handshake ---------------------------------------------------------------------------------------

    def _shake(self) -> bytes:
        if self._is_dialer:
            return self._read_challenge(self._take(_CHALLENGE.size))
        if not self._hello:
            return self._read_hello(self._take(_HELLO.size))
        return self._read_proof(self._take(_PROOF_SIZE))

    def _take(self, size: int) -> bytes:
        if len(self._buffer) < size:
            return b""
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _read_hello(self, hello: bytes) -> bytes:
        if not hello:
            return b""
        magic, version, _, _, sender, receiver = _HELLO.unpack(hello)
        _check_start(magic, version)
        self._hello = hello
        self._transcript = hello + self._nonce
        names = {pack_name(name): name for name in self._members}
        self.peer = names.get(sender)
        if self.peer is None or self.peer == self._own or receiver != pack_name(self._own):
            raise AuthenticationFailed(
                f"{_name_text(sender)} asks for {_name_text(receiver)}, but this is {self._own}; compare the "
                "[master:…] sections of the configuration files"
            )
        return _CHALLENGE.pack(MAGIC, VERSION, 0, self._nonce, self._prove(b"acceptor"))

    def _read_challenge(self, challenge: bytes) -> bytes:
        if not challenge:
            return b""
        magic, version, _, nonce, proof = _CHALLENGE.unpack(challenge)
        _check_start(magic, version)
        self._transcript = self._hello + nonce
        self._check(proof, b"acceptor")
        self._go_up()
        return self._prove(b"dialer")

    def _read_proof(self, proof: bytes) -> bytes:
        if proof:
            self._check(proof, b"dialer")
            self._go_up()
        return b""

    def _prove(self, role: bytes) -> bytes:
        return hmac.digest(self._key, b"dfs raft link 1 " + role + b"\0" + self._transcript, hashlib.sha256)

    def _check(self, proof: bytes, role: bytes) -> None:
        if not hmac.compare_digest(proof, self._prove(role)):
            raise AuthenticationFailed(
                "the other master does not know the secret of this cluster; compare the secret file and the cluster "
                "name on both machines"
            )

    def _go_up(self) -> None:
        keys = self._prove(b"key of the dialer"), self._prove(b"key of the acceptor")
        self._send_key, self._receive_key = keys if self._is_dialer else keys[::-1]
        self.is_up = True

    # --- frames ------------------------------------------------------------------------------------------

    def _take_bodies(self) -> list[bytes]:
        buffer, bodies, start = self._buffer, [], 0
        while len(buffer) - start >= _SIZE.size:
            (size,) = _SIZE.unpack_from(buffer, start)
            if not _MAC_SIZE <= size <= FRAME_SIZE_MAX:
                raise FrameTooLarge(f"a Raft frame of {size} bytes is announced, the limit is {FRAME_SIZE_MAX}")
            end = start + _SIZE.size + size
            if len(buffer) < end:
                break
            body = bytes(buffer[start + _SIZE.size : end - _MAC_SIZE])
            mac = self._mac(self._receive_key, self._received, body)
            if not hmac.compare_digest(mac, bytes(buffer[end - _MAC_SIZE : end])):
                raise AuthenticationFailed("a Raft frame was damaged or forged on its way")
            self._received += 1
            bodies.append(body)
            start = end
        del buffer[:start]
        return bodies

    @staticmethod
    def _mac(key: bytes, counter: int, body: bytes) -> bytes:
        mac = hashlib.blake2b(counter.to_bytes(8, "little"), key=key, digest_size=_MAC_SIZE)
        mac.update(body)
        return mac.digest()


def _check_start(magic: bytes, version: int) -> None:
    if magic != MAGIC:
        raise ProtocolError(f"the peer does not speak Raft of dfs (it began with {magic!r}); is a raft_address wrong?")
    if version != VERSION:
        raise VersionMismatch(f"the peer speaks version {version} of the Raft link, this master {VERSION}; upgrade one")


def _name_text(name: bytes) -> str:
    return repr(name.rstrip(b"\0").decode(errors="replace"))


class LinkOwner(Protocol):
    """Who gets the messages of a link."""

    def link_up(self, link: Link) -> None: ...

    def link_down(self, link: Link) -> None: ...

    def link_messages(self, link: Link, messages: list[RaftMessage]) -> None: ...


class Link(asyncio.Protocol):
    """A connection on the event loop. Messages wait in it until the journal records they speak of are durable."""

    def __init__(self, owner: LinkOwner, session: LinkSession) -> None:
        self._owner, self._session = owner, session
        self._transport: asyncio.Transport | None = None
        self._timeout: asyncio.TimerHandle | None = None
        self._waiting: deque[tuple[int, bytes]] = deque()  # journal record needed, encoded message
        self._waiting_size = 0
        self.has_waiting = False
        self.address = "unknown"
        self.settled = asyncio.Event()  # up, or lost
        self.failure: DfsError | None = None
        self.received_at_s = self.sent_at_s = time.monotonic()
        self._is_aborted = False
        self.is_paused = False  # the owner sends nothing large until the backlog has gone

    @property
    def peer(self) -> str:
        """The name of the other master; proved once the link is up."""
        return self._session.peer or "unknown"

    @property
    def is_up(self) -> bool:
        return self._session.is_up

    @property
    def backlog(self) -> int:
        """Bytes that are queued here or not yet taken by the kernel."""
        return self._waiting_size + (self._transport.get_write_buffer_size() if self._transport else 0)

    def queue(self, needed: int, encoded: bytes) -> None:
        """Send a message as soon as journal record `needed` is durable."""
        self.has_waiting = True
        self._waiting.append((needed, encoded))
        self._waiting_size += len(encoded)

    def flush(self, durable: int) -> None:
        """Send what may leave, in as few frames as the size goal allows."""
        if not self._waiting or self._transport is None or self._transport.is_closing():
            return
        ready: list[bytes] = []
        held: deque[tuple[int, bytes]] = deque()
        size = 0
        for needed, encoded in self._waiting:
            if needed > durable:
                held.append((needed, encoded))
                continue
            ready.append(encoded)
            size += len(encoded)
            self._waiting_size -= len(encoded)
            if size >= FRAME_SIZE_GOAL:
                self._write(ready)
                ready, size = [], 0
        self._waiting, self.has_waiting = held, bool(held)
        if ready:
            self._write(ready)

    def _write(self, ready: list[bytes]) -> None:
        if self._transport is not None:
            self._transport.write(self._session.seal(join_bodies(ready)))
            self.sent_at_s = time.monotonic()

    def abort(self) -> None:
        """Drop the connection, or refuse it when it is only being made."""
        self._is_aborted = True
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        self._transport = transport
        name = transport.get_extra_info("peername")
        if self._is_aborted or transport.get_extra_info("sockname") == name:  # TCP can connect a free port to itself
            transport.abort()
            return
        transport.set_write_buffer_limits(high=WRITE_BUFFER_HIGH)
        self.address = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "unknown"
        self._timeout = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT_S, self._give_up)
        transport.write(self._session.start())

    def _give_up(self) -> None:
        if not self._session.is_up:
            self._refuse(ProtocolError("the handshake was not finished in time"))

    def data_received(self, data: bytes) -> None:
        was_up = self._session.is_up
        try:
            bodies, answer = self._session.feed(data)
            if answer and self._transport is not None:
                self._transport.write(answer)
            if self._session.is_up and not was_up:
                self.settled.set()
                self._owner.link_up(self)
            self.received_at_s = time.monotonic()
            if bodies:  # all that came at once is handled together: it needs one sync, and one answer
                messages = decode_body(bodies[0]) if len(bodies) == 1 else [*chain(*map(decode_body, bodies))]
                self._owner.link_messages(self, messages)
        except (ProtocolError, AuthenticationFailed) as error:
            self._refuse(error)

    def _refuse(self, error: DfsError) -> None:
        self.failure = error
        _log.warning("raft_link_refused", peer=self.peer, address=self.address, why=str(error))
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the interface of asyncio
        if self._timeout is not None:
            self._timeout.cancel()
        self._waiting.clear()
        self.has_waiting = False
        self.settled.set()
        self._owner.link_down(self)
