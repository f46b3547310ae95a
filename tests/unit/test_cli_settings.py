"""Is the right cluster found, are settings kept, and does the shell complete what is there?"""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
import pytest
from click.testing import Result

from dfs.cli.cluster import _config_to_start
from dfs.cli.context import Cli
from dfs.cli.group import cli
from dfs.client import DfsClient, ReadRules
from dfs.client.plan import MASTERS_MAX
from dfs.client.settings import MASTERS_MAX as SETTINGS_MASTERS_MAX
from dfs.config import EMBEDDED_DEFAULT
from dfs.errors import AuthenticationFailed, ConnectionFailed
from dfs.net.parts import MasterStatus
from dfs.testing.memory_client import MemoryClient

Run = Callable[..., Result]


def write_config(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cluster.ini"
    path.write_text(EMBEDDED_DEFAULT.replace("name = dfs", f"name = {name}"), "utf-8")
    return path


def test_the_cluster_is_looked_for_in_the_documented_order(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"DFS_SETTINGS": str(tmp_path / "metadata.json")}

    def found(**options: str) -> str:
        context = Cli(environ={**environ, **options})
        context.config = str(explicit) if "explicit" in options else None
        return context.access()[0].cluster

    explicit = write_config(tmp_path / "1", "explicit")
    from_environment = write_config(tmp_path / "2", "environment")
    run("config", "secret_file", "secret")
    run("config", "cluster", "bare")
    run("config", "masters", "127.0.0.1:1, 127.0.0.1:2")
    assert found() == "bare"
    run("config", "config", write_config(tmp_path / "3", "settings"))
    assert found() == "settings"
    (tmp_path / "4").mkdir()
    write_config(tmp_path / "4", "here")
    monkeypatch.chdir(tmp_path / "4")
    assert found() == "here"
    assert found(DFS_CONFIG=str(from_environment)) == "environment"
    assert found(DFS_CONFIG=str(from_environment), explicit="yes") == "explicit"


def test_without_a_cluster_the_error_says_how_to_get_one(run: Run) -> None:
    result = run("ls", connected=False)
    assert result.exit_code == 6
    assert "start one on this machine with `dfs up`, or name one with --config" in result.stderr
    run("config", "cluster", "half")
    assert "belong together" in run("ls", connected=False).stderr


def test_config_shows_values_with_their_source(run: Run, tmp_path: Path) -> None:
    assert run("config", "replication", "2").exit_code == 0
    shown = run("config", "--timeout", "7").output.splitlines()
    assert shown[0].split() == ["SETTING", "VALUE", "FROM"]
    by_key = {line.split()[0]: line for line in shown[1:]}
    assert by_key["replication"].split()[1:3] == ["2", str(tmp_path / "metadata.json")]
    assert "--timeout" in by_key["timeout_s"]
    assert "default" in by_key["cwd"]
    value = json.loads(run("config", "--json").output)
    assert value["replication"] == {"value": 2, "source": str(tmp_path / "metadata.json")}
    assert run("config", "replication").output == "2\n"
    assert run("config", "--unset", "replication").exit_code == 0
    assert run("config", "replication").output == "0\n"


def test_config_refuses_what_cannot_be(run: Run, tmp_path: Path) -> None:
    impossible = run("config", "replication", "99")
    assert impossible.exit_code == 2
    assert "from 1 to 16" in impossible.stderr
    assert run("config", "replication").output == "0\n"
    assert run("config", "replication", "many").exit_code == 2
    assert run("config", "colour", "red").exit_code == 2
    assert "must be" in run("config", "output", "xml").stderr
    (tmp_path / "metadata.json").write_text("{broken", "utf-8")
    damaged = run("pwd")
    assert damaged.exit_code == 6
    assert "is damaged" in damaged.stderr
    assert damaged.stderr.count("\n") == 1


def test_json_can_be_the_default_output(client: MemoryClient, run: Run) -> None:
    client.touch("/f")
    run("config", "output", "json")
    assert json.loads(run("ls", "/").output)[0]["name"] == "f"


def test_replication_and_timeout_of_the_settings_reach_the_client(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}

    def make(access: object, **options: object) -> MemoryClient:
        seen.update(options)
        return MemoryClient()

    monkeypatch.setattr("dfs.client.filesystem.DfsClient", make)
    run("config", "config", write_config(tmp_path / "1", "x"))
    run("config", "replication", "2")
    assert run("ls", "/", connected=False).exit_code == 0
    assert seen == {"timeout_s": 30.0, "replication": 2, "stale_s": 0.0, "reads": ReadRules()}
    for key, value in (("local_reads", "no"), ("hedged_reads", "no"), ("rack", "r7")):
        assert run("config", key, value).exit_code == 0
        assert run("config", key).output == f"{value}\n"
    run("ls", "/", connected=False)
    assert seen["reads"] == ReadRules(local=False, hedged=False, rack="r7")
    assert "yes or no" in run("config", "local_reads", "perhaps").stderr
    run("config", "local_reads", "yes")
    run("ls", "/", connected=False)
    assert seen["reads"] == ReadRules(local=True, hedged=False, rack="r7")
    run("config", "timeout_s", "11")
    run("ls", "/", connected=False)
    assert seen["timeout_s"] == 11.0
    run("ls", "--timeout", "5", "/", connected=False)
    assert seen["timeout_s"] == 5.0


def test_up_writes_a_default_configuration_only_when_there_is_none(
    run: Run, tmp_path: Path, isolated_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    context = Cli(environ={"DFS_SETTINGS": str(tmp_path / "metadata.json")})
    path, is_new = _config_to_start(context)
    assert is_new
    assert path == isolated_home / ".local/share/dfs/cluster.ini"
    assert path.read_text("utf-8") == EMBEDDED_DEFAULT
    assert _config_to_start(context) == (path, False)
    own = write_config(tmp_path / "own", "own")
    context.config = str(own)
    assert _config_to_start(context) == (own, False)
    assert run("up", "--config", tmp_path / "absent.ini").exit_code == 6


def test_status_of_a_healthy_cluster_ends_with_zero(client: MemoryClient, run: Run) -> None:
    result = run("status")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == "healthy"
    assert lines[3].split() == ["m1", "leader", "7", "42", "m1", "1m01s"]
    assert any(line.split()[:5] == ["c2", "alive", "0.4s", "ago", "12"] for line in lines)
    value = json.loads(run("status", "--json").output)
    assert value["health"] == "healthy"
    assert [server["name"] for server in value["chunk_servers"]] == ["c1", "c2", "c3", "c4"]


def test_status_shows_dead_masters_and_ends_with_one(client: MemoryClient, run: Run) -> None:
    client.masters[2] = ("127.0.0.1:7403", ConnectionFailed("refused"))
    result = run("status")
    assert result.exit_code == 1
    assert result.output.splitlines()[0] == "degraded: master 127.0.0.1:7403 does not answer"
    assert "unreachable" in result.output
    assert json.loads(run("status", "--json").output)["masters"][2]["error"] == "refused"


def test_status_works_without_a_quorum(client: MemoryClient, run: Run) -> None:
    client.masters = [
        MasterStatus("m1", "candidate", 9, 40, 40, "", "0.1.0", 3.0),
        ("127.0.0.1:7402", ConnectionFailed("refused")),
        ("127.0.0.1:7403", ConnectionFailed("refused")),
    ]
    result = run("status")
    assert result.exit_code == 4
    assert result.output.startswith("unreachable: ")
    assert "candidate" in result.output
    assert "1 of 3 masters answer and none of them leads" in result.output
    assert json.loads(run("status", "--json").output)["chunk_servers"] is None


def test_status_tells_a_wrong_secret_from_silence(client: MemoryClient, run: Run) -> None:
    client.masters = [(f"127.0.0.1:740{number}", AuthenticationFailed("wrong secret")) for number in (1, 2, 3)]
    result = run("status")
    assert result.exit_code == 5
    assert result.output.splitlines()[0].count("refuses this client") == 3
    assert "no master leads" not in result.output


def test_status_right_after_an_election_shows_the_new_leader(
    client: MemoryClient, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masters are asked before the leader is waited for: what they said by then is out of date."""
    now = client.masters
    before = [
        msgspec.structs.replace(master, role="follower", leader="gone") for master in cast(list[MasterStatus], now)
    ]
    answers = iter([before, now])
    monkeypatch.setattr(client, "master_statuses", lambda: next(answers))
    reply = client.cluster_status()
    silent = msgspec.structs.replace(reply.servers[0], state="late", heartbeat_age_s=-1.0)
    client.status_reply = msgspec.structs.replace(reply, servers=(silent, *reply.servers[1:]))
    lines = run("status").output.splitlines()
    assert lines[0] == "degraded: chunk server c1 has not reported to the new leader yet"
    assert lines[3].split()[:5] == ["m1", "leader", "7", "42", "m1"]


def test_limits_of_settings_and_client_agree() -> None:
    assert SETTINGS_MASTERS_MAX == MASTERS_MAX


def completions(client: MemoryClient, words: str, monkeypatch: pytest.MonkeyPatch, settings: Path) -> list[str]:
    from click.shell_completion import BashComplete

    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    context = Cli(environ={"DFS_SETTINGS": str(settings)}, client=cast(DfsClient, client))
    answer = BashComplete(cli, {"obj": context}, "dfs", "_DFS_COMPLETE").complete()
    return [line.partition(",")[2] for line in answer.splitlines()]


def test_the_shell_completes_verbs_options_and_remote_paths(
    client: MemoryClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client.put(io.BytesIO(b""), "/docs/a b.txt", parents=True)
    client.put(io.BytesIO(b""), "/docs/line\nbreak")
    client.put(io.BytesIO(b""), "/dog")

    def complete(words: str) -> list[str]:
        return completions(client, words, monkeypatch, tmp_path / "m.json")

    assert complete("dfs mk") == ["mkdir"]
    assert complete("dfs copyTo") == ["copyToLocal"]
    assert complete("dfs ls /do") == ["/docs/", "/dog"]
    assert complete("dfs cd /do") == ["/docs/"]
    assert complete("dfs ls /docs/") == ["/docs/a b.txt"], "names with control characters are left out"
    assert complete("dfs ls d") == ["docs/", "dog"]
    assert complete("dfs get /dog /do") == ["/do"], "then the shell completes local files"
    assert complete("dfs put x /do") == ["/docs/", "/dog"]
    assert "--sha256" in complete("dfs checksum --")
    assert complete("dfs config rep") == ["replication"]


def test_completion_is_silent_when_the_cluster_is_away(
    client: MemoryClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client.down = ConnectionFailed("refused")
    assert completions(client, "dfs ls /do", monkeypatch, tmp_path / "m.json") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed_for_each_shell(run: Run, shell: str) -> None:
    script = run("completion", shell).output
    assert f"_DFS_COMPLETE={shell}_complete" in script


def test_bash_understands_the_completion_script(run: Run, tmp_path: Path) -> None:
    (tmp_path / "completion.bash").write_text(run("completion", "bash").output, "utf-8")
    fake = tmp_path / "dfs"
    fake.write_text('#!/bin/sh\nprintf "plain,/docs/\\nplain,/a b\\n"\n', "utf-8")
    fake.chmod(0o755)
    test = (
        f"source {tmp_path}/completion.bash; COMP_WORDS=(dfs ls /); COMP_CWORD=2; compopt() {{ :; }};"
        f' _dfs_completion {fake}; printf "%s|" "${{COMPREPLY[@]}}"'
    )
    result = subprocess.run(["bash", "-c", test], capture_output=True, check=True, env=dict(os.environ))
    assert result.stdout == b"/docs/|/a\\ b|", result.stderr
