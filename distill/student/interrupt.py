"""Ctrl-C while a student is trained: the step is finished and saved, and the next run goes on from it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from distill import processes

WAITING = "interrupted: this step is finished and saved first; Ctrl-C again leaves at once"


class Interrupt(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """The first Ctrl-C ends training after a checkpoint of the step that is being made, the second ends it at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._came = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen while the block runs, which must end soon after the step; raises `KeyboardInterrupt` when it has.

        Where a launcher has started several processes, which must save together, Ctrl-C ends all of them at once.
        """
        if processes.count() > 1 or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._take)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if self._came:
            raise KeyboardInterrupt

    def _take(self, *_: Any) -> None:
        """Says so in another thread, for this one may be in the midst of a print."""
        if self._came:
            raise KeyboardInterrupt
        self._came = True
        threading.Thread(target=self._say, args=[WAITING], daemon=True).start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and end, where Ctrl-C came."""
        if self._came:
            control.should_save = control.should_training_stop = True
