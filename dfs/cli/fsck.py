"""The verb `fsck`: how well the files of a subtree are kept, in the manner of `hdfs fsck`.

Owns: its forms of output and its exit codes. Refuses to know: how files are surveyed and replicas verified
(dfs.client.inspection), and what is healthy (dfs.client.fsck).

Everything is printed as it is found: a walk over millions of files needs the memory of one page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from dfs import paths
from dfs.cli import output, wall
from dfs.cli.context import Cli
from dfs.cli.operands import REMOTE, expand
from dfs.cli.verb import json_option, pass_cli, verb
from dfs.errors import InvalidArgument

if TYPE_CHECKING:
    from dfs.client.fsck import ChunkVerdict, Totals
    from dfs.client.inspection import Findings
    from dfs.net.messages import SurveyFilesReply
    from dfs.net.parts import SurveyedFile

_LABEL_WIDTH: Final = 28


@verb("fsck")
@click.argument("path", default="/", type=REMOTE)
@click.option("-files", "--files", "with_files", is_flag=True, help="Print every file, not only those with problems.")
@click.option("-blocks", "--blocks", "with_blocks", is_flag=True, help="Print the chunks of each printed file.")
@click.option("-locations", "--locations", "with_locations", is_flag=True, help="Print where the replicas are, too.")
@click.option(
    "-includeSnapshots", "--snapshots", "with_snapshots", is_flag=True, help="Look at the snapshots below PATH, too."
)
@click.option("--verify", is_flag=True, help="Let every chunk server read and verify every replica (slow: all bytes).")
@json_option
@pass_cli
def fsck_verb(
    cli: Cli,
    path: str,
    with_files: bool,
    with_blocks: bool,
    with_locations: bool,
    with_snapshots: bool,
    verify: bool,
    as_json: bool,
) -> None:
    """Check how well the files at and below PATH (/ without one) are kept.

    Lists chunks that are missing (no good live replica: the bytes cannot be read now), corrupt (with --verify),
    under-replicated, or misplaced (all replicas in one rack though there are several), and sums up. Without --verify
    the masters are asked only. Files that change or go during the walk are no error. The chunk that records are being
    appended to counts, too; it is verified once it is sealed. With --snapshots each snapshot is walked like a directory
    of its own, and what it shares is counted again.

    Ends with 0: healthy, 1: NOT healthy but every byte can be read, 7: NOT healthy, and bytes cannot be read.
    A chunk that is only misplaced is healthy.
    """
    from dfs.client.fsck import Totals

    found = expand(cli, path)
    if len(found) > 1:
        raise InvalidArgument(f"the pattern {path!r} matches {len(found)} paths; fsck checks one tree at a time")
    root = found[0].path
    racks = frozenset(server.info.rack for server in cli.client.cluster_status().servers if server.state != "dead")
    totals = Totals()
    wants = _Wanted(with_files, with_blocks or with_locations, with_locations)
    printer = _JsonPrinter(root, wants) if cli.wants_json(as_json) else _Printer(root, wants)
    try:
        for tree in _trees(cli, root, with_snapshots=with_snapshots):
            printer.tree = tree
            for page, verdicts, findings in _pages(cli, tree, racks, verify=verify):
                totals.add_page(page, verdicts, findings)
                printer.page(page, verdicts)
    except BaseException:
        printer.abort()
        raise
    printer.summary(totals, is_verified=verify)
    code = _exit_code(totals)
    if code:
        raise click.exceptions.Exit(code)


def _trees(cli: Cli, root: str, *, with_snapshots: bool) -> Iterator[str]:
    """Yield the root, and the snapshots of directories that are it or in it."""
    yield root
    if with_snapshots:
        snapshots = cli.client.snapshots
        for found in snapshots.list(root):
            yield snapshots.path(found.directory, found.name)


def _pages(
    cli: Cli, root: str, racks: frozenset[str], *, verify: bool
) -> Iterator[tuple[SurveyFilesReply, list[ChunkVerdict], Findings]]:
    from dfs.client.fsck import judge_chunk

    inspection = cli.client.inspection
    for page in inspection.survey(root, with_tokens=verify, with_tails=True):
        findings = inspection.verify(root, page) if verify else {}
        yield page, [judge_chunk(chunk, page.servers, findings, racks) for chunk in page.chunks], findings


def _exit_code(totals: Totals) -> int:
    if totals.is_healthy:
        return wall.EXIT_OK
    return wall.EXIT_FAILED if totals.is_readable else wall.EXIT_DATA_MISSING


class _Wanted:
    """What is printed of the files."""

    def __init__(self, files: bool, chunks: bool, locations: bool) -> None:
        self.files, self.chunks, self.locations = files, chunks, locations


class _Printer:
    """Prints for people."""

    def __init__(self, root: str, wants: _Wanted) -> None:
        self._root, self._wants = root, wants
        self.tree = root  # the root, or a snapshot in it, that the next page is of

    def page(self, page: SurveyFilesReply, verdicts: Sequence[ChunkVerdict]) -> None:
        for file in page.files:
            bad = [extent for extent in file.extents if verdicts[extent.chunk].problems]
            if self._wants.files:
                output.line(self._file_line(file, verdicts))
            shown = output.display(full_path(self.tree, file))
            if self._wants.chunks and (self._wants.files or bad):
                if not self._wants.files:
                    output.line(self._file_line(file, verdicts))
                for number, extent in enumerate(file.extents, file.first_extent):
                    output.line(f"  {number}. {self._chunk_text(verdicts[extent.chunk], extent.length)}")
            elif not self._wants.files:
                for number, extent in enumerate(file.extents, file.first_extent):
                    verdict = verdicts[extent.chunk]
                    if verdict.problems:
                        output.line(f"{shown}: chunk {number} ({verdict.chunk.handle.hex()}) {verdict.words()}")

    def _file_line(self, file: SurveyedFile, verdicts: Sequence[ChunkVerdict]) -> str:
        found = {problem for extent in file.extents for problem in verdicts[extent.chunk].problems}
        words = ", ".join(problem.value for problem in _ordered(found)) or "OK"
        part = f", from chunk {file.first_extent} on" if file.first_extent else ""
        chunks = output.count_text(file.extent_count, "chunk")
        shown = output.display(full_path(self.tree, file))
        return f"{shown} {file.size} bytes, replication {file.replication}, {chunks}{part}: {words}"

    def _chunk_text(self, verdict: ChunkVerdict, length: int) -> str:
        chunk = verdict.chunk
        what = "being appended to" if chunk.is_open else f"len={length} crc={chunk.crc:08x}"
        text = f"{chunk.handle.hex()} {what} live={verdict.good_count} goal={chunk.goal}"
        if self._wants.locations:
            places = (
                f"{replica.server.name}({replica.server.address}, {replica.server.rack}, {replica.state})"
                for replica in verdict.replicas
            )
            text += f" [{', '.join(places)}]"
        problems = ", ".join(problem.value for problem in verdict.problems)
        return f"{text} {problems}".rstrip()

    def abort(self) -> None:
        """Do nothing: no line is half printed."""

    def summary(self, totals: Totals, *, is_verified: bool) -> None:
        from dfs.client.fsck import Problem

        average = totals.replica_count / totals.chunk_count if totals.chunk_count else 0.0
        verified = f"{totals.corrupt_replicas} of {totals.verified_count} verified"
        if totals.unasked_count:
            verified += f"; {totals.unasked_count} could not be asked"
        rows = (
            ("Status", "healthy" if totals.is_healthy else "NOT healthy"),
            ("Directories", str(totals.directory_count)),
            ("Files", str(totals.file_count)),
            ("Files with problems", str(totals.bad_files)),
            ("Size", f"{output.size_text(totals.size)} ({totals.size} B)"),
            ("Chunks", f"{totals.chunk_count} ({average:.2f} live replicas on average)"),
            ("Missing chunks", str(totals.problems[Problem.MISSING])),
            ("Under-replicated chunks", str(totals.problems[Problem.UNDER_REPLICATED])),
            ("Misplaced chunks", str(totals.problems[Problem.MISPLACED])),
            ("Corrupt replicas", verified if is_verified else "not looked for (--verify does)"),
        )
        if self._wants.files or totals.bad_files or totals.problems[Problem.MISPLACED]:
            output.line()
        for label, value in rows:
            output.line(f"{label + ':':<{_LABEL_WIDTH}}{value}")
        verdict = "healthy" if totals.is_healthy else "NOT healthy"
        tail = "" if totals.is_readable else ": bytes cannot be read"
        output.line()
        output.line(f"{output.display(self._root)} is {verdict}{tail}")


class _JsonPrinter(_Printer):
    """Prints one JSON document, file by file."""

    def __init__(self, root: str, wants: _Wanted) -> None:
        super().__init__(root, wants)
        sys.stdout.write(f'{{"path": {json.dumps(root, ensure_ascii=False)},\n"files": ')
        self._array = output.JsonArray()

    def page(self, page: SurveyFilesReply, verdicts: Sequence[ChunkVerdict]) -> None:
        for file in page.files:
            if self._wants.files or any(verdicts[extent.chunk].problems for extent in file.extents):
                self._array.add(self._file_json(file, verdicts))

    def _file_json(self, file: SurveyedFile, verdicts: Sequence[ChunkVerdict]) -> dict[str, Any]:
        shown = [
            (number, extent, verdicts[extent.chunk])
            for number, extent in enumerate(file.extents, file.first_extent)
            if self._wants.chunks or verdicts[extent.chunk].problems
        ]
        found = {problem for extent in file.extents for problem in verdicts[extent.chunk].problems}
        return {
            "path": full_path(self.tree, file),
            "size": file.size,
            "replication": file.replication,
            "version": file.version,
            "extent_count": file.extent_count,
            "first_extent": file.first_extent,
            "problems": [problem.value for problem in _ordered(found)],
            "chunks": [
                {
                    "index": number,
                    "handle": verdict.chunk.handle.hex(),
                    "offset": extent.chunk_offset,
                    "length": extent.length,
                    "crc": f"{verdict.chunk.crc:08x}",
                    "is_open": verdict.chunk.is_open,
                    "goal": verdict.chunk.goal,
                    "live": verdict.good_count,
                    "problems": [problem.value for problem in verdict.problems],
                    "replicas": [
                        {
                            "server": replica.server.name,
                            "address": replica.server.address,
                            "rack": replica.server.rack,
                            "state": replica.state,
                        }
                        for replica in verdict.replicas
                    ],
                }
                for number, extent, verdict in shown
            ],
        }

    def abort(self) -> None:
        """Close what is open: what was printed stays JSON, and says that it is not whole."""
        self._array.close()
        output.line(', "summary": null}')

    def summary(self, totals: Totals, *, is_verified: bool) -> None:
        self._array.close()
        value = {
            "is_healthy": totals.is_healthy,
            "is_readable": totals.is_readable,
            "directory_count": totals.directory_count,
            "file_count": totals.file_count,
            "bad_file_count": totals.bad_files,
            "size": totals.size,
            "chunk_count": totals.chunk_count,
            "replica_count": totals.replica_count,
            **{f"{problem.name.lower()}_chunks": count for problem, count in totals.problems.items()},
            "is_verified": is_verified,
            "verified_replicas": totals.verified_count,
            "unasked_replicas": totals.unasked_count,
            "corrupt_replicas": totals.corrupt_replicas,
        }
        output.line(f', "summary": {json.dumps(value, ensure_ascii=False)}}}')


def full_path(root: str, file: SurveyedFile) -> str:
    return paths.join(root, file.path) if file.path else root


def _ordered(found: set[Any]) -> list[Any]:
    from dfs.client.fsck import Problem

    return [problem for problem in Problem if problem in found]
