"""A real cluster on loopback for tests: own ports, own secret, own folder, and nothing left behind.

Owns: writing a test's cluster.ini, and cleaning up. Refuses to know: how processes are run (dfs.local).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from dfs.client import ClusterAccess, DfsClient, ReadRules
from dfs.clock import Deadline
from dfs.config import MIB, load_config
from dfs.errors import DeadlineExceeded, DfsError
from dfs.local.cluster import LocalCluster
from dfs.local.loopback import cluster_ini
from dfs.net.parts import MasterStatus
from dfs.testing.replicas import StoredReplica, stored_in

WAIT_S = 60.0  # patience on a busy test machine; nothing waits that long on a good day
EVERYWHERE: Final[Mapping[str, str]] = {}


class ClusterUnderTest:
    """A running cluster in `folder`/cluster (or a temporary folder); a context manager that starts and ends it.

    `settings` are keys of [cluster]: {"dead_after": "2 s"}. Masters are m1, m2, …, chunk servers c1, c2, …
    `hosts` and `launchers` say where nodes listen and what starts them, when that is not this machine's loopback.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        masters: int = 3,
        chunk_servers: int = 4,
        disks: int = 1,
        chunk_size: int = MIB,
        settings: Mapping[str, str] | None = None,
        hosts: Mapping[str, str] | None = None,
        launchers: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._owned = Path(tempfile.mkdtemp(prefix="dfs-test-")) if folder is None else None
        self.folder = (folder or self._owned or Path()) / "cluster"
        self.folder.mkdir(exist_ok=True)  # disks may be mounted in it
        self.config_path = self.folder / "cluster.ini"
        settings = {"chunk_size": f"{chunk_size} B", **(settings or {})}
        text = cluster_ini(masters, chunk_servers, disks, settings, hosts or {})
        self.config_path.write_text(text, encoding="utf-8")
        self.config = load_config(self.config_path)
        self.local = LocalCluster(self.config, launchers)
        self.access = ClusterAccess.from_config(self.config)

    def __enter__(self) -> ClusterUnderTest:
        try:
            self.up()
        except BaseException:
            self.show_logs()
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self.show_logs()
        self.close()

    def names(self) -> tuple[str, ...]:
        """All nodes, masters first."""
        return self.local.names

    def up(self, wait_s: float = WAIT_S) -> None:
        """Start what does not run and wait until all is healthy."""
        self.local.up(wait_s)

    def client(
        self,
        *,
        timeout_s: float | None = None,
        replication: int = 0,
        parallel: int = 4,
        stale_s: float = 0.0,
        reads: ReadRules | None = None,
    ) -> DfsClient:
        """Return a new client; the caller closes it."""
        return DfsClient(
            self.access,
            timeout_s=self.config.client_timeout_s if timeout_s is None else timeout_s,
            replication=replication,
            parallel=parallel,
            stale_s=stale_s,
            reads=reads or ReadRules(),
        )

    def run_cli(
        self, *arguments: str, stdin: bytes = b"", timeout_s: float = 100
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `dfs` with these arguments as a user of this cluster would; never raises for its exit code."""
        environ = {
            **os.environ,
            "DFS_CONFIG": str(self.config_path),
            "DFS_SETTINGS": str(self.folder / "metadata.json"),
            "PYTHONFAULTHANDLER": "1",  # a crash of an extension module tells where
        }
        command = [sys.executable, "-P", "-m", "dfs", *arguments]
        return subprocess.run(  # noqa: S603 - the caller is a test
            command, input=stdin, capture_output=True, env=environ, timeout=timeout_s, check=False
        )

    def log_of(self, name: str) -> str:
        """Return the whole log of a node."""
        return self.local.log_path(name).read_text(encoding="utf-8", errors="replace")

    def replicas(self, name: str) -> list[StoredReplica]:
        """Return the replicas that lie on the disks of a chunk server, oldest first."""
        folders = self.config.chunk_server(name).data_dirs
        return [replica for folder in folders for replica in stored_in(folder)]

    def start(self, name: str) -> None:
        """Start one node; does not wait until it is healthy."""
        self.local.start(name)

    def stop(self, name: str) -> None:
        """Stop one node in good order."""
        self.local.stop(name)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal one node (SIGSTOP and SIGCONT pause and resume it) and, if that ends it, wait for its end."""
        self.local.kill(name, number)

    def restart(self, name: str, *, wait_s: float = WAIT_S) -> None:
        """Kill `name` if it runs, start it, and wait until all running nodes are healthy."""
        if name in self.local.pids():
            self.local.kill(name)
        self.local.start(name)
        self.wait_healthy(wait_s)

    def wait_healthy(self, wait_s: float = WAIT_S) -> None:
        """Wait until all nodes that shall run agree on a leader, and it hears all chunk servers."""
        self.local.wait_healthy(Deadline.after(wait_s))

    def leader(self, wait_s: float = WAIT_S) -> str:
        """Return the name of the master that says itself that it leads, waiting for one."""
        found: list[str] = []

        def is_led() -> bool:
            with self.client(timeout_s=3) as client:
                statuses = [status for status in client.master_statuses() if isinstance(status, MasterStatus)]
            found[:] = [status.name for status in statuses if status.role == "leader"]
            return len(found) == 1

        wait_until(is_led, wait_s, "one master leads")
        return found[0]

    def close(self) -> None:
        """End every node and remove every file."""
        for name in self.local.names:
            with contextlib.suppress(DfsError):  # most often: it does not run
                self.local.kill(name)
        if self._owned is not None:
            shutil.rmtree(self._owned, ignore_errors=True)

    def show_logs(self) -> None:
        """Print the end of every log to stderr."""
        for name in self.local.names:
            print(f"--- {name}\n{self.local.log_tail(name, 40)}", file=sys.stderr)  # noqa: T201 - pytest shows it


def copy_living(source: Path, target: Path) -> None:
    """Copy a data directory whose server runs: what goes meanwhile is not copied."""

    def copied(path: str, to: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(path, to)

    shutil.copytree(source, target, copy_function=copied)


def wait_until(condition: Callable[[], bool], wait_s: float, what: str, *, interval_s: float = 0.05) -> None:
    """Return as soon as `condition()` holds; raise `DeadlineExceeded` naming `what` when it does not in time."""
    deadline = Deadline.after(wait_s)
    while not condition():
        if deadline.has_passed:
            raise DeadlineExceeded(f"it did not come true within {wait_s:g} s that {what}")
        time.sleep(interval_s)
