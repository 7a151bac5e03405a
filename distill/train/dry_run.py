"""Measures one forward pass, backward pass and optimizer step in a separate process.

There its memory can be measured apart from ours, and an out-of-memory kill ends nothing else. The job is JSON on
standard input; the measurement is the last line on standard output, an error message the last on standard error.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.core import processes
from distill.core.console import silent
from distill.errors import DistillError, ModelError
from distill.models.chat_template import Example
from distill.train.options import TrainOptions
from distill.train.packing import Layout

SECONDS, STEPS = 15.0, 4
"""Limits of the measurement; the first step is a warm-up unless it is the only one."""


@dataclass(frozen=True, slots=True)
class StepMeasurement:
    """Time and memory (bytes) of one step."""

    device: str
    """Such as `2 CPU threads`, or a GPU's name."""
    tokens: int
    """Tokens of the pass, padding included."""
    seconds: float
    """Of forward and backward."""
    optimizer_seconds: float
    before_bytes: int
    """In use with the base loaded: weights, and on a CPU the libraries."""
    peak_bytes: int
    """Peak during a step: resident memory on a CPU, torch's allocations on a GPU."""
    room_bytes: int
    """Free memory plus that of the process."""
    micro_tokens: int
    """Most tokens that fit in a pass: fewer than `tokens` after an out-of-memory error."""
    layout: Layout = "packed"
    """How training lays out the sessions of a pass, by options and self-check."""
    self_check: str = ""
    """The line of the model's self-check."""

    @property
    def tokens_per_second(self) -> float:
        """Of forward and backward, padding included."""
        return self.tokens / max(self.seconds, 1e-9)


def measured_pass(
    base: Path,
    layers: Sequence[int] | None,
    examples: Sequence[Example],
    options: TrainOptions,
    seed: int,
    *,
    largest: Mapping[Layout, Sequence[int]] | None = None,
) -> StepMeasurement:
    """Measure training on these examples, as one pass, in a child process that leaves no files.

    `largest` has the indices of those in the pass for each layout, of which the self-check chooses one; all by default.
    Raises `ModelError` where the child fails, or is killed by the system, as on out-of-memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "base": str(base),
            "layers": list(layers) if layers is not None else None,
            "largest": largest or {},
            "examples": [[example.input_ids, example.labels] for example in examples],
            "options": options.model_dump(),
            "seed": seed,
            "output": folder,
        }
        ended = processes.run(processes.python("-m", "distill.train.dry_run"), given=json.dumps(job))
    if ended.returncode:
        raise ModelError(_failure(ended.returncode, ended.stderr, sum(len(example.input_ids) for example in examples)))
    return StepMeasurement(**json.loads(ended.stdout.splitlines()[-1]))


def _failure(code: int, errors: str, tokens: int) -> str:
    if code < 0:
        return (
            f"a pass of {tokens} tokens was killed by the system (signal {-code}), as it does on out-of-memory; "
            "lower train.micro_batch_tokens or train.max_length, or train a smaller student"
        )
    last = (errors.strip().splitlines() or ["no output"])[-1]
    return f"one pass of {tokens} tokens could not be tried: {last[:300]}"


# The child process


def main() -> None:
    """Run the job on standard input."""
    try:
        measurement = _measure(json.load(sys.stdin))
    except DistillError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{json.dumps(asdict(measurement))}\n")


def _measure(job: dict[str, Any]) -> StepMeasurement:
    from collections import Counter

    from distill.models import loading
    from distill.models.third_party import explained_errors, quiet
    from distill.train.build import build
    from distill.train.dataset import Examples

    base = Path(job["base"])
    rows = [Example(ids, labels) for ids, labels in job["examples"]]
    examples = Examples([str(number) for number in range(len(rows))], rows, Counter())
    with quiet(), explained_errors(base):
        trainer = build(
            base,
            job["layers"],
            loading.load_tokenizer(base),
            examples,
            options=TrainOptions.model_validate(job["options"]),
            seed=job["seed"],
            output=Path(job["output"]),
            say=silent,
        )
        trainer.create_optimizer()
        before = _begin()
        largest = job["largest"].get(trainer.layout, range(len(rows)))
        steps = _timed_steps(trainer, largest)
    seconds, optimizer_seconds = min(steps[1:] or steps)
    return StepMeasurement(
        tokens=sum(trainer.pass_tokens(largest)),
        seconds=seconds,
        optimizer_seconds=optimizer_seconds,
        before_bytes=before,
        micro_tokens=trainer.micro_tokens,
        layout=trainer.layout,
        self_check=trainer.checked.line(),
        **_peak(before),
    )


def _timed_steps(trainer: Any, rows: Sequence[int]) -> list[tuple[float, float]]:
    """For each step, the seconds of forward and backward, and of the optimizer."""
    model, started = trainer.model.train(), time.monotonic()
    steps: list[tuple[float, float]] = []
    while len(steps) < STEPS and time.monotonic() - started < SECONDS:
        begin = _now()
        trainer.training_step(model, {"rows": rows})
        middle = _now()
        trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        steps.append((middle - begin, _now() - middle))
    return steps


def _now() -> float:
    """Monotonic seconds, after the GPU's queued work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def _begin() -> int:
    """Bytes in use now; resets the peak, where the system can."""
    import psutil
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return int(psutil.Process().memory_info().rss)


def _peak(before: int) -> dict[str, Any]:
    """Device, peak bytes since `_begin` (at least `before`), and the bytes available to the process."""
    import resource

    import psutil
    import torch

    if torch.cuda.is_available():
        room = int(torch.cuda.mem_get_info()[0]) + int(torch.cuda.memory_reserved())
        peak = int(torch.cuda.max_memory_allocated())
        return {"device": str(torch.cuda.get_device_name(0)), "peak_bytes": max(peak, before), "room_bytes": room}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    threads = torch.get_num_threads()
    room = int(psutil.virtual_memory().available) + int(psutil.Process().memory_info().rss)
    return {
        "device": f"{threads} CPU thread{'s' if threads > 1 else ''}",
        "peak_bytes": max(peak, before),
        "room_bytes": room,
    }


if __name__ == "__main__":
    main()
