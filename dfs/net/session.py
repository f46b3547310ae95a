"""The mutual handshake that opens every connection, without IO: bytes in, bytes out.

Owns: the hello and proof layouts, the transcript, version choice, and who is refused why. Refuses to know: sockets,
clocks, randomness (nonces are arguments) and the secret file (dfs.net.auth).

Both sides show that they know the key of the cluster without sending it (challenge and response, one round trip):

    initiator -> acceptor   hello                 versions, role, 32 random bytes
    acceptor -> initiator   hello + proof         HMAC-SHA256 over the acceptor's label, the cluster and both hellos
    initiator -> acceptor   proof                 the same over the initiator's label

Roles stand in the label and in the hellos, so a proof that is sent back (reflection) or recorded (replay) proves
nothing. Versions stand in the hellos, so they cannot be talked down. The layout of the handshake itself never changes.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import struct
from typing import Final

from dfs.errors import AuthenticationFailed, ConnectionFailed, DfsError, ProtocolError, VersionMismatch
from dfs.net.frames import VERSION

HELLO_MAGIC: Final = b"DFSh"
NONCE_SIZE: Final = 32
PROOF_SIZE: Final = 32
VERSION_MIN: Final = 1  # the oldest frame version that is still spoken here
VERSION_MAX: Final = VERSION
HANDSHAKE_TIMEOUT_S: Final = 10.0  # a peer that has not proved itself by then is dropped

_HELLO = struct.Struct(f"<4sBBBB{NONCE_SIZE}s")  # magic, version_min, version_max, role, reserved, nonce
HELLO_SIZE: Final = _HELLO.size
assert HELLO_SIZE == 40


class Role(enum.IntEnum):
    """Which side of the connection one is."""

    INITIATOR = 1
    ACCEPTOR = 2


_LABELS: Final = {Role.INITIATOR: b"dfs handshake 1 initiator", Role.ACCEPTOR: b"dfs handshake 1 acceptor"}


class Handshake:
    """One side of one handshake: send `start()`, then give `needed` bytes to `receive` and send what it returns, until
    `is_done`. Any error is final. The peer is `ACCEPTOR` for an initiator and the other way round.

    `nonce` is NONCE_SIZE random bytes, never used twice. `versions` are the oldest and newest frame version spoken.
    """

    def __init__(
        self,
        role: Role,
        key: bytes,
        cluster: str,
        nonce: bytes,
        *,
        versions: tuple[int, int] = (VERSION_MIN, VERSION_MAX),
    ) -> None:
        if len(nonce) != NONCE_SIZE:
            raise ValueError(f"a nonce has {NONCE_SIZE} bytes, not {len(nonce)}")
        self._role = role
        self._peer_role = Role.ACCEPTOR if role is Role.INITIATOR else Role.INITIATOR
        self._key = key
        self._cluster = cluster.encode()
        self._versions = versions
        self._hello = _HELLO.pack(HELLO_MAGIC, *versions, role, 0, nonce)
        self._nonce = nonce
        self._transcript = b""
        self._mismatch: VersionMismatch | None = None
        self.needed: int = HELLO_SIZE + (PROOF_SIZE if role is Role.INITIATOR else 0)
        self.is_done = False
        self.version = 0  # the frame version both speak, once done

    def start(self) -> bytes:
        """Return what this side says before it has heard anything."""
        return self._hello if self._role is Role.INITIATOR else b""

    def receive(self, data: bytes) -> bytes:
        """Take exactly `needed` bytes, return the bytes to send; raise `AuthenticationFailed`, `VersionMismatch` or
        `ProtocolError`, after which the connection is to be closed without another word."""
        if len(data) != self.needed or self.is_done:
            raise ValueError(f"the handshake takes {self.needed} bytes, not {len(data)}")
        self.needed = 0  # nothing is taken after an error
        if self._role is Role.INITIATOR:
            self._read_hello(data[:HELLO_SIZE])
            self._check_proof(data[HELLO_SIZE:])
            self._finish()
            return self._proof(self._role)
        if not self._transcript:
            self._read_hello(data)
            self.needed = PROOF_SIZE
            return self._hello + self._proof(self._role)
        self._check_proof(data)
        self._finish()
        return b""

    def end_of_stream(self, address: str) -> DfsError:
        """Return what it means that the peer closed the connection now."""
        if self._mismatch:
            return self._mismatch
        if self._transcript and self._role is Role.ACCEPTOR:
            return AuthenticationFailed(
                f"{address} broke the handshake off after our proof: its cluster secret or cluster name is another one"
            )
        return ConnectionFailed(
            f"{address} closed the connection during the handshake; if it is a dfs daemon, it is stopping or has "
            "reached its limit of connections",
            address=address,
        )

    def _read_hello(self, hello: bytes) -> None:
        magic, version_min, version_max, role, reserved, nonce = _HELLO.unpack(hello)
        if magic != HELLO_MAGIC or reserved:
            raise ProtocolError(
                f"the peer does not speak dfs (it began with {magic!r}); is this another service's port?"
            )
        if role != self._peer_role or hmac.compare_digest(nonce, self._nonce):
            raise AuthenticationFailed("the peer sent our own words back instead of proving that it knows the secret")
        first, second = (self._hello, hello) if self._role is Role.INITIATOR else (hello, self._hello)
        self._transcript = struct.pack("<H", len(self._cluster)) + self._cluster + first + second
        own_min, own_max = self._versions
        self.version = min(own_max, version_max)
        if self.version < max(own_min, version_min):
            self._mismatch = VersionMismatch(
                f"the peer speaks wire versions {version_min} to {version_max}, this node {own_min} to {own_max}; "
                "upgrade the older one"
            )

    def _proof(self, role: Role) -> bytes:
        return hmac.digest(self._key, _LABELS[role] + self._transcript, hashlib.sha256)

    def _check_proof(self, proof: bytes) -> None:
        if not hmac.compare_digest(proof, self._proof(self._peer_role)):
            raise AuthenticationFailed(
                "the peer does not know the secret of this cluster; compare the secret file and the cluster name "
                "([cluster] name in cluster.ini) on both sides"
            )

    def _finish(self) -> None:
        if self._mismatch:
            raise self._mismatch
        self.is_done = True
