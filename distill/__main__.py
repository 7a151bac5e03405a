"""Runs the command line: `python -m distill`."""

from __future__ import annotations

from distill.cli.main import main

if __name__ == "__main__":
    main()
