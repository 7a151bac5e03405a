"""Runs the command line: `python -m distill`."""

from __future__ import annotations

if __name__ == "__main__":
    from distill.cli.main import main

    main()
