"""Numbered rounds of questions to the other masters: pre-votes, and proofs that this master still leads.

Owns: counting distinct answers to the current round. Refuses to know: what was asked, the network and the time.
"""

from __future__ import annotations


class Round:
    """One question at a time to `peer_count` others; the asker itself counts as one answer.

    Answers to an earlier round, and second answers of a peer, are not counted.
    """

    def __init__(self, peer_count: int) -> None:
        self._quorum = (peer_count + 1) // 2 + 1
        self._answered: set[str] = set()
        self.number = 0
        self.is_open = False

    def begin(self) -> int:
        """Open the next round and return its number."""
        self.number += 1
        self.is_open = True
        self._answered.clear()
        return self.number

    @property
    def answered(self) -> frozenset[str]:
        """Who has answered the current round, or made up the majority of the last one."""
        return frozenset(self._answered)

    def answer(self, peer: str, number: int) -> None:
        if self.is_open and number == self.number:
            self._answered.add(peer)

    def take(self) -> bool:
        """Return True once, when a majority has answered: the round is over then."""
        if self.is_open and len(self._answered) + 1 >= self._quorum:
            self.is_open = False
            return True
        return False

    def cancel(self) -> None:
        self.is_open = False
