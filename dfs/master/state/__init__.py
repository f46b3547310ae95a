"""The replicated state of the masters: pure and total, commands in, replies out.

Owns: every table that is replicated, the commands that change it, and its dumped form.
Refuses to know: clocks, chance, disks, networks, and who leads.
"""
