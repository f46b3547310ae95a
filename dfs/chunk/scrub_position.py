"""Where the scrubber is, kept on disk: a restart goes on where the last life stopped.

Owns: the file `scrub.json` in the data directories. Refuses to know: replicas, and when it is worth writing.

It is written into every working directory, and the youngest that can be read counts. It is not synced and may be lost:
then the lap begins anew, and nothing worse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from dfs.decoders import json_decoder
from dfs.log import get_logger

POSITION_FILE = "scrub.json"
SIZE_MAX = 4096  # bytes

log = get_logger(__name__)


class ScrubPosition(msgspec.Struct):
    """A walk over all replicas by ascending handle. Times are milliseconds since 1970, 0 = never."""

    verified: str = ""  # handle of the last replica that was verified in this lap, in hex; "" = none
    lap_began_ms: int = 0  # 0 between two laps
    last_began_ms: int = 0  # when the last whole lap began
    last_ended_ms: int = 0
    saved_ms: int = 0


_DECODER: msgspec.json.Decoder[ScrubPosition] = json_decoder(ScrubPosition)


class PositionFiles:
    """Loads and saves the position; never raises. `folders` tells the data directories that work now."""

    def __init__(self, folders: Callable[[], Iterable[Path]]) -> None:
        self._folders = folders

    def load(self) -> ScrubPosition:
        """Return the youngest position that can be read, or that of a walk which never began."""
        found = [ScrubPosition()]
        for folder in self._folders():
            path = folder / POSITION_FILE
            try:
                with path.open("rb") as file:
                    position = _DECODER.decode(file.read(SIZE_MAX))
                bytes.fromhex(position.verified)
            except FileNotFoundError:
                continue
            except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as error:
                log.warning("scrub_position_unreadable", path=path, reason=error)
                continue
            found.append(position)
        return max(found, key=lambda position: position.saved_ms)

    def save(self, position: ScrubPosition) -> None:
        content = msgspec.json.encode(position)
        for folder in self._folders():
            draft = folder / (POSITION_FILE + ".new")
            try:
                draft.write_bytes(content)
                draft.rename(folder / POSITION_FILE)
            except OSError as error:  # a full disk does no harm here, a broken one shows elsewhere
                log.debug("scrub_position_not_saved", folder=folder, reason=error)
