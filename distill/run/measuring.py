"""Seconds and peak memory of a stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from distill.run.record import StageRecord


@contextmanager
def measured(record: StageRecord) -> Iterator[None]:
    """Record the seconds and the peak memory of the block."""
    started = time.monotonic()
    ended = threading.Event()
    watcher = threading.Thread(target=_watch_memory, args=(record, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        record.seconds = round(time.monotonic() - started, 2)


def _watch_memory(record: StageRecord, ended: threading.Event) -> None:
    import psutil

    me = psutil.Process()
    while True:
        with suppress(psutil.Error, OSError):  # a child has ended meanwhile, or no more files may be opened
            total = sum(process.memory_info().rss for process in (me, *me.children(recursive=True)))
            record.peak_memory_bytes = max(record.peak_memory_bytes or 0, total)
        if ended.wait(0.5):
            return
