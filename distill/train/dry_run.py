"""Measures one forward pass, backward pass and optimizer step in a separate process.

There its memory can be told from ours, and running out of it ends nothing else. The job comes as JSON on standard
input; the measurement is written as JSON to the file that it names.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.core import processes
from distill.errors import DistillError, ModelError
from distill.models.chat_template import Example
from distill.train.options import TrainOptions

SECONDS, STEPS = 15.0, 4
"""When the measurement ends; the first step is a warm-up unless it is the only one."""


@dataclass(frozen=True, slots=True)
class StepMeasurement:
    """Time and memory (bytes) of one step."""

    device: str
    """Such as `2 CPU threads`, or a GPU's name."""
    tokens: int
    """In the pass, padding included."""
    seconds: float
    """Forward and backward."""
    optimizer_seconds: float
    """The optimizer's step."""
    before_bytes: int
    """In use once the base was loaded: weights, and on a CPU the libraries."""
    peak_bytes: int
    """The most in use during a step: on a CPU of resident memory, on a GPU of what torch allocated."""
    room_bytes: int
    """What is free, and what the process has."""
    micro_tokens: int
    """Most tokens in a pass that memory allowed: fewer than `tokens` after an out-of-memory error."""

    @property
    def tokens_per_second(self) -> float:
        """Forward and backward, padding counted."""
        return self.tokens / max(self.seconds, 1e-9)


def measured_pass(
    base: Path, kept: Sequence[int] | None, examples: Sequence[Example], options: TrainOptions, seed: int
) -> StepMeasurement:
    """Train on these examples, which make one pass, in a child process; nothing of it stays.

    Raises `ModelError` where the child fails, or where the system kills it, as on out-of-memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        job = {
            "base": str(base),
            "kept": list(kept) if kept is not None else None,
            "examples": [[example.input_ids, example.labels] for example in examples],
            "options": options.model_dump(),
            "seed": seed,
            "out": str(out),
        }
        ended = processes.run(processes.python("-m", "distill.train.dry_run"), given=json.dumps(job))
        info = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    if "error" in info:
        raise ModelError(info["error"])
    if not info:
        raise ModelError(_died(ended.returncode, ended.stderr, sum(len(example.input_ids) for example in examples)))
    return StepMeasurement(**info)


def _died(code: int, errors: str, tokens: int) -> str:
    if code < 0:
        return (
            f"a pass of {tokens} tokens was killed by the system (signal {-code}), as it does on out-of-memory; "
            "lower train.micro_batch_tokens or train.max_length, or train a smaller student"
        )
    last = (errors.strip().splitlines() or ["no output"])[-1]
    return f"one pass of {tokens} tokens could not be tried: {last[:300]}"


# In the child


def main() -> None:
    """Do the job of standard input."""
    job = json.load(sys.stdin)
    try:
        info: dict[str, Any] = asdict(_measure(job))
    except DistillError as error:
        info = {"error": str(error)}
    Path(job["out"]).write_text(json.dumps(info), encoding="utf-8")


def _measure(job: dict[str, Any]) -> StepMeasurement:
    from collections import Counter

    from distill.models import loading
    from distill.models.third_party import in_our_words, quiet
    from distill.train.build import build
    from distill.train.dataset import Examples
    from distill.train.packing import PackingPlan

    base = Path(job["base"])
    examples = [Example(ids, labels) for ids, labels in job["examples"]]
    found = Examples([str(number) for number in range(len(examples))], examples, Counter())
    timer = _timer()
    with quiet(), in_our_words(base):
        trainer = build(
            base,
            job["kept"],
            loading.load_tokenizer(base),
            found,
            options=TrainOptions.model_validate(job["options"]),
            seed=job["seed"],
            output=Path(job["out"]).parent / "none",
            say=lambda line: None,
            callbacks=[timer],
        )
        trainer.plan = PackingPlan((tuple(range(len(examples))),) * STEPS, epochs=1)
        trainer.args.save_strategy = "no"
        trainer.train()
    lengths = found.lengths()
    seconds, optimizer_seconds = min(timer.steps[1:] or timer.steps)
    return StepMeasurement(
        tokens=sum(lengths) if trainer.padding_free else len(lengths) * max(lengths),
        seconds=seconds,
        optimizer_seconds=optimizer_seconds,
        before_bytes=timer.before_bytes,
        micro_tokens=trainer.micro_tokens,
        **_peak(),
    )


def _timer() -> Any:
    import torch
    from transformers import TrainerCallback

    class StepTimer(TrainerCallback):  # type: ignore[misc]  # the library has no types
        """Records time and memory at the boundaries of a step's phases."""

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            """The base has been loaded."""
            self.before_bytes = _begin()
            self.steps: list[tuple[float, float]] = []
            self.started = time.monotonic()

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            """A forward pass is about to start."""
            self.began = self.now()

        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            """The backward pass is done."""
            self.turned = self.now()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """The weights are updated."""
            end = self.now()
            self.steps.append((self.turned - self.began, end - self.turned))
            control.should_training_stop = end - self.started > SECONDS or len(self.steps) == STEPS

        def now(self) -> float:
            """Seconds, once the GPU has finished its work."""
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return time.monotonic()

    return StepTimer()


def _begin() -> int:
    """Bytes in use now; a peak is counted from here on, where the system can."""
    import psutil
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return int(psutil.Process().memory_info().rss)


def _peak() -> dict[str, Any]:
    """The device, the peak since `_begin`, and all that the process could have had."""
    import resource

    import psutil
    import torch

    if torch.cuda.is_available():
        room = int(torch.cuda.mem_get_info()[0]) + int(torch.cuda.memory_reserved())
        peak = int(torch.cuda.max_memory_allocated())
        return {"device": str(torch.cuda.get_device_name(0)), "peak_bytes": peak, "room_bytes": room}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    threads = torch.get_num_threads()
    room = int(psutil.virtual_memory().available) + int(psutil.Process().memory_info().rss)
    return {"device": f"{threads} CPU thread{'s' * (threads > 1)}", "peak_bytes": peak, "room_bytes": room}


if __name__ == "__main__":
    main()
