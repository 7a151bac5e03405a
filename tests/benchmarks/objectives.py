"""`python -m tests.benchmarks.objectives RUN [SEED …]`: what the student learns from, on a run's own rows.

Trains a student by each objective on the kept rows of a finished run whose teacher runs on this machine, and measures
on the held-out prompts, with the teacher's own answers: KL(teacher ‖ student) and KL(student ‖ teacher) in nats a token
over the whole vocabulary, the acceptance rate Σ min(p, q), and the share of the gap closed (base − student over base −
teacher, in nats a token of the teacher's answers). Intervals are over prompts, paired, from the first seed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from distill.compare import stats
from distill.core.jsonl import read_sessions
from distill.models import chat_template, loading
from distill.models.likelihood import token_distances
from distill.pipeline.parts import load_recipe
from distill.train import loop
from distill.train.objectives.sft import NoOptions, Sft
from distill.train.objectives.soft import Soft, SoftOptions
from distill.train.options import TrainOptions, TrainSettings
from distill.train.stage import settings_of

OBJECTIVES: Mapping[str, Callable[[], Sft]] = {
    "sft": lambda: Sft(NoOptions()),
    "soft, weight 0.5": lambda: Soft(SoftOptions(weight=0.5)),
    "soft, weight 1": lambda: Soft(SoftOptions(weight=1.0)),
}
FIGURES = ("KL(T‖S)", "KL(S‖T)", "acceptance", "gap closed")
Figures: TypeAlias = "np.ndarray[Any, Any]"


def main(run: Path, seeds: Sequence[int]) -> None:
    """Print a line for each objective and seed, then how each differs from `sft` by prompt."""
    recipe = load_recipe(run)
    settings, test = settings_of(recipe), read_sessions(run / "test.jsonl")
    tokenizer = loading.load_tokenizer(loading.materialise(settings.model))
    rows = [chat_template.encode(one.messages, settings.template, tokenizer) for one in test]
    teacher = _logs(loading.load_causal(loading.materialise(recipe.teachers[0].model)), rows)
    found: dict[str, list[Figures]] = {}
    for seed in seeds:
        for name, objective in OBJECTIVES.items():
            options = {**settings.options.model_dump(exclude_unset=True), "eval_steps": 0}
            chosen = replace(settings, options=TrainOptions.model_validate(options), seed=seed, objective=objective())
            figures, seconds = _trained(run, chosen, rows, teacher)
            found.setdefault(name, []).append(figures)
            values = "  ".join(f"{one} {value:.3f}" for one, value in zip(FIGURES, figures.mean(0), strict=True))
            _tell(f"{name}, seed {seed}: {values}  CPU s {seconds:.0f}")
    for name, by_seed in found.items():
        for number, figure in enumerate(FIGURES):
            theirs = np.mean([one[:, number] for one in found["sft"]], 0)
            change = stats.paired_difference(np.mean([one[:, number] for one in by_seed], 0), theirs)
            assert change is not None
            share = [part / theirs.mean() for part in (change.mean, change.low, change.high)]
            _tell(f"{name} against sft, {figure}: {share[0]:+.1%} (95% CI {share[1]:+.1%} to {share[2]:+.1%})")


def _trained(
    run: Path, settings: TrainSettings, rows: Sequence[chat_template.Example], teacher: Sequence[torch.Tensor]
) -> tuple[Figures, float]:
    """Each row's `FIGURES` for a student of these settings (rows × figures), and the CPU seconds of its training."""
    with tempfile.TemporaryDirectory() as place:
        started = time.process_time()
        loop.train(read_sessions(run / "kept.jsonl"), Path(place) / "student", settings)
        seconds = time.process_time() - started
        if not (found := _BASE):
            found.append(_logs(loading.load_student(Path(place) / "student", adapter=False)[0], rows))
        student = _logs(loading.load_student(Path(place) / "student", adapter=True)[0], rows)
    labels = [torch.tensor([one for one in row.labels if one != chat_template.IGNORED]) for row in rows]
    nll = [
        [_nll(logs, label) for logs in three] for *three, label in zip(found[0], student, teacher, labels, strict=True)
    ]
    base, floor = np.mean([one[0] for one in nll]), np.mean([one[2] for one in nll])
    gaps = [float((base - own) / (base - floor)) for _, own, _ in nll]
    return np.array([[*_distances(*each), gap] for *each, gap in zip(teacher, student, gaps, strict=True)]), seconds


_BASE: list[list[torch.Tensor]] = []
"""The log-probabilities of the untrained base, which is the same for every seed."""


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _logs(model: Any, rows: Sequence[chat_template.Example]) -> list[torch.Tensor]:
    """Log-probabilities at each row's trained tokens (n × V)."""
    found = []
    with torch.inference_mode():
        for row in rows:
            trained = (torch.tensor(row.labels) != chat_template.IGNORED).nonzero()[:, 0]
            logits = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0, trained - 1]
            found.append(torch.log_softmax(logits.float(), -1))
    return found


def _nll(logs: torch.Tensor, labels: torch.Tensor) -> float:
    return -float(logs.gather(1, labels[:, None]).mean())


def _distances(teacher: torch.Tensor, student: torch.Tensor) -> list[float]:
    """Means over a row's tokens of both divergences and the acceptance rate."""
    distances = token_distances(teacher, student)
    return [float(one.mean()) for one in (distances.forward, distances.reverse, distances.acceptance)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]] or [7])
