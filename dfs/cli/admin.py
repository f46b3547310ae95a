"""The verbs of administrators: `admin masters`, `transfer-leader`, `checkpoint`, `export`, `import`.

Owns: which masters are meant, and what is printed. Refuses to know: how it is done (dfs.client.admin, dfs.master.export
and dfs.master.restore).
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from dfs.cli import output
from dfs.cli.admin_servers import SERVER_VERBS
from dfs.cli.context import Cli
from dfs.cli.repack import admin_repack
from dfs.cli.report import admin_report
from dfs.cli.subverbs import Subverbs
from dfs.cli.tail_ending import admin_tail
from dfs.cli.verb import Verb, json_option, pass_cli
from dfs.cli.wall import EXIT_FAILED, LocalError, exit_code_of
from dfs.client.local_files import local_error
from dfs.errors import ConfigError, DfsError, InvalidArgument

if TYPE_CHECKING:
    from dfs.client.admin import MasterAnswer
    from dfs.config import ClusterConfig, MasterConfig
    from dfs.net.parts import CheckpointStatus

_UNKNOWN: Final = "-"


@click.group("admin", cls=Subverbs)
def admin_verb() -> None:
    """Look after the cluster: masters (leader, checkpoints, export), chunk servers (drain, balance), packed files."""


for _verb in SERVER_VERBS:
    admin_verb.add_command(_verb)


admin_verb.add_command(admin_report)
admin_verb.add_command(admin_repack)
admin_verb.add_command(admin_tail)


# --- masters


@admin_verb.command("masters", cls=Verb)
@json_option
@pass_cli
def admin_masters(cli: Cli, as_json: bool) -> None:
    """Show each master: its role, how far it is behind the leader, its last checkpoint; exit code 1: one is silent."""
    nodes = _nodes(cli)
    answers = sorted(cli.client.admin.masters(), key=lambda answer: (_name(answer, nodes), answer.address))
    lead = max((a.status.commit for a in answers if a.status is not None and a.status.role == "leader"), default=None)
    if cli.wants_json(as_json):
        output.print_json([_master_json(answer, nodes, lead) for answer in answers])
    else:
        rows = [_master_row(answer, nodes, lead) for answer in answers]
        header = ("NAME", "ROLE", "TERM", "COMMIT", "APPLIED", "LAG", "LEADER", "CHECKPOINT", "AGE", "SIZE", "UP")
        for text in output.table([(*header, "ADDRESS", "RAFT ADDRESS"), *rows], right=(2, 3, 4, 5, 7, 8, 9, 10)):
            output.line(text)
        for answer in answers:
            if answer.error is not None:
                click.echo(f"dfs: admin masters: {output.escape_controls(answer.error.message)}", err=True)
    errors = [answer.error for answer in answers if answer.error is not None]
    if errors and len(errors) == len(answers):
        raise click.exceptions.Exit(exit_code_of(errors[0]))
    if lead is None or errors:
        raise click.exceptions.Exit(EXIT_FAILED)


def _nodes(cli: Cli) -> dict[str, MasterConfig]:
    """Return the sections of masters by client address, as far as a cluster.ini tells them."""
    path = cli.find_config()
    if path is None:
        return {}
    from dfs.config import load_config

    return {master.address: master for master in load_config(path).masters}


def _name(answer: MasterAnswer, nodes: dict[str, MasterConfig]) -> str:
    node = nodes.get(answer.address)
    return answer.name or (node.name if node is not None else answer.address)


def _raft_address(answer: MasterAnswer, nodes: dict[str, MasterConfig]) -> str | None:
    node = nodes.get(answer.address)
    return None if node is None else node.raft_address


def _master_row(answer: MasterAnswer, nodes: dict[str, MasterConfig], lead: int | None) -> tuple[str, ...]:
    name, where = _name(answer, nodes), (answer.address, _raft_address(answer, nodes) or _UNKNOWN)
    status = answer.status
    if status is None:
        return (name, "silent", *[_UNKNOWN] * 9, *where)
    has_checkpoint = status.checkpoint_index > 0
    return (
        name,
        status.role,
        str(status.term),
        str(status.commit),
        str(status.applied),
        _UNKNOWN if lead is None else str(max(0, lead - status.applied)),
        status.leader or "nobody",
        str(status.checkpoint_index) if has_checkpoint else "none",
        output.duration_text(status.checkpoint_age_s) if has_checkpoint else _UNKNOWN,
        output.human_size(status.checkpoint_size) if has_checkpoint else _UNKNOWN,
        output.duration_text(status.uptime_s),
        *where,
    )


def _master_json(answer: MasterAnswer, nodes: dict[str, MasterConfig], lead: int | None) -> dict[str, Any]:
    status = answer.status
    where = {"address": answer.address, "raft_address": _raft_address(answer, nodes)}
    if status is None:
        assert answer.error is not None, "a master answers or fails"
        return {"name": _name(answer, nodes), "role": "silent", **where, "error": answer.error.message}
    checkpoint = {
        "index": status.checkpoint_index,
        "size": status.checkpoint_size,
        "age_s": round(status.checkpoint_age_s, 3),
    }
    return {
        "name": status.name,
        "role": status.role,
        **where,
        "term": status.term,
        "commit": status.commit,
        "applied": status.applied,
        "lag": None if lead is None else max(0, lead - status.applied),
        "leader": status.leader or None,
        "stale_s": None if status.stale_s < 0 else round(status.stale_s, 3),
        "checkpoint": checkpoint if status.checkpoint_index else None,
        "uptime_s": round(status.uptime_s, 3),
        "version": status.version,
    }


# --- leadership


@admin_verb.command("transfer-leader", cls=Verb)
@click.argument("name", required=False)
@json_option
@pass_cli
def admin_transfer_leader(cli: Cli, name: str | None, as_json: bool) -> None:
    """Hand the leadership over to the master NAME, or to the one that is most caught up.

    Do it before the leader's machine is restarted: calls pause for some milliseconds, not for an election. It works
    from anywhere, and ends when the new leader answers.
    """
    done = cli.client.admin.transfer_leadership(name)
    if cli.wants_json(as_json):
        output.print_json({"old_leader": done.old, "leader": done.new, "duration_s": round(done.duration_s, 4)})
    elif done.old == done.new:
        output.line(f"{done.new} leads already")
    else:
        output.line(f"{done.new} leads instead of {done.old}, after {done.duration_s * 1000:.0f} ms")


# --- checkpoints


@admin_verb.command("checkpoint", cls=Verb)
@click.argument("name", required=False)
@click.option("--all", "is_all", is_flag=True, help="Every master, one after another.")
@json_option
@pass_cli
def admin_checkpoint(cli: Cli, name: str | None, is_all: bool, as_json: bool) -> None:
    """Let the master NAME (the leader without one) write a checkpoint now, and wait for its end.

    Masters do this by themselves now and then; a fresh checkpoint makes the next start quicker.
    """
    if name is not None and is_all:
        raise click.UsageError("give a NAME or --all, not both")
    admin, nodes = cli.client.admin, _nodes(cli)
    written: list[dict[str, Any]] = []
    failures, is_json = cli.failures(), cli.wants_json(as_json)
    for answer in _chosen(admin.masters(), nodes, name, is_all=is_all):
        with failures.catch():
            checkpoint = admin.write_checkpoint(answer.address)
            written.append(_checkpoint_json(_name(answer, nodes), checkpoint))
            if not is_json:
                output.line(
                    f"{_name(answer, nodes)}: checkpoint {checkpoint.index}, {output.size_text(checkpoint.size)},"
                    f" after {output.duration_text(checkpoint.duration_s)}"
                )
    if is_json:
        output.print_json(written)
    failures.finish()


def _chosen(
    answers: list[MasterAnswer], nodes: dict[str, MasterConfig], name: str | None, *, is_all: bool
) -> list[MasterAnswer]:
    answers = sorted(answers, key=lambda answer: _name(answer, nodes))
    if is_all:
        return answers
    if name is None:
        leaders = [answer for answer in answers if answer.status is not None and answer.status.role == "leader"]
        if not leaders:
            raise InvalidArgument("no master leads at this moment: say which one by its NAME, or --all")
        return [max(leaders, key=lambda answer: answer.rank)]
    found = [answer for answer in answers if _name(answer, nodes) == name]
    if not found:
        known = ", ".join(_name(answer, nodes) for answer in answers)
        raise InvalidArgument(f"there is no master {name!r}; there are {known}")
    return found


def _checkpoint_json(name: str, checkpoint: CheckpointStatus) -> dict[str, Any]:
    return {
        "master": name,
        "index": checkpoint.index,
        "size": checkpoint.size,
        "duration_s": round(checkpoint.duration_s, 3),
    }


# --- export and import


@admin_verb.command("export", cls=Verb)
@click.argument("file", required=False, default="-", type=click.Path(dir_okay=False))
@click.option("-f", "--force", is_flag=True, help="Replace FILE.")
@pass_cli
def admin_export(cli: Cli, file: str, force: bool) -> None:
    """Write the masters' whole state of one instant to FILE (- or nothing: stdout) as JSON lines.

    Names, extents, the chunk map, servers, trash and sessions: all but the bytes of chunks. The last line has counts
    and a checksum of the others. The leader goes on working meanwhile.
    """
    from dfs.master.export import export_lines
    from dfs.master.raft_checkpoint import read_pieces, verify_checkpoint

    if file != "-" and not force and Path(file).exists():
        raise LocalError(f"{file!r} exists; add -f to replace it")
    with tempfile.TemporaryDirectory(prefix="dfs-export-", dir=None if file == "-" else Path(file).parent) as folder:
        fetched = Path(folder) / "checkpoint"
        with fetched.open("wb") as target:
            checkpoint = cli.client.admin.fetch_state(target)
        head = verify_checkpoint(fetched)
        count = size = 0
        with _export_target(file) as target:
            for line in export_lines(read_pieces(fetched), cluster=_cluster_name(cli), log_index=head.index):
                count, size = count + 1, size + target.write(line)
    if file != "-":
        output.line(
            f"exported {output.count_text(count - 2, 'record')} of log index {checkpoint.index} to"
            f" {output.display(file)} ({output.size_text(size)})"
        )


def _cluster_name(cli: Cli) -> str:
    return cli.access()[0].cluster


@contextlib.contextmanager
def _export_target(file: str) -> Iterator[BinaryIO]:
    """Yield stdout, or a file that appears under its name when all is written."""
    if file == "-":
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(file)
    try:
        descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as target:
                yield target
                target.flush()
                os.fsync(target.fileno())
            Path(draft).replace(path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        if isinstance(error, DfsError | BrokenPipeError):
            raise
        raise LocalError(f"cannot write {file!r}: {error.strerror or error}") from None


@admin_verb.command("import", cls=Verb)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--name", "names", multiple=True, metavar="NAME", help="Only this master's (repeatable; else all).")
@pass_cli
def admin_import(cli: Cli, file: str, names: tuple[str, ...]) -> None:
    """Put the exported state FILE into the empty data directories of masters that do not run.

    Every master of the cluster must get the same FILE before any of them is started: on one machine that is one call,
    on many machines one call on each with its --name. Nothing is written unless FILE is whole and sound and every
    data directory is empty.
    """
    from dfs.master.restore import check_empty, install, load_export

    config = cli.cluster_config()
    masters = _masters_named(config, names)
    for master in masters:
        check_empty(master.data_dir, master.name)
    try:
        with Path(file).open("rb") as source:
            state = load_export(source, file)
    except OSError as error:
        if isinstance(error, DfsError):
            raise
        raise local_error(error, "read", file) from None
    for master in masters:
        size = install(state, master.data_dir, master.name)
        output.line(f"{master.name}: {output.size_text(size)} in {output.display(str(master.data_dir))}")
    others = [master.name for master in config.masters if master not in masters]
    if others:
        output.line(f"import the same file for {', '.join(others)}, too, before any master is started")
    else:
        output.line("start the masters: `dfs up`, or `dfs master --name NAME` on each machine")


def _masters_named(config: ClusterConfig, names: tuple[str, ...]) -> list[MasterConfig]:
    if not config.masters:
        raise ConfigError(f"{config.source} has no [master:NAME] section")
    return [config.master(name) for name in names] if names else list(config.masters)
