"""The leader's newest look at all chunks: the survey of the replica sets, and the chunks that wait for work.

Owns: when the chunk map is surveyed and walked, in slices between which the loop breathes, and the backlog found so.
Refuses to know: what is done about it, and what a judgement is (dfs.master.healing.survey).

The tallies tell how many chunks wait for what; the map is walked only when they tell of chunks that the backlog does
not have. So a healthy cluster of a million chunks costs a look at its replica sets, and nothing for each chunk.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from dfs.clock import Clock
from dfs.config import ClusterConfig
from dfs.ids import ChunkHandle, ServerId
from dfs.log import get_logger
from dfs.master.healing.liveness import ClusterView
from dfs.master.healing.standing import Roster, make_roster
from dfs.master.healing.survey import Bucket, Survey, Work
from dfs.master.reports import Reports
from dfs.master.state.machine import MasterState

BUCKET_MAX = 20_000  # chunks of one bucket that are kept in mind; the next walk finds the rest
MOVES_MAX = 500  # likewise of chunks that may take one flow of balance
LOW_WATER = 200  # chunks of a bucket below which a walk is worth while, if the tallies tell of more
KNOWN_PER_PIECE = 4_000  # chunks that are known already, looked at again between two breaths
PAUSE_FACTOR = 8  # a look that took a while is not taken again before so many times that while

log = get_logger(__name__)


class Lookout:
    """Knows what waits, as of the last look. Call `reset` when leadership begins or ends."""

    def __init__(
        self, *, config: ClusterConfig, state: MasterState, view: ClusterView, reports: Reports, clock: Clock
    ) -> None:
        self._config, self._state, self._view = config, state, view
        self._reports, self._clock = reports, clock
        self.reset()

    def reset(self) -> None:
        self.survey: Survey | None = None
        self.flows: Mapping[ServerId, Sequence[ServerId]] = {}
        self._backlog: dict[Bucket, dict[ChunkHandle, None]] = {}
        self._not_before_s = 0.0
        self._walk_not_before_s = 0.0
        self._next_piece = 0  # of the map, where the next walk begins

    def roster(self) -> Roster:
        """Judge all servers as of now."""
        return make_roster(
            self._state.servers(),
            self._view,
            now_s=self._clock.monotonic(),
            wall_ms=max(self._clock.wall_ms(), self._state.clock_ms),
            repair_after_s=self._config.repair_after_s,
            confirmed=self._reports.confirmed(),
        )

    # --- looking ----------------------------------------------------------------------------------------

    async def look(self, under_way: Collection[ChunkHandle] = ()) -> Survey:
        """Survey all replica sets; walk the chunk map if more waits than is known. `under_way`: chunks being copied."""
        if self.survey is not None and self._clock.monotonic() < self._not_before_s:
            return self.survey
        survey = Survey(self.roster(), self.flows)
        busy_s = 0.0
        for rows in self._state.replica_tallies():
            begun_s = self._clock.monotonic()
            for row in rows:
                survey.take(row)
            busy_s += self._clock.monotonic() - begun_s
            await asyncio.sleep(0)
        self.survey = survey
        self._not_before_s = self._clock.monotonic() + PAUSE_FACTOR * busy_s
        if self._is_walk_due(survey, under_way):
            await self._walk(survey)
        return survey

    def _is_walk_due(self, survey: Survey, under_way: Collection[ChunkHandle]) -> bool:
        if self._clock.monotonic() < self._walk_not_before_s:
            return False
        short = [bucket for bucket, count in survey.counts.items() if self._known(bucket) < min(count, LOW_WATER)]
        if not short:
            return False
        flying = Counter(bucket for _, bucket in self._state.select_chunks(under_way, survey.wanted))
        return any(self._known(bucket) + flying[bucket] < survey.counts[bucket] for bucket in short)

    def _known(self, bucket: Bucket) -> int:
        return len(self._backlog.get(bucket, ()))

    async def _walk(self, survey: Survey) -> None:
        """Look chunks up until all that wait are known, or as many as are kept in mind.

        The next walk begins where this one ended: so a repair that takes many walks sees the map once, not once a walk.
        """
        backlog: dict[Bucket, dict[ChunkHandle, None]] = {bucket: {} for bucket in survey.counts}
        busy_s = 0.0
        for number, handles in self._pieces():
            begun_s = self._clock.monotonic()
            for handle, bucket in self._state.select_chunks(handles, survey.wanted):
                found = backlog[bucket]
                if len(found) < _kept_max(bucket):
                    found[handle] = None
            busy_s += self._clock.monotonic() - begun_s
            if all(len(backlog[bucket]) >= min(count, _kept_max(bucket)) for bucket, count in survey.counts.items()):
                self._next_piece = number
                break
            await asyncio.sleep(0)
        self._backlog = backlog
        self._walk_not_before_s = self._clock.monotonic() + PAUSE_FACTOR * busy_s
        log.debug("chunk_map_walked", waiting=sum(map(len, backlog.values())), busy_s=round(busy_s, 3))

    def _pieces(self) -> Iterator[tuple[int, list[ChunkHandle]]]:
        """Yield (number of the piece to begin with, were this the last one, handles): what is known already, the map.

        The piece in which a walk ends may hold more than was kept: the next one begins with it again.
        """
        known = [handle for handles in self._backlog.values() for handle in handles]
        for start in range(0, len(known), KNOWN_PER_PIECE):
            yield self._next_piece, known[start : start + KNOWN_PER_PIECE]
        yield from enumerate(self._state.chunk_handle_pieces(self._next_piece), self._next_piece)

    # --- the backlog ------------------------------------------------------------------------------------

    def waiting(self, *works: Work) -> list[Bucket]:
        """Return the buckets of these works that hold chunks, the most important first."""
        return sorted(bucket for bucket, handles in self._backlog.items() if handles and bucket.work in works)

    def take(self, bucket: Bucket, limit: int) -> list[ChunkHandle]:
        """Take the chunks of a bucket that wait longest; what still has to wait is given back."""
        handles = self._backlog.get(bucket, {})  # a walk or another leadership may have begun since it was seen
        taken = list(islice(handles, limit))
        for handle in taken:
            del handles[handle]
        return taken

    def give_back(self, bucket: Bucket, handles: Iterable[ChunkHandle]) -> None:
        """Let chunks wait at the end of the bucket: those behind them may find a place sooner."""
        self._backlog.setdefault(bucket, {}).update(dict.fromkeys(handles))


def _kept_max(bucket: Bucket) -> int:
    return MOVES_MAX if bucket.work is Work.MOVE else BUCKET_MAX
