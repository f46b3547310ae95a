"""What clients ask masters about quotas: set, clear, list.

Owns: these calls, their replies and their limits. Refuses to know: how the state counts.
"""

from __future__ import annotations

from dfs.net.messages.base import Message, Mutation, message
from dfs.net.parts import QuotaStatus

QUOTAS_PAGE_MAX = 1000  # entries in a ListQuotasReply


@message(0x0214)
class SetQuota(Mutation, frozen=True, array_like=True):
    """Limit what may be below a directory: files and directories, and bytes with their replicas.

    0 lifts a limit, -1 leaves it as it is. A limit below the present use only stops growth. Reply: QuotaReply.
    """

    path: str
    names: int = -1
    stored_size: int = -1


@message(0x0216)
class QuotaReply(Message, frozen=True, array_like=True):
    quota: QuotaStatus


@message(0x0142)
class ListQuotas(Message, frozen=True, array_like=True):
    """Quotas of `path` and of directories below it (`is_effective`: of it and of those above it instead), by path,
    those after `after` only."""

    path: str
    after: str = ""
    is_effective: bool = False


@message(0x0143)
class ListQuotasReply(Message, frozen=True, array_like=True):
    entries: tuple[QuotaStatus, ...]
    has_more: bool
