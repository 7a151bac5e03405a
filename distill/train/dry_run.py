"""Measures one forward pass, backward pass and optimizer step in a separate process.

There its memory can be told from ours, and running out of it ends nothing else. The job comes as JSON on standard
input; what was measured is written as JSON to the file that it names.
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
from distill.core.console import silent
from distill.core.files import write_json
from distill.errors import DistillError, ModelError
from distill.models.chat_template import Example
from distill.train.options import TrainOptions

SECONDS, STEPS = 15.0, 4
"""A rehearsal ends after so long, or after so many steps; the first is a warm-up unless it is the only one."""


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
    """For the step that the optimizer takes afterwards."""
    loading_bytes: int
    """The most that was taken while the base was read."""
    before_bytes: int
    """Taken when it had been read: weights, and on a CPU the libraries."""
    peak_bytes: int
    """The most that was taken in a step: on a CPU of resident memory, on a GPU of what torch allocated."""
    room_bytes: int
    """All that there is: the GPU's memory, or what the machine had free, with what this took."""
    micro_tokens: int
    """Most tokens in a pass that memory allowed: fewer than `tokens` where it had run out."""

    @property
    def tokens_per_second(self) -> float:
        """Of forward and backward, padding counted."""
        return self.tokens / max(self.seconds, 1e-9)


def rehearse(
    base: Path, kept: Sequence[int] | None, examples: Sequence[Example], options: TrainOptions, seed: int
) -> StepMeasurement:
    """Train on these examples, which make one pass, in a child process; nothing of it stays.

    Raises `ModelError` where the child cannot do it, or where the system kills it, as on out-of-memory.
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
    last = (errors.strip().splitlines() or ["nothing was said"])[-1]
    return f"one pass of {tokens} tokens could not be tried: {last[:300]}"


# In the child


def main() -> None:
    """Do the job of standard input."""
    job = json.load(sys.stdin)
    try:
        info: dict[str, Any] = asdict(_measure(job))
    except DistillError as error:
        info = {"error": str(error)}
    write_json(Path(job["out"]), info)


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
    watch = _watch()
    with quiet(), in_our_words(base):
        trainer = build(
            base,
            job["kept"],
            loading.load_tokenizer(base),
            found,
            options=TrainOptions.model_validate(job["options"]),
            seed=job["seed"],
            output=Path(job["out"]).parent / "none",
            say=silent,
            callbacks=[watch],
        )
        trainer.plan = PackingPlan((tuple(range(len(examples))),) * STEPS, epochs=1)
        trainer.args.save_strategy = "no"
        trainer.train()
    lengths = found.lengths()
    tokens = sum(lengths) if trainer.padding_free else len(lengths) * max(lengths)
    measured: StepMeasurement = watch.measured(tokens, trainer.micro_tokens)
    return measured


def _watch() -> Any:
    import torch
    from transformers import TrainerCallback

    class StepTimer(TrainerCallback):  # type: ignore[misc]  # the library has no types
        """Records time and memory at the boundaries of a step's phases."""

        def __init__(self) -> None:
            self.memory = _Gpu() if torch.cuda.is_available() else _Resident()
            self.steps: list[tuple[float, float]] = []

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            """The base has been read."""
            self.memory.begin()
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
            """Seconds, when all that was asked of a GPU is done."""
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return time.monotonic()

        def measured(self, tokens: int, micro_tokens: int) -> StepMeasurement:
            """What was seen; the fastest step after the warm-up."""
            seconds, optimizer = min(self.steps[1:] or self.steps)
            return StepMeasurement(
                device=self.memory.name(),
                tokens=tokens,
                seconds=seconds,
                optimizer_seconds=optimizer,
                loading_bytes=self.memory.loading,
                before_bytes=self.memory.before,
                peak_bytes=self.memory.peak(),
                room_bytes=self.memory.room(),
                micro_tokens=micro_tokens,
            )

    return StepTimer()


class _Resident:
    """Peak resident memory of this process; since its start where the peak cannot be reset."""

    def __init__(self) -> None:
        self.before = self.loading = 0

    def name(self) -> str:
        """The threads that compute."""
        import torch

        threads = torch.get_num_threads()
        return f"{threads} CPU thread{'s' if threads > 1 else ''}"

    def begin(self) -> None:
        """Note what is taken now, and forget the peak."""
        import psutil

        self.before, self.loading = psutil.Process().memory_info().rss, self.peak()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak(self) -> int:
        """The most since `begin`."""
        with suppress(OSError):
            for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def room(self) -> int:
        """What is free, and what this process has."""
        import psutil

        return int(psutil.virtual_memory().available) + int(psutil.Process().memory_info().rss)


class _Gpu:
    """What torch allocated on the GPU."""

    def __init__(self) -> None:
        self.before = self.loading = 0

    def name(self) -> str:
        """The card's."""
        import torch

        return str(torch.cuda.get_device_name(0))

    def begin(self) -> None:
        """Note what is taken now, and forget the peak."""
        import torch

        self.before, self.loading = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """The most since `begin`."""
        import torch

        return int(torch.cuda.max_memory_allocated())

    def room(self) -> int:
        """What is free, and what this process has."""
        import torch

        return int(torch.cuda.mem_get_info()[0]) + int(torch.cuda.memory_reserved())


if __name__ == "__main__":
    main()
