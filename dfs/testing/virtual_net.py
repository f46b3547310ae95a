"""A network between machines on a virtual loop: delays, partitions of any shape, connections that die or hang.

Owns: which host reaches which, the delay of every message, and connections with the interface of asyncio.
Refuses to know: what the bytes mean.

A connection is TCP as its users see it: bytes arrive in order and once, in pieces of any size, or the connection
breaks. Between two connections there is no order. Through a partition nothing passes: bytes are sent again after it
has healed, a reset is lost for good, so that the other side keeps a connection that is none (half open).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from dfs.testing.virtual_loop import Machine, VirtualLoop, current_machine

RETRANSMIT_S = 0.2  # longest time from the end of a partition until held bytes come through
Address = tuple[str, int]


@dataclass(slots=True)
class _Listener:
    machine: Machine
    context: Context
    make_protocol: Callable[[], asyncio.Protocol]
    net: VirtualNet
    address: Address

    def close(self) -> None:
        if self.net.listeners.get(self.address) is self:
            del self.net.listeners[self.address]


class VirtualNet:
    """All hosts, by name. A host that is in `dark` has no power: it answers nothing at all."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, *, delay_s: float) -> None:
        self.loop = loop
        self.rng = rng
        self.delay_s = delay_s
        self.blocked: set[tuple[str, str]] = set()  # (from, to)
        self.dark: set[str] = set()
        self.listeners: dict[Address, _Listener] = {}
        self.connections: list[VirtualTransport] = []
        self.digest = hashlib.blake2b(digest_size=8)  # of everything that was delivered
        self.delivered = 0
        self._host_addresses: dict[str, str] = {}  # by address

    def name_host(self, address: str, name: str) -> None:
        self._host_addresses[address] = name

    def random_delay_s(self) -> float:
        """Mostly around `delay_s`, sometimes a multiple: what makes connections overtake each other."""
        slow = 20.0 if self.rng.random() < 0.02 else 1.0
        return self.delay_s * slow * (0.5 + self.rng.random())

    def is_open(self, source: str, target: str) -> bool:
        return (source, target) not in self.blocked and source not in self.dark and target not in self.dark

    # --- faults

    def block(self, source: str, target: str) -> None:
        self.blocked.add((source, target))

    def heal(self) -> None:
        self.blocked.clear()
        self.resend()

    def resend(self) -> None:
        """Let held bytes go on where the way is open again."""
        for transport in list(self.connections):
            transport.resend()

    def drop_machine(self, machine: Machine, *, silently: bool) -> None:
        """End all that a killed machine had open; its kernel tells the others unless the power went (`silently`)."""
        for address in [address for address, one in self.listeners.items() if one.machine is machine]:
            del self.listeners[address]
        for transport in [one for one in self.connections if one.machine is machine]:
            transport.vanish(silently=silently)

    def cut(self, first: str, second: str) -> None:
        """Reset the connections between two hosts, as a router that forgot them does."""
        for transport in list(self.connections):
            if transport.host == first and transport.peer_host == second:
                transport.break_off()

    # --- what the loop asks

    def listen(self, address: Address, make_protocol: Callable[[], asyncio.Protocol]) -> _Listener:
        machine = current_machine()
        assert machine is not None
        if address in self.listeners:
            raise OSError(98, "Address already in use")
        listener = _Listener(machine, machine.context, make_protocol, self, address)
        self.listeners[address] = listener
        return listener

    async def connect(
        self, address: Address, make_protocol: Callable[[], asyncio.Protocol]
    ) -> tuple[VirtualTransport, asyncio.Protocol]:
        machine = current_machine()
        assert machine is not None
        source, target = machine.name, self._host_addresses[address[0]]
        await asyncio.sleep(self.random_delay_s())
        while not (self.is_open(source, target) and self.is_open(target, source)):  # noqa: ASYNC110
            await asyncio.sleep(RETRANSMIT_S)  # a SYN is sent again; who waits has a timeout
        listener = self.listeners.get(address)
        if listener is None:
            raise ConnectionRefusedError(111, "Connection refused")
        near = VirtualTransport(self, machine, target)
        far = VirtualTransport(self, listener.machine, source)
        near.peer, far.peer = far, near
        self.connections += (near, far)
        far.pending_protocol = listener.make_protocol
        self.loop.call_later(self.random_delay_s(), far.accept, context=listener.context.copy())
        protocol = make_protocol()
        near.protocol = protocol
        protocol.connection_made(near)
        return near, protocol


