"""Run the command line as `python -m dfs`."""

from __future__ import annotations

from dfs.cli.main import main

if __name__ == "__main__":
    main()
