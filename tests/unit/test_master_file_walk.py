"""Does a survey tell every file once, in order, page by page, whatever changes between two pages?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from dfs.errors import InvalidArgument, NotFound, NotLeader
from dfs.ids import ChunkHandle
from dfs.master.state import extents
from dfs.master.state.file_walk import PATHS_SIZE_MAX, WalkPage, walk_page
from dfs.master.state.namespace import Directory, File, Node
from dfs.master.state.views import Extent
from dfs.net.messages import (
    SURVEY_STEPS_MAX,
    Delete,
    GetReport,
    GetReportReply,
    MakeDirectory,
    SurveyFiles,
    SurveyFilesReply,
    Touch,
)
from dfs.testing.masters import MIB, MasterTrio, PretendServer

Shape = dict[str, "int | Shape"]  # a name: the number of a file's extents, or what is in a directory


def file_of(count: int) -> File:
    pieces = [Extent(ChunkHandle(bytes([number % 256]) * 16), 0, 10) for number in range(count)]
    return File(1, 1, 0, 3, 10 * count, extents.pack(pieces))


def tree_of(shape: Shape) -> Directory:
    root = Directory(1, 0)
    for name, content in shape.items():
        root.entries.add(name, file_of(content) if isinstance(content, int) else tree_of(content))
    return root


def naive_walk(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Yield all below a node: the judge."""
    if isinstance(node, Directory):
        for name, child in sorted(node.entries.items()):
            below = f"{path}/{name}" if path else name
            yield below, child
            yield from naive_walk(child, below)


def pages(root: Node, limit: int) -> Iterator[WalkPage]:
    page = walk_page(root, "", 0, limit)
    yield page
    while page.has_more:
        page = walk_page(root, page.after, page.extents_told, limit)
        yield page


NAMES = st.sampled_from(["a", "a.b", "a b", "b", "é", "-", "ab"])
SHAPES: st.SearchStrategy[Shape] = st.recursive(
    st.dictionaries(NAMES, st.integers(0, 7), max_size=5),
    lambda inner: st.dictionaries(NAMES, st.one_of(st.integers(0, 7), inner), max_size=5),
    max_leaves=30,
)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 12))
def test_pages_of_any_size_tell_what_a_plain_walk_tells(shape: Shape, limit: int) -> None:
    root = tree_of(shape)
    told: dict[str, list[Extent]] = {}
    order: list[str] = []
    directories = 0
    for page in pages(root, limit):
        assert sum(1 + len(found.extents) for found in page.files) + page.directory_count <= limit + 1
        directories += page.directory_count
        for found in page.files:
            if found.path not in told:
                order.append(found.path)
            assert found.first_extent == len(told.setdefault(found.path, []))
            told[found.path] += found.extents
    expected = list(naive_walk(root))
    files = {path: node for path, node in expected if isinstance(node, File)}
    assert order == list(files)
    assert directories == len(expected) - len(files)
    for path, file in files.items():
        count = extents.count(file.extents)
        assert told[path] == list(extents.window(file.extents, file.size, 0, max(1, count))[1])


@settings(max_examples=40, deadline=None)
@given(SHAPES, SHAPES, st.integers(1, 6))
def test_a_walk_goes_on_in_a_tree_that_changed_under_it_and_comes_to_its_end(
    before: Shape, after: Shape, limit: int
) -> None:
    first = walk_page(tree_of(before), "", 0, limit)
    seen = [found.path for found in first.files]
    other = tree_of(after)
    page, rounds = first, 0
    while page.has_more:
        page = walk_page(other, page.after, page.extents_told, limit)
        seen += [found.path for found in page.files]
        rounds += 1
        assert rounds < 500
    order = [path.split("/") for path in dict.fromkeys(seen)]
    assert order == sorted(order), "never backwards, so nothing is told for ever"
    if first.has_more:
        place = first.after.split("/")
        missed = [
            path
            for path, node in naive_walk(other)
            if isinstance(node, File) and path.split("/") > place and path not in seen
        ]
        assert not missed, "what stands behind the place is told"


