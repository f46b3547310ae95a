"""How old a master's state is at most, proved by its own clock alone.

Owns: the questions to the leader, and what follows from its answers. Refuses to know: links, logs and who leads.

A follower asks; the leader begins a round after that, a majority confirms it, and the answer names the commit index of
then. Whatever was acknowledged before the question is in the log up to there: once it is applied here, the state is as
of the moment of the question. No clock of another machine, no delay on the way and no pause can make that wrong.
"""

from __future__ import annotations

from collections import deque

ASK_INTERVAL_S = 0.25
QUESTIONS_MAX = 64  # unanswered ones, and answers that are not applied yet


class StateAge:
    """The age of the applied state. Times are this machine's monotonic seconds."""

    def __init__(self) -> None:
        self._number = 0
        self._asked: deque[tuple[int, float]] = deque(maxlen=QUESTIONS_MAX)  # number, when
        self._answered: deque[tuple[int, float]] = deque(maxlen=QUESTIONS_MAX)  # commit index, when it was asked for
        self._as_of_s: float | None = None

    def question_due(self, now_s: float) -> int | None:
        """Return the number to ask under now, None when it is not yet time."""
        if self._asked and now_s - self._asked[-1][1] < ASK_INTERVAL_S:
            return None
        self._number += 1
        self._asked.append((self._number, now_s))
        return self._number

    def answered(self, number: int, commit_index: int) -> None:
        """Take an answer in; earlier questions are not worth one any more. The latest stays, for the interval."""
        asked_s = next((when for one, when in self._asked if one == number), None)
        if asked_s is not None:
            self._answered.append((commit_index, asked_s))

    def proved(self, as_of_s: float) -> None:
        """Note that the applied state holds all that was acknowledged before `as_of_s`."""
        self._as_of_s = as_of_s if self._as_of_s is None else max(self._as_of_s, as_of_s)

    def applied(self, index: int) -> None:
        """Note how far the log is applied."""
        while self._answered and self._answered[0][0] <= index:
            self.proved(self._answered.popleft()[1])

    def staleness_s(self, now_s: float, applied_index: int) -> float | None:
        """Return how old the state is at most, None when nothing is known."""
        self.applied(applied_index)
        return None if self._as_of_s is None else max(0.0, now_s - self._as_of_s)
