"""A user's run from the wish to the report: find daemons, plan, ask the guard, break, undo, judge, write down.

Owns: this order, and that nothing stays behind. Refuses to know: the command line.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from dfs import __version__
from dfs.chaos import memory_disks, throw_away
from dfs.chaos.clients import Clients
from dfs.chaos.guard import ClusterView, Weakest, refusals, troubles
from dfs.chaos.journal import Head, Journal, RemoveTree, state_folder, unfinished
from dfs.chaos.nodes import Commands, Node, command_nodes, local_nodes, names_of, process_node, systemd_nodes
from dfs.chaos.report import About, Report, assemble, write
from dfs.chaos.run import ChaosRun, candidates
from dfs.chaos.scenario import GENTLE, HARSH, Action, Fault, FaultKind, plan_faults
from dfs.chaos.undoing import describe, undo_all
from dfs.chaos.verdict import judge
from dfs.chaos.watch import Watch, find_weakest
from dfs.client import ClusterAccess, DfsClient
from dfs.clock import SYSTEM_CLOCK, Deadline
from dfs.config import ClusterConfig
from dfs.errors import Conflict, DfsError, InvalidArgument

REPORT_PREFIX = "dfs-chaos-"
ROOT_PREFIX = "/.chaos-"
LOOK_S = 3.0  # patience with a cluster that is not whole before a run is refused
SEED_MAX = 1_000_000
SignalHandler = Callable[[int, FrameType | None], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the user asked for. `config` None: a throw-away cluster; `kinds` (): all that can be done."""

    config: ClusterConfig | None
    duration_s: float
    seed: int | None = None
    kinds: tuple[FaultKind, ...] = ()
    outage_s: tuple[float, float] = (1.0, 5.0)
    servers_max: int = 1
    names: tuple[str, ...] = ()
    pids: tuple[tuple[str, int], ...] = ()
    has_systemd: bool = False
    commands: Commands = field(default_factory=Commands)
    timeout_s: float | None = None

    @property
    def is_throw_away(self) -> bool:
        return self.config is None


@dataclass(frozen=True, slots=True)
class Planned:
    """What a run would do now. `steps`: seconds from and to, fault, targets, exact words."""

    wishes: Wishes
    seed: int
    kinds: tuple[FaultKind, ...]
    faults: tuple[Fault, ...]
    nodes: tuple[Node, ...]
    steps: tuple[tuple[float, float, str, str, str], ...]
    refusals: tuple[str, ...]

    def summary(self) -> Iterator[str]:
        """Yield what somebody must know who says yes."""
        wishes = self.wishes
        if wishes.config is None:
            yield f"a throw-away cluster: {throw_away.MASTERS} masters, {throw_away.CHUNK_SERVERS} chunk servers here"
        else:
            yield f"cluster {wishes.config.name!r} of {wishes.config.source}"
            yield from (f"  {node.name}: {node.where}" for node in self.nodes)
        kinds = ", ".join(sorted({str(fault.kind) for fault in self.faults})) or "none"
        yield f"{len(self.faults)} faults in {wishes.duration_s:g} s, seed {self.seed}: {kinds}"
        yield (
            f"at any moment at most one master and {wishes.servers_max} chunk server(s) are away, each for"
            f" {wishes.outage_s[0]:g} to {wishes.outage_s[1]:g} s; users' files are not touched"
        )

    def lines(self) -> Iterator[str]:
        """Yield the plan for people."""
        yield from self.summary()
        yield ""
        for begin_s, end_s, kind, targets, words in self.steps:
            yield f"  {begin_s:7.1f} .. {end_s:6.1f} s  {kind:<16} {targets}: {words}"
        if self.refusals:
            yield ""
            yield from (f"REFUSED: {words}" for words in self.refusals)

    def as_json(self) -> dict[str, Any]:
        """Return the plan with stable keys."""
        names = ("begin_s", "end_s", "fault", "targets", "action")
        return {
            "cluster": None if self.wishes.config is None else self.wishes.config.name,
            "seed": self.seed,
            "duration_s": self.wishes.duration_s,
            "nodes": [{"name": node.name, "where": node.where} for node in self.nodes],
            "steps": [dict(zip(names, step, strict=True)) for step in self.steps],
            "refusals": list(self.refusals),
        }


