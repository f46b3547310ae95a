"""Judges a simulated run of masters: what must hold after every step, and at the end.

Owns: the invariants of Raft (Ongaro, thesis, figure 3.2) as checks. Refuses to know: faults, clients and time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from dfs.master.raft_engine import LEADER
from dfs.testing.raft_world import Life, RaftWorld

DIGEST_EVERY = 4  # applied log indexes between two looks at the whole state


class RuleBroken(AssertionError):
    """The run broke a rule; the message tells which and how."""


class Referee:
    """Looks at a life after each of its steps; keeps what was ever committed."""

    def __init__(self, world: RaftWorld) -> None:
        self._world = world
        self.leaders: dict[int, str] = {}  # by term
        self.committed: dict[int, tuple[bytes, int]] = {}  # log index: command, term
        self.told_in: dict[int, int] = {}  # log index: the term of the master that first told that it is committed
        self.states: dict[int, tuple[bytes, str]] = {}  # log index: digest of the state after it, who said so
        self.votes: dict[tuple[int, str], str] = {}  # (term, voter): for whom, once it is on the voter's disk
        self.entries: dict[tuple[int, int], tuple[bytes, int | None]] = {}  # (log index, term): command, term before
        self.stored: dict[tuple[str, int], int] = {}  # (master, term): the last log index of it that came to its disk
        self.on_vote: Callable[[Life], None] = lambda _life: None
        self.on_commit: Callable[[Life], None] = lambda _life: None

    def look(self, life: Life) -> None:
        if not life.log.node.is_running:
            return
        engine = life.engine
        journal = engine.journal
        if journal.sequence != life.seen_sequence:
            life.seen_sequence = journal.sequence
            self._take_entries(life)
        if journal.vote is not None and (journal.term, journal.vote) != life.seen_vote:
            life.seen_vote = (journal.term, journal.vote)
            life.new_votes.append((journal.vote_sequence, journal.term, journal.vote))
        while life.new_ends and life.new_ends[0][0] <= journal.durable:
            _, index, term = life.new_ends.popleft()
            self.stored[life.host.name, term] = max(index, self.stored.get((life.host.name, term), 0))
        while life.new_votes and life.new_votes[0][0] <= journal.durable:
            _, term, candidate = life.new_votes.popleft()
            self._take_vote(life, term, candidate)
        if engine.role == LEADER and journal.term != life.led_term:
            self._take_leader(life)
        elif life.log._proposals and engine.role != LEADER:
            raise RuleBroken(f"{life.host.name} lost the leadership, and callers still wait for it")
        if engine.commit_index != life.seen_commit:
            self._take_commits(life)
        applied = engine.applied_index
        if applied != life.seen_applied:
            if applied < life.seen_applied:
                raise RuleBroken(f"{life.host.name}: the applied index went from {life.seen_applied} to {applied}")
            life.seen_applied = applied
            if applied % DIGEST_EVERY == 0:
                self._compare_state(life, applied)

    def _take_entries(self, life: Life) -> None:
        """Log matching: entries with the same index and term are the same, and so are those before them."""
        journal, seen, known = life.engine.journal, life.seen_terms, self.entries
        entries, last_term = journal.entries, 0
        for position in range(len(entries) - 1, -1, -1):
            command, index, term = entries[position]
            if seen.get(index) == term:
                break
            seen[index] = term
            if term != last_term:
                last_term = term
                life.new_ends.append((journal.sequence, index, term))
            before = entries[position - 1][2] if position else None
            first = known.setdefault((index, term), (command, before))
            if first[1] is None:
                known[index, term] = (first[0], before)
            elif before is not None and first[1] != before:
                raise RuleBroken(
                    f"{life.host.name}: entry {index} of term {term} follows one of term {before}, elsewhere {first[1]}"
                )
            if first[0] != command:
                raise RuleBroken(f"{life.host.name}: entry {index} of term {term} is another one elsewhere")

    def _take_vote(self, life: Life, term: int, candidate: str) -> None:
        """One vote per term, through all lives."""
        name = life.host.name
        first = self.votes.setdefault((term, name), candidate)
        if first != candidate:
            raise RuleBroken(f"{name} votes for {candidate} in term {term}, in which it voted for {first}")
        if candidate != name:
            self.on_vote(life)

    def _take_leader(self, life: Life) -> None:
        """Election safety and leader completeness."""
        name, journal = life.host.name, life.engine.journal
        term = life.led_term = journal.term
        first = self.leaders.setdefault(term, name)
        if first != name:
            raise RuleBroken(f"two leaders in term {term}: {first} and {name}")
        voters = [voter for voter in self._world.hosts if self.votes.get((term, voter)) == name]
        if 2 * len(voters) <= len(self._world.hosts):
            raise RuleBroken(f"{name} leads term {term} by the votes on the disks of {', '.join(voters)} only")
        for index, (command, entry_term) in self.committed.items():
            if index < journal.first_index or self.told_in[index] >= term:  # a late leader may lack what came after it
                continue
            held = journal.entries[index - journal.first_index] if index <= journal.last_index else None
            if held is None or (held[0], held[2]) != (command, entry_term):
                raise RuleBroken(
                    f"{name} leads term {term} without the committed entry {index} of term {entry_term} (it has {held})"
                )

    def _take_commits(self, life: Life) -> None:
        """State machine safety: what is committed at an index is the same everywhere and for ever."""
        name, journal = life.host.name, life.engine.journal
        commit = life.engine.commit_index
        if commit < life.seen_commit:
            raise RuleBroken(f"{name}: the commit index went from {life.seen_commit} to {commit}")
        for index in range(max(life.seen_commit + 1, journal.first_index), commit + 1):
            if index > journal.last_index:
                raise RuleBroken(f"{name} commits {index}, its log ends at {journal.last_index}")
            command, _, term = journal.entries[index - journal.first_index]
            known = self.committed.setdefault(index, (command, term))
            self.told_in.setdefault(index, journal.term)
            if known != (command, term):
                raise RuleBroken(f"{name} commits {index} of term {term}, of term {known[1]} was committed before")
        term = journal.term
        if life.engine.role == LEADER and journal.term_at(commit) == term:
            holders = [host for host in self._world.hosts if self.stored.get((host, term), 0) >= commit]
            if 2 * len(holders) <= len(self._world.hosts):
                raise RuleBroken(f"{name} commits {commit} of term {term}, on the disks of {', '.join(holders)} only")
        life.seen_commit = commit
        if life.engine.role == LEADER:
            self.on_commit(life)

    def _compare_state(self, life: Life, applied: int) -> None:
        digest = state_digest(life)
        known, teller = self.states.setdefault(applied, (digest, life.host.name))
        if known != digest:
            raise RuleBroken(f"the states of {teller} and {life.host.name} differ after entry {applied}")

    def judge_end(self, lives: Iterable[Life]) -> None:
        """All masters have caught up: compare everything."""
        for life in lives:
            journal = life.engine.journal
            for command, index, term in journal.entries:
                if index <= life.seen_commit and self.committed.get(index, (command, term)) != (command, term):
                    raise RuleBroken(f"{life.host.name} holds another entry {index} than was committed")
            if life.engine.applied_index < max(self.committed, default=0):
                raise RuleBroken(f"{life.host.name} has not applied all that was committed")
            self._compare_state(life, life.engine.applied_index)
            life.state.check_invariants()
            if life.state.fault is not None:
                raise RuleBroken(f"{life.host.name}: a bug in the state machine: {life.state.fault}")


def state_digest(life: Life) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for piece in life.state.dump():
        digest.update(piece)
    return digest.digest()
