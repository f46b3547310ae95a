"""What one run of the command line knows: the options, the user's settings, and the way to the cluster.

Owns: where settings are, the order in which a cluster is looked for, and one shared `DfsClient`.
Refuses to know: verbs and output.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dfs import paths
from dfs.cli.wall import Failures
from dfs.errors import ConfigError

if TYPE_CHECKING:
    from dfs.client import ClusterAccess, DfsClient
    from dfs.client.settings import Settings
    from dfs.config import ClusterConfig

NO_CLUSTER: Final = (
    "no cluster is known; start one on this machine with `dfs up`, or name one with --config FILE, DFS_CONFIG,"
    " a cluster.ini in this folder, or `dfs config config FILE`"
)


class Cli:
    """The state of one command line: filled by the global options, used by every verb."""

    def __init__(self, *, environ: Mapping[str, str] | None = None, client: DfsClient | None = None) -> None:
        self.environ: Mapping[str, str] = os.environ if environ is None else environ
        self.config: str | None = None
        self.timeout_s: float | None = None
        self.debug = False
        self.stale_s = 0.0  # how old what this verb reads may be
        self.verb = ""
        self._client = client
        self._is_own_client = client is None

    # --- settings -----------------------------------------------------------------------------------

    @cached_property
    def settings_path(self) -> Path:
        from dfs.client.settings import settings_path

        return settings_path(self.environ)

    @cached_property
    def settings(self) -> Settings:
        from dfs.client.settings import Settings

        return Settings.load(self.settings_path)

    def save_settings(self) -> None:
        self.settings.save(self.settings_path)

    def resolve(self, typed: str) -> str:
        """Return the stored path of what was typed, taken from the remote current directory."""
        return paths.normalise(typed, "/" if typed.startswith("/") else self.settings.cwd)

    def wants_json(self, flag: bool) -> bool:
        """Return whether to print JSON: asked for by `--json`, or the user's setting `output`."""
        return flag or self.settings.output == "json"

    def failures(self, say: Callable[[str], None] | None = None) -> Failures:
        return Failures(self.verb, debug=self.debug, say=say)

    # --- the cluster -----------------------------------------------------------------------------------

    def find_config(self) -> Path | None:
        """Return the cluster.ini to use: --config, DFS_CONFIG, ./cluster.ini, the setting `config`; `None` for none."""
        from dfs.config import find_config

        try:
            here = Path.cwd()
        except FileNotFoundError:
            raise ConfigError("the current folder does not exist any more; change to another one") from None
        found = find_config(self.config, self.environ, here)
        if found is None and self.settings.config:
            return Path(self.settings.config).expanduser()
        return found

    def cluster_config(self) -> ClusterConfig:
        """Load the cluster.ini; raise `ConfigError` that says how to get one."""
        from dfs.config import load_config

        path = self.find_config()
        if path is None:
            raise ConfigError(NO_CLUSTER)
        return load_config(path)

    def access(self) -> tuple[ClusterAccess, float]:
        """Return the way to the cluster and its default timeout."""
        from dfs.client.access import ClusterAccess
        from dfs.config import load_config

        path = self.find_config()
        if path is not None:
            config = load_config(path)
            return ClusterAccess.from_config(config), config.client_timeout_s
        settings = self.settings
        if settings.masters and settings.cluster and settings.secret_file:
            secret_file = Path(settings.secret_file).expanduser()
            return ClusterAccess(settings.cluster, settings.masters, secret_file), 30.0
        if settings.masters or settings.cluster or settings.secret_file:
            raise ConfigError(
                f"the settings `masters`, `cluster` and `secret_file` belong together and not all are set in"
                f" {self.settings_path}; set them with `dfs config KEY VALUE`, or use --config FILE"
            )
        raise ConfigError(NO_CLUSTER)

    @property
    def client(self) -> DfsClient:
        """The one client of this run, connected when first needed."""
        if self._client is None:
            from dfs.client.access import ReadRules
            from dfs.client.filesystem import DfsClient

            access, timeout_s = self.access()
            settings = self.settings
            self._client = DfsClient(
                access,
                timeout_s=self.timeout_s or self.settings.timeout_s or timeout_s,
                replication=self.settings.replication,
                stale_s=self.stale_s,
                reads=ReadRules(local=settings.local_reads, hedged=settings.hedged_reads, rack=settings.rack or ""),
            )
        return self._client

    def close(self) -> None:
        if self._client is not None and self._is_own_client:
            self._client.close()
            self._client = None
