"""All commands, registered in the order of `--help`, and the options of `distill` itself."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

# isort: off
from distill.cli import runs, planning, keys, folders, chat, models, data  # noqa: F401 - importing registers them

# isort: on
from distill.cli.app import app
from distill.core import console

__all__ = ["UsageFault", "app"]

UsageFault: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
"""The base class of usage errors: click's, or that of typer's own copy of click in newer versions."""


def _print_version(asked: bool) -> None:
    if asked:
        import distill

        console.result(distill.__version__)
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_print_version, help="print the version and stop")
]


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False, version: Version = False
) -> None:
    """Train a small model to imitate a large one.

    One recipe (YAML) describes a run: grow tasks from seeds, collect a teacher's answers, curate them, train a
    student, compare it with its untrained base and the teacher, write a report.

    Start with: distill run quickstart
    """
    if debug:
        os.environ["DISTILL_DEBUG"] = "1"
