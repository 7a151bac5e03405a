"""Watches a preference training on held-out pairs, and ends it where the student departs from its reference.

The loss rewards the margin alone, which also grows where both answers become improbable (Pal et al., 2024, arXiv
2402.13228), or where answers no longer end. After each evaluation, a row of `train_log.jsonl` with `event: pairs` has
`step`, `steps`, `pairs`, `chosen` and `reference` (nats per token of the held-out chosen answers, by student and
reference), `margin` (mean over pairs of the chosen answer's gain in nats less the rejected one's) and `preferred`
(share with a margin above 0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import TrainerCallback

from distill.train.evaluation import evaluations
from distill.train.objectives.reference import Halves, computed, per_token

if TYPE_CHECKING:
    from distill.train.callbacks import Log
    from distill.train.step_guard import GuardedTrainer

MOST_LOST = 0.5
"""Nats per token that chosen answers may lose against the reference."""
MOST_UNENDED, FEWEST_UNENDED = 0.10, 2
"""Share of answers, and their number, that may no longer end; the number, as one of eight answers is 12.5%."""


class PairWatch(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Measures held-out pairs after each evaluation, and ends a training that goes astray."""

    def __init__(
        self,
        trainer: GuardedTrainer,
        log: Log,
        pairs: Sequence[Halves],
        reference: Tensor,
        say: Callable[[str], None],
    ) -> None:
        self._trainer, self._log, self._pairs, self._reference, self._say = trainer, log, pairs, reference, say

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Look at the evaluation of this step, if there is one."""
        rows = evaluations(self._log.events)
        if not self._pairs or not rows or rows[-1]["step"] != state.global_step or not logs or "loss" not in logs:
            return
        with self._log.paused(state, "held-out pairs"):
            row = self._measured(state.global_step, state.max_steps)
        self._log.event(row)
        self._say(line(row))
        if reason := reason_to_stop(rows, row):
            self._say(f"training ends at step {state.global_step} of {state.max_steps}: {reason}")
            control.should_training_stop = True
            control.should_save = False  # a run resumed from a checkpoint of this step would train beyond it

    def _measured(self, step: int, steps: int) -> dict[str, Any]:
        logprobs = computed(self._trainer, self._pairs)
        gains = logprobs - self._reference
        margins = gains[:, 0] - gains[:, 1]
        chosen, reference = (float(per_token(one, self._pairs)[:, 0].mean()) for one in (logprobs, self._reference))
        share = float((margins > 0).double().mean())
        values = {"chosen": chosen, "reference": reference, "margin": float(margins.mean()), "preferred": share}
        return {"event": "pairs", "step": step, "steps": steps, **values, "pairs": len(self._pairs)}


def line(row: Mapping[str, Any]) -> str:
    """The measurements as one line."""
    nats = f"{row['chosen']:.3f} nats per token (reference {row['reference']:.3f})"
    return (
        f"step {row['step']}: {row['preferred']:.0%} of {row['pairs']} held-out pairs preferred, margin "
        f"{row['margin']:+.2f} nats; chosen answers {nats}"
    )


def reason_to_stop(evaluations: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> str:
    """Why training ends, as a clause; empty while it continues. The first evaluation is the starting student's."""
    advice = "take a smaller learning_rate, a greater beta, or add sft to the loss"
    lost = row["reference"] - row["chosen"]
    if not lost <= MOST_LOST:  # NaN too
        return f"chosen answers have lost {lost:.2f} nats per token, more than {MOST_LOST}; {advice}"
    first, last = evaluations[0], evaluations[-1]
    if None in (first["stop_rate"], last["stop_rate"]):
        return ""
    fewer = first["stop_rate"] - last["stop_rate"]
    if fewer > MOST_UNENDED and round(fewer * last["answers"]) >= FEWEST_UNENDED:
        return f"{last['stop_rate']:.0%} of answers end, {first['stop_rate']:.0%} did at the start; {advice}"
    return ""
