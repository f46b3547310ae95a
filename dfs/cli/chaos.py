"""The verb `chaos`: break a cluster on purpose within safe bounds, and judge whether it kept its promises.

Owns: options, the summary and its confirmation, signals, exit codes. Refuses to know: plans, bounds, faults and
judgement (dfs.chaos).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dfs.cli import output
from dfs.cli.admin_servers import Duration
from dfs.cli.context import Cli
from dfs.cli.subverbs import Subverbs
from dfs.cli.verb import F, Verb, json_option, pass_cli
from dfs.cli.wall import EXIT_OK, LocalError

if TYPE_CHECKING:
    from dfs.chaos.session import Wishes

EXIT_REFUSED: Final = 2  # nothing was broken and nothing judged, or the run could not conclude
DURATION_S_MAX: Final = 3600.0
OUTAGE_S_MAX: Final = 120.0


@click.group("chaos", cls=Subverbs)
def chaos_verb() -> None:
    """Break a cluster on purpose, within safe bounds, and judge whether it kept every promise."""


def _scenario_options(function: F) -> F:
    """Add the options that decide what is broken."""
    for option in reversed(
        (
            click.option("--throw-away", is_flag=True, help="Start a temporary cluster for it, and remove that after."),
            click.option("--for", "duration_s", type=Duration(), default=60.0, metavar="TIME", help="How long (60s)."),
            click.option("--seed", type=click.IntRange(0), help="The plan follows from it (drawn)."),
            click.option(
                "--fault",
                "faults",
                multiple=True,
                metavar="KIND",
                help="Only this kind, as kill-leader (repeatable; else all that can be done).",
            ),
            click.option("--outage-min", type=Duration(), default=1.0, metavar="TIME", help="A fault stands (1s)"),
            click.option("--outage-max", type=Duration(), default=5.0, metavar="TIME", help="to so long (5s)."),
            click.option(
                "--servers-down", type=click.IntRange(1, 16), default=1, help="Chunk servers away at once at most (1)."
            ),
            click.option("--node", "names", multiple=True, metavar="NAME", help="Break only this one (repeatable)."),
            click.option("--pid", "pids", multiple=True, metavar="NAME=PID", help="A daemon here, to be paused."),
            click.option("--systemd", is_flag=True, help="Break the units dfs-master@, dfs-chunk@ of this machine."),
            click.option("--stop-command", default="", metavar="COMMAND", help="Stops a daemon: 'ssh {host} …{name}'."),
            click.option("--start-command", default="", metavar="COMMAND", help="Starts it again."),
            click.option("--kill-command", default="", metavar="COMMAND", help="Kills it, as a crash would."),
            click.option("--pause-command", default="", metavar="COMMAND", help="Pauses it."),
            click.option("--resume-command", default="", metavar="COMMAND", help="Resumes it."),
        )
    ):
        function = option(function)
    return function


# --- plan, run


@chaos_verb.command("plan", cls=Verb)
@_scenario_options
@json_option
@pass_cli
def chaos_plan(cli: Cli, /, as_json: bool, **options: Any) -> None:
    """Print what `dfs chaos run` would do: times, targets, exact signals and commands. Nothing is touched.

    Whoever leads when a fault strikes is the leader then, so names are those of this moment. Ends with 2 when the run
    would be refused now.
    """
    from dfs.chaos.session import plan

    found = plan(_wishes(cli, options))
    if cli.wants_json(as_json):
        output.print_json(found.as_json())
    else:
        for text in found.lines():
            output.line(text)
    if found.refusals:
        raise click.exceptions.Exit(EXIT_REFUSED)


@chaos_verb.command("run", cls=Verb)
@_scenario_options
@click.option("--dry-run", is_flag=True, help="As `dfs chaos plan`.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--report", "folder", type=click.Path(file_okay=False), metavar="DIR", help="Where the report goes.")
@json_option
@pass_cli
def chaos_run(cli: Cli, /, as_json: bool, dry_run: bool, yes: bool, folder: str | None, **options: Any) -> None:
    """Break the cluster by plan while clients work in a directory of their own, heal it, and judge.

    Daemons are killed, paused and restarted: those of `dfs up` on this machine, or those that --pid, --systemd or the
    command options reach. At most one master and --servers-down chunk servers are away at any moment. Users' files are
    never touched. The run begins on a healthy cluster only, and stops and undoes all at once when anything that it did
    not break is not well, at Ctrl-C and at SIGTERM. Should it be killed itself, `dfs chaos undo` undoes the rest.

    On a --throw-away cluster disks are wiped, too, and filled where this user may mount.

    Ends with 0: every promise held, 1: one was broken, 2: refused, or nothing can be concluded.
    """
    from dfs.chaos import report as reports
    from dfs.chaos import session

    wishes = _wishes(cli, options)
    if dry_run:
        cli_plan = click.get_current_context()
        cli_plan.invoke(chaos_plan, as_json=as_json, **options)
        return
    is_json = cli.wants_json(as_json)

    def say(text: str) -> None:
        if is_json:
            click.echo(output.escape_controls(text), err=True)
        else:
            output.line(output.escape_controls(text))

    found = session.plan(wishes)
    if found.refusals:
        raise LocalError("refused: " + "; ".join(found.refusals), EXIT_REFUSED)
    if not yes:
        _confirm(found)
    report, written = session.run(wishes, found, Path(folder) if folder else None, say)
    if is_json:
        output.print_json({"outcome": report.outcome, "report": str(written)})
    else:
        for text in reports.lines(report):
            output.line(output.escape_controls(text))
        output.line(f"report: {written}")
    code = reports.exit_code(report)
    if code != EXIT_OK:
        raise click.exceptions.Exit(code)


def _confirm(found: Any) -> None:
    if not sys.stdin.isatty():
        raise LocalError("refused: nobody is there to be asked; look at `dfs chaos plan`, then use --yes", EXIT_REFUSED)
    for text in found.summary():
        click.echo(output.escape_controls(text), err=True)
    if not click.confirm("Break it?", err=True):
        raise LocalError("refused: not confirmed; nothing was touched", EXIT_REFUSED)


def _wishes(cli: Cli, options: dict[str, Any]) -> Wishes:
    from dfs.chaos.nodes import Commands
    from dfs.chaos.scenario import KINDS
    from dfs.chaos.session import Wishes

    unknown = [kind for kind in options["faults"] if kind not in KINDS]
    if unknown:
        raise click.UsageError(f"there is no fault {unknown[0]!r}; there are {', '.join(KINDS)}")
    outage_s = (options["outage_min"], options["outage_max"])
    if not 0 < outage_s[0] <= outage_s[1] <= OUTAGE_S_MAX:
        raise click.UsageError(f"a fault stands --outage-min to --outage-max, more than 0 and up to {OUTAGE_S_MAX:g} s")
    if not 0 < options["duration_s"] <= DURATION_S_MAX:
        raise click.UsageError(f"--for is more than 0 and up to {DURATION_S_MAX:g} s")
    others = ("names", "pids", "systemd", "stop_command", "start_command", "kill_command", "pause_command")
    if options["throw_away"] and any(options[key] for key in (*others, "resume_command")):
        raise click.UsageError("--throw-away brings its own daemons; it goes with none of the options that name them")
    commands = Commands(
        *(options[f"{key}_command"] for key in ("stop", "start", "kill", "pause", "resume")),
    )
    return Wishes(
        config=None if options["throw_away"] else cli.cluster_config(),
        duration_s=options["duration_s"],
        seed=options["seed"],
        kinds=tuple(KINDS[kind] for kind in options["faults"]),
        outage_s=outage_s,
        servers_max=options["servers_down"],
        names=options["names"],
        pids=tuple(map(_pid, options["pids"])),
        has_systemd=options["systemd"],
        commands=commands,
        timeout_s=cli.timeout_s or cli.settings.timeout_s,
    )


def _pid(text: str) -> tuple[str, int]:
    name, _, pid = text.partition("=")
    if not name or not pid.isdecimal():
        raise click.UsageError(f"--pid takes NAME=PID, as m1=1234, not {text!r}")
    return name, int(pid)


# --- undo, report


@chaos_verb.command("undo", cls=Verb)
@click.option("--list", "is_list", is_flag=True, help="Only list what would be undone.")
@json_option
@pass_cli
def chaos_undo(cli: Cli, is_list: bool, as_json: bool) -> None:
    """Undo what runs of this user that died have left: start or resume daemons, remove what the run made.

    A run undoes everything by itself, whatever ends it; only one that was killed with -9, or whose machine went down,
    needs this. Doing it again does no harm. Ends with 1 when something could not be undone: it stays noted.
    """
    from dfs.chaos.session import undo_unfinished

    found = undo_unfinished(is_list=is_list)
    if cli.wants_json(as_json):
        output.print_json(
            [{"run": one.run_id, "undone": one.undone, "failed": one.failed, "is_alive": one.is_alive} for one in found]
        )
    else:
        for one in found:
            for text in one.lines(is_list=is_list):
                output.line(output.escape_controls(text))
        if not found:
            output.line("nothing is left to undo")
    if any(one.failed for one in found):
        raise LocalError("not all could be undone; mend what is said above, then run `dfs chaos undo` again")


@chaos_verb.command("report", cls=Verb)
@click.argument("folder", type=click.Path(file_okay=False))
@json_option
@pass_cli
def chaos_report(cli: Cli, folder: str, as_json: bool) -> None:
    """Print the report that a run left in the local FOLDER, and draw its timeline anew; ends as that run did."""
    from dfs.chaos import report

    found = report.load(Path(folder))
    written = report.write_pictures(Path(folder), found)
    if cli.wants_json(as_json):
        sys.stdout.write((Path(folder) / report.JSON).read_text(encoding="utf-8"))
    else:
        for text in report.lines(found):
            output.line(output.escape_controls(text))
        output.line(f"picture: {', '.join(map(str, written))}")
    if report.exit_code(found) != EXIT_OK:
        raise click.exceptions.Exit(report.exit_code(found))
