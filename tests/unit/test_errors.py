"""Errors keep their code, words, facts and advice wherever they travel."""

from __future__ import annotations

import pytest

from dfs import errors
from dfs.errors import ERRORS, ConnectionFailed, DfsError, InternalError, NotFound, Retry, from_code
from dfs.net.messages import ErrorReply, decode, encode


def all_classes(root: type[DfsError] = DfsError) -> list[type[DfsError]]:
    return [root, *(found for child in root.__subclasses__() for found in all_classes(child))]


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_error_survives_the_wire_whole(code: str) -> None:
    cls = ERRORS[code]
    sent = cls("what happened, where; what to do", address="10.0.0.5:7401")
    reply = ErrorReply.of(sent)
    received = decode(reply.type_code, encode(reply))
    assert isinstance(received, ErrorReply)
    error = received.error()
    assert type(error) is cls
    assert (str(error), error.details, error.retry) == (str(sent), sent.details, sent.retry)


def test_every_class_has_a_code_of_its_own() -> None:
    concrete = [
        cls for cls in all_classes() if cls not in (DfsError, InternalError) and cls.__module__ == errors.__name__
    ]
    codes = [cls.code for cls in concrete]
    assert len(set(codes)) == len(codes)
    assert "internal" not in codes
    assert set(ERRORS) == {*codes, "internal"}


def test_unknown_code_keeps_its_words_and_is_never_retried() -> None:
    error = from_code("invented_in_3000", "the flux broke", {"server": "c1"})
    assert type(error) is InternalError
    assert error.retry is Retry.NEVER
    assert "the flux broke" in str(error)
    assert "invented_in_3000" in str(error)
    assert error.details == {"server": "c1"}


def test_users_may_catch_builtin_errors() -> None:
    assert issubclass(NotFound, FileNotFoundError)
    assert issubclass(errors.AlreadyExists, FileExistsError)
    assert issubclass(errors.DeadlineExceeded, TimeoutError)
    assert issubclass(ConnectionFailed, ConnectionError)
    assert issubclass(errors.AuthenticationFailed, PermissionError)
    with pytest.raises(OSError, match="no /a"):
        raise NotFound("no /a")


def test_message_is_what_is_printed_even_of_oserror_children() -> None:
    for cls in ERRORS.values():
        assert str(cls("words for people", key="value")) == "words for people"