class VirtualTransport(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, net: VirtualNet, machine: Machine, peer_host: str) -> None:
        super().__init__()
        self._net = net
        self.machine = machine
        self.host, self.peer_host = machine.name, peer_host
        self.peer: VirtualTransport | None = None
        self.protocol: asyncio.Protocol | None = None
        self.pending_protocol: Callable[[], asyncio.Protocol] | None = None
        self._is_closed = False
        self._flying: deque[bytes] = deque()  # on the way to the peer, each with a timer
        self._held: deque[bytes] = deque()  # stopped by a partition
        self._inbox: list[bytes] = []  # arrived before it was accepted
        self._arrives_s = 0.0  # when the last byte sent so far arrives

    # --- the interface of asyncio

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closed or not self.machine.is_alive:
            return
        data, rng = bytes(data), self._net.rng
        if len(data) > 1 and rng.random() < 0.1:  # a segment boundary anywhere
            middle = rng.randrange(1, len(data))
            self._send(data[:middle])
            data = data[middle:]
        self._send(data)

    def abort(self) -> None:
        if not self._is_closed and self.machine.is_alive:
            self.break_off()

    close = abort

    def is_closing(self) -> bool:
        return self._is_closed

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self._held))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        del high, low

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self.peer_host, 0) if name == "peername" else default

    # --- the way of the bytes

    def accept(self) -> None:
        """Run on the accepting machine."""
        if self.pending_protocol is None or self._is_closed:
            return
        self.protocol = self.pending_protocol()
        self.protocol.connection_made(self)
        inbox, self._inbox = self._inbox, []
        for data in inbox:
            self._receive(data)

    def _send(self, data: bytes) -> None:
        net = self._net
        self._flying.append(data)
        self._arrives_s = max(self._arrives_s, net.loop.time() + net.random_delay_s())
        net.loop.call_at(self._arrives_s, self._arrive, context=_NOWHERE)

    def _arrive(self) -> None:
        data = self._flying.popleft()
        if self._held or not self._net.is_open(self.host, self.peer_host):
            self._held.append(data)
        else:
            self._hand_over(data)

    def resend(self) -> None:
        if self._held and self._net.is_open(self.host, self.peer_host):
            delay_s = self._net.rng.random() * RETRANSMIT_S
            self._net.loop.call_later(delay_s, self._resend, context=_NOWHERE)

    def _resend(self) -> None:
        while self._held and self._net.is_open(self.host, self.peer_host):
            self._hand_over(self._held.popleft())

    def _hand_over(self, data: bytes) -> None:
        peer, net = self.peer, self._net
        assert peer is not None
        if peer.is_closing():
            if net.is_open(peer.host, self.host):  # nobody is there: the kernel answers with a reset
                self.reset_by_peer()
            return
        net.delivered += len(data)
        net.loop.call_soon(peer.receive, data, context=peer.machine.context.copy())

    def receive(self, data: bytes) -> None:
        """Run on the receiving machine."""
        net = self._net
        net.digest.update(f"{net.loop.time():.9f} {self.host}<{self.peer_host} {len(data)} ".encode())
        net.digest.update(data)
        self._receive(data)

    def _receive(self, data: bytes) -> None:
        if self._is_closed:
            return
        if self.protocol is None:
            self._inbox.append(data)
        else:
            self.protocol.data_received(data)

    # --- ends

    def _forget(self) -> None:
        self._is_closed = True
        self._held.clear()
        self._net.connections.remove(self)

    def break_off(self) -> None:
        """Close this end at once; the other learns of it if it can be reached."""
        self.reset_by_peer()
        self._reset_peer()

    def vanish(self, *, silently: bool) -> None:
        """End with the machine: its code hears nothing any more."""
        self._forget()
        if not silently:
            self._reset_peer()

    def _reset_peer(self) -> None:
        net, peer = self._net, self.peer
        if peer is not None and net.is_open(self.host, self.peer_host):
            when_s = max(self._arrives_s, net.loop.time() + net.random_delay_s())
            net.loop.call_at(when_s, peer.reset_by_peer, context=_NOWHERE)

    def reset_by_peer(self) -> None:
        if not self._is_closed:
            self._forget()
            self._net.loop.call_soon(self._tell_lost, context=self.machine.context.copy())

    def _tell_lost(self) -> None:
        if self.protocol is not None:
            self.protocol.connection_lost(None)


_NOWHERE = Context()  # of events that belong to no machine
