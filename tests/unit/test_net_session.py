"""The handshake decides who may speak: tested as an attacker would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs.errors import AuthenticationFailed, ConnectionFailed, DfsError, ProtocolError, Retry, VersionMismatch
from dfs.net.session import HELLO_SIZE, NONCE_SIZE, PROOF_SIZE, Handshake, Role

KEY = b"k" * 32
OTHER_KEY = b"o" * 32


def initiator(key: bytes = KEY, cluster: str = "demo", nonce: int = 1, versions: tuple[int, int] = (1, 1)) -> Handshake:
    return Handshake(Role.INITIATOR, key, cluster, bytes([nonce]) * NONCE_SIZE, versions=versions)


def acceptor(key: bytes = KEY, cluster: str = "demo", nonce: int = 2, versions: tuple[int, int] = (1, 1)) -> Handshake:
    return Handshake(Role.ACCEPTOR, key, cluster, bytes([nonce]) * NONCE_SIZE, versions=versions)


def shake(first: Handshake, second: Handshake) -> None:
    second.receive(first.receive(second.receive(first.start())))


def test_both_sides_with_the_same_secret_finish() -> None:
    first, second = initiator(), acceptor()
    assert (first.start(), second.start()) == (first.start(), b"")
    assert (first.is_done, second.is_done) == (False, False)
    shake(first, second)
    assert (first.is_done, second.is_done) == (True, True)
    assert first.version == second.version == 1


def test_initiator_with_another_secret_is_told_why_and_proves_nothing() -> None:
    first, second = initiator(OTHER_KEY), acceptor()
    reply = second.receive(first.start())
    with pytest.raises(AuthenticationFailed, match=r"does not know the secret of this cluster.*cluster name"):
        first.receive(reply)
    assert not first.is_done
    assert isinstance(second.end_of_stream("10.0.0.9:1"), AuthenticationFailed)
    assert "10.0.0.9:1" in str(second.end_of_stream("10.0.0.9:1"))


def test_same_key_with_another_cluster_name_is_refused() -> None:
    first, second = initiator(cluster="demo"), acceptor(cluster="demo2")
    with pytest.raises(AuthenticationFailed):
        first.receive(second.receive(first.start()))


def test_acceptor_refuses_a_proof_made_with_another_secret() -> None:
    second = acceptor()
    second.receive(initiator(OTHER_KEY).start())
    with pytest.raises(AuthenticationFailed):
        second.receive(b"\0" * PROOF_SIZE)
    assert not second.is_done


def test_nothing_is_taken_after_a_failure() -> None:
    second = acceptor()
    second.receive(initiator().start())
    with pytest.raises(AuthenticationFailed):
        second.receive(b"\0" * PROOF_SIZE)
    for size in (0, PROOF_SIZE, HELLO_SIZE):
        if size != second.needed:
            with pytest.raises(ValueError, match="takes"):
                second.receive(b"\0" * size)


def test_own_hello_sent_back_is_refused() -> None:
    first = initiator()
    with pytest.raises(AuthenticationFailed, match="our own words"):
        first.receive(first.start() + b"\0" * PROOF_SIZE)


def test_own_hello_with_the_role_changed_is_refused() -> None:
    first = initiator()
    echoed = bytearray(first.start())
    echoed[6] = Role.ACCEPTOR
    with pytest.raises(AuthenticationFailed, match="our own words"):
        first.receive(bytes(echoed) + b"\0" * PROOF_SIZE)


def test_acceptors_proof_reflected_as_the_initiators_is_refused() -> None:
    """The classic: open two connections to one server and let it answer its own challenge."""
    attacked, oracle = acceptor(nonce=2), acceptor(nonce=3)
    hello = initiator(OTHER_KEY, nonce=9).start()
    challenge = attacked.receive(hello)
    own_proof = challenge[HELLO_SIZE:]
    relayed = bytearray(challenge[:HELLO_SIZE])
    relayed[6] = Role.INITIATOR  # the server's own challenge, posed to it on the second connection
    oracle_proof = oracle.receive(bytes(relayed))[HELLO_SIZE:]
    for stolen in (own_proof, oracle_proof):
        victim = acceptor(nonce=2)
        assert victim.receive(hello) == challenge
        with pytest.raises(AuthenticationFailed):
            victim.receive(stolen)


def test_recorded_initiator_cannot_be_replayed() -> None:
    first, second = initiator(), acceptor(nonce=2)
    hello = first.start()
    proof = first.receive(second.receive(hello))
    second.receive(proof)
    later = acceptor(nonce=3)
    later.receive(hello)
    with pytest.raises(AuthenticationFailed):
        later.receive(proof)


def test_recorded_acceptor_cannot_be_replayed() -> None:
    first, second = initiator(nonce=1), acceptor()
    reply = second.receive(first.start())
    first.receive(reply)
    with pytest.raises(AuthenticationFailed):
        initiator(nonce=4).receive(reply)


@given(step=st.integers(0, 2), position=st.integers(0, (HELLO_SIZE + PROOF_SIZE) * 8 - 1))
def test_a_flipped_bit_anywhere_makes_the_handshake_fail(step: int, position: int) -> None:
    first, second = initiator(), acceptor()

    def flipped(data: bytes, at_step: int) -> bytes:
        if step != at_step:
            return data
        index, bit = divmod(position % (len(data) * 8), 8)
        return data[:index] + bytes([data[index] ^ 1 << bit]) + data[index + 1 :]

    with pytest.raises(DfsError):
        second.receive(flipped(first.receive(flipped(second.receive(flipped(first.start(), 0)), 1)), 2))
    assert not second.is_done


@given(data=st.binary(min_size=HELLO_SIZE + PROOF_SIZE, max_size=HELLO_SIZE + PROOF_SIZE))
def test_random_bytes_are_refused_with_a_named_error(data: bytes) -> None:
    with pytest.raises((ProtocolError, AuthenticationFailed)):
        initiator().receive(data)
    with pytest.raises((ProtocolError, AuthenticationFailed)):
        acceptor().receive(data[:HELLO_SIZE])


def test_newest_common_version_is_chosen() -> None:
    first, second = initiator(versions=(1, 3)), acceptor(versions=(2, 5))
    shake(first, second)
    assert (first.version, second.version) == (3, 3)


@pytest.mark.parametrize(("own", "peers"), [((1, 1), (2, 3)), ((4, 5), (2, 3))])
def test_no_common_version_is_said_by_both_sides(own: tuple[int, int], peers: tuple[int, int]) -> None:
    first, second = initiator(versions=own), acceptor(versions=peers)
    with pytest.raises(VersionMismatch, match=f"{peers[0]} to {peers[1]}.*{own[0]} to {own[1]}.*upgrade"):
        first.receive(second.receive(first.start()))
    assert isinstance(second.end_of_stream("host:1"), VersionMismatch)


def test_wrong_secret_is_told_before_a_version_that_nobody_vouches_for() -> None:
    first, second = initiator(OTHER_KEY, versions=(1, 1)), acceptor(versions=(2, 2))
    with pytest.raises(AuthenticationFailed):
        first.receive(second.receive(first.start()))


def test_end_before_a_word_of_the_peer_is_a_lost_connection() -> None:
    error = initiator().end_of_stream("10.0.0.9:1")
    assert isinstance(error, ConnectionFailed)
    assert error.details == {"address": "10.0.0.9:1"}


def test_end_after_the_acceptors_proof_is_a_lost_connection_too() -> None:
    first = initiator()  # it has seen that the peer knows the secret: whatever ended this, the secret did not
    first.receive(acceptor().receive(first.start()))
    error = first.end_of_stream("10.0.0.9:1")
    assert isinstance(error, ConnectionFailed)
    assert error.retry is Retry.OTHER


def test_end_after_our_proof_tells_an_acceptor_of_another_secret() -> None:
    second = acceptor()
    second.receive(initiator().start())
    assert isinstance(second.end_of_stream("10.0.0.9:1"), AuthenticationFailed)


def test_nonce_of_a_wrong_size_is_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="nonce"):
        Handshake(Role.INITIATOR, KEY, "demo", b"short")