# --- planning


def plan(wishes: Wishes) -> Planned:
    """Return what a run would do and why it would be refused now. Nothing is touched."""
    seed = secrets.randbelow(SEED_MAX) if wishes.seed is None else wishes.seed
    if wishes.config is None:
        return _plan_throw_away(wishes, seed)
    nodes = _reach(wishes, wishes.config)
    kinds = _possible(wishes.kinds or GENTLE, nodes)
    faults = plan_faults(seed, wishes.duration_s, kinds, wishes.outage_s, wishes.servers_max)
    view, weakest = _look(wishes.config, kinds)
    found = refusals(view, kinds, wishes.servers_max, weakest)
    harsh = [str(kind) for kind in wishes.kinds if kind in HARSH]
    if harsh:
        found.append(f"{', '.join(harsh)} would destroy what users have stored; that is for --throw-away only")
    if not nodes:
        found.append("no daemon can be reached: none of `dfs up` runs here; use --pid, --systemd or --stop-command")
    elif not faults:
        found.append("no fault fits: give more time with --for, other kinds, or other ways to reach daemons")
    found += _left_behind(wishes.config)
    steps = tuple(step for fault in faults for step in _steps(fault, nodes, view.leader))
    return Planned(wishes, seed, tuple(kinds), faults, tuple(nodes), steps, tuple(found))


def _plan_throw_away(wishes: Wishes, seed: int) -> Planned:
    """Its daemons do not exist yet, so the steps name roles."""
    possible = [kind for kind in (*GENTLE, *HARSH) if kind.action is not Action.FILL or memory_disks.is_permitted()]
    kinds = [kind for kind in possible if not wishes.kinds or kind in wishes.kinds]
    faults = plan_faults(seed, wishes.duration_s, kinds, wishes.outage_s, wishes.servers_max)
    found = [] if faults else ["no fault fits: give more time with --for, or other kinds"]
    found += [f"{kind} cannot be done here: it needs mounts" for kind in wishes.kinds if kind not in possible]
    if wishes.servers_max > throw_away.REPLICATION - 1:
        found.append(f"with replication {throw_away.REPLICATION} fewer chunk servers may be away at once")
    steps = tuple(
        (fault.begin_s, fault.end_s, str(fault.kind), f"{fault.count} {fault.kind.victim.value}", "chosen then")
        for fault in faults
    )
    return Planned(wishes, seed, tuple(kinds), faults, (), steps, tuple(found))


def _reach(wishes: Wishes, config: ClusterConfig) -> list[Node]:
    """Return the daemons that can be broken, each reached in one way: the most explicit one."""
    found = {node.name: node for node in local_nodes(config)}
    if wishes.has_systemd:
        found |= {node.name: node for node in systemd_nodes(config)}
    wishes.commands.check()
    if wishes.commands != Commands():
        names = wishes.names or names_of(config)
        found |= {node.name: node for node in command_nodes(config, wishes.commands, names)}
    found |= {name: process_node(config, name, pid) for name, pid in wishes.pids}
    unknown = [name for name in wishes.names if name not in found]
    if unknown:
        raise InvalidArgument(f"{unknown[0]} cannot be reached; it is none of {', '.join(found) or 'nobody'}")
    return [node for name, node in sorted(found.items()) if not wishes.names or name in wishes.names]


def _possible(kinds: Sequence[FaultKind], nodes: Sequence[Node]) -> list[FaultKind]:
    """Return the kinds that some daemon can be given; any master may lead one day."""
    return [
        kind for kind in kinds if any(n.is_master is kind.victim.is_master and kind.action in n.ways for n in nodes)
    ]


