"""`python -m tests.benchmarks.objectives RUN [--then] [SEED …]`: what the student learns from, on a run's own rows.

Trains a student by each objective on the kept rows of a finished run whose teacher runs on this machine, and measures
on the held-out prompts, with the teacher's own answers: KL(teacher ‖ student) and KL(student ‖ teacher) in nats a token
over the whole vocabulary, the acceptance rate Σ min(p, q), and the share of the gap closed (base − student over base −
teacher, in nats a token of the teacher's answers). Intervals are over prompts, paired, from the first seed.

With `--then`, a student of soft targets after half of the epochs goes on in several ways: on its own answers for as
many steps, and, beside each, on soft targets for the same CPU seconds.
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
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from distill.compare import stats
from distill.core.jsonl import read_sessions
from distill.models import chat_template, loading
from distill.models.likelihood import token_distances
from distill.pipeline.parts import load_recipe
from distill.train import loop
from distill.train.objectives.on_policy import OnPolicy, OnPolicyOptions
from distill.train.objectives.sft import NoOptions, Sft
from distill.train.objectives.soft import Soft, SoftOptions
from distill.train.options import TrainOptions
from distill.train.stage import settings_of

OBJECTIVES: Mapping[str, Callable[[], Sft]] = {
    "sft": lambda: Sft(NoOptions()),
    "soft, weight 0.5": lambda: Soft(SoftOptions(weight=0.5)),
    "soft, weight 1": lambda: Soft(SoftOptions(weight=1.0)),
}
THEN: Mapping[str, Callable[[], Sft]] = {
    "on_policy": lambda: OnPolicy(OnPolicyOptions(temperature=0.7)),
    "on_policy, half of the rows the teacher's": lambda: OnPolicy(OnPolicyOptions(temperature=0.7, teacher_share=0.5)),
}
SMALL_RATE = 0.3
"""Of the first half's learning rate, in which the second goes on."""
FIGURES = ("KL(T‖S)", "KL(S‖T)", "acceptance", "gap closed")
Figures: TypeAlias = "np.ndarray[Any, Any]"


def main(run: Path, seeds: Sequence[int]) -> None:
    """Print a line for each objective and seed, then how each differs from `sft` by prompt."""
    bench = Bench(run)
    found: dict[str, list[Figures]] = {}
    for seed in seeds:
        for name, objective in OBJECTIVES.items():
            figures, _ = bench.trained(name, objective(), seed)
            found.setdefault(name, []).append(figures)
    for name, by_seed in found.items():
        for number, figure in enumerate(FIGURES):
            theirs = np.mean([one[:, number] for one in found["sft"]], 0)
            change = stats.paired_difference(np.mean([one[:, number] for one in by_seed], 0), theirs)
            assert change is not None
            share = [part / theirs.mean() for part in (change.mean, change.low, change.high)]
            _tell(f"{name} against sft, {figure}: {share[0]:+.1%} (95% CI {share[1]:+.1%} to {share[2]:+.1%})")


def then(run: Path, seeds: Sequence[int]) -> None:
    """Print a line for the half-trained student, and for each way to go on beside soft targets for as long."""
    bench = Bench(run)
    whole = bench.settings.options.epochs
    for seed in seeds:
        with tempfile.TemporaryDirectory() as place:
            start = Path(place) / "student"
            _, half = bench.trained("soft, half", Soft(SoftOptions()), seed, folder=start, epochs=whole / 2)
            rate = bench.settings.options.learning_rate * SMALL_RATE
            for name, objective in THEN.items():
                options = {"learning_rate": rate, "epochs": whole / 2}
                _, seconds = bench.trained(f"then {name}", continued(objective(), start), seed, **options)
                options["epochs"] *= seconds / half
                bench.trained("then soft, as long", continued(Soft(SoftOptions()), start), seed, **options)


def continued(objective: Sft, student: Path) -> Sft:
    """The objective, of a student that goes on with the weights of another's adapter."""

    def start(trainer: Any) -> None:
        type(objective).start(objective, trainer)
        set_peft_model_state_dict(trainer.model, load_file(student / "adapter_model.safetensors"))

    objective.start = start  # type: ignore[method-assign]
    return objective


class Bench:
    """A finished run, its held-out rows, and the teacher's and the untrained base's probabilities there."""

    def __init__(self, run: Path) -> None:
        recipe = load_recipe(run)
        self.run, self.settings = run, settings_of(recipe)
        tokenizer = loading.load_tokenizer(loading.materialise(self.settings.model))
        test = read_sessions(run / "test.jsonl")
        self.rows = [chat_template.encode(one.messages, self.settings.template, tokenizer) for one in test]
        self.teacher = _logs(loading.load_causal(loading.materialise(recipe.teachers[0].model)), self.rows)
        self.base: list[torch.Tensor] = []

    def trained(
        self, name: str, objective: Sft, seed: int, *, folder: Path | None = None, **options: Any
    ) -> tuple[Figures, float]:
        """Each row's `FIGURES` for a student (rows × figures), and the CPU seconds of its training; prints their means.

        The student is kept where a `folder` for it is given; `options` change those of the run.
        """
        values = {**self.settings.options.model_dump(exclude_unset=True), "eval_steps": 0, **options}
        chosen = TrainOptions.model_validate(values)
        with tempfile.TemporaryDirectory() as place:
            student, started = folder or Path(place) / "student", time.process_time()
            sessions = read_sessions(self.run / "kept.jsonl")
            loop.train(
                sessions, student, replace(self.settings, options=chosen, seed=seed, objective=objective), say=_tell
            )
            seconds = time.process_time() - started
            self.base = self.base or _logs(loading.load_student(student, adapter=False)[0], self.rows)
            figures = self._figures(_logs(loading.load_student(student, adapter=True)[0], self.rows))
        means = "  ".join(f"{one} {value:.3f}" for one, value in zip(FIGURES, figures.mean(0), strict=True))
        _tell(f"{name}, seed {seed}, {chosen.epochs:.2g} epochs: {means}  CPU s {seconds:.0f}")
        return figures, seconds

    def _figures(self, student: Sequence[torch.Tensor]) -> Figures:
        labels = [torch.tensor([one for one in row.labels if one != chat_template.IGNORED]) for row in self.rows]
        each = zip(self.base, student, self.teacher, labels, strict=True)
        nll = np.array([[_nll(logs, label) for logs in three] for *three, label in each])
        base, _, floor = nll.mean(0)
        gaps = (base - nll[:, 1]) / (base - floor)
        return np.array([[*_distances(*pair), gap] for *pair, gap in zip(self.teacher, student, gaps, strict=True)])


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
    arguments = [one for one in sys.argv[1:] if one != "--then"]
    chosen = then if "--then" in sys.argv else main
    chosen(Path(arguments[0]), [int(seed) for seed in arguments[1:]] or [7])
