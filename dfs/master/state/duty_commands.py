"""Handlers of the commands that the leader itself proposes: registry, replica changes, expiry, options.

Owns: their semantics. Refuses to know: when and why the leader proposes them.
"""

from __future__ import annotations

from dfs.errors import InvalidArgument
from dfs.master.state.commands import ChangeReplicas, ExpireSessions, ExpireTrash, ForgetGarbage, PutServer, SetOptions
from dfs.master.state.content_commands import check_replication
from dfs.master.state.parts import TIME_MAX_MS, StateParts
from dfs.master.state.views import RegisteredServer
from dfs.net.messages import Done, EmptyTrashReply


def put_server(parts: StateParts, command: PutServer) -> Done:
    parts.servers.put(RegisteredServer(command.server_id, command.name, command.address, command.rack))
    return Done()


def change_replicas(parts: StateParts, command: ChangeReplicas) -> Done:
    """Correct the map. A lost replica of garbage is one server less that must confirm its removal, and a lost one of an
    open tail is one less that can seal it."""
    server = parts.servers.get(command.server_id)
    if server is None:
        return Done()
    for change in command.changes:
        if change.is_added:
            parts.chunks.add_replica(change.handle, server.server_id, change.length, change.crc)
        elif not parts.tails.leave(change.handle, server.server_id):
            parts.chunks.drop_replica(change.handle, server.server_id)
    return Done()


def expire_trash(parts: StateParts, command: ExpireTrash) -> EmptyTrashReply:
    """Release due entries, O(entries); the subtrees behind them go in bounded steps, one after each command."""
    due: list[int] = []
    for trash_id in parts.trash.oldest_ids(command.limit):
        entry = parts.trash.get(trash_id)
        if entry is None or entry.deleted_ms + parts.trash_keep_ms > parts.clock_ms:
            break
        due.append(trash_id)
    size = parts.release_trash(due)
    oldest_ms = parts.trash.oldest_ms()
    return EmptyTrashReply(len(due), size, oldest_ms is not None and oldest_ms + parts.trash_keep_ms <= parts.clock_ms)


def forget_garbage(parts: StateParts, command: ForgetGarbage) -> Done:
    for handle in command.handles:
        parts.chunks.forget_garbage(handle, command.server_id)
    return Done()


def expire_sessions(parts: StateParts, command: ExpireSessions) -> Done:
    if command.idle_ms < 1:
        raise InvalidArgument(f"sessions cannot expire after {command.idle_ms} ms")
    parts.sessions.expire(command.idle_ms, command.limit, parts.clock_ms)
    return Done()


def set_options(parts: StateParts, command: SetOptions) -> Done:
    check_replication(command.replication)
    if not 0 <= command.trash_keep_ms <= TIME_MAX_MS:
        raise InvalidArgument(f"the trash cannot be kept for {command.trash_keep_ms} ms")
    if not 1 <= command.orphan_grace_ms <= TIME_MAX_MS:
        raise InvalidArgument(f"uncommitted chunks cannot be kept for {command.orphan_grace_ms} ms")
    parts.trash_keep_ms, parts.replication = command.trash_keep_ms, command.replication
    parts.orphan_grace_ms = command.orphan_grace_ms
    parts.tick(parts.clock_ms)  # a shorter grace moves the horizon at once
    return Done()
