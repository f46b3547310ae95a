"""Log events, not prose: one line each, `time level node role event key=value …`.

Owns: the line format, its quoting, and where lines go. Refuses to know: what any event means.

A value is printed as it is when it cannot be mistaken for anything else, and quoted with escapes otherwise, so that no
file name or peer can forge a line or a field. Ids print as hex, other bytes as their size: payloads are elided. Lines
of a traceback follow their event, each behind `    | `.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from dfs.errors import ConfigError
from dfs.ids import ID_SIZE

LEVELS: Final = ("debug", "info", "warning", "error")
VALUE_SIZE_MAX = 1000  # characters of one value; the rest is cut
FILE_SIZE_MAX = 16 * 1024 * 1024  # bytes of a log file before it is rotated
FILE_VARIABLE: Final = "DFS_LOG_FILE"  # where lines go when no file is named; `dfs up` sets it for its daemons
FILES_KEPT = 3  # rotated files
TRACEBACK_LINES_MAX = 200

logging.getLogger("dfs").addHandler(logging.NullHandler())  # in a program that logs nothing, ours stay silent, too

_unexpected: Counter[str] = Counter()  # by event; there are as many as the code has words for
_unexpected_lock = threading.Lock()
_PLAIN = re.compile(r"[A-Za-z0-9_./:+@,%*\[\]()<>-]+")
_FIELDS_ATTRIBUTE = "dfs_fields"
_ESCAPED_ALWAYS = frozenset('"\\')


class Logger:
    """A named source of events with fields bound to it. Cheap to make, safe in any thread."""

    __slots__ = ("_bound", "_logger")

    def __init__(self, logger: logging.Logger, bound: Mapping[str, object]) -> None:
        self._logger = logger
        self._bound = bound

    def bind(self, **fields: object) -> Logger:
        """Return a logger that adds `fields` to every event."""
        return Logger(self._logger, {**self._bound, **fields})

    def debug(self, event: str, /, **fields: object) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Log what an operator would tell a colleague."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Log what was wrong and has been healed or refused."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Log what someone must look at."""
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """Log an error that nobody expected together with the traceback of the exception being handled; count it."""
        with _unexpected_lock:
            _unexpected[event] += 1
        self._log(logging.ERROR, event, fields, with_traceback=True)

    def _log(self, level: int, event: str, fields: Mapping[str, object], *, with_traceback: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            extra = {_FIELDS_ATTRIBUTE: {**self._bound, **fields}}
            self._logger.log(level, "%s", event, extra=extra, exc_info=with_traceback)


def unexpected() -> dict[str, int]:
    """Return how often each event was logged with a traceback since this process began: the roots of its threads and
    tasks log so what they did not expect, and go on."""
    with _unexpected_lock:
        return dict(sorted(_unexpected.items()))


def get_logger(name: str) -> Logger:
    """Return the logger of a module (`get_logger(__name__)`)."""
    return Logger(logging.getLogger(name), {})


def configure(role: str, node: str, level: str, file: Path | None) -> None:
    """Send all log lines of this process to `file` or else `DFS_LOG_FILE` (rotated) or else stderr; call it once."""
    if level.lower() not in LEVELS:
        raise ConfigError(f"the log level {level!r} is unknown; allowed: {', '.join(LEVELS)}")
    handler: logging.Handler
    if file is None and os.environ.get(FILE_VARIABLE):
        file = Path(os.environ[FILE_VARIABLE])
    if file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handler = RotatingFileHandler(file, maxBytes=FILE_SIZE_MAX, backupCount=FILES_KEPT, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write the log file {file}: {error.strerror or error}") from None
    handler.setFormatter(LineFormatter(role, node))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    logging.raiseExceptions = False  # a full disk under the log must not stop a daemon


class LineFormatter(logging.Formatter):
    """Formats our events and the messages of other libraries alike."""

    def __init__(self, role: str, node: str) -> None:
        super().__init__()
        self._place = f"{node} {role}"

    def format(self, record: logging.LogRecord) -> str:
        fields: Mapping[str, object] | None = getattr(record, _FIELDS_ATTRIBUTE, None)
        event = record.getMessage()
        if fields is None:  # a library's message
            event, fields = "library_message", {"logger": record.name, "text": event}
        millis = int(record.created * 1000)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(millis // 1000))
        parts = [f"{moment}.{millis % 1000:03d}Z {record.levelname} {self._place} {_word(event)}"]
        parts += [f"{_word(key)}={format_value(value)}" for key, value in fields.items()]
        line = " ".join(parts)
        if record.exc_info and record.exc_info[0] is not None:
            trace = self.formatException(record.exc_info).splitlines()[-TRACEBACK_LINES_MAX:]
            line += "".join(f"\n    | {_escape(text)}" for text in trace)
        return line


def format_value(value: object) -> str:
    """Return `value` as one unforgeable word of a log line."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return value.hex() if len(value) == ID_SIZE else f"<{len(value)} bytes>"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if len(text) > VALUE_SIZE_MAX:
        text = text[:VALUE_SIZE_MAX] + "…"
    return text if _PLAIN.fullmatch(text) else f'"{_escape(text, quotes=True)}"'


def _escape(text: str, *, quotes: bool = False) -> str:
    return "".join(
        character
        if character.isprintable() and not (quotes and character in _ESCAPED_ALWAYS)
        else f"\\{character}"
        if character in _ESCAPED_ALWAYS
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def _word(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else format_value(text)
