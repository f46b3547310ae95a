"""Secrets, keys and tokens: what is kept, what is shown, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs.errors import AlreadyExists, ConfigError, TokenExpired, TokenInvalid
from dfs.ids import ChunkHandle
from dfs.net.auth import SECRET_SIZE_MAX, TOKEN_SIZE, ClusterKey, Rights, check_token, make_secret, sign_token

KEY = ClusterKey.from_secret(b"s" * 32, "demo")
HANDLE = ChunkHandle(bytes(range(16)))
NOW_MS = 1_700_000_000_000


def test_made_secret_is_private_and_loads(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    make_secret(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_text().strip()) == 64
    assert ClusterKey.load(path, "demo") == ClusterKey.from_secret(path.read_bytes().strip(), "demo")
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


def test_two_made_secrets_differ_always(tmp_path: Path) -> None:
    make_secret(tmp_path / "a")
    make_secret(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def test_existing_secret_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("mine")
    with pytest.raises(AlreadyExists, match="kept"):
        make_secret(path)
    assert path.read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


def test_secret_in_a_missing_folder_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        make_secret(tmp_path / "nowhere" / "secret")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o777])
def test_secret_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    make_secret(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        ClusterKey.load(path, "demo")


def test_missing_short_large_and_odd_secret_files_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with pytest.raises(ConfigError, match="does not exist; copy it"):
        ClusterKey.load(path, "demo")
    path.touch(mode=0o600)
    path.write_bytes(b"short\n")
    with pytest.raises(ConfigError, match="holds 5 bytes"):
        ClusterKey.load(path, "demo")
    path.write_bytes(b"x" * (SECRET_SIZE_MAX + 1))
    with pytest.raises(ConfigError, match="right file"):
        ClusterKey.load(path, "demo")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        ClusterKey.load(fifo, "demo")


def test_short_secret_in_memory_is_refused_too() -> None:
    with pytest.raises(ConfigError, match="at least 32"):
        ClusterKey.from_secret(b"x" * 31, "demo")


def test_keys_differ_by_purpose_cluster_and_secret() -> None:
    keys = [
        key
        for secret in (b"s" * 32, b"t" * 32)
        for cluster in ("demo", "demo2")
        for made in [ClusterKey.from_secret(secret, cluster)]
        for key in (made.handshake_key, made.token_key, made.raft_key)
    ]
    assert len(set(keys)) == 12
    assert all(len(key) == 32 for key in keys)


def test_printing_a_key_shows_no_secret() -> None:
    for text in (repr(KEY), str(KEY), f"{KEY}"):
        assert text == "ClusterKey(cluster='demo')"


def test_token_opens_what_it_was_signed_for() -> None:
    token = sign_token(KEY, HANDLE, Rights.READ | Rights.WRITE, NOW_MS + 1)
    assert len(token) == TOKEN_SIZE == 26
    for rights in (Rights.READ, Rights.WRITE, Rights.READ | Rights.WRITE):
        check_token(KEY, token, HANDLE, rights, NOW_MS)
    assert bytes(HANDLE) not in token


def test_read_token_does_not_allow_writing() -> None:
    token = sign_token(KEY, HANDLE, Rights.READ, NOW_MS + 1)
    for rights in (Rights.WRITE, Rights.READ | Rights.WRITE):
        with pytest.raises(TokenInvalid, match="does not allow to"):
            check_token(KEY, token, HANDLE, rights, NOW_MS)


def test_token_expires_on_the_millisecond() -> None:
    token = sign_token(KEY, HANDLE, Rights.READ, NOW_MS)
    check_token(KEY, token, HANDLE, Rights.READ, NOW_MS - 1)
    with pytest.raises(TokenExpired, match=r"0\.0 s ago"):
        check_token(KEY, token, HANDLE, Rights.READ, NOW_MS)


def test_token_of_another_chunk_or_cluster_is_refused() -> None:
    token = sign_token(KEY, HANDLE, Rights.READ, NOW_MS + 1)
    with pytest.raises(TokenInvalid):
        check_token(KEY, token, ChunkHandle(bytes(16)), Rights.READ, NOW_MS)
    with pytest.raises(TokenInvalid):
        check_token(ClusterKey.from_secret(b"s" * 32, "demo2"), token, HANDLE, Rights.READ, NOW_MS)


@given(bit=st.integers(0, TOKEN_SIZE * 8 - 1))
def test_a_token_with_any_bit_changed_is_refused(bit: int) -> None:
    token = bytearray(sign_token(KEY, HANDLE, Rights.READ, NOW_MS + 1))
    token[bit // 8] ^= 1 << bit % 8
    with pytest.raises(TokenInvalid):
        check_token(KEY, bytes(token), HANDLE, Rights.READ, NOW_MS)


@given(token=st.binary(max_size=64), handle=st.binary(max_size=32))
def test_random_tokens_and_handles_are_refused_with_a_named_error(token: bytes, handle: bytes) -> None:
    with pytest.raises(TokenInvalid):
        check_token(KEY, token, ChunkHandle(handle), Rights.READ, NOW_MS)


def test_signing_for_something_that_is_no_handle_is_a_bug() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        sign_token(KEY, ChunkHandle(b"short"), Rights.READ, NOW_MS)


def test_far_expiry_is_capped_instead_of_failing() -> None:
    token = sign_token(KEY, HANDLE, Rights.READ, 2**80)
    check_token(KEY, token, HANDLE, Rights.READ, NOW_MS)
    assert token[2:10] == b"\xff" * 8