def _look(config: ClusterConfig, kinds: Sequence[FaultKind]) -> tuple[ClusterView, Weakest]:
    """Ask the cluster, and walk over its files where chunk servers are to be broken."""
    watch = Watch(config)
    try:
        view, deadline = watch.view, Deadline.after(LOOK_S)
        while troubles(view) and not deadline.has_passed:  # a heartbeat that is late is none yet
            time.sleep(LOOK_S / 10)
            view = watch.look()
    finally:
        watch.close()
    if not view.leader or not any(not kind.victim.is_master for kind in kinds):
        return view, Weakest()
    with DfsClient(ClusterAccess.from_config(config), timeout_s=config.client_timeout_s) as client:
        return view, find_weakest(client)


def _steps(fault: Fault, nodes: Sequence[Node], leader: str) -> Iterator[tuple[float, float, str, str, str]]:
    by_name = {node.name: node for node in nodes}
    targets = fault.pick(candidates(nodes, fault, leader))
    for name in targets:
        words = by_name[name].ways[fault.kind.action].words
        yield round(fault.begin_s, 2), round(fault.end_s, 2), str(fault.kind), name, words
    if not targets:
        yield round(fault.begin_s, 2), round(fault.end_s, 2), str(fault.kind), "nobody now", "left out unless one fits"


def _left_behind(config: ClusterConfig, run_id: str = "") -> list[str]:
    """Return the words about other runs on the same cluster that are alive or died without undoing."""
    found = []
    addresses = tuple(master.address for master in config.masters)
    for one in unfinished(state_folder()):
        if (one.head.cluster, one.head.masters) != (config.name, addresses) or one.head.run_id == run_id:
            continue
        if one.is_alive:
            found.append(f"the run {one.head.run_id} is at work on this cluster")
        else:
            found.append(f"the run {one.head.run_id} is over and left {len(one.steps)} steps to undo: `dfs chaos undo`")
    return found


# --- running


def run(wishes: Wishes, planned: Planned, folder: Path | None, say: Callable[[str], None]) -> tuple[Report, Path]:
    """Break the cluster as planned, heal it, judge it, and write the report; return it and where it is."""
    begun_ms = SYSTEM_CLOCK.wall_ms()
    run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(begun_ms / 1000))}-{secrets.token_hex(2)}"
    config = wishes.config
    temporary = None if config is not None else throw_away.folder_for()
    if config is None:
        assert temporary is not None
        config = throw_away.write_config(temporary)
    head = Head(run_id, config.name, tuple(m.address for m in config.masters), str(config.source), begun_ms)
    try:
        journal = Journal.begin(state_folder(), head)
    except BaseException:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    try:
        if found := _left_behind(config, run_id):
            raise Conflict("; ".join(found))
        about = About(run_id, config.name, wishes.is_throw_away, planned.seed, begun_ms, __version__, _again(planned))
        with _hang_up_ends():
            report, story_and_calls = _break(wishes, planned, config, journal, about, say)
    finally:
        with _signals_held():  # nothing cuts the undoing short
            failures = undo_all(journal)
            journal.close()
            for words in failures:
                say(f"NOT UNDONE: {words}; see `dfs chaos undo`")
    folder = folder or Path(f"{REPORT_PREFIX}{run_id}")
    write(folder, report, *story_and_calls)
    return report, folder


def _break(
    wishes: Wishes, planned: Planned, config: ClusterConfig, journal: Journal, about: About, say: Callable[[str], None]
) -> tuple[Report, Any]:
    nodes: Sequence[Node] = planned.nodes
    if wishes.config is None:
        say("starting a throw-away cluster")
        with_disks = any(kind.action is Action.FILL for kind in planned.kinds)
        made = throw_away.start(config, journal, with_disks=with_disks)
        nodes = local_nodes(config, may_destroy=True, disks=made.disks)
    root = f"{ROOT_PREFIX}{about.run_id}"
    journal.add(RemoveTree(root, str(config.source)))
    access, timeout_s = ClusterAccess.from_config(config), wishes.timeout_s or config.client_timeout_s

    def make_client() -> DfsClient:
        return DfsClient(access, timeout_s=timeout_s)

    run = ChaosRun(
        nodes,
        planned.faults,
        wishes.duration_s,
        wishes.servers_max,
        journal=journal,
        say=lambda at_s, words: say(f"{at_s:7.1f} s  {words}"),
    )
    say(f"clients begin to work in {root} of cluster {config.name!r}; Ctrl-C ends the run and undoes all")
    with Watch(config) as watch, Clients(make_client, root, planned.seed, wishes.duration_s) as clients:
        with _signals_stop(run, say):
            story = run.perform(clients, watch)
        if clients.crash is not None:
            raise clients.crash
        say("looking at everything once more")
        unusable = clients.last_look()
        log = b""
        try:
            log = clients.read_log()
        except DfsError as error:
            unusable.append(f"{clients.log_path}: {error}")
    verdict = judge(clients.history, clients.acknowledged, log, unusable, story, clients.copies)
    return assemble(about, verdict, story, clients.history.timed), (story, clients.history.timed)


