"""Keeps looking at the cluster while it is broken, so that the guard decides on what is, not on what was planned.

Owns: the thread that asks, and since when whom nobody heard. Refuses to know: what is dangerous (dfs.chaos.guard).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType

from dfs.chaos.guard import ClusterView, MasterView, ServerView, Weakest
from dfs.client import ClusterAccess, DfsClient
from dfs.client.fsck import judge_chunk
from dfs.config import ClusterConfig
from dfs.errors import DfsError
from dfs.net.messages import GetClusterStatusReply
from dfs.net.parts import MasterStatus

CALL_TIMEOUT_S = 3.0  # a paused master holds up a round for so long
INTERVAL_S = 0.2


class Watch:
    """A context manager; `view` is the latest look, replaced as a whole. `look` asks now."""

    def __init__(self, config: ClusterConfig) -> None:
        self.crash: Exception | None = None
        self._client = DfsClient(ClusterAccess.from_config(config), timeout_s=CALL_TIMEOUT_S)
        self._names: Mapping[str, str] = {master.address: master.name for master in config.masters}
        self._heard_s: dict[str, float] = {}
        self._told: GetClusterStatusReply | None = None
        self._told_s = time.monotonic()
        self._single_since_s: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.view = self.look()

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._run, name="chaos-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, if there is one, and the connections."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._client.close()

    def _run(self) -> None:
        try:
            while not self._stop.wait(INTERVAL_S):
                self.view = self.look()
        except Exception as error:  # noqa: BLE001 - a thread root; the run stops for it and raises it
            self.crash = error

    def look(self) -> ClusterView:
        """Ask every master, and the leader for the rest."""
        begun_s = time.monotonic()
        masters = self._masters(begun_s)
        blind_s = 0.0
        try:
            if not any(master.role == "leader" for master in masters):
                raise DfsError("no master leads")
            self._told, self._told_s = self._client.cluster_status(), begun_s
        except DfsError:
            blind_s = max(begun_s - self._told_s, CALL_TIMEOUT_S / 1000)
        view = _view(begun_s, masters, self._told, blind_s)
        self._single_since_s = (self._single_since_s or begun_s) if view.single else None
        return replace(view, single_s=begun_s - self._single_since_s if self._single_since_s else 0.0)

    def _masters(self, now_s: float) -> tuple[MasterView, ...]:
        found = []
        for answer in self._client.master_statuses():
            if isinstance(answer, MasterStatus):
                self._heard_s[answer.name] = now_s
                found.append(MasterView(answer.name, answer.role))
            else:
                name = self._names.get(answer[0], answer[0])
                silent_s = max(now_s - self._heard_s.setdefault(name, now_s), CALL_TIMEOUT_S / 1000)
                found.append(MasterView(name, "", silent_s))
        return tuple(sorted(found, key=lambda master: master.name))


def _view(
    at_s: float, masters: tuple[MasterView, ...], told: GetClusterStatusReply | None, blind_s: float
) -> ClusterView:
    if told is None:
        return ClusterView(at_s, masters, blind_s=blind_s)
    servers = [
        ServerView(server.info.name, server.state, server.mode, any(disk.state == "failed" for disk in server.disks))
        for server in told.servers
    ]
    return ClusterView(
        at_s,
        masters,
        tuple(sorted(servers, key=lambda server: server.name)),
        told.replication,
        told.space.under_replicated_live,
        told.space.missing,
        told.healing.waiting[1] if told.healing.is_surveyed else 0,
        blind_s=blind_s,
    )


def find_weakest(client: DfsClient) -> Weakest:
    """Walk over all files of the cluster and return the chunk with the fewest live replicas."""
    weakest = Weakest()
    for page in client.inspection.survey("/"):
        counts = [judge_chunk(chunk, page.servers, {}, frozenset()).good_count for chunk in page.chunks]
        for file in page.files:
            for extent in file.extents:
                if not weakest.path or counts[extent.chunk] < weakest.replicas:
                    weakest = Weakest(f"/{file.path}", counts[extent.chunk])
    return weakest
