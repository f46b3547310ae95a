"""Does a chunk server start only when it can, and stop when it is told?"""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from dfs.chunk import daemon
from dfs.chunk.daemon import run, serve
from dfs.chunk.identity import IDENTITY_FILE
from dfs.clock import Deadline
from dfs.config import ChunkServerConfig, ClusterConfig, MasterConfig
from dfs.errors import ConfigError, ConnectionFailed
from dfs.fast_paths import VARIABLE
from dfs.ids import ServerId
from dfs.local.ports import free_ports
from dfs.net.auth import ClusterKey, make_secret
from dfs.net.blocking import Channel
from dfs.net.listener import Listener
from dfs.net.local import LocalChannel
from dfs.net.messages import Ping, Pong


@pytest.fixture
def config(tmp_path: Path) -> ClusterConfig:
    """A cluster whose one chunk server has a free port, and whose master is not there."""
    make_secret(tmp_path / "secret")
    server, master = (f"127.0.0.1:{port}" for port in free_ports(2))
    return ClusterConfig(
        source=tmp_path / "cluster.ini",
        name="test",
        secret_file=tmp_path / "secret",
        run_dir=tmp_path,
        masters=(MasterConfig(name="m1", address=master, raft_address="127.0.0.1:1", data_dir=tmp_path / "m1"),),
        chunk_servers=(ChunkServerConfig(name="c1", address=server, data_dirs=(tmp_path / "c1",), rack="r1"),),
        disk_reserve=0,
    )


def connected(address: str, key: ClusterKey, deadline: Deadline) -> Channel:
    """Connect to a chunk server that is about to listen."""
    while True:
        try:
            return Channel.connect(address, key, deadline)
        except ConnectionFailed:
            deadline.check("waiting for a chunk server to listen")


def test_chunk_server_answers_until_it_is_stopped_even_without_a_master(config: ClusterConfig) -> None:
    server = config.chunk_server("c1")
    key = ClusterKey.load(config.secret_file, config.name)
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(config, server, key, stop), daemon=True)
    thread.start()
    deadline = Deadline.after(20)
    try:
        with connected(server.address, key, deadline) as channel:
            reply = channel.call(Ping(), deadline)
            assert isinstance(reply, Pong)
            assert (reply.node, reply.role) == ("c1", "chunk")
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()
    with pytest.raises(ConnectionFailed):
        Channel.connect(server.address, key, Deadline.after(5))


def test_start_with_a_taken_port_or_without_its_secret_is_refused(
    config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "configure", lambda *_arguments: None)  # the log of the test run stays as it is
    taken = Listener.bind(config.chunk_server("c1").address)
    try:
        with pytest.raises(ConfigError):
            run(config, "c1", log_level="error")
    finally:
        taken.close()
    config.secret_file.unlink()
    with pytest.raises(ConfigError, match="secret"):
        run(config, "c1", log_level="error")
    with pytest.raises(ConfigError, match="c9"):
        run(config, "c9", log_level="error")


@pytest.mark.parametrize(("is_wanted", "without"), [(True, ""), (False, ""), (True, "local-reads,memory-door")])
def test_the_local_door_is_open_where_configuration_and_environment_say_so(
    config: ClusterConfig, monkeypatch: pytest.MonkeyPatch, is_wanted: bool, without: str
) -> None:
    monkeypatch.setenv(VARIABLE, without)
    is_open = is_wanted and not without
    config = replace(config, local_reads=is_wanted)
    server = config.chunk_server("c1")
    key = ClusterKey.load(config.secret_file, config.name)
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(config, server, key, stop), daemon=True)
    thread.start()
    deadline = Deadline.after(20)
    try:
        connected(server.address, key, deadline).close()
        identity = json.loads((server.data_dirs[0] / IDENTITY_FILE).read_text("utf-8"))
        server_id = ServerId(bytes.fromhex(identity["server_id"]))
        if is_open:
            LocalChannel.enter(server_id, key, deadline).close()
        else:
            with pytest.raises(ConnectionFailed):
                LocalChannel.enter(server_id, key, deadline)
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()
    with pytest.raises(ConnectionFailed):
        LocalChannel.enter(server_id, key, Deadline.after(5))
