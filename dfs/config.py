"""Read cluster.ini: one file that describes a whole cluster and is read by every role.

Owns: the keys, their defaults, units, and the relations that must hold between them. Refuses to know: who uses a value,
and whether a configured address or folder exists.

Every error names the file, the section and the key, and says what is allowed. What is legal but unwise (an even number
of masters, fewer chunk servers than replicas) is kept in `ClusterConfig.warnings` for `dfs up` and the daemons to show.
"""

from __future__ import annotations

import configparser
import difflib
import os.path
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from dfs.config_default import EMBEDDED_DEFAULT
from dfs.errors import ConfigError

__all__ = [
    "EMBEDDED_DEFAULT",
    "ChunkServerConfig",
    "ClusterConfig",
    "MasterConfig",
    "find_config",
    "load_config",
    "parse_config",
    "parse_duration",
    "parse_rate",
    "parse_size",
    "split_address",
]

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

CONFIG_SIZE_MAX = 4 * MIB  # bytes of a cluster.ini: thousands of chunk servers fit, a wrong file does not
MASTERS_MAX = 9  # each write waits for a majority of them; more only make it slower
CHUNK_SERVERS_MAX = 10_000  # sections; above that one heartbeat per second each is too much for one leader
DATA_DIRS_MAX = 64  # disks of one chunk server
REPLICATION_MAX = 16  # as dfs.net.messages.REPLICATION_MAX (a test holds them equal)
SESSION_EXPIRY_MIN_S = 1200.0  # twice the time for which a client resends an unanswered call
CHUNK_SIZE_UNIT = 64 * KIB  # one checksum block
CHUNK_SIZE_MAX = 256 * MIB  # the largest payload of a frame
RATE_MAX = 1024 * GIB  # bytes per second; more is a slip of the pen
DURATION_MAX_S = 3650 * 86400.0  # ten years; more is a slip of the pen
SCRUB_RATE_MIN = 64 * KIB  # bytes per second: below that not even one block is read in a second
ELECTION_TIMEOUT_MIN_S = 0.05  # below that a busy machine elects without end

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_QUANTITY = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)", re.ASCII)
_SIZE_UNITS = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1024 * GIB}
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_ANY_ADDRESS = frozenset({"0.0.0.0", "::", "*"})  # noqa: S104 - refused, not bound
_MASTER_KEYS = ("address", "raft_address", "data_dir", "metrics_address")
_CHUNK_KEYS = ("address", "data_dirs", "rack", "metrics_address")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterConfig:
    """One `[master:NAME]` section. Addresses are `host:port`; they are what is bound, too."""

    name: str
    address: str  # clients and chunk servers connect here
    raft_address: str  # the other masters connect here
    data_dir: Path
    metrics_address: str = ""  # where monitoring reads metrics by HTTP; "" = nowhere


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkServerConfig:
    """One `[chunk:NAME]` section. Each data directory should be a disk of its own."""

    name: str
    address: str
    data_dirs: tuple[Path, ...]
    rack: str = "default"
    metrics_address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """A whole checked cluster.ini. Durations are seconds, sizes are bytes, paths are absolute."""

    source: Path
    name: str
    secret_file: Path
    run_dir: Path
    masters: tuple[MasterConfig, ...]
    chunk_servers: tuple[ChunkServerConfig, ...]
    replication: int = 3
    replicas_min: int = 1  # a write succeeds when at least this many servers took it
    chunk_size: int = 64 * MIB
    disk_reserve: int = 1 * GIB  # free bytes that a data directory keeps; below it no new chunk is taken
    fsync: bool = True
    local_reads: bool = True  # whether readers on a chunk server's machine are given its open files
    heartbeat_interval_s: float = 1.0
    dead_after_s: float = 10.0
    repair_after_s: float = 60.0
    repair_rate: int = 100 * MIB  # bytes per second that one server may receive for repair; 0 = no limit
    balance: bool = True  # whether the fullest servers are relieved without being asked
    balance_rate: int = 20 * MIB  # as repair_rate, for balance
    trash_keep_s: float = 3 * 86400.0
    garbage_grace_s: float = 600.0
    orphan_grace_s: float = 86400.0
    scrub_period_s: float = 14 * 86400.0  # every chunk server verifies all its replicas once in this time; 0 = never
    scrub_rate: int = 10 * MIB  # bytes per second that it reads for that at most
    session_expiry_s: float = 3600.0
    token_lifetime_s: float = 3600.0
    client_timeout_s: float = 30.0
    election_timeout_min_s: float = 0.5
    election_timeout_max_s: float = 1.0
    warnings: tuple[str, ...] = ()

    def master(self, name: str) -> MasterConfig:
        """Return the master called `name`; raise `ConfigError` that lists the known names."""
        return _named(self.source, "master", self.masters, name)

    def chunk_server(self, name: str) -> ChunkServerConfig:
        """Return the chunk server called `name`; raise `ConfigError` that lists the known names."""
        return _named(self.source, "chunk", self.chunk_servers, name)


