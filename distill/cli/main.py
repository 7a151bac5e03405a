"""Entry point of the command line: runs a command, and maps errors and signals to exit codes.

It imports little at first, so that Ctrl-C is obeyed in one line from the first moment on.
"""

from __future__ import annotations

import os
import sys


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; a `DistillError` becomes one line."""
    try:
        from distill.core import interrupts

        with interrupts.listening():
            code = _code(arguments)
        if arguments is None:
            interrupts.end_at_once()
    except KeyboardInterrupt:
        code = _interrupted()
    sys.exit(code)


def _code(arguments: list[str] | None) -> int:
    """Run a command; returns its exit code. After a signal, whatever ends it is one line."""
    from distill.core import interrupts

    try:
        return _run(arguments)
    except BaseException as error:
        if not (isinstance(error, KeyboardInterrupt) or interrupts.came()):
            raise
        _raise_when_debugging(error)
        return _interrupted()


def _interrupted() -> int:
    from distill.core import console

    console.error("interrupted; what was finished is kept: run the same command again to go on")
    return 130


def _run(arguments: list[str] | None) -> int:
    import io
    import logging

    import typer

    from distill.cli.commands import UsageFault, app
    from distill.core import console, credentials, processes
    from distill.errors import DistillError, Interrupted

    console.write_any_text()
    sys.excepthook = console.crashed
    logging.lastResort = console.LibraryLog(logging.WARNING)
    processes.share_cores()
    try:
        credentials.learn_proxies()
        with processes.current_folder_off_path():
            outcome = app(args=arguments, standalone_mode=False)
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except UsageFault as error:
        usage = io.StringIO()
        error.show(usage)
        console.say(usage.getvalue().rstrip())
        return 2
    except DistillError as error:
        _raise_when_debugging(error)
        for line in str(error).splitlines():
            (console.error if error.exit_code else console.say)(line)
        return error.exit_code
    except (OSError, MemoryError, ImportError, RuntimeError) as error:
        if (fault := _machine_fault(error)) is None:
            raise
        _raise_when_debugging(error)
        console.error(fault)
        return 1
    if outcome == Interrupted.exit_code:  # newer typer makes an exit of Ctrl-C and says nothing
        raise KeyboardInterrupt
    return outcome if isinstance(outcome, int) else 0


_OUT_OF_MEMORY = ("failed to map segment", "cannot allocate memory", "can't start new thread")
"""The words of the dynamic linker and of Python's threads for a lack of memory."""


def _machine_fault(error: Exception) -> str | None:
    """One line on a lack of memory or a fault of the disk; `None` for any other error."""
    from distill.errors import disk_fault

    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY):
        return "out of memory; free some, or give it less to do, and run the same command again"
    if not isinstance(error, OSError):
        return None
    name = f": {error.filename}" if error.filename else ""
    return str(disk_fault(error) or f"{error.strerror or error}{name}; --debug shows where")


def _raise_when_debugging(error: BaseException) -> None:
    if os.environ.get("DISTILL_DEBUG"):
        raise error
