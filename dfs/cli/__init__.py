"""The command line: one file per noun, thin over `dfs.client.DfsClient`; no rule of the file system lives here."""
