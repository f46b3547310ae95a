"""The default cluster.ini: three masters and four chunk servers on this machine, loopback only.

Owns: the text, which is also the repository's cluster.ini (a test holds them equal). Refuses to know: how it is read.
"""

from __future__ import annotations

from typing import Final

EMBEDDED_DEFAULT: Final = """\
# One cluster, described once: every role and every client reads this same file.
# As it stands it runs on one machine (`dfs up`). For many machines write their addresses and folders
# below, copy the file and the secret to each, and start `dfs master --name m1`, `dfs chunk --name c1`, …
#
# Sizes need a unit (B KiB MiB GiB TiB), times too (ms s m h d); rates are sizes per second (MiB/s).
# Relative paths start at this file's folder.

[cluster]
name = dfs
secret_file = dfs-data/cluster.secret   # whoever can read it is inside; `dfs up` makes it with mode 0600
run_dir = dfs-data/run                  # logs and pid files of `dfs up`

replication = 3             # copies of every chunk, on different chunk servers
replicas_min = 1            # a put succeeds with this many when servers are missing; repair adds the rest
chunk_size = 64 MiB         # files are cut into chunks of this size (a multiple of 64 KiB, at most 256 MiB)
disk_reserve = 1 GiB        # free space that every data folder keeps
fsync = yes                 # "no" is faster, and a power cut may then lose acknowledged writes
local_reads = yes           # clients of a chunk server's machine read its open files, and lend it memory to write from

heartbeat_interval = 1 s    # every chunk server tells the leader that it lives
dead_after = 10 s           # silent for so long: no longer offered to clients
repair_after = 60 s         # silent for so long: its chunks are copied elsewhere
repair_rate = 100 MiB/s     # what one server may receive for that (0 = no limit); a chunk's last copy knows no limit
balance = yes               # move chunks from the fullest servers to the emptiest without being asked
balance_rate = 20 MiB/s     # what one server may receive for that, and for spreading over racks (0 = no limit)
trash_keep = 3 d            # deleted files can be undeleted for so long
garbage_grace = 10 m        # unreferenced chunks stay for so long: readers may still be at work
orphan_grace = 24 h         # chunks that were written and never committed stay for so long
scrub_period = 14 d         # every chunk server reads and verifies all it holds once in this time; 0 s = never
scrub_rate = 10 MiB/s       # what it reads for that at most
session_expiry = 1 h        # a client's exactly-once session is forgotten after so much silence
token_lifetime = 1 h        # the permission to read or write one chunk is good for so long
client_timeout = 30 s       # no call waits longer, unless --timeout says so
election_timeout_min = 500 ms   # masters that hear no leader for a random time between these two
election_timeout_max = 1 s      # elect a new one

# An odd number of masters: three go on without one, five without two.
# `address` is for clients and chunk servers, `raft_address` for the other masters. With `metrics_address = host:port`
# a node serves its numbers to Prometheus there (docs/metrics.md): by plain HTTP, to anybody who can reach it.

[master:m1]
address = 127.0.0.1:7401
raft_address = 127.0.0.1:7411
data_dir = dfs-data/m1

[master:m2]
address = 127.0.0.1:7402
raft_address = 127.0.0.1:7412
data_dir = dfs-data/m2

[master:m3]
address = 127.0.0.1:7403
raft_address = 127.0.0.1:7413
data_dir = dfs-data/m3

# One section for each chunk server; `data_dirs` may name several folders, one for each disk:
#   data_dirs = /disk1/dfs, /disk2/dfs
# Replicas of a chunk are spread over racks when there are several.

[chunk:c1]
address = 127.0.0.1:7421
data_dirs = dfs-data/c1
rack = r1

[chunk:c2]
address = 127.0.0.1:7422
data_dirs = dfs-data/c2
rack = r1

[chunk:c3]
address = 127.0.0.1:7423
data_dirs = dfs-data/c3
rack = r2

[chunk:c4]
address = 127.0.0.1:7424
data_dirs = dfs-data/c4
rack = r2
"""
