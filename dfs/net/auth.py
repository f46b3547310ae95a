"""The cluster secret, the keys made from it, and the tokens that let a client touch one chunk.

Owns: the secret file and its rules, key derivation, signing and checking tokens. Refuses to know: sockets, the
handshake (dfs.net.session), and who deserves which token.

A token is 26 bytes (docs/wire-protocol.md): format, rights, expiry and a truncated HMAC-SHA256 that also covers the
chunk handle, which therefore need not be inside. Masters sign, chunk servers check; clients only carry them.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import secrets
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path

from dfs.errors import AlreadyExists, ConfigError, TokenExpired, TokenInvalid
from dfs.ids import ID_SIZE, ChunkHandle

SECRET_SIZE_MIN = 32  # bytes; whoever records a handshake may try shorter secrets at leisure
SECRET_SIZE_MAX = 4096  # bytes; a larger file is not a secret file
TOKEN_MAC_SIZE = 16  # bytes kept of the HMAC: 128 bits cannot be guessed, and 1000 tokens travel in one reply

_TOKEN_FORMAT = 1
_TOKEN_FIELDS = struct.Struct("<BBQ")  # format, rights, expires_ms
TOKEN_SIZE = _TOKEN_FIELDS.size + TOKEN_MAC_SIZE
_EXPIRES_MAX_MS = 2**64 - 1


class Rights(enum.IntFlag):
    """What a token allows its bearer to do with one chunk."""

    READ = 1
    WRITE = 2
    APPEND = 4  # records to an open tail
    SEAL = 8  # make and seal a tail; only masters hold such tokens


@dataclass(frozen=True, slots=True)
class ClusterKey:
    """The keys of one cluster, each for one purpose. Printing one shows the cluster's name only."""

    cluster: str
    handshake_key: bytes = field(repr=False)
    token_key: bytes = field(repr=False)
    raft_key: bytes = field(repr=False)

    @classmethod
    def from_secret(cls, secret: bytes, cluster: str) -> ClusterKey:
        """Derive the keys (HKDF, RFC 5869, with one output block per purpose); raise `ConfigError`."""
        if len(secret) < SECRET_SIZE_MIN:
            raise ConfigError(
                f"the cluster secret has {len(secret)} bytes, at least {SECRET_SIZE_MIN} are needed; "
                "make a new one with `dfs secret`, or use 64 random hex digits"
            )
        root = hmac.digest(b"dfs cluster key 1\0" + cluster.encode(), secret, hashlib.sha256)
        handshake, token, raft = (
            hmac.digest(root, purpose + b"\x01", hashlib.sha256) for purpose in (b"handshake", b"token", b"raft")
        )
        return cls(cluster, handshake, token, raft)

    @classmethod
    def load(cls, secret_file: Path, cluster: str) -> ClusterKey:
        """Return the keys of the secret in a file that nobody else can read; raise `ConfigError`."""
        return cls.from_secret(_read_secret(secret_file), cluster)


def _read_secret(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO in its place must not hang us
    except FileNotFoundError:
        raise ConfigError(
            f"the secret file {path} does not exist; copy it from another node of the cluster, "
            "or make one for a new cluster with `dfs up`"
        ) from None
    except OSError as error:
        raise ConfigError(f"the secret file {path} cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(fd)  # of the open file: what is checked is what is read
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"the secret file {path} is not a regular file")
        if status.st_mode & 0o077:
            raise ConfigError(
                f"the secret file {path} has mode {stat.S_IMODE(status.st_mode):04o}, so others can use it; "
                f"run: chmod 600 {path}"
            )
        content = os.read(fd, SECRET_SIZE_MAX + 1)
    except OSError as error:
        raise ConfigError(f"the secret file {path} cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)
    if len(content) > SECRET_SIZE_MAX:
        raise ConfigError(f"the secret file {path} is over {SECRET_SIZE_MAX} bytes; is it the right file?")
    secret = content.strip()
    if len(secret) < SECRET_SIZE_MIN:
        raise ConfigError(
            f"the secret file {path} holds {len(secret)} bytes, at least {SECRET_SIZE_MIN} are needed; "
            "write 64 random hex digits into it, the same on every node"
        )
    return secret


def make_secret(path: Path) -> None:
    """Write 32 random bytes as hex into a new file of mode 0600, durably; raise `AlreadyExists` or `ConfigError`.

    The file appears whole or not at all, and of two makers at the same time one wins.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, secrets.token_hex(32).encode() + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        os.link(draft, path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileExistsError:
        raise AlreadyExists(f"the secret file {path} exists already and is kept") from None
    except OSError as error:
        raise ConfigError(f"the secret file {path} cannot be written: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)


def _token_mac(key: ClusterKey, fields: bytes, handle: bytes) -> bytes:
    return hmac.digest(key.token_key, b"dfs token" + fields + handle, hashlib.sha256)[:TOKEN_MAC_SIZE]


def sign_token(key: ClusterKey, handle: ChunkHandle, rights: Rights, expires_ms: int) -> bytes:
    """Return a token that grants `rights` on one chunk until `expires_ms` (milliseconds since 1970)."""
    if len(handle) != ID_SIZE:
        raise ValueError(f"a chunk handle has {ID_SIZE} bytes, not {len(handle)}")
    fields = _TOKEN_FIELDS.pack(_TOKEN_FORMAT, int(rights), min(expires_ms, _EXPIRES_MAX_MS))
    return fields + _token_mac(key, fields, handle)


def check_token(key: ClusterKey, token: bytes, handle: ChunkHandle, rights: Rights, now_ms: int) -> None:
    """Raise `TokenInvalid` unless a master of this cluster granted all of `rights` on this chunk, or `TokenExpired`."""
    name = bytes(handle[:ID_SIZE]).hex()
    if len(token) != TOKEN_SIZE or len(handle) != ID_SIZE:
        raise TokenInvalid(f"the access token for chunk {name} is malformed; ask the master for a new one")
    fields, mac = token[: _TOKEN_FIELDS.size], token[_TOKEN_FIELDS.size :]
    if not hmac.compare_digest(mac, _token_mac(key, fields, handle)):
        raise TokenInvalid(f"the access token for chunk {name} was not signed by a master of this cluster for it")
    token_format, granted, expires_ms = _TOKEN_FIELDS.unpack(fields)
    if token_format != _TOKEN_FORMAT:
        raise TokenInvalid(f"the access token for chunk {name} has format {token_format}; upgrade this node")
    if rights.value & ~granted:  # numbers: an operation of flags costs more than the rest
        raise TokenInvalid(f"the access token for chunk {name} does not allow to {_wanted(rights)} it")
    if now_ms >= expires_ms:
        raise TokenExpired(
            f"the access token for chunk {name} expired {(now_ms - expires_ms) / 1000:.1f} s ago; "
            "locate the file again (or compare the clocks of this node and the masters)"
        )


def _wanted(rights: Rights) -> str:
    return " and ".join(right.name.lower() for right in Rights if right & rights and right.name)
