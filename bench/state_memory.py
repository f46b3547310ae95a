"""Measure what the replicated state costs: resident bytes per file with one chunk, and commands applied per second.

Owns: a synthetic load. Refuses to know: anything but the public face of the state.
Usage: python bench/state_memory.py [files] [files per directory]
"""

from __future__ import annotations

import gc
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfs.ids import ChunkHandle, ServerId, SessionId
from dfs.master.commands import PutServer, encode_command
from dfs.master.state import MasterState
from dfs.net.messages import CommitFile, ErrorReply, MakeDirectory, Message
from dfs.net.parts import CallId, NewChunk, NewExtent

START_MS = 1_750_000_000_000
SERVERS = 12
LENGTH_MAX = 64 * 1024 * 1024


def resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def main() -> None:
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    per_directory = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000
    rng = random.Random(1)
    state = MasterState()
    session = SessionId(rng.randbytes(16))
    servers = [ServerId(rng.randbytes(16)) for _ in range(SERVERS)]
    for number, server in enumerate(servers):
        state.apply(START_MS, PutServer(server, f"c{number}", f"10.0.0.{number}:7000", "r"))
    sequence = 0

    def propose(make: Message) -> None:
        reply = state.apply_encoded(encode_command(START_MS + sequence * 7, make))
        if isinstance(reply, ErrorReply):
            raise SystemExit(reply.text)

    gc.collect()
    before = resident_bytes()
    spent = 0.0
    for number in range(files):
        directory = f"/data/set-{number // per_directory:05d}"
        if number % per_directory == 0:
            sequence += 1
            propose(MakeDirectory(CallId(session, sequence, sequence), directory, True))
        sequence += 1
        length = rng.randrange(1, LENGTH_MAX)
        chunk = NewChunk(ChunkHandle(rng.randbytes(16)), length, rng.getrandbits(32), tuple(rng.sample(servers, 3)))
        commit = CommitFile(
            CallId(session, sequence, sequence),
            f"{directory}/part-{number:08d}.bin",
            (chunk,),
            (NewExtent(0, 0, length),),
            3,
        )
        entry = encode_command(START_MS + sequence * 7, commit)
        began = time.perf_counter()
        state.apply_encoded(entry)
        spent += time.perf_counter() - began
    gc.collect()
    grown = resident_bytes() - before
    began = time.perf_counter()
    gc.collect()
    pause = time.perf_counter() - began
    print(f"{files} files with one chunk, {per_directory} per directory")
    print(f"resident: {grown / files:.0f} bytes per file ({grown / 1e6:.1f} MB)")
    print(f"apply: {files / spent:,.0f} commits per second ({spent / files * 1e6:.1f} us each)")
    print(f"full garbage collection: {pause * 1e3:.1f} ms")
    began = time.perf_counter()
    pieces = list(state.dump())
    dumped = time.perf_counter() - began
    began = time.perf_counter()
    other = MasterState()
    other.load(pieces)
    print(
        f"dump: {sum(map(len, pieces)) / 1e6:.1f} MB, {len(pieces)} pieces (largest {max(map(len, pieces))} B), "
        f"{dumped:.2f} s; load: {time.perf_counter() - began:.2f} s"
    )
    assert list(other.dump()) == pieces, "a loaded state dumps differently"


if __name__ == "__main__":
    main()
