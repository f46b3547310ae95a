"""Decide how a tail ends: at which length, and on which servers.

Owns: that decision, from what fenced servers told. Pure. Refuses to know: how servers are asked (docs/adr/0015).

Every acknowledgement needed all servers of the chain, so each fenced server holds all acknowledged records, and nothing
can be acknowledged any more. Any of their lengths would do; the rules below are about losing as few copies as possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dfs.net.messages import FenceTailReply


@dataclass(frozen=True, slots=True)
class SealPlan:
    """Publish `length` bytes on `servers`, which are positions in the answers that were given."""

    length: int
    servers: tuple[int, ...]


def plan_seal(answers: Sequence[FenceTailReply]) -> SealPlan | None:
    """Return how to seal, None when nobody answered: then only waiting helps.

    A replica that was published already cannot change, so its length is taken (the longest, should two leaders have
    published on different servers). Else the minimum of the servers that did not restart: all of them can keep it. Else
    the maximum of those that did: a last round that rotted on one disk looks like a torn end there.
    """
    published = [answer.published_length for answer in answers if answer.published_length >= 0]
    fresh = [answer.length for answer in answers if answer.is_fresh]
    if published:
        length = max(published)
    elif fresh:
        length = min(fresh)
    elif answers:
        length = max(answer.length for answer in answers)
    else:
        return None
    servers = tuple(
        index
        for index, answer in enumerate(answers)
        if (answer.published_length == length if answer.published_length >= 0 else answer.length >= length)
    )
    return SealPlan(length, servers)