def test_a_survey_of_a_file_tells_it_alone_also_in_parts() -> None:
    parts = list(pages(file_of(5), 3))
    assert [(found.path, found.first_extent, len(found.extents)) for page in parts for found in page.files] == [
        ("", 0, 2),
        ("", 2, 2),
        ("", 4, 1),
    ]
    assert len(list(pages(file_of(0), 1))) == 1


def test_long_names_end_a_page_before_its_frame_is_full() -> None:
    root = Directory(1, 0)
    name = "n" * 250
    deep = root
    for _ in range(15):
        child = Directory(1, 0)
        deep.entries.add(name, child)
        deep = child
    for number in range(1000):
        deep.entries.add(f"{name}{number:04}", file_of(0))
    found = list(pages(root, SURVEY_STEPS_MAX))
    assert len(found) > 3
    for page in found:
        assert sum(len(item.path) for item in page.files) < PATHS_SIZE_MAX + 5000


# --- at the master's port -------------------------------------------------------------------------


def test_the_leader_tells_files_with_chunks_goals_and_who_holds_them() -> None:
    async def test() -> None:
        trio = await MasterTrio().start()
        for number in range(1, 5):
            await PretendServer(trio, number).join()
        await trio.ask(MakeDirectory(trio.call(), "/d"))
        two = await trio.store("/d/two", 2 * MIB, replication=2)
        await trio.ask(Touch(trio.call(), "/d/empty"))
        await trio.store("/e", 10)
        reply = await trio.expect(SurveyFilesReply, SurveyFiles("/", "", 0, 100))
        assert [(file.path, file.size, file.replication, file.extent_count) for file in reply.files] == [
            ("d/empty", 0, 3, 0),
            ("d/two", 2 * MIB, 2, 2),
            ("e", 10, 3, 1),
        ]
        assert (reply.directory_count, reply.has_more) == (1, False)
        assert [reply.chunks[extent.chunk].handle for extent in reply.files[1].extents] == two
        assert [(len(chunk.replicas), chunk.goal, chunk.token) for chunk in reply.chunks] == [
            (2, 2, b""),
            (2, 2, b""),
            (3, 3, b""),
        ]
        below = await trio.expect(SurveyFilesReply, SurveyFiles("/d/two", "", 0, 100, with_tokens=True))
        assert [file.path for file in below.files] == [""]
        assert all(chunk.token for chunk in below.chunks)
        assert isinstance(await trio.refused(SurveyFiles("/nope", "", 0, 10)), NotFound)
        assert isinstance(await trio.refused(SurveyFiles("/", "", 0, SURVEY_STEPS_MAX + 1)), InvalidArgument)
        assert isinstance(await trio.refused(SurveyFiles("/", "", 0, 10), to="m2"), NotLeader)

    asyncio.run(test())


def test_a_page_behind_a_deleted_place_begins_with_what_comes_next() -> None:
    async def test() -> None:
        trio = await MasterTrio().start()
        for number in range(1, 4):
            await PretendServer(trio, number).join()
        await trio.ask(MakeDirectory(trio.call(), "/d"))
        for name in "abcd":
            await trio.store(f"/d/{name}", 10)
        first = await trio.expect(SurveyFilesReply, SurveyFiles("/d", "", 0, 4))
        assert [file.path for file in first.files] == ["a", "b"]
        await trio.ask(Delete(trio.call(), "/d/b"))
        await trio.ask(Delete(trio.call(), "/d/c"))
        second = await trio.expect(SurveyFilesReply, SurveyFiles("/d", first.after, first.extents_told, 4))
        assert [file.path for file in second.files] == ["d"]
        assert not second.has_more

    asyncio.run(test())


def test_a_report_tells_the_clusters_times_and_what_servers_that_were_heard_work_on() -> None:
    async def test() -> None:
        trio = await MasterTrio(repair_after_s=77.0).start()
        server = PretendServer(trio, 1)
        await server.register()
        assert (await trio.expect(GetReportReply, GetReport())).loads == (), "no heartbeat yet"
        await server.join()
        trio.clock.advance(5)
        report = await trio.expect(GetReportReply, GetReport())
        assert [load.server_id for load in report.loads] == [server.server_id]
        assert (report.rules.repair_after_s, report.leading_s) == (77.0, 5.0)
        assert report.now_ms == trio.clock.wall_ms()

    asyncio.run(test())
