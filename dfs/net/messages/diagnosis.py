"""What is asked to find out how well a cluster keeps its files: surveys page by page, and what servers are busy with.

Owns: the calls of `dfs fsck`, `dfs admin report`, `dfs explain` and `dfs doctor`, their replies and their limits.
Refuses to know: what a good answer is.

Sizes are bytes, times are milliseconds since 1970 unless a name ends in `_s`.
"""

from __future__ import annotations

from dfs.net.messages.base import Message, message
from dfs.net.parts import HealingRules, ServerInfo, ServerLoad, SurveyedChunk, SurveyedFile

SURVEY_STEPS_MAX = 1000  # entries and extents in one SurveyFilesReply: a page holds the master up for milliseconds


@message(0x0130)
class SurveyFiles(Message, frozen=True, array_like=True):
    """The files at and below `path` with their chunks, in the order of their paths' components, a page at a time.

    `after` and `extents_told` are those of the page before, "" and 0 to begin; `limit` is 1..SURVEY_STEPS_MAX. Each
    page is of one instant; what is moved between two pages may be told twice or not at all. Answered by the leader.
    """

    path: str
    after: str
    extents_told: int
    limit: int
    with_tokens: bool = False  # READ tokens, to have replicas verified
    with_tails: bool = False  # the open tail of a file that is appended to, as its last extent with length 0


@message(0x0131)
class SurveyFilesReply(Message, frozen=True, array_like=True):
    files: tuple[SurveyedFile, ...]
    chunks: tuple[SurveyedChunk, ...]
    servers: tuple[ServerInfo, ...]
    directory_count: int  # directories met, `path` itself not counted
    after: str
    extents_told: int
    has_more: bool


@message(0x0132)
class GetReport(Message, frozen=True, array_like=True):
    """What the chunk servers are busy with, and the times that decide what happens next. Answered by the leader."""


@message(0x0133)
class GetReportReply(Message, frozen=True, array_like=True):
    now_ms: int
    leading_s: float  # how long the master that answers has led
    rules: HealingRules
    loads: tuple[ServerLoad, ...]  # of servers that this leader has heard
