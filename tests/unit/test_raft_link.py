"""Is a connection between masters closed on the first byte that a master of this cluster did not send, in this order?

Fault letters of the pysyncobj study: g1 (bytes interpreted before authentication), g2 (an identity taken over), g3 (no
frame limit).
"""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfs.errors import AuthenticationFailed, ConfigError, DfsError, FrameTooLarge, ProtocolError, VersionMismatch
from dfs.master import raft_transport
from dfs.master.raft_link import FRAME_SIZE_MAX, LinkSession, pack_name
from dfs.master.raft_wire import (
    Append,
    AppendReply,
    Ping,
    RaftMessage,
    ReadRound,
    decode_body,
    encode_raft,
    join_bodies,
)

KEY = b"k" * 32
MEMBERS = frozenset(("m1", "m2", "m3"))


def pair(
    *, key: bytes = KEY, other_key: bytes = KEY, own: str = "m2", wanted: str = "m1", acceptor: str = "m1"
) -> tuple[LinkSession, LinkSession]:
    """Return a dialer and an acceptor."""
    return LinkSession(key, own, MEMBERS, wanted), LinkSession(other_key, acceptor, MEMBERS, None)


def connect(dialer: LinkSession, acceptor: LinkSession) -> None:
    _, challenge = acceptor.feed(dialer.start())
    _, proof = dialer.feed(challenge)
    assert acceptor.feed(proof) == ([], b"")


def test_both_sides_know_each_other_after_the_handshake() -> None:
    dialer, acceptor = pair()
    connect(dialer, acceptor)
    assert (dialer.is_up, acceptor.is_up) == (True, True)
    assert (dialer.peer, acceptor.peer) == ("m1", "m2")


@settings(max_examples=50, deadline=None)
@given(bodies=st.lists(st.binary(max_size=300), max_size=5), size=st.integers(1, 50))
def test_frames_arrive_whole_and_in_order_however_they_are_cut(bodies: list[bytes], size: int) -> None:
    dialer, acceptor = pair()
    connect(dialer, acceptor)
    stream = b"".join(dialer.seal(body) for body in bodies)
    arrived = [body for start in range(0, len(stream), size) for body in acceptor.feed(stream[start : start + size])[0]]
    assert arrived == bodies
    assert dialer.feed(acceptor.seal(b"back"))[0] == [b"back"]


def test_fault_g2_another_key_is_found_out_by_the_dialer() -> None:
    dialer, acceptor = pair(other_key=b"o" * 32)
    _, challenge = acceptor.feed(dialer.start())
    with pytest.raises(AuthenticationFailed, match="compare the secret file"):
        dialer.feed(challenge)


def test_fault_g2_a_dialer_without_the_key_is_refused() -> None:
    dialer, acceptor = pair()
    acceptor.feed(dialer.start())
    with pytest.raises(AuthenticationFailed):
        acceptor.feed(bytes(32))
    assert not acceptor.is_up


@pytest.mark.parametrize(
    ("own", "wanted", "acceptor"), [("m9", "m1", "m1"), ("m2", "m3", "m1"), ("m1", "m1", "m1"), ("m2", "m1", "m3")]
)
def test_fault_g2_only_a_member_that_asks_for_this_master_is_let_in(own: str, wanted: str, acceptor: str) -> None:
    dialer, other = pair(own=own, wanted=wanted, acceptor=acceptor)
    with pytest.raises(AuthenticationFailed, match="compare"):
        other.feed(dialer.start())


def test_a_recorded_handshake_cannot_be_replayed() -> None:
    dialer, acceptor = pair()
    _, challenge = acceptor.feed(dialer.start())
    _, proof = dialer.feed(challenge)
    _, again = pair()
    again.feed(dialer.start())
    with pytest.raises(AuthenticationFailed):
        again.feed(proof)