NodeT = TypeVar("NodeT", MasterConfig, ChunkServerConfig)


def _named(source: Path, kind: str, nodes: tuple[NodeT, ...], name: str) -> NodeT:
    for node in nodes:
        if node.name == name:
            return node
    known = [node.name for node in nodes]
    listed = ", ".join(known[:20]) + (" …" if len(known) > 20 else "") if known else "none"
    hint = _did_you_mean(name, known)
    raise ConfigError(f"{source}: there is no section [{kind}:{name}]; known names: {listed}{hint}")


# --- values ---------------------------------------------------------------------------------------


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `64 MiB`; raise `ConfigError`. A unit is required."""
    number, scale = _quantity(text, _SIZE_UNITS, "size", "64 MiB")
    size = number * scale
    if size != int(size):
        raise ConfigError(f"the size {text!r} is not a whole number of bytes")
    return int(size)


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as `10 s`; raise `ConfigError`. A unit is required."""
    number, scale = _quantity(text, _DURATION_UNITS, "duration", "10 s")
    seconds = number * scale
    if seconds > DURATION_MAX_S:
        raise ConfigError(f"the duration {text!r} is over the limit of {DURATION_MAX_S / 86400:g} d")
    return seconds


def _quantity(text: str, units: Mapping[str, float], what: str, example: str) -> tuple[float, float]:
    allowed = " ".join(units)
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a {what}; write a number and a unit ({allowed}), for example {example}")
    number, unit = match.groups()
    if not unit:
        raise ConfigError(f"the {what} {text!r} has no unit; add one of {allowed}, for example {example}")
    if unit not in units:
        folded = {known.lower(): known for known in units} | {"kb": "KiB", "mb": "MiB", "gb": "GiB", "tb": "TiB"}
        meant = folded.get(unit.lower(), "")
        hint = f"; did you mean {meant}?" if meant in units else ""
        raise ConfigError(f"the unit {unit!r} of the {what} {text!r} is unknown; allowed: {allowed}{hint}")
    return float(number), units[unit]


def parse_rate(text: str) -> int:
    """Return the bytes per second of a rate such as `100 MiB/s`, 0 for `0` (no limit); raise `ConfigError`."""
    size, slash, per = (part.strip() for part in text.partition("/"))
    if not slash and text.strip() == "0":
        return 0
    if not slash or per != "s":
        raise ConfigError(f"{text!r} is not a rate; write a size per second, for example 100 MiB/s, or 0 for no limit")
    rate = parse_size(size)
    if rate > RATE_MAX:
        raise ConfigError(f"the rate {text!r} is over the limit of {RATE_MAX // GIB} GiB/s; write 0 for no limit")
    return rate


