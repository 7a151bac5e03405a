"""Watches an on-policy training by the student's own answers to fixed prompts; ends one that runs away.

Rows of `train_log.jsonl`: `event: rollouts` for each step, with `step`, `rollouts` (answers sampled in it), `cut`
(share without an end token), `tokens` (mean length), `length_ratio` (by the teacher's answers) and `repetition`;
`event: on_policy` for each evaluation, step 0 among them, with the same of the fixed prompts, `kl` (KL(teacher ‖
student), nats per token of the teacher's answers to held-out prompts), `divergence` (the objective's, on the student's
answers) and `overlap` (share of the teacher's 20 most probable tokens that are among the student's, there);
`event: stopped` with a `reason`; `event: kept` with `which`, `start` or `end`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from distill.models.padding import by_length
from distill.train.callbacks import Log
from distill.train.evaluation import aside, evaluation_interval, load_weights, save_weights
from distill.train.kernels.divergence import TOP, Overlap
from distill.train.kernels.targets import TokenTargets
from distill.train.objectives.live_teacher import Reading
from distill.train.objectives.rollouts import figures

if TYPE_CHECKING:
    from distill.train.objectives import TrainingData
    from distill.train.objectives.on_policy import OnPolicy

PROMPTS = 16
"""Answers sampled for an evaluation."""
MOST_CUT, MOST_LENGTH = 0.2, 2.0
"""Rise of the share of cut answers over the starting student's, and length by the teacher's, at which training ends."""
ROWS = 32
START = "start.safetensors"


class RolloutWatch(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Logs rollouts, measures the student as `train.eval_steps` says, and keeps the better of start and end."""

    def __init__(self, objective: OnPolicy, data: TrainingData, log: Log) -> None:
        self._objective, self._log, self._say, self._seed = objective, log, data.say, data.settings.seed
        self._trainer = objective.trainer
        self._every = evaluation_interval(data.settings.options.eval_steps or None, len(self._trainer.plan.steps))
        ids, train_on = {one.id for one in data.held_out}, data.settings.options.train_on
        apart = [objective.teacher.read(row, train_on) for row in data.usable.rows if row.id in ids]
        held_out = [one for one in apart if one is not None]
        if not held_out:
            data.say("on_policy: no rows are held out (train.eval_rows), so it is watched by rows that it trains on")
        trained = [one for one in objective.readings if one is not None]
        self._readings = held_out or Random(f"{self._seed}:watch").sample(trained, min(PROMPTS, len(trained)))
        spare = Random(f"{self._seed}:prompts").sample(objective.prompts, len(objective.prompts))
        prompts = [one for reading in held_out for one in objective.prompts_of(reading)]
        self._prompts = [*prompts, *(one for row in spare for one in row)][:PROMPTS]
        self._start = Path(self._trainer.args.output_dir) / START
        save_weights(self._trainer.model, self._start)
        self._stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the starting student; a resumed run has it in its log."""
        if not self._evaluations():
            self._evaluate(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Log the step's rollouts; measure where it is time, and end training where the answers run away."""
        if not logs or "loss" not in logs:
            return
        step, rollouts = state.global_step, self._objective.rollouts
        self._log.event({"event": "rollouts", "step": step, "rollouts": len(rollouts), **figures(rollouts)})
        if step < state.max_steps and step % self._every:
            return
        self._evaluate(state)
        if reason := reason_to_stop(*self._evaluations()):
            self._log.event({"event": "stopped", "step": step, "reason": reason})
            self._say(f"on_policy: training ends at step {step}: {reason}")
            self._stopped = control.should_training_stop = True
            control.should_save = False  # a run resumed from a checkpoint of this step would train beyond it

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the starting student's weights back where they are better; leave an interrupted training as it is."""
        rows = self._evaluations()
        if rows[-1]["step"] != state.global_step:
            return
        before, after = rows[0]["kl"], rows[-1]["kl"]
        which = "start" if self._stopped else kept(before, after)
        if which == "start":
            load_weights(self._trainer.model, self._start)
        self._log.event({"event": "kept", "step": state.global_step, "which": which, "before": before, "after": after})
        self._objective.facts = {"kept": which, "kl_before": before, "kl_after": after}
        change = f"held-out KL(teacher ‖ student) {before:.3f} before and {after:.3f} after"
        self._say(f"on_policy: {change}: {'the trained' if which == 'end' else 'the starting'} student is kept")

    def _evaluations(self) -> list[dict[str, Any]]:
        return [row for row in self._log.events if row["event"] == "on_policy"]

    def _evaluate(self, state: Any) -> None:
        with self._log.paused(state, "evaluating"):
            row = {"event": "on_policy", "step": state.global_step, "steps": state.max_steps, **self._measured()}
        self._log.event(row)
        self._say(line(row))

    def _measured(self) -> dict[str, Any]:
        one, beta = self._objective, self._objective.options.beta
        rollouts = one.sampled([(f"{self._seed}:watch:{place}", each) for place, each in enumerate(self._prompts)])
        readings = [each.reading for each in rollouts]
        return {
            "kl": self._mean(self._readings, lambda part: one.divergence(part, [0.0] * len(part))),
            "divergence": self._mean(readings, lambda part: one.divergence(part, [beta] * len(part))),
            "overlap": self._mean(readings, lambda part: Overlap(one.teacher.distributions([r.theirs for r in part]))),
            **figures(rollouts),
        }

    def _mean(self, readings: Sequence[Reading], targets: Callable[[Sequence[Reading]], TokenTargets]) -> float:
        """The mean of what targets give over the trained tokens of readings."""
        trainer, total, tokens = self._trainer, 0.0, 0
        lengths = [len(one.ours.input_ids) for one in readings]
        with aside(trainer.model), torch.no_grad(), trainer.compute_loss_context_manager():
            for group in by_length(lengths, rows=ROWS, tokens=trainer.micro_tokens):
                part = [readings[place] for place in group]
                inputs = trainer._prepare_inputs(trainer.collated([one.ours for one in part]))
                values = trainer.token_losses({**inputs, "targets": targets(part)})
                total, tokens = total + float(values.sum()), tokens + len(values)
        return total / tokens


def kept(before: float, after: float) -> str:
    """Which student is better by its held-out KL, `start` or `end`; one that is no number is never."""
    return "end" if after < before else "start"


def reason_to_stop(start: dict[str, Any], *later: dict[str, Any]) -> str:
    """Why training ends, by its first and last evaluation; empty while it goes on."""
    now = later[-1]
    if now["cut"] - start["cut"] >= MOST_CUT:
        return f"{now['cut']:.0%} of the sampled answers do not end, against {start['cut']:.0%} at the start"
    if now["length_ratio"] > max(MOST_LENGTH, start["length_ratio"]):
        return f"sampled answers are {now['length_ratio']:.1f} times as long as the teacher's"
    return ""


def line(row: dict[str, Any]) -> str:
    """An evaluation as one line for the reader."""
    return (
        f"step {row['step']}/{row['steps']}: held-out KL {row['kl']:.3f}; sampled answers: divergence "
        f"{row['divergence']:.3f} nats per token, {row['cut']:.0%} cut, {row['length_ratio']:.2f} times the teacher's "
        f"length, {row['repetition']:.0%} repeated, {row['overlap']:.0%} of the {TOP} top tokens shared"
    )
