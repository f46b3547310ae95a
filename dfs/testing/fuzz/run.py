"""Fuzz one parser, guided by coverage: `python -m dfs.testing.fuzz.run TARGET SECONDS`; `all` takes one after another.

Owns: the command line, and the folder of inputs that were worth keeping. Refuses to know: what is fuzzed.

Needs atheris (`pip install 'dfss[fuzz]'`). A failing input is printed and written to build/fuzz; put it into a test.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path("build/fuzz")
INPUT_SIZE_MAX = 16 * 1024  # bytes
INPUT_TIMEOUT_S = 10  # an input that takes longer is a hang
MEMORY_MAX_MIB = 1024


def main() -> int:
    name, seconds = sys.argv[1], sys.argv[2]
    if name != "all":
        return _fuzz(name, int(seconds))
    targets = importlib.import_module("dfs.testing.fuzz.targets").TARGETS
    failed = []
    for target in targets:
        _say(f"--- {target}")
        command = [sys.executable, "-m", "dfs.testing.fuzz.run", target, seconds]
        if subprocess.run(command, check=False).returncode:  # noqa: S603 - ourselves
            failed.append(target)
    _say(f"failed: {', '.join(failed)}" if failed else f"{len(targets)} parsers, {seconds} s each: no input broke one")
    return 1 if failed else 0


def _fuzz(name: str, seconds: int) -> int:
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        _say("atheris is not installed; try: pip install 'dfss[fuzz]'")
        return 2
    with atheris.instrument_imports(include=["dfs"]):
        targets = importlib.import_module("dfs.testing.fuzz.targets")
    corpus = FOLDER / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(targets.TARGETS[name].samples):
        (corpus / f"sample{number}").write_bytes(sample)
    options = [
        sys.argv[0],
        str(corpus),
        f"-max_total_time={seconds}",
        f"-max_len={INPUT_SIZE_MAX}",
        f"-timeout={INPUT_TIMEOUT_S}",
        f"-rss_limit_mb={MEMORY_MAX_MIB}",
        f"-artifact_prefix={FOLDER}/{name}-",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup(options, lambda data: targets.check(name, data))
    atheris.Fuzz()  # ends this process
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
