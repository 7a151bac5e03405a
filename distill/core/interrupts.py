"""Ctrl-C and SIGTERM: the first ends a command at its next safe point, the second within a second.

Python runs a signal's handler in the main thread, between two bytecodes, which a product of matrices or the loading of
a library can delay for long; and a library may swallow the `KeyboardInterrupt`. So a thread also reads each signal from
a pipe that the interpreter writes to at once: it remembers the first, and ends the process soon after the second. Where
even that thread cannot run, as while C code holds the interpreter's lock, the kernel ends the process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GRACE_SECONDS = 0.5
"""Time that a command has after the second signal to end by itself."""
_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_came, _is_listening = threading.Event(), threading.Event()


@contextmanager
def listening() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM raise `KeyboardInterrupt` in the block, and the second end the process."""
    reader, writer = os.pipe()
    if hasattr(os, "set_blocking"):  # not on Windows before Python 3.12, which takes a pipe that blocks
        os.set_blocking(writer, False)
    before = [signal.getsignal(number) for number in _NUMBERS]
    pipe_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _is_listening.set()
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    signal.signal(signal.SIGTERM, _as_interrupt)
    arm()
    try:
        yield
    finally:
        _is_listening.clear()
        for number, handler in zip(_NUMBERS, before, strict=True):
            signal.signal(number, handler or signal.SIG_DFL)
        signal.set_wakeup_fd(pipe_before)
        os.close(writer)
        _came.clear()


def arm() -> None:
    """Have the kernel end the process at the second signal of a kind, until a handler of Python is set again.

    System V's `signal` (glibc has it as `sysv_signal`) calls a handler once, and then restores the default action; so
    the second signal needs no lock. Does nothing outside `listening` and with another C library.
    """
    if sys.platform == "win32" or not _is_listening.is_set():
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "sysv_signal"):
        return
    for function in (libc.signal, libc.sysv_signal):
        function.argtypes, function.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    for number in _NUMBERS:
        libc.sysv_signal(number, libc.signal(number, None))


def end_at_once() -> None:
    """Have signals end the process from now on: its work is done, only the interpreter is left to end."""
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_DFL)


def came() -> bool:
    """Whether a signal has come; it may still be on its way through the code that it ends."""
    return _came.is_set()


def check() -> None:
    """Raise `KeyboardInterrupt` where a signal has come that a library has swallowed."""
    if came():
        raise KeyboardInterrupt


def _as_interrupt(number: int, frame: Any) -> None:
    """What Ctrl-C does now: a running event loop or training has a handler of its own, also for the second signal."""
    handler: Any = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler:
        signal.signal(number, _as_interrupt)
    handler(signal.SIGINT, frame)


def _watch(pipe: int) -> None:
    """Wait for signals until the other end of the pipe is closed."""
    count = 0
    while number := os.read(pipe, 1):
        count += number[0] in _NUMBERS
        if count:
            _came.set()
        if count > 1:
            time.sleep(GRACE_SECONDS)
            os.write(2, b"error: interrupted a second time: left at once; run the same command again to go on\n")
            os._exit(130)
    os.close(pipe)
