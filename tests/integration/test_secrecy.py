"""Does the secret stay in its file, and what a cluster stores with its user, whatever the umask?

One real cluster, started with no umask at all; it is used, attacked, and looked through.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.clock import Deadline
from dfs.errors import AuthenticationFailed
from dfs.net.auth import ClusterKey
from dfs.net.blocking import Channel
from dfs.testing.cluster import ClusterUnderTest

pytestmark = pytest.mark.timeout(240)
PRIVATE = 0o077  # nobody else reads, writes or enters


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    before = os.umask(0)
    try:
        folder = tmp_path_factory.mktemp("open")
        with ClusterUnderTest(folder, chunk_servers=3, settings={"garbage_grace": "1 s"}) as made:
            use(made)
            yield made
    finally:
        os.umask(before)


def use(cluster: ClusterUnderTest) -> None:
    """Leave a trace of every kind: small and large chunks, tails, checkpoints, settings, refused peers."""
    with cluster.client() as client:
        client.put(io.BytesIO(b"large" * 100_000), "/large")
        client.put(io.BytesIO(b"small"), "/small")
        client.append_record("/log", b"record")
        client.copy("/log", "/sealed")
        client.append_record("/log", b"another")
    stranger = ClusterKey.from_secret(b"not the secret of this cluster!!", cluster.config.name)
    for address in (cluster.config.masters[0].address, cluster.config.chunk_servers[0].address):
        with pytest.raises(AuthenticationFailed):
            Channel.connect(address, stranger, Deadline.after(20))
    for words in (("admin", "checkpoint", "--all"), ("cd", "/"), ("admin", "masters"), ("doctor",)):
        cluster.run_cli(*words)
    assert (cluster.folder / "metadata.json").exists(), "the settings were written"


def secrets_of(cluster: ClusterUnderTest) -> dict[str, bytes]:
    """Return the secret and all that is derived of it for good, as bytes and in hex."""
    text = cluster.config.secret_file.read_bytes().strip()
    key = ClusterKey.load(cluster.config.secret_file, cluster.config.name)
    known = {"the secret": bytes.fromhex(text.decode())}
    known |= {name: value for name in ("handshake_key", "token_key", "raft_key") if (value := getattr(key, name))}
    return known | {f"{name} in hex": value.hex().encode() for name, value in known.items()} | {"its text": text}


def found_in(content: bytes, secrets: dict[str, bytes]) -> list[str]:
    lower = content.lower()
    return [name for name, value in secrets.items() if value in content or value.lower() in lower]


def below(cluster: ClusterUnderTest) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield all that lies in the cluster's folder; its daemons go on working, so what is gone by then is left out."""
    for path in cluster.folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            yield path, path.lstat()


def content_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def test_no_file_but_its_own_holds_the_secret(cluster: ClusterUnderTest) -> None:
    secrets = secrets_of(cluster)
    assert found_in(b"x" + secrets["its text"].upper() + b"y", secrets), "it would be found"
    contents = {str(path): content_of(path) for path, status in below(cluster) if stat.S_ISREG(status.st_mode)}
    assert found_in(contents.pop(str(cluster.config.secret_file)), secrets), "it is found where it is"
    assert sum(map(bool, contents.values())) > 20
    leaks = {path: names for path, content in contents.items() if (names := found_in(content, secrets))}
    assert leaks == {}
    assert any("handshake" in cluster.log_of(name) or "refused" in cluster.log_of(name) for name in cluster.names())


def test_neither_command_line_nor_environment_of_a_daemon_holds_the_secret(cluster: ClusterUnderTest) -> None:
    secrets, pids = secrets_of(cluster), cluster.local.pids()
    assert sorted(pids) == sorted(cluster.names())
    for pid in pids.values():
        for name in ("cmdline", "environ"):
            content = Path(f"/proc/{pid}/{name}").read_bytes()
            assert content, "it can be read"
            assert found_in(content, secrets) == []


def test_commands_do_not_print_the_secret(cluster: ClusterUnderTest) -> None:
    secrets = secrets_of(cluster)
    for words in (("doctor",), ("status", "--json"), ("config",), ("admin", "export"), ("--debug", "ls", "/missing")):
        done = cluster.run_cli(*words)
        assert done.stdout + done.stderr
        assert found_in(done.stdout + done.stderr, secrets) == [], words


def test_all_that_is_stored_is_its_users_alone_whatever_the_umask(cluster: ClusterUnderTest) -> None:
    given = {cluster.config_path}  # by the test
    wide = {
        str(path.relative_to(cluster.folder)): oct(stat.S_IMODE(status.st_mode))
        for path, status in below(cluster)
        if path not in given and status.st_mode & PRIVATE
    }
    assert wide == {}
