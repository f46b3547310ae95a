"""Show the main job for real: store files in a fresh cluster, kill the leader meanwhile, read all back, compare.

Owns: the demo of `make demo`: its steps, what it prints, and that it leaves nothing behind. Refuses to know: how the
system does it; it types what a user would type.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from dfs.clock import Deadline
from dfs.config import GIB, MIB
from dfs.errors import DfsError
from dfs.testing.cluster import ClusterUnderTest, wait_until

TREE_FILES_MIN = 2000
COPIES = 3
SPACE_FACTOR = 5.5  # the big file once as source, three times as replicas, once read back, and the tree
BLOCK = 4 * MIB
COMMAND_TIMEOUT_S = 170.0
PRODUCTION = {  # the values of the default cluster.ini, not the hasty ones of tests
    "heartbeat_interval": "1 s",
    "dead_after": "10 s",
    "repair_after": "60 s",
    "client_timeout": "30 s",
    "disk_reserve": "256 MiB",
}


class Failure(Exception):
    """The demo did not show what it should."""


class Terminated(BaseException):
    """Somebody asked the demo to end; like KeyboardInterrupt, it unwinds everything."""


class Demo:
    """One run in one temporary folder."""

    def __init__(self, folder: Path, size: int) -> None:
        self._size = size
        self._folder = folder
        self._tree = folder / "tree"
        self._big = folder / "big.bin"
        self._back = folder / "back"
        self._commands: list[subprocess.Popen[bytes]] = []
        self._started = time.monotonic()
        self._cluster = ClusterUnderTest(folder, chunk_size=64 * MIB, settings=PRODUCTION)

    def run(self) -> None:
        cluster = self._cluster
        with step("starting 3 masters and 4 chunk servers on free ports, with a secret of their own"):
            cluster.up()
        self._show("status")
        with step("collecting the Python standard library and 1 random file") as note:
            count, tree_size = collect_standard_library(self._tree)
            digest = write_random(self._big, self._size)
            note(f"{count} files of {tree_size / MIB:.0f} MiB, and {self._size / GIB:.2f} GiB")
        with step(f"dfs put -r tree /python   ({COPIES} replicas)") as note:
            seconds = self._dfs("put", "-r", str(self._tree), "/python")
            note(f"{count / seconds:.0f} files/s")
        self._put_while_the_leader_dies()
        self._show("ls", "-l", "-h", "/")
        with step("dfs get -r /python, comparing SHA-256 of every file"):
            self._back.mkdir()
            self._dfs("get", "-r", "/python", str(self._back / "tree"))
            compare_trees(self._tree, self._back / "tree", count)
        with step("dfs get /big.bin, comparing SHA-256") as note:
            seconds = self._dfs("get", "/big.bin", str(self._back / "big.bin"))
            note(f"{self._size / MIB / seconds:.0f} MiB/s")
            if sha256_of(self._back / "big.bin") != digest:
                raise Failure("/big.bin came back changed")
        self._show("status")
        seconds = time.monotonic() - self._started
        print(
            f"\nSUCCESS: {count} files and {self._size / GIB:.2f} GiB stored {COPIES} times, the leader killed with -9"
        )
        print(f"in the middle, every byte read back and compared by SHA-256, in {seconds:.0f} s")

    def _put_while_the_leader_dies(self) -> None:
        cluster = self._cluster
        leader = cluster.leader()
        before = stored_size(cluster)
        with step(f"dfs put big.bin /big.bin, and kill -9 of the leader ({leader}) in the middle") as note:
            start = time.monotonic()
            put = self._begin("put", str(self._big), "/big.bin")
            wait_until(
                lambda: stored_size(cluster) - before > self._size or put.poll() is not None,
                COMMAND_TIMEOUT_S,
                "it is under way",
            )
            if put.poll() is not None:
                raise Failure("the put ended before the leader could be killed: make the file larger with --size")
            cluster.kill(leader)
            killed = time.monotonic()
            with cluster.client() as client:
                client.stat("/")
            pause = time.monotonic() - killed
            self._end(put)
            note(
                f"{self._size / MIB / (time.monotonic() - start):.0f} MiB/s; {cluster.leader()} led after {pause:.2f} s"
            )
        with step(f"starting {leader} again"):
            cluster.local.start(leader)
            cluster.local.wait_healthy(Deadline.after(60))

    def close(self) -> None:
        for command in self._commands:
            if command.poll() is None:
                command.kill()
                command.wait()
        self._cluster.close()
        if self._cluster.local.pids():
            raise Failure(f"processes were left behind: {self._cluster.local.pids()}")

    def show_logs(self) -> None:
        self._cluster.show_logs()

    def _begin(self, *arguments: str) -> subprocess.Popen[bytes]:
        environ = {
            **os.environ,
            "DFS_CONFIG": str(self._cluster.config_path),
            "DFS_SETTINGS": str(self._folder / "metadata.json"),
        }
        command = subprocess.Popen(
            [sys.executable, "-P", "-m", "dfs", *arguments], stdin=subprocess.DEVNULL, env=environ
        )
        self._commands.append(command)
        return command

    def _end(self, command: subprocess.Popen[bytes]) -> None:
        if command.wait(COMMAND_TIMEOUT_S) != 0:
            raise Failure(f"{command.args!r} ended with exit code {command.returncode}")

    def _dfs(self, *arguments: str) -> float:
        """Run one command to its end; return the seconds it took."""
        start = time.monotonic()
        self._end(self._begin(*arguments))
        return time.monotonic() - start

    def _show(self, *arguments: str) -> None:
        print(f"\n$ dfs {' '.join(arguments)}", flush=True)
        self._dfs(*arguments)
        print(flush=True)


class Note:
    """What a step says about itself when it is done."""

    def __init__(self) -> None:
        self.text = ""

    def __call__(self, text: str) -> None:
        self.text = f"  ({text})"


@contextmanager
def step(what: str) -> Iterator[Note]:
    print(f"• {what} …", flush=True)
    note = Note()
    start = time.monotonic()
    yield note
    print(f"  done in {time.monotonic() - start:.1f} s{note.text}", flush=True)


def collect_standard_library(target: Path) -> tuple[int, int]:
    """Copy the standard library to `target`; return the number of files and their bytes.

    Compiled files, and then the installed packages, are taken along only where a distribution ships so few sources
    that they are needed.
    """
    folders = sysconfig.get_paths()
    library, packages = Path(folders["stdlib"]), Path(folders["purelib"])
    for source, ignored in (
        (library, ("site-packages", "dist-packages", "__pycache__")),
        (library, ("site-packages", "dist-packages")),
        (packages, ()),
    ):
        into = target if source == library else target / packages.name
        ignore = shutil.ignore_patterns(*ignored)
        shutil.copytree(source, into, ignore=ignore, ignore_dangling_symlinks=True, dirs_exist_ok=True)
        files = [path for path in target.rglob("*") if path.is_file()]
        if len(files) >= TREE_FILES_MIN:
            return len(files), sum(path.stat().st_size for path in files)
    raise Failure(f"{library} and {packages} have only {len(files)} files, {TREE_FILES_MIN} are needed")


def write_random(path: Path, size: int) -> str:
    """Write `size` bytes that do not compress and are never the same again; return their SHA-256."""
    digest = hashlib.sha256()
    stream = Cipher(algorithms.AES(os.urandom(16)), modes.CTR(os.urandom(16))).encryptor()  # faster than os.urandom
    with path.open("wb") as file:
        for start in range(0, size, BLOCK):
            block = stream.update(bytes(min(BLOCK, size - start)))
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare_trees(expected: Path, actual: Path, count: int) -> None:
    """Raise `Failure` unless both trees hold the same files with the same bytes."""
    names = sorted(path.relative_to(expected) for path in expected.rglob("*") if path.is_file())
    found = sorted(path.relative_to(actual) for path in actual.rglob("*") if path.is_file())
    if names != found or len(names) != count:
        raise Failure(f"{len(names)} files were stored and {len(found)} came back: {set(names) ^ set(found)}")
    for name in names:
        if sha256_of(expected / name) != sha256_of(actual / name):
            raise Failure(f"{name} came back changed")


def stored_size(cluster: ClusterUnderTest) -> int:
    """Return the bytes of all files in the data directories of the chunk servers, unfinished ones as well."""
    total = 0
    for server in cluster.config.chunk_servers:
        for folder in server.data_dirs:
            for path in folder.rglob("*"):
                try:
                    total += path.stat().st_size if path.is_file() else 0
                except FileNotFoundError:  # renamed meanwhile
                    continue
    return total


def roomy_folder(needed: int) -> Path:
    """Return a folder with enough free space: the system's temporary one, /var/tmp, or the current one."""
    candidates = [Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()]  # noqa: S108 - mkdtemp comes next
    for folder in candidates:
        if folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free >= needed:
            return folder
    listed = ", ".join(str(folder) for folder in candidates)
    raise Failure(f"{needed / GIB:.1f} GiB of free space are needed in one of {listed}; name another one with TMPDIR")


def _terminate(number: int, _: FrameType | None) -> None:
    raise Terminated(signal.Signals(number).name)


def run(size: int) -> int:
    """Run the demo; return the exit code. Whatever happens, processes and files are gone afterwards."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _terminate)
    folder: Path | None = None
    demo: Demo | None = None
    try:
        room = roomy_folder(int(size * SPACE_FACTOR) + GIB)
        folder = Path(tempfile.mkdtemp(prefix="dfs-demo-", dir=room))
        demo = Demo(folder, size)
        demo.run()
        code = 0
    except (Failure, DfsError, OSError, subprocess.TimeoutExpired) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        if demo is not None:
            demo.show_logs()
        code = 1
    except Terminated as error:
        print(f"\nended by {error}; cleaning up", file=sys.stderr)
        code = 130
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if demo is not None:
            demo.close()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    return code


def main() -> None:
    parser = argparse.ArgumentParser(description="Store real files, kill the leader meanwhile, read all back.")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="size of the large file (default 1024)")
    sys.exit(run(parser.parse_args().size * MIB))


if __name__ == "__main__":
    main()
