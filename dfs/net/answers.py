"""What a request will be answered with, known now or in a moment.

Owns: who is told when it is known. Refuses to know: requests, connections, and what the answer waits for.

A future tells whoever waits for it in a later turn of the loop, and a coroutine needs a task. An answer that only waits
for something that many wait for needs neither: it is passed on in the very step that knows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

from dfs.log import get_logger
from dfs.net.messages import Message

log = get_logger(__name__)


class Answer:
    """Given once, by `give` or `fail`; told to all that asked by `then`, in their order. Used from one loop only.

    It is awaitable. `is_known`: whether it was given; `reply`: what with, unless it failed.
    """

    __slots__ = ("_error", "_told", "is_known", "reply")

    def __init__(self) -> None:
        self.is_known = False
        self.reply: Message | None = None
        self._error: Exception | None = None
        self._told: list[Callable[[Answer], None]] = []

    def give(self, reply: Message) -> None:
        self.reply, self.is_known = reply, True
        self._tell()

    def fail(self, error: Exception) -> None:
        self._error, self.is_known = error, True
        self._tell()

    def then(self, told: Callable[[Answer], None]) -> None:
        """Call `told` with this answer when it is known: at once, or in the step that gives it."""
        if self.is_known:
            told(self)
        else:
            self._told.append(told)

    def result(self) -> Message:
        """Return the reply of an answer that is known, or raise what it failed with."""
        if self._error is not None:
            raise self._error
        assert self.reply is not None, "asked for before it was known"
        return self.reply

    def __await__(self) -> Generator[Any, None, Message]:
        if not self.is_known:
            known = asyncio.get_running_loop().create_future()
            self.then(lambda _: None if known.done() else known.set_result(None))
            yield from known
        return self.result()

    def _tell(self) -> None:
        waiting, self._told = self._told, []
        for told in waiting:
            try:
                told(self)
            except Exception:  # a bug, of one who waits: the others are told nevertheless
                log.exception("answer_not_taken")
