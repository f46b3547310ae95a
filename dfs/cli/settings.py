"""The verb `config`: the user's settings, where each value comes from, and changing them.

Owns: the text forms of values. Refuses to know: the file they live in (dfs.client.settings).
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dfs.cli import output
from dfs.cli.context import Cli
from dfs.cli.verb import json_option, pass_cli, verb
from dfs.errors import ConfigError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from dfs.client.settings import Settings

EXPLAINED: Final = {  # for the shell; the docstring below tells people
    "cwd": "the remote current directory",
    "config": "the cluster.ini used when --config, DFS_CONFIG and ./cluster.ini are absent",
    "masters": "addresses host:port, comma separated; with cluster and secret_file instead of config",
    "cluster": "the name of the cluster",
    "secret_file": "the file with the cluster's secret",
    "replication": "replicas of new files, 0 for the cluster's default",
    "timeout_s": "seconds that one call may take",
    "local_reads": "yes or no: read through open files of chunk servers on this machine",
    "hedged_reads": "yes or no: ask a second replica when the first is slow",
    "rack": "the rack of this machine; replicas in it are read first",
    "output": "text or json",
}
_LOCAL_PATHS: Final = ("config", "secret_file")
_YES_OR_NO: Final = ("local_reads", "hedged_reads")


class _Key(click.ParamType):  # type: ignore[type-arg]
    name = "key"

    def shell_complete(self, _ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(key, help=text) for key, text in EXPLAINED.items() if key.startswith(incomplete)]


@verb("config")
@click.argument("key", required=False, type=_Key())
@click.argument("value", required=False)
@click.option("--unset", metavar="KEY", type=_Key(), help="Forget a setting: its default holds again.")
@json_option
@pass_cli
def config_verb(cli: Cli, key: str | None, value: str | None, unset: str | None, as_json: bool) -> None:
    """Show your settings, show one KEY, or set KEY to VALUE.

    They live in metadata.json of your configuration folder (DFS_SETTINGS names another file).

    \b
    cwd          the remote current directory
    config       the cluster.ini used when --config, DFS_CONFIG and ./cluster.ini are absent
    masters      addresses host:port, comma separated; with cluster and secret_file instead of config
    cluster      the name of the cluster
    secret_file  the file with the cluster's secret
    replication  replicas of new files, 0 for the cluster's default
    timeout_s    seconds that one call may take
    local_reads  yes or no: read through open files of chunk servers on this machine
    hedged_reads yes or no: ask a second replica when the first is slow
    rack         the rack of this machine; replicas in it are read first
    output       text or json
    """
    if unset is not None:
        if key is not None:
            raise click.UsageError("--unset KEY stands alone")
        _check_key(unset)
        setattr(cli.settings, unset, _default(cli.settings, unset))
        cli.save_settings()
    elif key is None:
        _show(cli, list(EXPLAINED), cli.wants_json(as_json))
    elif value is None:
        _check_key(key)
        if cli.wants_json(as_json):
            _show(cli, [key], is_json=True)
        else:
            output.line(_text(getattr(cli.settings, key)))
    else:
        _check_key(key)
        setattr(cli.settings, key, _parsed(key, value))
        try:
            cli.settings.check()
        except ConfigError as error:
            raise click.UsageError(f"{error}, not {value!r}") from None
        cli.save_settings()


def _check_key(key: str) -> None:
    if key not in EXPLAINED:
        raise click.UsageError(f"there is no setting {key!r}; there are {', '.join(EXPLAINED)}")


def _parsed(key: str, value: str) -> Any:
    """Return the typed value; `Settings.check` judges it."""
    if key == "masters":
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if key in _LOCAL_PATHS:
        return str(Path(value).expanduser().absolute())
    if key in _YES_OR_NO:
        return {"yes": True, "no": False}.get(value, value)
    if key in ("replication", "timeout_s"):
        try:
            return int(value) if key == "replication" else float(value)
        except ValueError:
            raise click.UsageError(f"{key} must be a number, not {value!r}") from None
    return value


def _default(settings: Settings, key: str) -> Any:
    field = next(field for field in fields(settings) if field.name == key)
    return field.default if field.default is not MISSING else None


def _show(cli: Cli, keys: list[str], is_json: bool) -> None:
    settings, overrides = cli.settings, _overrides(cli)
    rows: list[tuple[str, Any, str]] = []
    for key in keys:
        value, source = getattr(settings, key), str(cli.settings_path)
        if key in overrides:
            value, source = overrides[key]
        elif value == _default(settings, key):
            source = "default"
        rows.append((key, value, source))
    if is_json:
        output.print_json({key: {"value": value, "source": source} for key, value, source in rows})
        return
    table = [("SETTING", "VALUE", "FROM"), *((key, _text(value), source) for key, value, source in rows)]
    for text in output.table(table):
        output.line(text)


def _overrides(cli: Cli) -> dict[str, tuple[Any, str]]:
    """Return the values that this command line or its surroundings put over the settings."""
    found: dict[str, tuple[Any, str]] = {}
    path = cli.find_config()
    if cli.config is not None:
        found["config"] = (cli.config, "--config")
    elif path is not None and str(path) != str(Path(cli.settings.config or "").expanduser()):
        found["config"] = (str(path), "DFS_CONFIG" if cli.environ.get("DFS_CONFIG") else "this folder")
    if cli.timeout_s is not None:
        found["timeout_s"] = (cli.timeout_s, "--timeout")
    return found


def _text(value: Any) -> str:
    if value is None or value == ():
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return output.display(",".join(value) if isinstance(value, tuple) else str(value))
