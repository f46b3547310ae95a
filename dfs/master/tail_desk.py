"""The leader opens tails, seals them, and says which are no longer needed.

Owns: the order of the steps with chunk servers and the log, and who waits for whom at one file. Refuses to know: the
length at which to seal (dfs.master.sealing), and the rules of the state (dfs.master.state.tail_commands).

Every step may be repeated by any leader after any failure between two of them: docs/adr/0015.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TypeVar

from dfs.clock import Clock, Deadline
from dfs.config import ClusterConfig
from dfs.errors import (
    ChunkNotFound,
    Conflict,
    DfsError,
    IsADirectory,
    NotEnoughServers,
    NotFound,
    ProtocolError,
    QuotaExceeded,
    TailOpen,
)
from dfs.ids import ChunkHandle, ServerId, allocated_ms, id_text
from dfs.log import get_logger
from dfs.master.access import AccessDesk, ServerTable
from dfs.master.healing.liveness import ClusterView, Liveness
from dfs.master.leadership import Leadership
from dfs.master.sealing import plan_seal
from dfs.master.state.commands import BeginTail, CommitTail
from dfs.master.state.machine import MasterState
from dfs.master.state.namespace import shown
from dfs.master.state.tails import TailRecord, named_paths
from dfs.net.aio import AioChannel
from dfs.net.auth import ClusterKey, Rights, sign_token
from dfs.net.messages import (
    RECORDS_PER_CHUNK_MIN,
    TAIL_REPORT_MAX,
    Allocate,
    CloseTail,
    CreateTail,
    CreateTailReply,
    Done,
    EndTail,
    EndTailReply,
    ErrorReply,
    FenceTail,
    FenceTailReply,
    Message,
    Mutation,
    OpenTail,
    OpenTailReply,
    PublishTail,
    PublishTailReply,
    TailReport,
    TailReportReply,
)
from dfs.net.parts import HeldTail, Kind

CREATE_TIMEOUT_S = 5.0  # for a whole chain to make its tails
CREATE_TRIES_MAX = 4  # chains tried for one tail
FENCE_TIMEOUT_S = 2.0  # for each server; one that is slower is left out of the sealed replicas
PUBLISH_TIMEOUT_S = 30.0  # a whole chunk is read, checked, written and synced
SEAL_TOKEN_MS = 600_000
IDLE_S = 60.0  # a tail without appends for so long is sealed: then its length is known to the masters
SEARCH_EVERY_S = 60.0  # between two searches on all servers for one imported tail that its chain does not have
HELD_PAUSE_S = 0.02  # between two looks whether a path is free for a new tail again

T = TypeVar("T", bound=Message)
S = TypeVar("S", FenceTailReply, PublishTailReply)
log = get_logger(__name__)


class TailDesk:
    """Answers OpenTail, CloseTail and TailReport; one file is worked at by one task at a time."""

    def __init__(
        self,
        *,
        config: ClusterConfig,
        state: MasterState,
        view: ClusterView,
        leadership: Leadership,
        access: AccessDesk,
        key: ClusterKey,
        clock: Clock,
    ) -> None:
        self._config, self._state, self._view, self._leadership = config, state, view, leadership
        self._access, self._key, self._clock = access, key, clock
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self._seals: dict[ChunkHandle, asyncio.Task[None]] = {}
        self._seen: dict[ChunkHandle, tuple[int, float]] = {}  # what heads reported: length, and since when
        self._searched: dict[ChunkHandle, float] = {}  # when all servers were asked for an imported tail
        self._held: Counter[str] = Counter()  # paths where mutations wait: no new tail there or below

    # --- what clients ask --------------------------------------------------------------------------------

    async def open(self, message: OpenTail, deadline: Deadline) -> OpenTailReply:
        """Return the open tail of a file, after sealing the one that the caller found broken."""
        excluded = self._server_ids(message.failed)
        for _ in range(CREATE_TRIES_MAX):
            await self._leadership.barrier(deadline)
            await self._wait_free(message.path, deadline)
            async with self._turn(message.path):
                self._check_identity(message)
                tail = self._state.tails.at(message.path)
                if tail is not None and (tail.handle == message.broken or not self._is_served(tail)):
                    await self._seal(tail)
                    tail = None
                if tail is None:
                    tail = await self._begin(message, excluded)
                if tail is not None:
                    return self._opened(tail)
        raise NotEnoughServers(f"no tail could be opened for {shown(message.path)}; see the leading master's log")

    async def close(self, message: CloseTail, deadline: Deadline) -> Done:
        """Seal a tail if it is still the open one of its file."""
        await self._leadership.barrier(deadline)
        await self.seal(message.path, message.handle)
        return Done()

    async def end(self, message: EndTail, deadline: Deadline, *, asked_by: str) -> EndTailReply:
        """Seal the tail of a file at an administrator's word, or end it without the bytes that no server has."""
        await self._leadership.barrier(deadline)
        async with self._turn(message.path):
            size = self._state.stat(message.path).size
            tail = self._state.tails.at(message.path)
            if tail is None:
                return EndTailReply("none", 0, 0, ())
            self._searched.pop(tail.handle, None)
            told, _ = self._seen.get(tail.handle, (0, 0.0))
            names = tuple(name for known in tail.servers if (name := self._server_name(known)))
            is_given_up = False
            try:
                await self._seal(tail)
            except NotEnoughServers as error:
                if not message.gives_up:
                    raise Conflict(  # a person waits: not to be tried again until the deadline
                        f"{error.message}. When none of them has it any more: dfs admin tail --give-up"
                    ) from None
                is_given_up = await self._give_up(tail, max(0, told), asked_by, is_forced=message.is_forced)
            added = self._state.stat(message.path).size - size
            return EndTailReply("given_up" if is_given_up else "sealed", added, max(0, told), names)

    async def _give_up(self, tail: TailRecord, told: int, asked_by: str, *, is_forced: bool) -> bool:
        """End a tail without its bytes; False when somebody sealed it meanwhile.

        Where every server of the chain says that it has no such tail, none can acknowledge a record of it either: only
        a master's `CreateTail` makes one. A server that misses a disk does not say so, and none says so for another
        whose address it took over. The sealed replica of a tail that an import opened again may be on any server.
        """
        others = self._outside(tail) if self._is_imported(tail) else []
        words = await asyncio.gather(*(self._why_unsure(tail, server_id) for server_id in (*tail.servers, *others)))
        unsure = [why for why in words if why]
        if unsure and not is_forced:
            raise Conflict(
                f"what was appended to {shown(tail.path)} may still be on these servers: {'; '.join(unsure)}. "
                "Mend or start them, then it is sealed by itself; --force gives up what they have, too"
            )
        try:
            await self._leadership.decree(CommitTail(tail.path, tail.handle, 0, 0, (), (), ()))
        except Conflict:
            return False
        log.error(
            "tail_given_up",
            path=tail.path,
            handle=tail.handle,
            reported_length=told,
            asked_by=asked_by,
            unsure="; ".join(unsure) or None,
        )
        return True

    async def _why_unsure(self, tail: TailRecord, server_id: ServerId) -> str:
        """Return why this server may still have the tail; "" when it says that it does not."""
        server = self._state.server(server_id)
        if server is None:
            return ""
        try:
            fence = FenceTail(tail.handle, self._seal_token(tail.handle))
            await self.ask(server.address, fence, FenceTailReply, FENCE_TIMEOUT_S)
        except ChunkNotFound as error:
            if error.details.get("server") == id_text(server_id):
                return ""
            return f"{server.name} ({server.address}): another server answers at that address, or an older version"
        except DfsError as error:
            return f"{server.name} ({server.address}): {error.message}"
        return f"{server.name} ({server.address}): it has the tail, and could not publish it"

    def _server_name(self, server_id: ServerId) -> str:
        server = self._state.server(server_id)
        return "" if server is None else server.name

    async def seal(self, path: str, handle: ChunkHandle) -> None:
        """Seal this tail unless it is sealed already; raise when that is not possible now."""
        async with self._turn(path):
            tail = self._state.tails.at(path)
            if tail is not None and tail.handle == handle:
                await self._seal(tail)

    async def report(self, message: TailReport, deadline: Deadline) -> TailReportReply:
        """Say which tails a server may drop: those that no command can make part of a file any more."""
        await self._leadership.barrier(deadline)
        held = message.tails[:TAIL_REPORT_MAX]
        now_s = self._clock.monotonic()
        for tail in held:
            known = self._state.tails.of_handle(tail.handle)
            if known is not None and (message.server_id == known.servers[0] or tail.length < 0):
                self._note(tail, now_s)
        return TailReportReply(tuple(tail.handle for tail in held if self._is_over(tail.handle)))

    def _note(self, tail: HeldTail, now_s: float) -> None:
        before = self._seen.get(tail.handle)
        if before is not None and before[0] < 0:
            return  # a restarted server stays one, whatever the head still tells
        if before is None or before[0] != tail.length:
            self._seen[tail.handle] = (tail.length, now_s)

    def due(self) -> list[tuple[TailRecord, str]]:
        """Return the tails to seal now, with the reason: dead or leaving, restarted, or idle."""
        now_s = self._clock.monotonic()
        found = []
        for tail in self._state.tails.all():
            length, changed_s = self._seen.get(tail.handle, (0, now_s))
            if not self._is_served(tail):
                found.append((tail, "a server of its chain is dead, or leaves"))
            elif length < 0:
                found.append((tail, "a server of its chain restarted"))
            elif self._may_search(tail, now_s):
                found.append((tail, "an import opened it again"))
            elif now_s - changed_s >= IDLE_S:
                found.append((tail, "nothing was appended for a while"))
        self._seen = {handle: seen for handle, seen in self._seen.items() if self._state.tails.of_handle(handle)}
        return found

    def _is_over(self, handle: ChunkHandle) -> bool:
        state = self._state
        if state.tails.of_handle(handle) is not None:
            return False
        if state.chunk(handle) is not None or state.is_garbage(handle):
            return True
        return state.born_ms <= allocated_ms(handle) < state.horizon_ms

    # --- mutations that need sealed files --------------------------------------------------------------------

    async def propose_sealed(self, command: Mutation, deadline: Deadline) -> Message:
        """Seal the open tails that keep a mutation from happening, and propose it, until the state lets it happen."""
        paths = list(named_paths(command))
        self._held.update(paths)
        try:
            while True:
                for tail in [tail for path in paths for tail in self._state.tails.below(path)]:
                    await self.seal(tail.path, tail.handle)
                reply = await self._leadership.propose(command, deadline)
                if not is_tail_open(reply) or deadline.has_passed:
                    return reply
        finally:
            self._held -= Counter(paths)

    async def _wait_free(self, path: str, deadline: Deadline) -> None:
        """Wait while a mutation needs the file sealed: new tails would keep it waiting for ever."""
        while any(path == held or path.startswith(held.rstrip("/") + "/") for held in self._held):
            deadline.check("waiting for a change of the file")
            await asyncio.sleep(HELD_PAUSE_S)

    @contextlib.asynccontextmanager
    async def _turn(self, path: str) -> AsyncIterator[None]:
        """Work at one file alone."""
        lock, count = self._locks.get(path) or (asyncio.Lock(), 0)
        self._locks[path] = (lock, count + 1)
        try:
            async with lock:
                yield
        finally:
            lock, count = self._locks[path]
            self._locks[path] = (lock, count - 1)
            if count == 1:
                del self._locks[path]

    # --- opening ------------------------------------------------------------------------------------------------

    async def _begin(self, message: OpenTail, excluded: set[ServerId]) -> TailRecord | None:
        """Have a chain make a tail and the state know it; None when another try may work."""
        inode, version, base, replication = self._file(message)
        seeds = self._state.tails.seeds(inode)  # with the version above: `BeginTail` proves that both are still true
        try:
            place = self._access.allocate(Allocate(1, replication, tuple(excluded)))
        except NotEnoughServers:
            if not excluded:
                raise
            place = self._access.allocate(Allocate(1, replication))
        handle, chain = place.chunks[0].handle, [place.servers[index] for index in place.chunks[0].chain]
        size_max = await self._allowed_size(message, place.replication, place.chunk_size)
        create = CreateTail(
            handle,
            self._seal_token(handle),
            tuple(server.address for server in chain[1:]),
            base,
            size_max,
            place.chunk_size // RECORDS_PER_CHUNK_MIN,
            seeds,
            is_head=True,
        )
        try:
            made = await self.ask(chain[0].address, create, CreateTailReply, CREATE_TIMEOUT_S)
        except DfsError as error:
            log.warning("tail_not_made", path=message.path, head=chain[0].address, reason=error.message)
            failed = error.details.get("failed") or chain[0].address
            excluded |= self._server_ids(failed.split(","))
            return None
        if made.servers != tuple(server.server_id for server in chain):
            raise ProtocolError(f"tail {id_text(handle)} was made by other servers than those of its chain")
        try:
            begin = BeginTail(message.path, inode, version, handle, made.servers, size_max, reserves=True)
            await self._leadership.decree(begin)
        except Conflict:
            return None  # the file changed meanwhile
        except QuotaExceeded:
            left, where = self._state.room_at(message.path)
            if not where or left >= size_max * place.replication:
                raise  # too many names
            return None  # somebody else took the room meanwhile
        log.info("tail_opened", path=message.path, handle=handle, base=base, servers=len(chain))
        return self._state.tails.at(message.path)

    async def _allowed_size(self, message: OpenTail, replication: int, chunk_size: int) -> int:
        """Return how many bytes a new tail may take within all quotas; raise `QuotaExceeded`.

        All of that is reserved for it. So when too little is left, other tails below the same quota are sealed: what
        they did not use is free then.
        """
        wanted, tried = max(1, message.room) * replication, set[ChunkHandle]()
        left, where = self._state.room_at(message.path)
        while where and left < wanted:
            tail = next((tail for tail in self._state.tails.below(where) if tail.handle not in tried), None)
            if tail is None:
                raise QuotaExceeded(
                    f"the quota of {shown(where)} leaves {left} bytes with all replicas; records of {wanted} are to be "
                    f"appended to {shown(message.path)}. Remove some files (what is in the trash does not count), or "
                    f"have the quota raised: dfs quota set --bytes SIZE {shown(where)}",
                    directory=where,
                )
            tried.add(tail.handle)
            with contextlib.suppress(NotEnoughServers):  # one that cannot be reached keeps its room, no more
                await self._seal(tail)
            left, where = self._state.room_at(message.path)
        return min(chunk_size, left // replication) if where else chunk_size

    def _check_identity(self, message: OpenTail) -> None:
        """Raise `Conflict` or `NotFound` when the caller appended to a file that is not at this path any more."""
        if message.inode and self._state.stat(message.path).inode != message.inode:
            raise Conflict(
                f"{shown(message.path)} is another file now than the one that was appended to, which was moved or "
                "removed; look there for the last records, then go on as a new appender"
            )

    def _file(self, message: OpenTail) -> tuple[int, int, int, int]:
        """Return inode, version, size and replication of the file, zeros when it is to be made."""
        try:
            status = self._state.stat(message.path)
        except NotFound:
            if not message.create:
                raise
            return 0, 0, 0, 0
        if status.kind is Kind.DIRECTORY:
            raise IsADirectory(f"{shown(message.path)} is a directory; only files can be appended to")
        return status.inode, status.version, status.size, status.replication

    def _opened(self, tail: TailRecord) -> OpenTailReply:
        table = ServerTable(self._state, self._view, self._clock.monotonic())
        expires_ms = self._clock.wall_ms() + round(self._config.token_lifetime_s * 1000)
        located = self._access.located_tail(tail, table, Rights.APPEND, expires_ms)
        inode = self._state.stat(tail.path).inode
        return OpenTailReply(located, table.infos(), self._config.chunk_size // RECORDS_PER_CHUNK_MIN, inode)

    def _server_ids(self, addresses: Iterable[str]) -> set[ServerId]:
        wanted = set(addresses)
        return {server.server_id for server in self._state.servers() if server.address in wanted}

    def _is_served(self, tail: TailRecord) -> bool:
        """Whether every server of the chain is, as far as is known, alive and to stay.

        One that is drained could not leave for months if a file that grows slowly kept its tail there.
        """
        now_s, now_ms = self._clock.monotonic(), max(self._clock.wall_ms(), self._state.clock_ms)
        for server_id in tail.servers:
            server = self._state.server(server_id)
            if server is None or server.is_leaving or now_ms < server.maintenance_until_ms:
                return False
            if self._view.liveness(server_id, now_s) is Liveness.DEAD:
                return False
        return True

    # --- sealing -------------------------------------------------------------------------------------------------

    async def _seal(self, tail: TailRecord) -> None:
        """Seal a tail; raise `NotEnoughServers` when no server of the chain answers.

        It goes on when the caller gives up, so that a caller with little patience still brings it forward.
        """
        task = self._seals.get(tail.handle)
        if task is None:
            task = self._seals[tail.handle] = asyncio.create_task(self._fence_and_publish(tail), name="seal")
            task.add_done_callback(lambda done: self._sealed(tail.handle, done))
        await asyncio.shield(task)

    def _sealed(self, handle: ChunkHandle, task: asyncio.Task[None]) -> None:
        del self._seals[handle]
        if not task.cancelled():
            task.exception()  # whoever waits gets it; nobody may wait any more

    async def _fence_and_publish(self, tail: TailRecord) -> None:
        token = self._seal_token(tail.handle)
        reasons: list[str] = []
        fence = FenceTail(tail.handle, token)
        fenced = await self._ask_all(tail.servers, fence, FenceTailReply, FENCE_TIMEOUT_S, reasons)
        answers = [answer for _, answer in fenced]
        if not answers:
            fenced = await self._found_elsewhere(tail, fence)
            answers = [answer for _, answer in fenced]
        plan = plan_seal(answers)
        if plan is None:
            raise self._unreachable(tail, reasons)
        servers = [fenced[index][0] for index in plan.servers]
        publish = PublishTail(tail.handle, token, plan.length)
        published = await self._ask_all(servers, publish, PublishTailReply, PUBLISH_TIMEOUT_S, reasons)
        if not published:
            raise self._unreachable(tail, reasons)
        first = published[0][1]
        alike = [server_id for server_id, reply in published if reply.crc == first.crc]
        if len(alike) != len(published):
            log.error("tail_replicas_differ", path=tail.path, handle=tail.handle, length=plan.length)
        commit = CommitTail(
            tail.path,
            tail.handle,
            plan.length,
            first.crc if plan.length else 0,
            tuple(alike) if plan.length else (),
            first.appenders,
            first.closed,
        )
        with contextlib.suppress(Conflict):  # another leader's seal was first
            await self._leadership.decree(commit)
        log.info("tail_sealed", path=tail.path, handle=tail.handle, length=plan.length, servers=len(alike))

    async def _found_elsewhere(self, tail: TailRecord, fence: FenceTail) -> list[tuple[ServerId, FenceTailReply]]:
        """Return who has the sealed replica of a tail that an import opened again: it was moved after the export."""
        now_s = self._clock.monotonic()
        if not self._may_search(tail, now_s):
            return []
        self._searched = {handle: at_s for handle, at_s in self._searched.items() if now_s - at_s < SEARCH_EVERY_S}
        self._searched[tail.handle] = now_s
        found = await self._ask_all(self._outside(tail), fence, FenceTailReply, FENCE_TIMEOUT_S, None)
        return [(server_id, answer) for server_id, answer in found if answer.published_length >= 0]

    def _may_search(self, tail: TailRecord, now_s: float) -> bool:
        """Whether an import opened this tail, and nobody searched for it lately."""
        searched_s = self._searched.get(tail.handle, now_s - SEARCH_EVERY_S)
        return self._is_imported(tail) and now_s - searched_s >= SEARCH_EVERY_S

    def _is_imported(self, tail: TailRecord) -> bool:
        return allocated_ms(tail.handle) < self._state.born_ms

    def _outside(self, tail: TailRecord) -> list[ServerId]:
        """Return the servers that are not of its chain."""
        return [server.server_id for server in self._state.servers() if server.server_id not in tail.servers]

    def _unreachable(self, tail: TailRecord, reasons: list[str]) -> NotEnoughServers:
        return NotEnoughServers(
            f"what was appended to {shown(tail.path)} lately cannot be sealed on any of its {len(tail.servers)} "
            f"servers; mend or start one of them, or see `dfs admin tail --help`: {'; '.join(reasons)}"
        )

    async def _ask_all(
        self, servers: Sequence[ServerId], message: Message, reply: type[S], timeout_s: float, reasons: list[str] | None
    ) -> list[tuple[ServerId, S]]:
        """Return who answered what, in the order of `servers`; `reasons` gets why the others did not, if it matters."""

        async def ask(server_id: ServerId) -> S | None:
            server = self._state.server(server_id)
            if server is None:
                return None
            try:
                answer = await self.ask(server.address, message, reply, timeout_s)
                if answer.server_id != server_id:
                    raise ChunkNotFound(f"another server answers at that address: {id_text(answer.server_id)}")
                return answer
            except DfsError as error:
                if reasons is None:
                    return None
                log.warning("tail_server_left_out", server=server.name, code=error.code, reason=error.message)
                reasons.append(f"{server.name} ({server.address}): {error.message}")
                return None

        answers = await asyncio.gather(*map(ask, servers))
        return [(server_id, item) for server_id, item in zip(servers, answers, strict=True) if item is not None]

    async def ask(self, address: str, message: Message, reply: type[T], timeout_s: float) -> T:
        """Ask one chunk server; raise its error, or why it could not be asked."""
        deadline = Deadline.after(timeout_s)
        channel = await AioChannel.connect(address, self._key, deadline)
        try:
            answer = await channel.call(message, deadline)
        finally:
            await channel.close()
        if not isinstance(answer, reply):
            raise ProtocolError(f"{address} answered {type(message).__name__} with {type(answer).__name__}")
        return answer

    def _seal_token(self, handle: ChunkHandle) -> bytes:
        return sign_token(self._key, handle, Rights.SEAL, self._clock.wall_ms() + SEAL_TOKEN_MS)


def is_tail_open(reply: Message) -> bool:
    """Whether the state refused a change because of open tails."""
    return isinstance(reply, ErrorReply) and reply.code == TailOpen.code
