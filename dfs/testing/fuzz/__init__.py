"""Every parser of dfs under bytes that nobody meant: out may come a result or an error of the tree, no third."""