@contextlib.contextmanager
def _signals_stop(run: ChaosRun, say: Callable[[str], None]) -> Iterator[None]:
    """Let signals that end programs end the run in good order instead."""

    def stop(number: int, _frame: FrameType | None) -> None:
        if run.is_stopped:
            say("undoing what is broken; this must not be cut short")
        run.stop(f"by {signal.Signals(number).name}")

    with _handled(stop):
        yield


@contextlib.contextmanager
def _hang_up_ends() -> Iterator[None]:
    """Let a terminal that goes away end the run as SIGTERM does, through what undoes it: not at once."""
    ended = signal.getsignal(signal.SIGTERM)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not callable(ended) or signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGHUP, ended)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _signals_held() -> contextlib.AbstractContextManager[None]:
    return _handled(signal.SIG_IGN)


@contextlib.contextmanager
def _handled(handler: SignalHandler | signal.Handlers) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP so for a while; elsewhere than in the main thread that is not possible."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heeded}  # nohup stays what it is
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _again(planned: Planned) -> str:
    """Return the command that repeats a plan."""
    wishes = planned.wishes
    words = ["dfs", "chaos", "run", "--seed", str(planned.seed), "--for", f"{wishes.duration_s:g}s"]
    words += ["--throw-away"] if wishes.config is None else ["--config", str(wishes.config.source)]
    words += [word for kind in wishes.kinds for word in ("--fault", str(kind))]
    words += ["--outage-min", f"{wishes.outage_s[0]:g}s", "--outage-max", f"{wishes.outage_s[1]:g}s"]
    words += ["--servers-down", str(wishes.servers_max)]
    words += [word for name in wishes.names for word in ("--node", name)]
    words += [word for name, pid in wishes.pids for word in ("--pid", f"{name}={pid}")]
    words += ["--systemd"] if wishes.has_systemd else []
    for key, template in asdict(wishes.commands).items():
        words += [f"--{key}-command", template] if template else []
    return shlex.join(words)


# --- undoing


@dataclass(frozen=True, slots=True)
class Undone:
    """What became of one run's journal."""

    run_id: str
    undone: list[str]
    failed: list[str]
    is_alive: bool

    def lines(self, *, is_list: bool) -> Iterator[str]:
        """Yield it for people."""
        if self.is_alive:
            yield f"run {self.run_id} is at work; it undoes all by itself: end it with Ctrl-C"
            return
        yield f"run {self.run_id} is over{':' if self.undone or self.failed else '; nothing was left to undo'}"
        yield from (f"  {'to undo' if is_list else 'undone'}  {words}" for words in self.undone)
        yield from (f"  FAILED  {words}" for words in self.failed)


def undo_unfinished(*, is_list: bool = False) -> list[Undone]:
    """Undo what dead runs of this user left, or only list it."""
    damaged: dict[Path, str] = {}
    readable = unfinished(state_folder(), damaged)
    found = [Undone(path.stem, [], [words], is_alive=False) for path, words in damaged.items()]
    for one in readable:
        steps = [describe(step) for step in reversed(one.steps)]
        if one.is_alive or is_list:
            found.append(Undone(one.head.run_id, [] if one.is_alive else steps, [], one.is_alive))
            continue
        journal = Journal.resume(one.path)
        with _signals_held():
            failed = undo_all(journal)
            journal.close()
        done = [words for words in steps if not any(words in failure for failure in failed)]
        found.append(Undone(one.head.run_id, done, failed, is_alive=False))
    return found
