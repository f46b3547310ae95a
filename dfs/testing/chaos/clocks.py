"""A time of day of its own for each node of a cluster under test, which can be set forward and back while it runs.

Owns: the library that the nodes are started with, and the offset of each. Refuses to know: who believes in clocks.

The library stands before the C library's own functions (LD_PRELOAD) and adds an offset that it reads from a mapped
file. Only the time of day is moved: no kernel lets the monotonic clock jump. Needs a C compiler and the GNU C library.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from dfs.errors import DfsError

COMPILE_TIMEOUT_S = 60.0
DAY_S = 86_400.0
VARIABLE = "DFS_TEST_CLOCK"
_OFFSET = struct.Struct("=q")  # nanoseconds
_PROGRAM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const long long none = 0;
static const volatile long long *offset = &none;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("DFS_TEST_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *page = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) offset = page;
    close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    if (!real) begin();
    int failed = real(clock, at);
    if (failed || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return failed;
    long long moment = at->tv_sec * 1000000000LL + at->tv_nsec + *offset;
    at->tv_sec = moment / 1000000000LL;
    at->tv_nsec = moment % 1000000000LL;
    return 0;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec moment;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &moment);
    at->tv_sec = moment.tv_sec;
    at->tv_usec = moment.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec moment;
    clock_gettime(CLOCK_REALTIME, &moment);
    if (at) *at = moment.tv_sec;
    return moment.tv_sec;
}
"""


@cache
def is_possible() -> bool:
    """Whether a process of this Python can be given another time of day."""
    with tempfile.TemporaryDirectory(prefix="dfs-probe-") as folder:
        try:
            clocks = Clocks(Path(folder), ["probe"])
            clocks.set("probe", DAY_S)
            words = [*clocks.launcher("probe"), sys.executable, "-c", "import time; print(time.time())"]
            done = subprocess.run(words, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=True)  # noqa: S603
        except (DfsError, OSError, subprocess.SubprocessError):
            return False
        return float(done.stdout) - time.time() > DAY_S / 2


class Clocks:
    """The clocks of `names`, all right at first; their files lie in `folder`. Raise `DfsError` without a compiler."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise DfsError("there is no C compiler (cc) to make the library that moves clocks with")
        self._folder = folder
        self._library = folder / "wall_clock.so"
        source = folder / "wall_clock.c"
        source.write_text(_PROGRAM, encoding="ascii")
        done = subprocess.run(  # noqa: S603 - the words are ours
            [compiler, "-O1", "-shared", "-fPIC", "-o", str(self._library), str(source), "-ldl"],
            capture_output=True,
            text=True,
            timeout=COMPILE_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise DfsError(f"the library that moves clocks cannot be compiled: {done.stderr.strip()}")
        for name in names:
            self.set(name, 0.0)

    def launcher(self, name: str) -> tuple[str, ...]:
        """Return the words that start a command under the node's own clock."""
        return ("/usr/bin/env", f"LD_PRELOAD={self._library}", f"{VARIABLE}={self._folder / name}")

    def set(self, name: str, offset_s: float) -> None:
        """Let the node's clock be so far ahead of the machine's (behind it, when negative) from now on."""
        path = self._folder / name
        with path.open("r+b" if path.exists() else "x+b") as file:
            file.write(_OFFSET.pack(round(offset_s * 1e9)))
