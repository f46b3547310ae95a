"""Volumes: small replicas together in a few append-only files.

Owns: the bytes of volumes, their index, group commits and compaction.
Refuses to know: large replicas, and what is reported to whom.
"""