def split_address(address: str) -> tuple[str, int]:
    """Return (host, port) of `host:port` or `[IPv6]:port`; raise `ConfigError` that says what is wrong."""
    host, colon, port_text = address.rpartition(":")
    if not colon or not host:
        raise ConfigError(f"{address!r} is not an address; write host:port, for example 10.0.0.5:7401")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"the address {address!r} is ambiguous; write IPv6 in brackets, for example [::1]:7401")
    if not host or any(character.isspace() or not character.isprintable() for character in host):
        raise ConfigError(f"the host of the address {address!r} is empty or holds a space")
    if not (port_text.isascii() and port_text.isdigit() and 1 <= int(port_text[:6]) <= 65535):
        raise ConfigError(f"the port of the address {address!r} is not a number from 1 to 65535")
    return host, int(port_text)


def _address(text: str) -> str:
    host, _ = split_address(text)
    if host in _ANY_ADDRESS:
        raise ConfigError(f"{text!r} cannot be connected to by others; write the address that they shall use")
    return text


def _node_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ConfigError(f"{text!r} cannot be a name; use 1 to 64 letters, digits, dots, dashes and underscores")
    return text


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise ConfigError(f"{text!r} is neither true nor false")
    return _BOOLEANS[text.lower()]


def _count(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text[:12]) <= high):
            raise ConfigError(f"{text!r} is not a number from {low} to {high}")
        return int(text)

    return parse


def _chunk_size(text: str) -> int:
    size = parse_size(text)
    if not CHUNK_SIZE_UNIT <= size <= CHUNK_SIZE_MAX or size % CHUNK_SIZE_UNIT:
        raise ConfigError(f"a chunk size must be a multiple of 64 KiB from 64 KiB to 256 MiB, not {text!r}")
    return size


def _scrub_rate(text: str) -> int:
    rate = parse_rate(text) if "/" in text else parse_size(text)
    if rate < SCRUB_RATE_MIN:
        raise ConfigError(f"{text!r} is too little; write at least 64 KiB/s, or turn scrub_period to 0 s")
    return rate


