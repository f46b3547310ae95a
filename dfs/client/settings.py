"""The user's own file of settings, `metadata.json`: where they are, which cluster, and how they like it.

Owns: the file's place, form, checks and atomic change. Refuses to know: the command line and the cluster.

Keys that this version does not know are kept. The file is private (0600) and replaced as a whole, so that a reader
never sees half of it; of two programs that save at once the later one wins.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import platformdirs

from dfs import paths
from dfs.config import REPLICATION_MAX
from dfs.errors import ConfigError, DfsError

ENVIRONMENT_KEY: Final = "DFS_SETTINGS"
FILE_NAME: Final = "metadata.json"
MASTERS_MAX: Final = 16  # as dfs.client.plan.MASTERS_MAX, whose import costs more than `dfs pwd` does
FILE_SIZE_MAX: Final = 1024 * 1024  # bytes; a larger file is not ours
OUTPUTS: Final = ("text", "json")
TIMEOUT_S_MAX: Final = 24 * 3600.0


def settings_path(environ: Mapping[str, str]) -> Path:
    """Return where the settings are: `DFS_SETTINGS`, else metadata.json in the user's configuration folder."""
    explicit = environ.get(ENVIRONMENT_KEY, "")
    return Path(explicit).expanduser() if explicit else Path(platformdirs.user_config_dir("dfs")) / FILE_NAME


@dataclass(slots=True, kw_only=True)
class Settings:
    """`None`, `()` and 0 mean "unset". `cwd` and `previous_cwd` are remote paths, `config` and `secret_file` local."""

    cwd: str = paths.ROOT
    previous_cwd: str = paths.ROOT  # where `cd -` goes
    config: str | None = None
    masters: tuple[str, ...] = ()
    cluster: str | None = None
    secret_file: str | None = None
    replication: int = 0
    timeout_s: float | None = None
    output: str | None = None
    local_reads: bool = True
    hedged_reads: bool = True
    rack: str | None = None
    unknown: dict[str, Any] = field(default_factory=dict)  # keys of other versions, kept as they are

    def __post_init__(self) -> None:
        """Raise `ConfigError` that names the key whose value is impossible."""
        self.check()

    def check(self) -> None:
        """Raise `ConfigError` that names the key whose value is impossible."""
        for key, (is_possible, wanted) in _RULES.items():
            if not is_possible(getattr(self, key)):
                raise ConfigError(f"the setting {key!r} must be {wanted}")

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Return the settings of `path`, all defaults when there is no file; raise `ConfigError` when it is damaged."""
        try:
            if not path.exists():
                return cls()
            if path.stat().st_size > FILE_SIZE_MAX:
                raise ConfigError(f"the settings file {path} is over {FILE_SIZE_MAX} bytes; {_way_out(path)}")
            values = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the settings file {path}: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the settings file {path} is damaged ({error}); {_way_out(path)}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"the settings file {path} does not hold a JSON object; {_way_out(path)}")
        known = {key: values.pop(key) for key in KEYS if key in values}
        if isinstance(known.get("masters"), list):
            known["masters"] = tuple(known["masters"])
        try:
            return cls(**known, unknown=values)
        except ConfigError as error:
            raise ConfigError(f"the settings file {path} is damaged: {error}; {_way_out(path)}") from None

    def save(self, path: Path) -> None:
        """Replace the file atomically and durably, readable by its user only; folders are made when missing."""
        self.check()
        values = {key: getattr(self, key) for key in KEYS} | self.unknown
        data = (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
        try:
            target = path.resolve()  # a link stays a link
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace_file(target, data)
        except OSError as error:
            raise ConfigError(f"cannot write the settings file {path}: {error.strerror or error}") from None


def _is_stored_path(value: object) -> bool:
    try:
        return isinstance(value, str) and paths.normalise(value) == value
    except DfsError:
        return False


def _is_text_or_unset(value: object) -> bool:
    return value is None or (isinstance(value, str) and value != "")


def _is_addresses(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= MASTERS_MAX
        and all(item and _is_text_or_unset(item) for item in value)
    )


def _is_replication(value: object) -> bool:
    return type(value) is int and 0 <= value <= REPLICATION_MAX


def _is_timeout(value: object) -> bool:
    return value is None or (type(value) in (int, float) and 0 < value <= TIMEOUT_S_MAX)  # type: ignore[operator]


def _is_yes_or_no(value: object) -> bool:
    return isinstance(value, bool)


# key -> (what a value must fulfil, the same in words)
_RULES: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "cwd": (_is_stored_path, "an absolute path of the cluster"),
    "previous_cwd": (_is_stored_path, "an absolute path of the cluster"),
    "config": (_is_text_or_unset, "the path of a cluster.ini"),
    "masters": (_is_addresses, f"a list of at most {MASTERS_MAX} addresses host:port"),
    "cluster": (_is_text_or_unset, "the name of a cluster"),
    "secret_file": (_is_text_or_unset, "the path of the cluster's secret file"),
    "replication": (_is_replication, f"a whole number from 1 to {REPLICATION_MAX}, or 0 for the cluster's default"),
    "timeout_s": (_is_timeout, f"a number of seconds above 0 and at most {TIMEOUT_S_MAX:.0f}"),
    "local_reads": (_is_yes_or_no, "yes or no"),
    "hedged_reads": (_is_yes_or_no, "yes or no"),
    "rack": (_is_text_or_unset, "the name of a rack"),
    "output": (lambda value: value is None or value in OUTPUTS, f"one of {', '.join(OUTPUTS)}"),
}
KEYS: Final = tuple(_RULES)


def _replace_file(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _way_out(path: Path) -> str:
    return f"repair it, or start afresh with: rm {path}"
