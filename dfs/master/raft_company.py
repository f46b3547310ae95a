"""Whether the next log entry waits for company: changes of callers that have just been answered and call again.

Owns: how many changes are enough, from what the last entry brought. Refuses to know: the log, timers and who calls.

An entry costs each master a sync, a message and its share of work, whatever it holds. Callers that wait for their
answers are decided together and come back one after the other: an entry begun with the first of them would make all
others wait for the one after it. So it waits until as many are there as took part before, but never for long
(`COMPANY_WAIT_S`), and never for a caller that was alone. After an entry that took as long itself it always does so;
after a quicker one as long as they come: callers that do other things in between were waited for in vain, and then the
next such waits are left out, twice as many each time.
"""

from __future__ import annotations

COMPANY_WAIT_S = 0.001
LEFT_OUT_MAX = 63  # waits left out between two that are tried, while nobody comes in time


class Company:
    """What an entry waits for. Times are this machine's monotonic seconds."""

    def __init__(self) -> None:
        self._begun_s: float | None = None  # when the first entry of those on their way was made
        self._decided = 0  # changes of theirs that have their results
        self._enough = 0
        self._left_out = self._left_out_yet = 0  # waits after quick entries since a vain one: in all, and still to come

    def entry_made(self, now_s: float) -> None:
        if self._enough:
            self._left_out = 0  # they came
        self._enough = 0
        if self._begun_s is None:
            self._begun_s = now_s

    def decided(self, count: int) -> None:
        """Note that so many changes have their results: their callers may call again."""
        self._decided += count

    def all_applied(self, waiting: int, now_s: float) -> bool:
        """Hear that no entry is on its way any more; return whether the `waiting` changes are to wait for company.

        Then `waited` is to be called after `COMPANY_WAIT_S`.
        """
        if self._begun_s is None:
            return False
        took_s, self._begun_s = now_s - self._begun_s, None
        known, self._decided = self._decided + waiting, 0
        self._enough = known if known > 1 and (took_s >= COMPANY_WAIT_S or self._may_try()) else 0
        return not self.is_enough(waiting)

    def _may_try(self) -> bool:
        """Whether to wait after a quick entry, too."""
        if self._left_out_yet:
            self._left_out_yet -= 1
            return False
        return True

    def is_enough(self, waiting: int) -> bool:
        return waiting >= self._enough

    def waited(self) -> None:
        """Whoever is not here yet goes with a later entry."""
        self._enough = 0
        self._left_out = self._left_out_yet = min(2 * self._left_out + 1, LEFT_OUT_MAX)
