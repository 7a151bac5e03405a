"""Entry point of the command line: parses, calls the layers below, maps errors to exit codes."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from typing import Annotated, Any

import typer

# isort: off
from distill.cli import runs, planning, folders, chat, models, data  # noqa: F401 - commands register in the order of --help

# isort: on
from distill.cli.app import app
from distill.core import console, credentials, processes
from distill.errors import DistillError, Interrupted, disk_fault

UsageFault: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
"""The base class of usage errors: click's, or that of typer's own copy of click in newer versions."""


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
    version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
) -> None:
    """Train a small model to imitate a large one.

    One recipe (YAML) describes a run: grow tasks from seeds, collect a teacher's answers, curate them, train a
    student, compare it with its untrained base and the teacher, write a report.

    Start with: distill run quickstart
    """
    if debug:
        os.environ["DISTILL_DEBUG"] = "1"
    if version:
        import distill

        console.result(distill.__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; a `DistillError` becomes one line."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    signal.signal(signal.SIGTERM, _as_interrupt)
    sys.excepthook = console.crashed
    logging.lastResort = console.LibraryLog(logging.WARNING)
    processes.share_cores()
    with processes.current_folder_off_path():
        sys.exit(_code(arguments))


def _as_interrupt(*_: Any) -> None:
    """SIGTERM stops a run as Ctrl-C does: finished work is kept, local servers are stopped."""
    signal.raise_signal(signal.SIGINT)


def _code(arguments: list[str] | None) -> int:
    try:
        credentials.learn_proxies()
        outcome = app(args=arguments, standalone_mode=False)
        if outcome == Interrupted.exit_code:  # newer typer makes an exit of Ctrl-C and says nothing
            raise KeyboardInterrupt
        return outcome if isinstance(outcome, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except UsageFault as error:
        usage = io.StringIO()
        error.show(usage)
        console.say(usage.getvalue().rstrip())
        return 2
    except (KeyboardInterrupt, typer.Abort):
        console.error("interrupted; what was finished is kept: run the same command again to go on")
        return Interrupted.exit_code
    except DistillError as error:
        _raise_when_debugging(error)
        for line in str(error).splitlines():
            (console.error if error.exit_code else console.say)(line)
        return error.exit_code
    except OSError as error:
        _raise_when_debugging(error)
        if (fault := disk_fault(error)) is None:
            raise
        console.error(str(fault))
        return fault.exit_code


def _raise_when_debugging(error: BaseException) -> None:
    if os.environ.get("DISTILL_DEBUG"):
        raise error
