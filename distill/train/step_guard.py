"""Trainer that skips steps without a finite loss or gradient norm, and quarantines the sessions that cause them.

`student/quarantined.jsonl` has one row per session: `id`; `step`, the first step without it, counted from 1; `reason`.
A resumed run leaves out the same sessions from the same steps on, and so takes the steps of an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from distill.core.jsonl import append, rewrite
from distill.errors import ModelError, some_of
from distill.train.sft_trainer import Trainer

QUARANTINE = "quarantined.jsonl"
MOST_SKIPPED = 5
"""Skipped steps after which training stops."""


class GuardedTrainer(Trainer):
    """Trainer with a check of each step before the optimizer applies it, once `guard` has been called."""

    is_guarded = False
    example_losses: Sequence[Mapping[str, Any]] = ()
    """The last step's examples with a finite loss, of all processes: `id`, `loss` (nats per token), `tokens`."""
    quarantined: dict[str, int]
    """First step without each quarantined session."""

    def guard(
        self,
        path: Path,
        entries: Iterable[Mapping[str, Any]],
        skipped: Iterable[int],
        log: Callable[[dict[str, Any]], None],
    ) -> None:
        """Check every step from now on.

        `path` is quarantined.jsonl, `entries` are its rows when a run is resumed, and `skipped` the steps skipped
        before the checkpoint. `log` receives a row per skipped step: `step`, `reason`, `ids` (quarantined from the
        next step on) and `line`, a message with all of these.
        """
        rows = list(entries)
        rewrite(path, rows)
        self.quarantined = {row["id"]: row["step"] for row in rows}
        self._quarantine_path, self._skipped, self._log_skip = path, set(skipped), log
        self.is_guarded = True

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """A step without the quarantined sessions; a skipped step drops its gradients, so that no weight moves.

        Returns the mean loss in nats per trained token (a scalar), of the finite examples only. Raises `ModelError`
        when `MOST_SKIPPED` steps have been skipped, and for sharded weights, whose gradients cannot be dropped.
        """
        if not self.is_guarded:
            return super().training_step(model, inputs, num_items_in_batch)
        step = self.state.global_step + 1
        rows = [row for row in inputs["rows"] if self.quarantined.get(self.ids[row], step + 1) > step]
        loss = super().training_step(model, {"rows": rows}, num_items_in_batch)
        totals = torch.stack([*self.row_losses.values()]).tolist() if self.row_losses else []
        losses = self._gathered(list(zip(self.row_losses, totals, strict=True)))
        self.example_losses = [
            {"id": self.ids[row], "loss": total / self.count(row), "tokens": self.count(row)}
            for row, total in losses
            if math.isfinite(total)
        ]
        is_finite = len(self.example_losses) == len(losses)
        if is_finite and self._gradient_norm_is_finite():
            return loss
        self._skip(model, step, "the loss is not finite" if not is_finite else "the gradient norm is not finite")
        tokens = sum(one["tokens"] for one in self.example_losses)
        mean = sum(one["loss"] * one["tokens"] for one in self.example_losses) / max(1, tokens)
        return torch.tensor(mean, device=loss.device)

    def _skip(self, model: Any, step: int, reason: str) -> None:
        ids = self._gathered([self.ids[row] for row in self.row_losses if not self._is_finite_alone(row)])
        names = some_of(ids, 5)
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ModelError(
                f"training stopped at step {step} of {self.state.max_steps}: {reason} ({names or 'no session alone'}); "
                "sharded training cannot skip a step: take these sessions out, or lower train.learning_rate"
            )
        model.zero_grad(set_to_none=True)
        added = [{"id": id_, "step": step + 1, "reason": reason} for id_ in ids if id_ not in self.quarantined]
        if added:
            append(self._quarantine_path, added)
        self.quarantined |= {row["id"]: row["step"] for row in added}
        self._skipped.add(step)
        without = f"; without {'session' if len(ids) == 1 else 'sessions'} {names} from now on" if ids else ""
        line = f"step {step} skipped: {reason}{without}"
        self._log_skip({"step": step, "reason": reason, "ids": ids, "line": line})
        if len(self._skipped) >= MOST_SKIPPED:
            raise ModelError(
                f"training stopped at step {step} of {self.state.max_steps}: steps {sorted(self._skipped)} had no "
                f"finite loss or gradient norm; lower train.learning_rate (it is {self.args.learning_rate:g}), or look "
                f"at the sessions in {self._quarantine_path}"
            )

    def _is_finite_alone(self, row: int) -> bool:
        """Whether an example's loss is finite in a pass of its own; within a pass, NaN may spread between examples."""
        if math.isfinite(float(self.row_losses[row])):
            return True
        self._group = ()
        inputs = self._prepare_inputs(self.batch([row]))
        with torch.no_grad(), self.compute_loss_context_manager():
            return bool(torch.isfinite(self.compute_loss(self.model, inputs)))

    def _gradient_norm_is_finite(self) -> bool:
        """Whether it is, on every process."""
        gradients = [one.grad for one in self.model.parameters() if one.requires_grad and one.grad is not None]
        norm = get_total_norm(gradients) if gradients else torch.zeros(())
        is_finite = math.isfinite(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))
        return all(self._gathered([is_finite]))

    def _gathered(self, values: list[Any]) -> list[Any]:
        """The values of all processes."""
        return list(gather_object(values)) if self.args.world_size > 1 else values
