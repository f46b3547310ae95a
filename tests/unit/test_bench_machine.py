"""Do benchmarks start in a place of the disk where nothing was deleted, where the file system can be told?"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from bench.machine import _GET_FLAGS, _TOP_FOLDER, spread


def flags(folder: Path) -> int:
    fd = os.open(folder, os.O_RDONLY)
    try:
        held = bytearray(8)
        fcntl.ioctl(fd, _GET_FLAGS, held)
        return int.from_bytes(held[:4], "little")
    finally:
        os.close(fd)


def test_folders_of_a_spread_folder_lie_apart_and_another_file_system_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        before = flags(tmp_path)
    except OSError:
        pass  # this one has no flags: nothing to say but that it is left in peace
    else:
        spread(tmp_path)
        assert flags(tmp_path) in (before | _TOP_FOLDER, before), "some take the call and know no such flag"

    def unknown(*_arguments: object) -> None:
        raise OSError(25, "Inappropriate ioctl for device")

    monkeypatch.setattr(fcntl, "ioctl", unknown)
    spread(tmp_path)
