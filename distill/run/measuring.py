"""Seconds and peak memory of a stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

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
        total = 0
        for process in (me, *me.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue
        record.peak_memory_bytes = max(record.peak_memory_bytes or 0, total)
        if ended.wait(0.5):
            return
