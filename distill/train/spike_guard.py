"""Trainer that checks each step before applying it, and repeats a bad one without the sessions to blame.

Losses and gradients are known before the optimizer moves anything, so the last good state is the one before the step:
gradients are dropped, random numbers drawn anew from the same point, and the step is done again. Where it is the
weights that are hurt, and no session of the step, it is the step before that should not have been taken: `RolledBack`
then asks for training to go on from the last checkpoint before that, without that step's sessions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from distill.errors import ModelError
from distill.text.tokens import visible
from distill.train.sft_trainer import Trainer, random_state, restore
from distill.train.spikes import (
    Quarantine,
    QuarantineEntry,
    Reason,
    RowLoss,
    Spikes,
    Usual,
    finite,
    mean_loss,
    to_blame,
)

PROBED = 8
"""Examples of the step before that are looked at again, to tell hurt weights from bad examples."""
_NAMED = 5

Tell: TypeAlias = Callable[[int, Sequence[QuarantineEntry], str], None]
"""Is told the step, whom it leaves out, and one line about it."""
Saving: TypeAlias = Callable[[int], AbstractContextManager[None]]
"""What the checkpoint of a step is written in."""


class RolledBack(Exception):  # no fault, but a way back
    """Step `step` damaged the weights; repeat it without `entries`."""

    def __init__(self, step: int, entries: Sequence[QuarantineEntry], line: str) -> None:
        super().__init__(line)
        self.step, self.entries = step, entries


class SpikeGuardTrainer(Trainer):
    """Trainer with a check before each step, active once `guard` has been called."""

    is_guarded = False
    quarantine: Quarantine
    spikes: Spikes
    tell: Tell
    taken: list[RowLoss]
    """What the last step was made of, over all processes; empty where all of it was left out."""
    previous: tuple[int, Sequence[int]]
    """The last step that moved the weights: its number and its examples."""
    saving: Saving

    def guard(
        self,
        quarantine: Quarantine,
        spikes: Spikes,
        *,
        tell: Tell,
        saving: Saving,
        previous: tuple[int, Sequence[int]] = (0, ()),
    ) -> None:
        """Look at every step from now on; `previous` is the last step that the checkpoint has seen."""
        self.quarantine, self.spikes, self.previous = quarantine, spikes, previous
        self.tell, self.saving, self.taken = tell, saving, []
        self.is_guarded = True

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """A step without the sessions that are set aside, and without those that turn out bad.

        Raises `ModelError` where too many would be, or nothing is left to blame; `RolledBack` where the step before is.
        """
        if not self.is_guarded:
            return super().training_step(model, inputs, num_items_in_batch)
        number = self.state.global_step + 1
        rows = self._left(inputs["rows"], number)
        random = random_state()
        while True:
            loss = super().training_step(model, {"rows": rows}, num_items_in_batch)
            self.taken = self._row_losses()
            usual = self.spikes.usual()
            reason = self._trouble(usual)
            if reason is None or not self._can_redo(reason, number):
                self.previous = (number, rows) if rows else self.previous
                return loss
            self.tokens_seen -= sum(self._lengths[row] for row in rows)
            model.zero_grad()
            self._set_aside(rows, reason, usual, number)
            rows = self._left(rows, number)
            restore(random)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.saving(self.state.global_step) if self.is_guarded else nullcontext():
            super()._save_checkpoint(model, trial)

    def _left(self, rows: Sequence[int], step: int) -> tuple[int, ...]:
        out = self.quarantine.left_out(step)
        return tuple(row for row in rows if self.ids[row] not in out)

    def _row_losses(self) -> list[RowLoss]:
        rows = list(self.row_losses)
        totals = torch.stack([self.row_losses[row] for row in rows]).tolist() if rows else []
        pairs = list(zip(rows, totals, strict=True))
        if self.args.world_size > 1:
            pairs = gather_object(pairs)
        return [RowLoss(row, total, self.examples[row].trained) for row, total in pairs]

    def _trouble(self, usual: Usual) -> Reason | None:
        if not all(math.isfinite(one.total) for one in self.taken):
            return "the loss is no number"
        if not self._gradient_is_finite():
            return "the gradient is no number"
        return "loss spike" if mean_loss(self.taken) > usual.limit else None

    def _can_redo(self, reason: Reason, step: int) -> bool:
        """Whether the step has not been taken yet: DeepSpeed and FSDP keep gradients to themselves.

        Raises `ModelError` where a loss is no number and cannot be undone.
        """
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            return True
        if reason != "loss spike":
            bad = [self.ids[one.row] for one in self.taken if not math.isfinite(one.total)]
            raise ModelError(
                f"training stopped at step {step} of {self.state.max_steps}: {reason}, in the forward pass of sessions "
                f"{visible(', '.join(bad[:_NAMED]))}; on one GPU they would be set aside, here take them out by hand"
            )
        return False

    def _gradient_is_finite(self) -> bool:
        """By its norm, as it will be cut by; on every process."""
        gradients = [parameter.grad for parameter in self._learning() if parameter.grad is not None]
        norm = get_total_norm(gradients) if gradients else torch.zeros(())
        fine = math.isfinite(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))
        return all(gather_object([fine])) if self.args.world_size > 1 else fine

    def _learning(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _set_aside(self, rows: Sequence[int], reason: Reason, usual: Usual, step: int) -> None:
        bad = self._agreed(self._bad(reason, usual))
        if not bad or (len(bad) == len(rows) and self._weights_are_hurt(rows, usual)):
            self._roll_back(reason, usual, step)
        entries = [self._entry(one, reason, usual, step) for one in bad]
        line = f"step {step}: {self._why(reason, usual)}; done again without {self._names(entries)}"
        self._require_room(entries, step, reason, usual)
        self.quarantine.add(entries)
        self.tell(step, entries, line)

    def _bad(self, reason: Reason, usual: Usual) -> list[RowLoss]:
        """The examples to blame; those of one forward pass spoil one another's numbers, so each is tried alone."""
        if reason == "loss spike":
            return to_blame(self.taken, usual)
        suspects = self.taken if reason == "the gradient is no number" else [
            one for one in self.taken if not math.isfinite(one.total)
        ]  # fmt: skip
        return [one for one in suspects if not self._is_sound_alone(one.row)]

    def _agreed(self, bad: list[RowLoss]) -> list[RowLoss]:
        """What the first process found, where there are several."""
        return list(broadcast_object_list([bad])[0]) if self.args.world_size > 1 else bad

    def _is_sound_alone(self, row: int) -> bool:
        """Whether loss and gradient of one example are numbers; nothing is kept of them."""
        with self.compute_loss_context_manager():
            loss = self._loss_alone(row)
        if not torch.isfinite(loss):
            return False
        gradients = torch.autograd.grad(loss, self._learning(), allow_unused=True)
        return all(bool(torch.isfinite(gradient).all()) for gradient in gradients if gradient is not None)

    def _loss_alone(self, row: int) -> torch.Tensor:
        """Nats a token of one example."""
        self._group = ()
        items = self.examples[row].trained * (self.args.world_size if self.args.average_tokens_across_devices else 1)
        inputs = self._prepare_inputs(self.batch([row]))
        loss: torch.Tensor = self.compute_loss(self.model, inputs, num_items_in_batch=items)
        return loss

    def _weights_are_hurt(self, rows: Sequence[int], usual: Usual) -> bool:
        """Whether examples that were fine in the step before, or any others, are not any more."""
        others = [row for row in self.previous[1] if row not in rows] or [
            row for row in range(len(self.ids)) if row not in rows
        ]
        probed = others[:PROBED]
        with torch.no_grad(), self.compute_loss_context_manager():
            losses = [float(self._loss_alone(row)) for row in probed]
        if not losses:
            return True
        mean = sum(losses) / len(losses)
        return not mean <= usual.limit

    def _roll_back(self, reason: Reason, usual: Usual, step: int) -> None:
        """Ask for a way back before the step that did it. Raises in any case."""
        why = self._why(reason, usual)
        number, rows = self.previous
        if not rows:
            raise ModelError(
                f"training stopped at step {step} of {self.state.max_steps}: {why}, and no session alone is to blame; "
                f"lower train.learning_rate (it is {self.args.learning_rate:g}), or look at the base"
            )
        entries = [
            QuarantineEntry(self.ids[row], number, reason, None, finite(usual.median), finite(usual.limit))
            for row in rows
        ]
        self._require_room(entries, step, reason, usual)
        line = f"step {step}: {why} after step {number}; going back, and on without {self._names(entries)}"
        raise RolledBack(number, entries, line)

    def _require_room(self, entries: Sequence[QuarantineEntry], step: int, reason: Reason, usual: Usual) -> None:
        self.quarantine.require_room(
            len(entries),
            step=step,
            steps=self.state.max_steps,
            why=self._why(reason, usual),
            learning_rate=self.args.learning_rate,
        )

    def _why(self, reason: Reason, usual: Usual) -> str:
        if reason != "loss spike":
            return reason
        return f"loss spike: {mean_loss(self.taken):.2f} (median {usual.median:.2f}, limit {usual.limit:.2f})"

    def _entry(self, one: RowLoss, reason: Reason, usual: Usual, step: int) -> QuarantineEntry:
        return QuarantineEntry(
            self.ids[one.row], step, reason, finite(one.mean), finite(usual.median), finite(usual.limit)
        )  # fmt: skip

    def _names(self, entries: Sequence[QuarantineEntry]) -> str:
        named = [
            visible(one.id) + (f" (loss {one.loss:.2f})" if one.loss is not None else "") for one in entries[:_NAMED]
        ]
        more = f" and {len(entries) - _NAMED} more" if len(entries) > _NAMED else ""
        return f"{'session' if len(entries) == 1 else 'sessions'} {', '.join(named)}{more}"
