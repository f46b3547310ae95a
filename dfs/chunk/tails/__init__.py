"""Open tails: the chunks that take records from appenders, until they are sealed into replicas.

Owns: their files, their order of records, and the fence.
Refuses to know: names of files, and which record belongs to whom.
"""
