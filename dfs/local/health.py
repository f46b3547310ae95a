"""Say what is missing until a cluster is healthy.

Owns: what healthy means: the wanted masters agree on a leader, which hears every wanted chunk server, and each answers.
Refuses to know: processes and how they are started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from dfs.client import ClusterAccess, DfsClient
from dfs.clock import Deadline
from dfs.config import ClusterConfig
from dfs.errors import DeadlineExceeded, DfsError
from dfs.net.parts import MasterStatus

POLL_INTERVAL_S = 0.1
_CALL_TIMEOUT_S = 3.0


def wait_until_healthy(
    config: ClusterConfig, wanted: Collection[str], deadline: Deadline, check: Callable[[], None]
) -> None:
    """Return when the `wanted` nodes are healthy; raise `DeadlineExceeded` that says what is missing.

    `check` is called in each round and may raise to end the wait early.
    """
    with DfsClient(ClusterAccess.from_config(config), timeout_s=_CALL_TIMEOUT_S) as client:
        while True:
            check()
            missing = describe_missing(config, wanted, client)
            if missing is None:
                return
            if deadline.has_passed:
                raise DeadlineExceeded(f"the cluster is not healthy: {missing}; logs are in {config.run_dir}")
            time.sleep(min(POLL_INTERVAL_S, deadline.remaining_s()))


def describe_missing(config: ClusterConfig, wanted: Collection[str], client: DfsClient) -> str | None:
    """Return what keeps the wanted nodes from being healthy, None when nothing does."""
    names = {master.address: master.name for master in config.masters}
    leaders: dict[str, str] = {}
    for answer in client.master_statuses():
        if isinstance(answer, MasterStatus):
            leaders[answer.name] = answer.leader
        else:
            address, error = answer
            if names.get(address) in wanted:
                return f"master {names[address]} does not answer ({error})"
    masters = [name for name in names.values() if name in wanted]
    leading = {leaders.get(name, "") for name in masters}
    if len(leading) != 1 or "" in leading or not leading <= set(masters):
        seen = ", ".join(f"{name} follows {leaders.get(name) or 'nobody'}" for name in masters)
        return f"the masters have no common leader ({seen})"
    servers = {server.name for server in config.chunk_servers if server.name in wanted}
    if not servers:
        return None
    try:
        states = {server.info.name: server.state for server in client.cluster_status().servers}
    except DfsError as error:
        return f"the leader does not answer ({error})"
    absent = sorted(name for name in servers if states.get(name) not in ("alive", "slow"))
    if absent:
        return f"the leader does not hear chunk server {', '.join(absent)}"
    # One that was away for less than `dead_after` counts as alive to the leader, also before it is back.
    addresses = {server.address: server.name for server in config.chunk_servers if server.name in servers}
    for pong in client.inspection.ping(addresses, _CALL_TIMEOUT_S):
        if pong.error is not None:
            return f"chunk server {addresses[pong.address]} does not answer ({pong.error})"
    return None
