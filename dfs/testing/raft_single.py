"""One Raft engine behind its gate, without network and without a clock to wait for: messages in, messages out.

Owns: `SingleNode`, what it would send, and short ways to say entries. Refuses to know: what a test expects.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dfs.errors import DfsError
from dfs.master.raft_checkpoint import CheckpointFolder
from dfs.master.raft_engine import Engine, EngineJournal
from dfs.master.raft_gate import Gate
from dfs.master.raft_join import Membership
from dfs.master.raft_transport import RaftTransport
from dfs.master.raft_wire import Append, AppendReply, RaftMessage, Vote, decode_body, encode_raft, join_bodies
from dfs.testing.raft_group import CommandList

NOTHING = b"\x01"
ELECTION_TIMEOUT_S = (20.0, 40.0)  # nothing of it passes while a busy machine holds up a test


def entry(index: int, term: int, text: bytes = b"x") -> tuple[bytes, int, int]:
    return b"\x00" + b"\x91\xc4" + bytes([len(text)]) + text, index, term  # a msgpack list of one bin


class Recorder(RaftTransport):
    """Keeps what would be sent."""

    def __init__(self, name: str, peers: list[str]) -> None:
        addresses = dict.fromkeys([name, *peers], "127.0.0.1:1")
        super().__init__(name=name, peers=addresses, key=b"k" * 32, dead_after_s=9)
        self.sent: list[tuple[str, RaftMessage]] = []
        self.needed: list[int] = []  # journal record that each of all messages must wait for

    def join(self, gate: Gate) -> None:
        self._user = gate
        for node in self._nodes.values():
            self._onNodeConnected(node)

    def send(self, node: Any, message: dict[str, Any]) -> bool:
        translated = self.user.translate(str(node.id), message)
        return translated is not None and self.put(str(node.id), *translated)

    def put(self, peer: str, message: RaftMessage, needed: int) -> bool:
        (decoded,) = decode_body(join_bodies([encode_raft(message)]))
        self.sent.append((peer, decoded))
        self.needed.append(needed)
        return True


class SingleNode:
    """One engine behind its gate."""

    def __init__(
        self,
        folder: Path,
        *,
        peers: tuple[str, ...] = ("b", "c"),
        own: str = "a",
        membership: Membership | None = None,
    ) -> None:
        self.folder = folder
        self.failures: list[DfsError] = []
        self._is_closed = False
        self.prevotes: list[tuple[str, int]] = []
        self.confirmed: list[tuple[str, int]] = []
        self.machine = CommandList()
        self.journal = EngineJournal(folder / "log", name=own, fsync=False, segment_size=16 * 1024)
        self.transport = Recorder(own, list(peers))
        self.checkpoints = CheckpointFolder(folder / "checkpoints", fsync=False)
        self.engine = Engine(
            name=own,
            peers=list(peers),
            journal=self.journal,
            folder=self.checkpoints,
            machine=self.machine,
            transport=self.transport,
            is_congested=lambda _peer: False,
            election_timeout_s=ELECTION_TIMEOUT_S,
            heartbeat_s=0.1,
            on_role=lambda _old, _new: None,
            on_failure=self.failures.append,
        )
        self.engine.heard_at_s = time.monotonic() - 100
        self.gate = Gate(self.engine, self.transport, self, membership)
        self.transport.join(self.gate)
        self.sync()

    def prevote_granted(self, peer: str, number: int) -> None:
        self.prevotes.append((peer, number))

    def leadership_confirmed(self, peer: str, number: int) -> None:
        self.confirmed.append((peer, number))

    def age_asked(self, peer: str, number: int) -> None:
        self.prevotes.append((peer, number))

    def age_answered(self, number: int, commit_index: int) -> None:
        self.confirmed.append((str(number), commit_index))

    def sync(self) -> None:
        """Let the disk catch up."""
        self.journal.durable = self.journal.sequence
        self.journal.durable_index = self.journal.last_index
        self.gate.release_held()

    def get(self, peer: str, message: RaftMessage) -> list[RaftMessage]:
        """Receive a message; return what is answered to that peer."""
        self.transport.sent.clear()
        self.gate.received(peer, message)
        return [sent for to, sent in self.transport.sent if to == peer]

    def lead(self) -> None:
        """Win an election and get the first entry of the term committed."""
        self.engine.may_campaign = True
        self.engine.tick()
        for peer in self.transport.peers:
            self.gate.received(peer, Vote(self.journal.term))
        self.engine.replicate()
        self.sync()
        for peer in self.transport.peers:
            self.acknowledge(peer)
        self.engine.tick()
        assert self.engine.leads_with_own_entry

    def acknowledge(self, peer: str, next_index: int | None = None, serial: int = 10**9) -> None:
        upto = self.journal.last_index + 1 if next_index is None else next_index
        self.gate.received(peer, AppendReply(self.journal.term, serial, upto, False, True))

    def propose(self, *commands: bytes) -> list[Any]:
        """Propose one log entry; return the list that will hold (results, reason)."""
        outcome: list[Any] = []
        self.engine.submit(list(commands), lambda results, reason: outcome.append((results, reason)))
        self.engine.tick()
        self.engine.replicate()
        return outcome

    def close(self) -> None:
        """Stop cleanly: what is buffered reaches the file."""
        if not self._is_closed:
            self._is_closed = True
            self.engine.stop()
            self.journal.attach(lambda *_: None, lambda: None, self.failures.append)
            self.journal.close()

    def restart(self) -> SingleNode:
        self.close()
        return SingleNode(self.folder)


def entries(first: int, last: int, term: int = 1) -> list[tuple[bytes, int, int]]:
    return [entry(index, term) for index in range(first, last + 1)]


def append(
    previous: int, new: list[tuple[bytes, int, int]], *, term: int = 1, previous_term: int = 1, commit: int = 1
) -> Append:
    return Append(term, 1, commit, previous, previous_term, new)
