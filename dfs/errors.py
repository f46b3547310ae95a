"""Every failure of the system has one class here, and each class says what its caller should do next.

Owns: the error tree, the stable `code` of each error, and how an error crosses the wire.
Refuses to know: sockets, files, retry loops and exit codes (those tables stand beside their front ends).
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Retry(enum.Enum):
    """What the caller of a failed call should do. Retry loops read this and never a message."""

    NEVER = "never"  # final: tell the user
    SAME = "same"  # back off, then ask the same node again
    REFRESH = "refresh"  # look up again (leader, location, token), then ask
    OTHER = "other"  # ask another replica, and report this one
    UNKNOWN = "unknown"  # it may have happened: resend with the same call id only


MAY_HAVE_HAPPENED = "may_have_happened"  # a detail, "yes" where an error other than OutcomeUnknown leaves that open


class DfsError(Exception):
    """Base of all errors. `message` says what, where, why and what to do; `details` carries facts for programs."""

    code: ClassVar[str] = "internal"
    retry: ClassVar[Retry] = Retry.NEVER

    def __init__(self, message: str, **details: str) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, str] = details

    def __str__(self) -> str:
        return self.message

    @property
    def may_have_happened(self) -> bool:
        """Whether the change that failed with this may have taken effect; False: nothing happened, for sure."""
        return self.retry is Retry.UNKNOWN or self.details.get(MAY_HAVE_HAPPENED) == "yes"


class InternalError(DfsError):
    """A bug, or an error code of a newer version that this one does not know."""


# --- the caller's request -----------------------------------------------------------------------


class NotFound(DfsError, FileNotFoundError):
    code = "not_found"


class AlreadyExists(DfsError, FileExistsError):
    code = "already_exists"


class NotADirectory(DfsError, NotADirectoryError):
    code = "not_a_directory"


class IsADirectory(DfsError, IsADirectoryError):
    code = "is_a_directory"


class DirectoryNotEmpty(DfsError, OSError):
    code = "directory_not_empty"


class InvalidName(DfsError, ValueError):
    """A path or a component that the name rules of dfs.paths refuse."""

    code = "invalid_name"


class InvalidArgument(DfsError, ValueError):
    code = "invalid_argument"


class Conflict(DfsError):
    """The file changed under the caller (its version is not the expected one)."""

    code = "conflict"


class LimitExceeded(DfsError):
    """A named limit of the system was reached; the message names it and its value."""

    code = "limit_exceeded"


class QuotaExceeded(DfsError, OSError):
    """A directory would hold more than its quota allows; the message names both. details: `directory`."""

    code = "quota_exceeded"


class ReadOnly(DfsError, PermissionError):
    """What is in a snapshot never changes."""

    code = "read_only"


class HasSnapshots(DfsError):
    """A directory with snapshots cannot be removed before they are."""

    code = "has_snapshots"


class SessionExpired(DfsError):
    """The replicated session of this client is gone; a new call needs a new session."""

    code = "session_expired"


class ConfigError(DfsError, ValueError):
    """A setting is wrong. The message names the file, the section and the key."""

    code = "config"


class LocalFileError(DfsError, OSError):
    """A file of the caller's own machine could not be read or written; the message names it and the reason."""

    code = "local_file"


# --- leadership and time --------------------------------------------------------------------------


class NotLeader(DfsError):
    """This master does not lead. details: `leader` = client address of the leader, when known."""

    code = "not_leader"
    retry = Retry.REFRESH


class NoQuorum(DfsError):
    """No master leads at this moment: too few of them reach each other."""

    code = "no_quorum"
    retry = Retry.REFRESH


class OutcomeUnknown(DfsError):
    """The command may or may not have been applied. Only the same call id may be sent again."""

    code = "outcome_unknown"
    retry = Retry.UNKNOWN


class DeadlineExceeded(DfsError, TimeoutError):
    code = "deadline_exceeded"


class Overloaded(DfsError):
    code = "overloaded"
    retry = Retry.SAME


class NotEnoughServers(DfsError):
    """Fewer chunk servers can take a chunk than the cluster's minimum number of replicas."""

    code = "not_enough_servers"
    retry = Retry.SAME


# --- the wire -------------------------------------------------------------------------------------


class ConnectionFailed(DfsError, ConnectionError):
    """A connection could not be made or was lost. details: `address`."""

    code = "connection_failed"
    retry = Retry.OTHER


class ProtocolError(DfsError):
    """The peer broke the wire format; the connection is closed."""

    code = "protocol"


class FrameCorrupt(ProtocolError):
    code = "frame_corrupt"
    retry = Retry.OTHER


class FrameTooLarge(ProtocolError):
    code = "frame_too_large"


class VersionMismatch(ProtocolError):
    code = "version_mismatch"


class AuthenticationFailed(DfsError, PermissionError):
    """The peer does not know the secret of this cluster."""

    code = "authentication_failed"


class TokenInvalid(DfsError, PermissionError):
    code = "token_invalid"


class TokenExpired(DfsError):
    code = "token_expired"
    retry = Retry.REFRESH


# --- chunks -----------------------------------------------------------------------------------------


class ChunkNotFound(DfsError):
    code = "chunk_not_found"
    retry = Retry.OTHER


class ChunkExists(DfsError):
    """A handle is written twice. Handles are never reused: allocate a new one."""

    code = "chunk_exists"
    retry = Retry.OTHER


class ChunkCorrupt(DfsError):
    """Bytes do not match their checksum. details: `handle`, `server`."""

    code = "chunk_corrupt"
    retry = Retry.OTHER


class StaleReplica(DfsError):
    """A replica's length or checksum is not the one in the chunk map."""

    code = "stale_replica"
    retry = Retry.OTHER


class ChainBroken(DfsError):
    """A server of the replica chain failed. details: `failed` = comma-joined addresses to leave out next time."""

    code = "chain_broken"
    retry = Retry.OTHER


class TailOpen(DfsError):
    """Records are being appended to a file that the call names; its tail must be sealed before. Nothing happened."""

    code = "tail_open"
    retry = Retry.SAME


class TailClosed(DfsError):
    """A tail takes no more records: it is full, sealed, or its chain failed. Ask a master for the next one.

    details: `failed` = comma-joined addresses to leave out.
    """

    code = "tail_closed"
    retry = Retry.REFRESH


class AppenderUnknown(DfsError):
    """The file does not know this appender (any more), so a repeated record could not be told from a new one."""

    code = "appender_unknown"


class DiskFull(DfsError):
    code = "disk_full"
    retry = Retry.OTHER


class DiskFailed(DfsError):
    code = "disk_failed"
    retry = Retry.OTHER


class StorageCorrupt(DfsError):
    """A file of a daemon's own storage is damaged; the daemon refuses to guess. The message says the way out."""

    code = "storage_corrupt"


def _walk(root: type[DfsError]) -> list[type[DfsError]]:
    return [root, *(found for child in root.__subclasses__() for found in _walk(child))]


ERRORS: dict[str, type[DfsError]] = {
    cls.code: cls for cls in _walk(DfsError) if cls not in (DfsError, InternalError)
} | {"internal": InternalError}


def from_code(code: str, message: str, details: dict[str, str]) -> DfsError:
    """Rebuild an error that crossed the wire; an unknown code becomes `InternalError` and keeps its text."""
    cls = ERRORS.get(code, InternalError)
    text = message if code in ERRORS else f"{message} (unknown error code {code!r} from a newer version)"
    return cls(text, **details)
