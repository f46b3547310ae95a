"""Handlers of the commands about chunk servers as such: their mode, their removal, surplus replicas, balance.

Owns: their semantics. Refuses to know: when and why the leader proposes them.
"""

from __future__ import annotations

from dfs.errors import Conflict, InvalidArgument, NotFound
from dfs.ids import ServerId, id_text
from dfs.master.state.commands import (
    BALANCE_MODES,
    BALANCE_THRESHOLD_MAX_PPM,
    ForgetServer,
    SetBalance,
    SetServerMode,
    TrimReplicas,
)
from dfs.master.state.parts import TIME_MAX_MS, StateParts
from dfs.net.messages import Done


def set_server_mode(parts: StateParts, command: SetServerMode) -> Done:
    _require_known(parts, command.server_id)
    if not 0 <= command.maintenance_until_ms <= TIME_MAX_MS:
        raise InvalidArgument(f"maintenance cannot last until {command.maintenance_until_ms} ms")
    parts.servers.set_mode(
        command.server_id, is_leaving=command.is_leaving, maintenance_until_ms=command.maintenance_until_ms
    )
    return Done()


def forget_server(parts: StateParts, command: ForgetServer) -> Done:
    """Forget it only when nothing names it: what it held is dropped before, in bounded commands."""
    _require_known(parts, command.server_id)
    replicas, garbage = (
        parts.chunks.replica_count_of(command.server_id),
        parts.chunks.garbage_count_of(command.server_id),
    )
    if replicas or garbage:
        raise Conflict(
            f"chunk server {id_text(command.server_id)} is still named by {replicas} chunks and {garbage} chunks of "
            "garbage; it cannot be forgotten before these are"
        )
    tails = sum(command.server_id in tail.servers for tail in parts.tails.all())
    if tails:
        raise Conflict(
            f"chunk server {id_text(command.server_id)} is in the chain of {tails} open tails; it can be forgotten when"
            " these are sealed, which the leader does by itself"
        )
    parts.servers.remove(command.server_id)
    return Done()


def trim_replicas(parts: StateParts, command: TrimReplicas) -> Done:
    """Unlist surplus replicas; whatever happened since the leader chose them, no chunk falls below its goal."""
    for handle in command.handles:
        chunk = parts.chunks.view(handle)
        if chunk is not None and command.server_id in chunk.servers and len(chunk.servers) > chunk.goal:
            parts.chunks.drop_replica(handle, command.server_id)
    return Done()


def set_balance(parts: StateParts, command: SetBalance) -> Done:
    if command.mode not in BALANCE_MODES:
        raise InvalidArgument(f"there is no balance mode {command.mode}")
    if not 0 <= command.threshold_ppm <= BALANCE_THRESHOLD_MAX_PPM:
        raise InvalidArgument(f"a balance threshold of {command.threshold_ppm} millionths is not between 0 and all")
    parts.balance_mode, parts.balance_threshold_ppm = command.mode, command.threshold_ppm
    return Done()


def _require_known(parts: StateParts, server_id: ServerId) -> None:
    if server_id not in parts.servers:
        raise NotFound(f"no chunk server has the id {id_text(server_id)}")
