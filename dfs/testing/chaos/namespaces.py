"""A network of its own for a cluster under test: each node in a network namespace, links that can be cut one way.

Owns: namespaces, virtual links, and cuts. Refuses to know: what runs in them.

A cut gives the sender a wrong link address for its peer, for good: its packets leave and reach nobody, as behind a
broken switch. Nobody gets an error, and the other direction works on. Needs root and Linux; `is_permitted` tells.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import subprocess
from collections.abc import Sequence
from types import TracebackType

from dfs.errors import DfsError

NETWORK = "198.18.{}.{}"  # RFC 2544: for tests of networks, routed nowhere
NOBODY = "02:00:00:00:00:01"  # a link address that no interface has
COMMAND_TIMEOUT_S = 60.0

_COUNTER = itertools.count(1)


def is_permitted() -> bool:
    """Whether this process may make namespaces and links."""
    name = f"dfs-probe-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except DfsError:
        return False
    return True


class Namespaces:
    """One bridge, one namespace for each of `names`; this process sits at the bridge. A context manager."""

    def __init__(self, names: Sequence[str]) -> None:
        self._tag = f"{os.getpid() % 0xFFFF:x}{next(_COUNTER) % 0xFFF:x}"  # names of links have 15 letters at most
        self._subnet = 0
        self._claim: socket.socket | None = None  # on the subnet, as long as it is in use
        self._bridge = f"dfs{self._tag}"
        self._number = {name: number for number, name in enumerate(names, start=2)}
        self._cuts: list[tuple[str, str]] = []

    def __enter__(self) -> Namespaces:
        try:
            self._subnet, self._claim = _claimed_subnet()
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("addr", "add", f"{NETWORK.format(self._subnet, 1)}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for name in self._number:
                self._add(name)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close()

    @property
    def bridge(self) -> str:
        return self._bridge

    def address(self, name: str) -> str:
        return NETWORK.format(self._subnet, self._number[name])

    def launcher(self, name: str) -> tuple[str, ...]:
        """Return the words that start a command in the node's namespace."""
        return ("/usr/bin/env", "ip", "netns", "exec", self._namespace(name))

    def cut(self, sender: str, receiver: str) -> None:
        """Let nothing that `sender` sends to `receiver` arrive from now on."""
        self._on(
            sender, "neigh", "replace", self.address(receiver), "lladdr", NOBODY, "nud", "permanent", "dev", "eth0"
        )
        self._cuts.append((sender, receiver))

    def heal(self) -> None:
        """Mend all cuts."""
        while self._cuts:
            sender, receiver = self._cuts.pop()
            self._on(sender, "neigh", "del", self.address(receiver), "dev", "eth0")

    def close(self) -> None:
        """Remove everything; processes in the namespaces must have ended."""
        for name, number in self._number.items():
            _ip("link", "del", f"d{self._tag}-{number}", must=False)
            _ip("netns", "del", self._namespace(name), must=False)
        _ip("link", "del", self._bridge, must=False)
        if self._claim is not None:
            self._claim.close()

    def _add(self, name: str) -> None:
        namespace, outer = self._namespace(name), f"d{self._tag}-{self._number[name]}"
        _ip("netns", "add", namespace)
        _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", outer, "master", self._bridge, "up")
        self._on(name, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
        self._on(name, "link", "set", "eth0", "up")
        self._on(name, "link", "set", "lo", "up")

    def _namespace(self, name: str) -> str:
        return f"dfs-{self._tag}-{name}"

    def _on(self, name: str, *words: str) -> None:
        _ip("-n", self._namespace(name), *words)


def _claimed_subnet() -> tuple[int, socket.socket]:
    """Return a number below 256 that no route of this machine uses, and what keeps other runs from drawing it, too."""
    for subnet in random.SystemRandom().sample(range(256), 256):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with contextlib.suppress(OSError):
            claim.bind(f"\0dfs-subnet/{subnet}")
            if not _ip("route", "show", f"{NETWORK.format(subnet, 0)}/24"):
                return subnet, claim
        claim.close()
    raise DfsError(f"all networks of {NETWORK.format('n', 0)} are in use on this machine")


def _ip(*words: str, must: bool = True) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the words are ours
            ["ip", *words],  # noqa: S607 - where it is differs between distributions
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DfsError(f"cannot run ip (package iproute2): {error}") from None
    if must and done.returncode:
        raise DfsError(f"ip {' '.join(words)} failed: {done.stderr.strip()}")
    return done.stdout