def test_the_acceptors_proof_is_not_one_of_the_dialer() -> None:
    dialer, acceptor = pair()
    _, challenge = acceptor.feed(dialer.start())
    with pytest.raises(AuthenticationFailed):
        acceptor.feed(challenge[-32:])


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_frame_is_never_delivered(position: int, bit: int) -> None:
    dialer, acceptor = pair()
    connect(dialer, acceptor)
    stream = bytearray(dialer.seal(b"a body that matters"))
    stream[position % len(stream)] ^= 1 << bit
    try:
        bodies, _ = acceptor.feed(bytes(stream))
    except DfsError:
        return
    assert bodies == []  # a longer size: the frame is not complete


@pytest.mark.parametrize("wrong", ["replayed", "reordered", "reflected"])
def test_a_replayed_a_reordered_or_a_reflected_frame_is_refused(wrong: str) -> None:
    dialer, acceptor = pair()
    connect(dialer, acceptor)
    first, second = dialer.seal(b"1"), dialer.seal(b"2")
    stream = {"replayed": first + first, "reordered": second + first, "reflected": first}[wrong]
    receiver = dialer if wrong == "reflected" else acceptor
    with pytest.raises(AuthenticationFailed):
        receiver.feed(stream)


def test_fault_g3_a_frame_over_the_limit_is_refused_by_its_size_alone() -> None:
    dialer, acceptor = pair()
    connect(dialer, acceptor)
    with pytest.raises(FrameTooLarge, match=str(FRAME_SIZE_MAX)):
        acceptor.feed((FRAME_SIZE_MAX + 1).to_bytes(4, "little"))


def test_fault_g1_foreign_bytes_are_refused_before_they_mean_anything() -> None:
    _, acceptor = pair()
    with pytest.raises(ProtocolError, match="does not speak Raft"):
        acceptor.feed(b"\x80\x04K\x01.".ljust(500, b"x"))


def test_another_version_is_told_apart_from_a_wrong_secret() -> None:
    dialer, acceptor = pair()
    hello = bytearray(dialer.start())
    hello[4] += 1
    with pytest.raises(VersionMismatch, match="upgrade"):
        acceptor.feed(bytes(hello))


@pytest.mark.parametrize("name", ["", "x" * 65, "a\0b"])
def test_names_that_do_not_fit_the_hello_are_a_configuration_error(name: str) -> None:
    with pytest.raises(ConfigError):
        pack_name(name)


def test_messages_survive_the_codec() -> None:
    messages: list[RaftMessage] = [
        Append(2**40, 3, 9, 8, 2, [(b"\x00x", 9, 2), (b"\x01", 10, 3)]),
        AppendReply(1, 2, 3, False, True),
        ReadRound(4, 5),
        Ping(6),
    ]
    assert decode_body(join_bodies([encode_raft(message) for message in messages])) == messages


@given(body=st.binary(max_size=40))
def test_a_body_that_is_no_message_is_a_protocol_error(body: bytes) -> None:
    try:
        messages = decode_body(body)
    except ProtocolError:
        return
    assert isinstance(messages, list)


def test_a_dialer_outlives_what_nobody_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when asyncio gets no thread to look a name up: nobody else would connect these two masters again."""
    monkeypatch.setattr(raft_transport, "REFUSED_RETRY_S", 0.0)
    faults: list[Exception] = [RuntimeError("can't start new thread")]

    async def trial() -> None:
        loop, is_dialled = asyncio.get_running_loop(), asyncio.Event()

        async def create_connection(*_: object) -> None:
            if faults:
                raise faults.pop()
            is_dialled.set()
            raise ConnectionRefusedError

        monkeypatch.setattr(loop, "create_connection", create_connection)
        peers = {"a": "127.0.0.1:1", "b": "127.0.0.1:0"}
        transport = raft_transport.RaftTransport(name="b", peers=peers, key=KEY, dead_after_s=9.0)
        await transport.start(cast(raft_transport.TransportUser, None), lambda: None)
        try:
            async with asyncio.timeout(20):
                await is_dialled.wait()
        finally:
            transport.close()
            await transport.drain()

    asyncio.run(trial())
    assert not faults
