"""What the leader does about chunk servers that come, go, lie and fill up: pure planners, and the duties that run them.

Owns: who is alive, what is to be copied, moved or deleted, and in which order.
Refuses to know: the wire, and the replicated state's tables beyond what it asks of them.
"""
