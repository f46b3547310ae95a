"""Judge how well the chunks of files are kept: what is missing, corrupt, under-replicated or misplaced, and the sum.

Owns: the verdict on a chunk and on a whole survey. Refuses to know: where the facts come from, clocks, and output.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dfs.client.inspection import Finding
from dfs.ids import ChunkHandle, ServerId
from dfs.net.messages import SurveyFilesReply
from dfs.net.parts import ServerInfo, SurveyedChunk, SurveyedFile


class Problem(enum.Enum):
    """What can be wrong with a chunk, the worst first."""

    MISSING = "missing"  # no good live replica: these bytes cannot be read now
    CORRUPT = "corrupt"  # a replica was found damaged; another one is good
    UNDER_REPLICATED = "under-replicated"  # fewer good live replicas than its goal
    MISPLACED = "misplaced"  # as many as wanted, but all in one rack, though several racks exist


@dataclass(frozen=True, slots=True)
class Replica:
    """One registered replica. `state`: live, dead, corrupt, absent or unasked."""

    server: ServerInfo
    state: str

    @property
    def is_good(self) -> bool:
        """Whether a reader may count on it, as far as is known."""
        return self.state in ("live", "unasked")


@dataclass(frozen=True, slots=True)
class ChunkVerdict:
    """How well one chunk is kept."""

    chunk: SurveyedChunk
    replicas: tuple[Replica, ...]
    problems: tuple[Problem, ...]

    @property
    def good_count(self) -> int:
        return sum(replica.is_good for replica in self.replicas)

    @property
    def is_healthy(self) -> bool:
        """Whether nothing but its place is wrong: a misplaced chunk has all its replicas."""
        return not set(self.problems) - {Problem.MISPLACED}

    def words(self) -> str:
        """Return the verdict in a sentence's end: `under-replicated: 2 of 3 replicas (c1, c4; c2 is dead)`."""
        if not self.problems:
            return "OK"
        good = [replica.server.name for replica in self.replicas if replica.is_good]
        bad = [
            f"{replica.server.name} {_WORDS.get(replica.state, replica.state)}"
            for replica in self.replicas
            if not replica.is_good
        ]
        names = ", ".join(problem.value for problem in self.problems)
        where = "; ".join(filter(None, (", ".join(good), ", ".join(bad)))) or "no server is registered for it"
        return f"{names}: {self.good_count} of {self.chunk.goal} replicas ({where})"


_WORDS = {"dead": "is dead", "corrupt": "has a corrupt one", "absent": "does not have it"}


def judge_chunk(
    chunk: SurveyedChunk,
    servers: Sequence[ServerInfo],
    findings: Mapping[tuple[ChunkHandle, ServerId], Finding],
    racks: frozenset[str],
) -> ChunkVerdict:
    """Return the verdict on a chunk. `racks`: those of the live servers of the cluster, to know what was possible."""
    holders = sorted((servers[index] for index in chunk.replicas), key=lambda server: server.name)
    replicas = tuple(Replica(server, _state(chunk.handle, server, findings)) for server in holders)
    good = [replica for replica in replicas if replica.is_good]
    found = []
    if not good:
        found.append(Problem.MISSING)
    if any(replica.state == "corrupt" for replica in replicas):
        found.append(Problem.CORRUPT)
    if good and len(good) < chunk.goal:
        found.append(Problem.UNDER_REPLICATED)
    elif len(good) > 1 and len({replica.server.rack for replica in good}) == 1 and len(racks) > 1:
        found.append(Problem.MISPLACED)
    return ChunkVerdict(chunk, replicas, tuple(found))


def _state(handle: ChunkHandle, server: ServerInfo, findings: Mapping[tuple[ChunkHandle, ServerId], Finding]) -> str:
    if not server.is_alive:
        return "dead"
    finding = findings.get((handle, server.server_id), Finding.GOOD)
    return "live" if finding is Finding.GOOD else finding.value


@dataclass(slots=True)
class Totals:
    """The sum of a survey. A chunk that several files share counts once for each page that met it."""

    file_count: int = 0
    directory_count: int = 0
    size: int = 0
    chunk_count: int = 0
    replica_count: int = 0  # good and live
    verified_count: int = 0
    unasked_count: int = 0  # replicas whose server could not be asked to verify them
    corrupt_replicas: int = 0
    bad_files: int = 0  # files with a chunk that is not healthy
    problems: dict[Problem, int] = field(default_factory=lambda: dict.fromkeys(Problem, 0))  # chunks
    _last_bad: str | None = None  # the parts of a long file follow each other

    @property
    def is_healthy(self) -> bool:
        """Whether every chunk has as many good live replicas as it should, and none was found corrupt."""
        return not any(count for problem, count in self.problems.items() if problem is not Problem.MISPLACED)

    @property
    def is_readable(self) -> bool:
        """Whether every byte can be read now, as far as is known."""
        return not self.problems[Problem.MISSING]

    def add_page(
        self,
        page: SurveyFilesReply,
        verdicts: Sequence[ChunkVerdict],
        findings: Mapping[tuple[ChunkHandle, ServerId], Finding],
    ) -> None:
        """Count a page; `verdicts` are those of its chunks."""
        self.directory_count += page.directory_count
        self.chunk_count += len(verdicts)
        for verdict in verdicts:
            self.replica_count += verdict.good_count
            for problem in verdict.problems:
                self.problems[problem] += 1
        for finding in findings.values():
            self.verified_count += finding is not Finding.UNASKED
            self.unasked_count += finding is Finding.UNASKED
            self.corrupt_replicas += finding is Finding.CORRUPT
        for file in page.files:
            if file.first_extent == 0:
                self.file_count += 1
                self.size += file.size
            if not is_file_healthy(file, verdicts) and self._last_bad != file.path:
                self.bad_files += 1
                self._last_bad = file.path


def is_file_healthy(file: SurveyedFile, verdicts: Sequence[ChunkVerdict]) -> bool:
    return all(verdicts[extent.chunk].is_healthy for extent in file.extents)
