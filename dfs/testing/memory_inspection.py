"""The `DfsClient.inspection` of a `MemoryClient`: pages and reports as a test wants them.

Owns: canned answers, and pages made from the files of the memory client. Refuses to know: sockets and masters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from dfs import checksum
from dfs.client.inspection import Finding, Findings, NodeAnswer
from dfs.errors import DfsError, NotFound
from dfs.ids import ChunkHandle
from dfs.net.messages import GetReportReply, SurveyFilesReply
from dfs.net.parts import HealingRules, ServerInfo, SurveyedChunk, SurveyedExtent, SurveyedFile

NOW_MS = 1_700_000_600_000
RULES = HealingRules(1.0, 10.0, 60.0, 600.0, 3 * 86_400.0)


def handle_of(path: str) -> ChunkHandle:
    """Return the handle of the one chunk that a memory client's file has."""
    return ChunkHandle(blake2b(path.encode(), digest_size=16).digest())


@dataclass(slots=True)
class MemoryInspection:
    """`files` gives (path, content, replication) of all files; every one has one chunk on c1, c2 and c3.

    `replicas` overrides the servers of a path by number; `findings` are what a verification finds, by path and name.
    """

    files: Callable[[], Iterable[tuple[str, bytes, int]]]
    servers: Callable[[], tuple[ServerInfo, ...]]
    check: Callable[[str, str], None]
    replicas: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    found: Mapping[tuple[str, str], Finding] = field(default_factory=dict)
    answers: Mapping[str, NodeAnswer | DfsError] = field(default_factory=dict)
    reply: GetReportReply = field(default_factory=lambda: GetReportReply(NOW_MS, 600.0, RULES, ()))
    page_size: int = 2
    broken: DfsError | None = None  # how a survey ends after its first page
    failure: DfsError | None = None  # what a report ends in

    def survey(
        self, path: str, *, with_tokens: bool = False, with_tails: bool = False, page_size: int = 0
    ) -> Iterator[SurveyFilesReply]:
        self.check("survey" + " with tokens" * with_tokens + " and tails" * with_tails, path)
        below = path.rstrip("/") + "/"
        files = sorted(file for file in self.files() if file[0] == path or file[0].startswith(below))
        if not files and path != "/":
            raise NotFound(f"{path!r} does not exist")
        size = page_size or self.page_size
        for start in range(0, max(1, len(files)), size):
            if start and self.broken is not None:
                raise self.broken
            yield self._page(path, files[start : start + size], has_more=start + size < len(files))

    def _page(self, root: str, files: list[tuple[str, bytes, int]], *, has_more: bool) -> SurveyFilesReply:
        rows: list[SurveyedFile] = []
        chunks: list[SurveyedChunk] = []
        for path, content, replication in files:
            extents = (SurveyedExtent(len(chunks), 0, len(content)),) if content else ()
            below = "" if path == root else path[len(root.rstrip("/")) + 1 :]
            rows.append(SurveyedFile(below, len(content), replication, 1, len(extents), 0, extents))
            if content:
                places = tuple(number - 1 for number in self.replicas.get(path, (1, 2, 3)))
                crc = checksum.crc32c(content)
                chunks.append(SurveyedChunk(handle_of(path), len(content), crc, replication, places))
        last = rows[-1].path if rows else ""
        return SurveyFilesReply(tuple(rows), tuple(chunks), self.servers(), 0, last, 0, has_more)

    def verify(self, path: str, page: SurveyFilesReply) -> Findings:
        self.check("verify", path)
        by_handle = {handle_of(name): name for name, _, _ in self.files()}
        return {
            (chunk.handle, page.servers[index].server_id): self.found.get(
                (by_handle[chunk.handle], page.servers[index].name), Finding.GOOD
            )
            for chunk in page.chunks
            for index in chunk.replicas
            if page.servers[index].is_alive
        }

    def report(self) -> GetReportReply:
        self.check("report", "")
        if self.failure is not None:
            raise self.failure
        return self.reply

    def ping(self, addresses: Iterable[str], _timeout_s: float) -> list[NodeAnswer]:
        """Answer for the addresses that a test named; the others are silent."""
        silent = DfsError("nobody listens there")
        return [_answer(address, self.answers.get(address, silent)) for address in addresses]


def _answer(address: str, answer: NodeAnswer | DfsError) -> NodeAnswer:
    return NodeAnswer(address, error=answer) if isinstance(answer, DfsError) else answer
