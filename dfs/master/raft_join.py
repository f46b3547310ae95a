"""Whether this master's word counts: what one with an empty disk must learn before it may vote.

Owns: the marker on disk of a member, and the way of an empty master to it.
Refuses to know: links, elections, pysyncobj.

A master that lost its disk has forgotten its votes and the entries that it promised to keep. Two things make its word
good again (docs/adr/0007-empty-masters.md has the proof):
1. all other masters told it their terms, and at least half of the masters are members: from then on it refuses
   everything of an older term than the highest one heard, so it may take and acknowledge entries;
2. it holds, on disk, all that a leader of its own term had in its log when asked: then it may vote and stand.
When all masters are empty, the cluster is new: nothing was promised to anybody, and all are members at once.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dfs.decoders import json_decoder
from dfs.errors import StorageCorrupt
from dfs.log import get_logger
from dfs.master.raft_journal import sync_directory
from dfs.master.raft_records import WAY_OUT

MARKER = "member"
ASK_INTERVAL_S = 0.1
ROUND_TIMEOUT_S = 1.0  # after which a round that not all have answered is begun anew
COMPLAINT_INTERVAL_S = 10.0  # between two warnings of a master that cannot join

_log = get_logger(__name__)


class Standing(enum.IntEnum):
    """What a master is to one that asks whether it may join."""

    EMPTY = 0  # not a member
    BLANK = 1  # a member that has never voted, nor held an entry: the cluster is being founded
    MEMBER = 2
    LEADER = 3  # a member that believes that it leads


class _Marker(msgspec.Struct, frozen=True):
    """The content of the marker file."""

    format: int
    master: str


_DECODER: msgspec.json.Decoder[_Marker] = json_decoder(_Marker)


@dataclass(frozen=True, slots=True)
class _Answer:
    term: int
    standing: Standing


class Membership:
    """One master's standing. `is_member`: it may vote and stand. `may_follow`: it may take and acknowledge entries."""

    def __init__(self, folder: Path, name: str, peers: Collection[str], *, fsync: bool) -> None:
        self._folder, self._name, self._peers, self._fsync = folder, name, frozenset(peers), fsync
        self.is_member = self._load()
        self.may_follow = self.is_member
        self.term = 0  # the highest one that any other master told
        self.round = int.from_bytes(os.urandom(6), "big")  # an answer to an earlier life of this master is no answer
        self._answers: dict[str, _Answer] = {}  # of this round
        self._asked_at_s = self._round_begun_s = self._complained_at_s = float("-inf")
        self._goal: tuple[int, int] | None = None  # (term, last log index) of a leader that was asked
        self.matched = (0, 0)  # (term, log index) up to which the log agrees with the leader of that term
        self._is_new_cluster = not self._peers

    # --- the marker -----------------------------------------------------------------------------------------

    @property
    def _path(self) -> Path:
        return self._folder / MARKER

    def _load(self) -> bool:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return False
        try:
            marker = _DECODER.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            marker = _Marker(0, "")
        if marker != _Marker(1, self._name):
            raise StorageCorrupt(
                f"{self._path} does not say that this is master {self._name!r} (it says {data[:100]!r}); correct "
                f"data_dir in the configuration, or {WAY_OUT}"
            )
        return True

    def check(self, *, has_journal: bool) -> None:
        """Raise `StorageCorrupt` for a member that has lost its journal: it would not know that it forgot anything."""
        if self.is_member and not has_journal:
            raise StorageCorrupt(
                f"{self._path} says that master {self._name} had a Raft journal, and there is none any more; {WAY_OUT}"
            )

    def admit(self) -> None:
        """Note on disk that this master is a member."""
        write_marker(self._folder, self._name, fsync=self._fsync)
        self.is_member = self.may_follow = True
        self._answers.clear()

    # --- asking ----------------------------------------------------------------------------------------------

    def round_due(self, now_s: float) -> int | None:
        """Return the number of the round in which to ask all others now, None when it is not yet time."""
        if self.is_member or now_s - self._asked_at_s < ASK_INTERVAL_S:
            return None
        self._asked_at_s = now_s
        if self._answers.keys() == self._peers or now_s - self._round_begun_s >= ROUND_TIMEOUT_S:
            self._complain(now_s)
            self._round_begun_s = now_s
            self._answers.clear()
            self.round += 1
        return self.round

    def answered(self, peer: str, number: int, term: int, standing: Standing, last_index: int) -> bool:
        """Take an answer in; return True when it is the one that lets this master follow."""
        if self.is_member or number != self.round or peer not in self._peers:
            return False
        self._answers[peer] = _Answer(term, standing)
        self.term = max(self.term, term)
        if standing is Standing.LEADER and (self._goal is None or term > self._goal[0]):
            self._goal = (term, last_index)
        if self.may_follow or self._answers.keys() != self._peers:
            return False
        if all(answer.standing <= Standing.BLANK for answer in self._answers.values()):
            self._is_new_cluster = True
            return False
        self.may_follow = self._member_count() >= self._members_needed
        return self.may_follow

    def _member_count(self) -> int:
        return sum(answer.standing >= Standing.MEMBER for answer in self._answers.values())

    @property
    def _members_needed(self) -> int:
        """So many members met every majority that this master was part of, in at least one of them."""
        total = len(self._peers) + 1
        return total - total // 2

    # --- becoming a member ------------------------------------------------------------------------------------

    @property
    def is_founder(self) -> bool:
        """Whether all masters are empty, so that they are the members of a new cluster."""
        return not self.is_member and self._is_new_cluster and not self.may_follow

    def is_caught_up(self, term: int, durable_index: int) -> bool:
        """Whether the log on disk, at the present term, holds all that makes this master a member."""
        if self.is_member or not self.may_follow or self._goal is None:
            return False
        goal_term, goal = self._goal
        return self.matched[0] == term == goal_term >= self.term and min(self.matched[1], durable_index) >= goal

    def _complain(self, now_s: float) -> None:
        if self.may_follow or now_s - self._complained_at_s < COMPLAINT_INTERVAL_S:
            return
        is_first, self._complained_at_s = self._complained_at_s < 0, now_s
        if is_first:
            return  # just started: the others may be about to
        _log.warning(
            "master_cannot_join",
            node=self._name,
            silent=",".join(sorted(self._peers - self._answers.keys())),
            empty=",".join(sorted(peer for peer, a in self._answers.items() if a.standing is Standing.EMPTY)),
            why=f"this master's disk is empty: all others must answer and {self._members_needed} of them have the data",
        )


def write_marker(folder: Path, name: str, *, fsync: bool) -> None:
    """Write the marker of a member, atomically."""
    draft = folder / f"{MARKER}.tmp"
    with draft.open("wb") as file:
        file.write(msgspec.json.encode(_Marker(1, name)))
        file.flush()
        if fsync:
            os.fsync(file.fileno())
    draft.rename(folder / MARKER)
    if fsync:
        sync_directory(folder)
