"""A dumped state on its way in, while the present one goes on answering.

Owns: the steps of loading beside a state that is in use, the moment of the exchange, and taking the old state apart
afterwards. Refuses to know: where pieces come from, the log, and who is told.

One piece of a dump is one step: some milliseconds. Freeing the objects of a million files would take as long as an
election, so the old state is taken apart in steps, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from dfs.master.state.checkpoint import Loader
from dfs.master.state.parts import StateParts


class StateLoading:
    """`step` until it returns True, then `install`, then `step` until it returns True again: the old state is gone.

    `exchange` puts new parts in place and returns the old ones. To give up, forget this object.
    """

    def __init__(self, pieces: Iterable[bytes], exchange: Callable[[StateParts], StateParts]) -> None:
        self._loader = Loader()
        self._pieces = iter(pieces)
        self._exchange = exchange
        self._parts: StateParts | None = None
        self._remains: Iterator[None] = iter(())

    def step(self) -> bool:
        """Do milliseconds of work; return True when there is none. Raise `StorageCorrupt`: nothing has changed."""
        if self._parts is None:
            piece = next(self._pieces, None)
            if piece is not None:
                self._loader.take(piece)
                return False
            self._parts = self._loader.finish()
            return True
        return next(self._remains, self) is self

    def install(self) -> None:
        """Replace the present state by the loaded one, at once."""
        assert self._parts is not None, "not everything is loaded"
        old, loader = self._exchange(self._parts), self._loader
        self._remains = _take_apart(old, loader)


def _take_apart(old: StateParts, loader: Loader) -> Iterator[None]:
    yield from loader.take_apart()
    yield from old.take_apart()
