"""`python -m tests.benchmarks.soft_targets RUN cost|tokenizer`: what soft targets cost, and another tokenizer.

On the kept rows of a finished run whose teacher runs here. `cost`: CPU seconds of the steps and peak memory of
`soft` (k 20) by those of `sft`, five pairs that alternate, each training in a process of its own; and the bytes of
soft_targets.arrow per 100,000 trained tokens. `tokenizer`: the student's tokenizer without its last 10,000 merges, so
that its ids keep their embeddings and its splits differ; KL(teacher ‖ student) with the tail bucket, in nats per token,
where the held-out answers have a boundary in both tokenizers, after `sft` and after `soft`.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from distill.core.jsonl import read_sessions
from distill.models import loading
from distill.pipeline.parts import load_recipe
from distill.train import dataset, loop
from distill.train.objectives import Collected, soft_file, soft_targets
from distill.train.objectives.sft import NoOptions, Sft
from distill.train.objectives.soft import Soft, SoftOptions
from distill.train.objectives.soft_source import Source
from distill.train.options import TrainOptions, TrainSettings
from distill.train.stage import settings_of
from tests.benchmarks.objectives import _tell

OBJECTIVES = {"sft": lambda: Sft(NoOptions()), "soft": lambda: Soft(SoftOptions())}
PAIRS, MERGES = 5, 10_000


class Clock(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """CPU seconds of the steps."""

    def on_train_begin(self, *args: Any, **options: Any) -> None:
        """Start."""
        self.seconds = -time.process_time()

    def on_train_end(self, *args: Any, **options: Any) -> None:
        """Stop."""
        self.seconds += time.process_time()


def settings(run: Path, kind: str, **changes: Any) -> TrainSettings:
    """The run's settings with another objective."""
    own = settings_of(load_recipe(run))
    options = {**own.options.model_dump(exclude_unset=True), "eval_steps": 0, **changes}
    return replace(own, options=TrainOptions.model_validate(options), objective=OBJECTIVES[kind]())


def one(run: Path, kind: str, folder: Path) -> None:
    """Train a quarter of an epoch in this process; prints CPU seconds of its steps and its peak memory in GB."""
    clock = Clock()
    loop.train(
        read_sessions(run / "kept.jsonl"), folder / "student", settings(run, kind, epochs=0.25), fresh=True,
        callbacks=[clock],
    )  # fmt: skip
    _tell(f"{clock.seconds} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}")


def cost(run: Path) -> None:
    """Print the ratios of each pair, and their medians."""
    with tempfile.TemporaryDirectory() as place:
        _child(run, "soft", place)  # makes the targets, and warms the files
        table = Path(place) / soft_file.NAME
        tokens = len(soft_file.by_token(table))
        _tell(f"{table.stat().st_size / tokens * 1e5 / 1e6:.1f} MB per 100,000 trained tokens ({tokens} here)")
        pairs = [(_child(run, "sft", place), _child(run, "soft", place)) for _ in range(PAIRS)]
    for number, name in enumerate(("CPU seconds of the steps", "peak memory")):
        ratios = [soft[number] / sft[number] for sft, soft in pairs]
        shown = " ".join(f"{one:.3f}" for one in ratios)
        _tell(f"{name}, soft by sft: median {statistics.median(ratios):.3f} of {shown}")


def _child(run: Path, kind: str, place: str) -> tuple[float, float]:
    command = [sys.executable, "-m", "tests.benchmarks.soft_targets", str(run), "one", kind, place]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, memory = printed.splitlines()[-1].split()
    return float(seconds), float(memory)


def tokenizer(run: Path) -> None:
    """Print what is covered, and the divergence of both students."""
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base"
        shutil.copytree(loading.materialise(settings_of(load_recipe(run)).model), base)
        state = json.loads((base / "tokenizer.json").read_text())
        state["model"]["merges"] = state["model"]["merges"][:-MERGES]
        (base / "tokenizer.json").write_text(json.dumps(state))
        for kind in OBJECTIVES:
            chosen = replace(settings(run, kind), model=str(base))
            folder = Path(place) / kind / "student"
            loop.train(read_sessions(run / "kept.jsonl"), folder, chosen, say=_tell)
            _tell(f"{kind}: KL(T‖S) {_divergence(run, folder, chosen):.3f}")


def _divergence(run: Path, folder: Path, chosen: TrainSettings) -> float:
    """Mean over the held-out tokens that have a target."""
    student, tokens = loading.load_student(folder, adapter=True)
    sessions = read_sessions(run / "test.jsonl")
    examples = dataset.examples_of(sessions, chosen.template, tokens, chosen.options)
    source = Source(
        folder=folder.parent / "held_out", teachers=chosen.teachers, collected=Collected(), template=chosen.template,
        sessions={session.id: session for session in sessions}, tokenizer=tokens, train_on="all", k=20, say=_tell,
    )  # fmt: skip
    targets = soft_targets.prepare(examples.rows, source, weight=1.0)
    found: Counter[str] = Counter()
    for place, example in enumerate(examples.examples):
        trained = (torch.tensor(example.labels) != -100).nonzero()[:, 0]
        with torch.inference_mode():
            logits = student(input_ids=torch.tensor([example.input_ids])).logits[0, trained - 1].float()
        rows = targets.of([place])
        losses = rows.from_logits(logits, torch.tensor(example.labels)[trained])
        known = rows.weights > 0
        found["nats"] += float(losses[known].sum())
        found["tokens"] += int(known.sum())
    return found["nats"] / found["tokens"]


if __name__ == "__main__":
    where, mode, *rest = sys.argv[1:]
    if mode == "one":
        one(Path(where), rest[0], Path(rest[1]))
    else:
        {"cost": cost, "tokenizer": tokenizer}[mode](Path(where))