def _positive_duration(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise ConfigError(f"{text!r} must be longer than nothing")
    return seconds


_CLUSTER_VALUES: dict[str, tuple[str, Callable[[str], object]]] = {  # key in the file -> (field, parser)
    "name": ("name", _node_name),
    "replication": ("replication", _count(1, REPLICATION_MAX)),
    "replicas_min": ("replicas_min", _count(1, REPLICATION_MAX)),
    "chunk_size": ("chunk_size", _chunk_size),
    "disk_reserve": ("disk_reserve", parse_size),
    "fsync": ("fsync", _boolean),
    "local_reads": ("local_reads", _boolean),
    "heartbeat_interval": ("heartbeat_interval_s", _positive_duration),
    "dead_after": ("dead_after_s", _positive_duration),
    "repair_after": ("repair_after_s", _positive_duration),
    "repair_rate": ("repair_rate", parse_rate),
    "balance": ("balance", _boolean),
    "balance_rate": ("balance_rate", parse_rate),
    "trash_keep": ("trash_keep_s", parse_duration),
    "garbage_grace": ("garbage_grace_s", parse_duration),
    "orphan_grace": ("orphan_grace_s", _positive_duration),
    "scrub_period": ("scrub_period_s", parse_duration),
    "scrub_rate": ("scrub_rate", _scrub_rate),
    "session_expiry": ("session_expiry_s", _positive_duration),
    "token_lifetime": ("token_lifetime_s", _positive_duration),
    "client_timeout": ("client_timeout_s", _positive_duration),
    "election_timeout_min": ("election_timeout_min_s", _positive_duration),
    "election_timeout_max": ("election_timeout_max_s", _positive_duration),
}
_CLUSTER_PATHS = ("secret_file", "run_dir")


# --- the file -------------------------------------------------------------------------------------


def find_config(explicit: str | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """Return the file that `--config`, then `DFS_CONFIG`, then ./cluster.ini names; None when there is none.

    A file that somebody named is returned even when it is missing, so that `load_config` can say so.
    """
    for named in (explicit, environ.get("DFS_CONFIG")):
        if named:
            return cwd / named
    here = cwd / "cluster.ini"
    return here if here.is_file() else None


def load_config(path: Path) -> ClusterConfig:
    """Return the checked configuration in `path`; raise `ConfigError` that names file, section and key."""
    source = path.absolute()
    try:
        with source.open("rb") as file:
            data = file.read(CONFIG_SIZE_MAX + 1)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"cannot read the cluster configuration {source}: {reason}; name one with --config or DFS_CONFIG"
        ) from None
    if len(data) > CONFIG_SIZE_MAX:
        raise ConfigError(f"{source}: larger than {CONFIG_SIZE_MAX} bytes; is this a cluster.ini?")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not UTF-8 at byte {error.start}; is this a cluster.ini?") from None
    return parse_config(text, source)


def parse_config(text: str, source: Path) -> ClusterConfig:
    """Return the checked configuration of `text`; `source` names it in errors, its folder anchors relative paths."""
    parser = configparser.ConfigParser(
        interpolation=None, default_section="\0", inline_comment_prefixes=("#",), empty_lines_in_values=False
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign] # keys are case-sensitive: one spelling each
    try:
        parser.read_string(text, source=str(source))
    except configparser.Error as error:
        raise ConfigError(f"{source}: {_syntax(error)}") from None
    reader = _Reader(source, parser)
    cluster, masters, chunk_servers = reader.sections()
    values = reader.cluster(cluster)
    config = ClusterConfig(
        source=source,
        masters=tuple(reader.master(section) for section in masters),
        chunk_servers=tuple(reader.chunk_server(section) for section in chunk_servers),
        **values,  # type: ignore[arg-type] # each parser of _CLUSTER_VALUES returns the type of its field
    )
    _check_times(config)
    _check_nodes(config)
    return _with_warnings(config)


def _syntax(error: configparser.Error) -> str:
    match error:
        case configparser.DuplicateSectionError():
            return f"line {error.lineno}: the section [{error.section}] is there twice; keep one"
        case configparser.DuplicateOptionError():
            return f"line {error.lineno}: [{error.section}] {error.option} is there twice; keep one"
        case configparser.MissingSectionHeaderError():
            return f"line {error.lineno}: {error.line.strip()[:80]!r} stands before any [section]"
        case configparser.ParsingError() if error.errors:
            line, text = error.errors[0]
            return f"line {line}: cannot read {text[:80]}; write key = value"
    return str(error).replace("\n", " ")


class _Reader:
    """Turns sections into values and puts file, section and key in front of every complaint."""

    def __init__(self, source: Path, parser: configparser.ConfigParser) -> None:
        self._source = source
        self._parser = parser

    def sections(self) -> tuple[str, list[str], list[str]]:
        """Return the [cluster] section, the master sections and the chunk sections, in the order of the file."""
        found: dict[str, list[str]] = {"cluster": [], "master": [], "chunk": []}
        for section in self._parser.sections():
            kind, colon, name = section.partition(":")
            if kind not in found or bool(colon) == (kind == "cluster"):
                hint = _did_you_mean(kind, found)
                allowed = "allowed: [cluster], [master:NAME], [chunk:NAME]"
                raise ConfigError(f"{self._source}: unknown section [{section}]; {allowed}{hint}")
            self._parse(section, "name", name if colon else kind, _node_name)
            found[kind].append(section)
        for kind, shown, low, high in (
            ("cluster", "[cluster]", 1, 1),
            ("master", "[master:NAME]", 1, MASTERS_MAX),
            ("chunk", "[chunk:NAME]", 0, CHUNK_SERVERS_MAX),
        ):
            count = len(found[kind])
            if not low <= count <= high:
                allowed = f"{low} to {high}" if low < high else "exactly one"
                raise ConfigError(f"{self._source}: {count or 'no'} sections {shown}, there must be {allowed}")
        return found["cluster"][0], found["master"], found["chunk"]

    def cluster(self, section: str) -> dict[str, object]:
        self._check_keys(section, (*_CLUSTER_VALUES, *_CLUSTER_PATHS))
        values: dict[str, object] = {}
        for key, (field, parse) in _CLUSTER_VALUES.items():
            if key == "name" or self._parser.has_option(section, key):
                values[field] = self._get(section, key, parse)
        for key in _CLUSTER_PATHS:
            values[key] = self._get(section, key, self._path)
        return values

    def master(self, section: str) -> MasterConfig:
        self._check_keys(section, _MASTER_KEYS)
        return MasterConfig(
            name=section.partition(":")[2],
            address=self._get(section, "address", _address),
            raft_address=self._get(section, "raft_address", _address),
            data_dir=self._get(section, "data_dir", self._path),
            metrics_address=self._metrics_address(section),
        )

    def chunk_server(self, section: str) -> ChunkServerConfig:
        self._check_keys(section, _CHUNK_KEYS)
        has_rack = self._parser.has_option(section, "rack")
        return ChunkServerConfig(
            name=section.partition(":")[2],
            address=self._get(section, "address", _address),
            data_dirs=self._get(section, "data_dirs", self._paths),
            rack=self._get(section, "rack", _node_name) if has_rack else "default",
            metrics_address=self._metrics_address(section),
        )

    def _metrics_address(self, section: str) -> str:
        has_one = self._parser.has_option(section, "metrics_address")
        return self._get(section, "metrics_address", _address) if has_one else ""

    def _check_keys(self, section: str, allowed: Iterable[str]) -> None:
        known = list(allowed)
        for key in self._parser.options(section):
            if key not in known:
                hint = _did_you_mean(key, known) or f"; allowed: {', '.join(known)}"
                raise ConfigError(f"{self._source}: [{section}] unknown key {key!r}{hint}")

    def _get(self, section: str, key: str, parse: Callable[[str], T]) -> T:
        if not self._parser.has_option(section, key):
            raise ConfigError(f"{self._source}: [{section}] {key} is missing")
        return self._parse(section, key, self._parser.get(section, key), parse)

    def _parse(self, section: str, key: str, text: str, parse: Callable[[str], T]) -> T:
        try:
            return parse(text)
        except ConfigError as error:
            raise ConfigError(f"{self._source}: [{section}] {key}: {error.message}") from None

    def _path(self, text: str) -> Path:
        if not text or "\n" in text:
            raise ConfigError("a path is needed, on one line")
        if text.startswith("~"):
            raise ConfigError(f"{text!r}: ~ means another folder for every user; write the whole path")
        return Path(os.path.normpath(self._source.parent / text))  # without "..", so that equal folders compare equal

    def _paths(self, text: str) -> tuple[Path, ...]:
        paths = tuple(self._path(part.strip()) for part in text.replace("\n", ",").split(",") if part.strip())
        if not 1 <= len(paths) <= DATA_DIRS_MAX:
            raise ConfigError(f"1 to {DATA_DIRS_MAX} comma-separated folders are needed, {len(paths)} are given")
        return paths


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


# --- relations ------------------------------------------------------------------------------------


def _check_times(config: ClusterConfig) -> None:
    """Raise `ConfigError` for values that are fine alone and impossible together."""
    rules = (
        (config.replicas_min <= config.replication, "replicas_min", "must not be more than replication"),
        (
            config.dead_after_s >= 2 * config.heartbeat_interval_s,
            "dead_after",
            "must be at least twice heartbeat_interval: one late heartbeat is not a death",
        ),
        (config.repair_after_s >= config.dead_after_s, "repair_after", "must not be less than dead_after"),
        (
            config.election_timeout_min_s >= ELECTION_TIMEOUT_MIN_S,
            "election_timeout_min",
            f"must be at least {ELECTION_TIMEOUT_MIN_S * 1000:g} ms",
        ),
        (
            config.election_timeout_max_s > config.election_timeout_min_s,
            "election_timeout_max",
            "must be more than election_timeout_min: equal timeouts make split votes repeat",
        ),
        (
            config.client_timeout_s > config.election_timeout_max_s,
            "client_timeout",
            "must be more than election_timeout_max, or no call survives a change of leader",
        ),
        (
            config.session_expiry_s > max(config.client_timeout_s, SESSION_EXPIRY_MIN_S),
            "session_expiry",
            f"must be more than client_timeout and {SESSION_EXPIRY_MIN_S:g} s, or a resent call could be applied twice",
        ),
        (
            config.orphan_grace_s >= config.token_lifetime_s,
            "orphan_grace",
            "must not be less than token_lifetime, or chunks could be removed while they are written",
        ),
    )
    for holds, key, complaint in rules:
        if not holds:
            raise ConfigError(f"{config.source}: [cluster] {key} {complaint}")


def _check_nodes(config: ClusterConfig) -> None:
    """Raise `ConfigError` when two nodes want the same name, address or folder."""
    names: dict[str, str] = {}
    addresses: dict[tuple[str, int], str] = {}
    folders: dict[tuple[str, Path], str] = {}

    def claim(taken: dict[T, str], thing: T, section: str, key: str, shown: object) -> None:
        if thing in taken:
            raise ConfigError(f"{config.source}: [{section}] {key}: {shown} is already taken by {taken[thing]}")
        taken[thing] = f"[{section}] {key}"

    for master in config.masters:
        section = f"master:{master.name}"
        claim(names, master.name, section, "name", master.name)
        claim(addresses, _endpoint(master.address), section, "address", master.address)
        claim(addresses, _endpoint(master.raft_address), section, "raft_address", master.raft_address)
        if master.metrics_address:
            endpoint = _endpoint(master.metrics_address)
            claim(addresses, endpoint, section, "metrics_address", master.metrics_address)
        claim(folders, (_endpoint(master.address)[0], master.data_dir), section, "data_dir", master.data_dir)
    for server in config.chunk_servers:
        section = f"chunk:{server.name}"
        claim(names, server.name, section, "name", server.name)
        claim(addresses, _endpoint(server.address), section, "address", server.address)
        if server.metrics_address:
            endpoint = _endpoint(server.metrics_address)
            claim(addresses, endpoint, section, "metrics_address", server.metrics_address)
        for folder in server.data_dirs:  # the same folder on two hosts is two folders
            claim(folders, (_endpoint(server.address)[0], folder), section, "data_dirs", folder)


def _endpoint(address: str) -> tuple[str, int]:
    host, port = split_address(address)
    return ("127.0.0.1" if host.lower() in ("localhost", "::1") else host.lower()), port


def _with_warnings(config: ClusterConfig) -> ClusterConfig:
    masters, servers = len(config.masters), len(config.chunk_servers)
    if 0 < servers < config.replicas_min:
        raise ConfigError(
            f"{config.source}: [cluster] replicas_min = {config.replicas_min} can never be reached with"
            f" {servers} [chunk:…] sections; lower it or add chunk servers"
        )
    found: list[str] = []
    if masters % 2 == 0:
        found.append(f"{masters} masters survive no more failures than {masters - 1}; use an odd number")
    if servers < config.replication:
        found.append(
            f"replication = {config.replication}, but only {servers} chunk servers: every file stays under-replicated"
        )
    if not config.fsync:
        found.append("fsync = no: a power cut may lose acknowledged writes")
    if not found:
        return config
    return replace(config, warnings=tuple(f"{config.source}: {text}" for text in found))
