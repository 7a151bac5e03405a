"""What both trainers are given and say of themselves: rows, adapter, batch; time, memory and losses of the steps."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

RANK, ALPHA = 16, 32
LEARNING_RATE = 1e-3
"""High, so that twenty steps show a difference in the arithmetic."""

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def parser() -> argparse.ArgumentParser:
    """The options that both have."""
    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path, help="rows.jsonl and model/ are in it, and what is written goes there")
    options.add_argument("--rows", type=int, required=True, help="of rows.jsonl, the first ones")
    options.add_argument("--batch", type=int, required=True, help="rows in an optimizer step")
    options.add_argument("--same", action="store_true", help="the same arithmetic: rows in order.json's order, float32")
    return options


def rows(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Sessions: id and messages, a question and an answer each."""
    with (given.folder / "rows.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(given.rows), strict=False)]


def watch() -> Any:
    """A callback that times the optimizer steps and notes their losses and this process's peak of memory in them."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        seconds = cpu_seconds = 0.0
        before_mb = peak_mb = 0.0

        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.before_mb = _peak_mb()
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            self._started, self._cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self._started
            self.cpu_seconds = time.process_time() - self._cpu
            self.peak_mb = _peak_mb()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(float(logs["loss"]))

    return Watch()


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def tell(seen: Any, *, trained: int, tokens: int, version: str) -> None:
    """One line of JSON, the last on standard output."""
    found = {name: getattr(seen, name) for name in ("seconds", "cpu_seconds", "before_mb", "peak_mb", "losses")}
    sys.stdout.write(f"\n{json.dumps({**found, 'trained': trained, 'tokens': tokens, 'version': version})}\n")
