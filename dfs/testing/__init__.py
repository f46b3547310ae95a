"""What tests of dfs, and of programs on dfs, need: a clock to turn by hand, a cluster to break.

Owns: test doubles and harnesses that are shipped. Refuses to know: any test.
"""
