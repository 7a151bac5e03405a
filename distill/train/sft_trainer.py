"""TRL's trainer with planned steps, in forward passes that fit in memory; halved on out-of-memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.data import DataLoader
from transformers.modeling_layers import GradientCheckpointingLayer
from trl import SFTTrainer

from distill.core.files import read_json, write_json
from distill.models.chat_template import IGNORED, Example
from distill.models.device import free_memory
from distill.train.dataset import Examples
from distill.train.kernels.losses import WAYS
from distill.train.kernels.patch import patch, run_trials, unpatch
from distill.train.kernels.router import RouterLoss
from distill.train.packing import Layout, PackingPlan, passes

if TYPE_CHECKING:
    from distill.train.objectives.cross_entropy import CrossEntropy
    from distill.train.self_check import SelfCheck

_LAYOUT = "layout.json"
"""In a checkpoint: tokens per pass, and which kernels passed their trial."""


class Trainer(SFTTrainer):  # type: ignore[misc]  # the library has no types
    """TRL's trainer without its model cards and telemetry.

    An optimizer step is one batch for TRL; `training_step` divides it into forward passes. So the examples of a step
    do not depend on the number of passes and processes, and the sampler's position is the number of steps done.
    """

    def __init__(
        self,
        examples: Examples,
        plan: PackingPlan,
        objective: CrossEntropy,
        *,
        micro_tokens: int,
        say: Callable[[str], None],
        **arguments: Any,
    ) -> None:
        self.ids, self.examples, self.plan, self.objective = examples.ids, examples.examples, plan, objective
        self.micro_tokens = micro_tokens
        """Most tokens in a forward pass, padding included; halved on out-of-memory."""
        self.tokens_seen = 0
        """Over all processes, padding excluded."""
        self.may_recompute = False
        """Whether to recompute activations when a single example does not fit otherwise."""
        self.may_patch = True
        """Whether `train.kernels` is auto."""
        self.adapts_all = True
        """Whether adapters are meant for every linear layer."""
        self.noise: Noise | None = None
        self.row_losses: dict[int, torch.Tensor] = {}
        """Summed loss (a scalar tensor) of each row of this process in the current step."""
        self.saving: Callable[[int], AbstractContextManager[None]] = lambda step: nullcontext()
        """Context manager around the writing of a step's checkpoint."""
        self.kernels: dict[str, int] = {}
        """Number of patched modules by kind."""
        self.passed: dict[str, bool] = {}
        """By trial, whether the kernel agreed with the library."""
        self.verdicts: dict[str, bool] = {}
        """Those of the self-check."""
        self.checked: SelfCheck
        """Its self-check, from `build`."""
        self.way = "fused"
        """The way of `losses.WAYS` in which the loss is computed."""
        self.router: RouterLoss | None = None
        self._group: Sequence[int] = ()
        self._step_tokens, self._balance = 1, torch.zeros(())
        self._in_step: Mapping[int, Sequence[Example]] = {}
        self._say = say
        super().__init__(**arguments)

    def use_kernels(self, earlier: Mapping[str, bool] | None = None) -> None:
        """Patch the model with the kernels that pass their trial here.

        `earlier` are the results of the run that is resumed: a kernel that failed there stays off, so that both compute
        alike. With several processes, a kernel is used only if its trial passes on all of them. Sharded weights are not
        patched.
        """
        if not self.may_patch or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return
        unpatch(self.model)
        with self.accelerator.autocast():
            passed = run_trials(self.model)
        every = gather_object([passed]) if self.args.world_size > 1 else [passed]
        every.append({**passed, **(earlier or {})})
        self.passed = {name: all(one[name] for one in every) for name in passed}
        self.kernels = patch(self.model, self.passed)

    def ways(self) -> list[str]:
        """The ways in which the loss can be computed, from the fastest; the model's own is the last."""
        left_out = {"kernel" if not self.kernels.get("loss") else "", "fused" if self.objective.has_targets else ""}
        return [way for way in WAYS if way not in left_out]

    def adopt(self, verdicts: Mapping[str, bool]) -> None:
        """Compute as the self-check's verdicts say; what is not among them has agreed."""
        self.verdicts = dict(verdicts)
        if self.kernels and not verdicts.get("gradients", True):
            unpatch(self.model)
            self.kernels = {}
        ways = self.ways() if verdicts.get("gradients", True) else ["own"]
        self.way = next(way for way in ways if verdicts.get(way, True))
        if self.padding_free and not verdicts.get("packed", True):
            self.lay_out(packed=False)
        if not verdicts.get("padded", True):
            self.micro_tokens = 1

    @property
    def layout(self) -> Layout:
        """How the sessions of a pass are laid out, by options and self-check."""
        if self.padding_free:
            return "packed"
        return "padded" if self.verdicts.get("padded", True) else "alone"

    def lay_out(self, *, packed: bool) -> None:
        """Lay the sessions of a pass end to end, or pad them to one length."""
        self.padding_free = self.data_collator.padding_free = packed

    def _send_telemetry(self) -> None:
        """Send nothing."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none; the export writes one that names the teacher."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One batch per step: the indices of its examples, the same on every process."""
        return DataLoader(self.plan.steps, batch_size=1, collate_fn=lambda steps: {"rows": steps[0]})

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward for all rows of a step; returns their loss by the objective's count, a scalar.

        On out-of-memory, passes are halved or activations recomputed, and the step is repeated from its start: no
        weight has changed yet. Raises `torch.OutOfMemoryError` where neither is possible.
        """
        rows, step = inputs["rows"], self.state.global_step + 1
        self._in_step = self.objective.examples(step, rows)
        random = _random_state()
        while True:
            try:
                loss = self._step(model, rows)
                break
            except torch.OutOfMemoryError:
                change = self._save_memory(rows)
                if change is None:
                    raise
            model.zero_grad()  # after the handler, whose traceback holds the step's tensors
            free_memory()
            torch.set_rng_state(random[0])
            for state in random[1:]:
                torch.cuda.set_rng_state(state)
            self._say(f"out of memory: going on from step {step} {change}; the steps stay the same")
        self.tokens_seen += self._tokens(rows)
        return loss

    def _step(self, model: Any, rows: Sequence[int]) -> torch.Tensor:
        """All passes of this process; returns its share of the step's mean loss, a scalar without the router's."""
        items = sum(self.count(row) for row in rows)
        mine = self._passes(rows)[self.args.process_index :: self.args.world_size]
        total = torch.zeros((), device=self.args.device)
        self.row_losses, self._balance = {}, torch.zeros((), device=self.args.device)
        self._step_tokens = self._tokens(rows)
        for number, group in enumerate(mine, start=1):
            last = number == len(mine)
            self.accelerator.gradient_state._set_sync_gradients(last)
            self._group = group
            # gradients are exchanged after the last pass only; DeepSpeed reads `sync_gradients` instead
            with nullcontext() if last or self.is_deepspeed_enabled else self.accelerator.no_sync(model):
                total += super().training_step(model, self.batch(group), torch.tensor(items, device=self.args.device))
        return total - self._balance

    def examples_of(self, row: int) -> Sequence[Example]:
        """What a row brings to the current step; outside of one, the example itself."""
        return self._in_step.get(row, (self.examples[row],))

    def count(self, row: int) -> int:
        """What a row counts in the mean over the current step."""
        return self.objective.count(self.examples_of(row))

    def _lengths(self, row: int) -> list[int]:
        return [len(example.input_ids) for example in self.examples_of(row)]

    def _tokens(self, rows: Sequence[int]) -> int:
        """Tokens of these rows, padding excluded."""
        return sum(sum(self._lengths(row)) for row in rows)

    def _size(self, row: int) -> int:
        """Tokens that a row takes in a pass, padding within the row included."""
        lengths = self._lengths(row)
        return sum(lengths) if self.padding_free else len(lengths) * max(lengths)

    def _passes(self, rows: Sequence[int]) -> list[list[int]]:
        return passes(
            rows,
            {row: self._size(row) for row in rows},
            tokens=self.micro_tokens,
            packed=bool(self.padding_free),
            processes=self.args.world_size,
        )

    def pass_tokens(self, rows: Sequence[int]) -> list[int]:
        """The tokens of each pass of these examples, padding included."""
        passes = [[length for row in group for length in self._lengths(row)] for group in self._passes(rows) if group]
        return [sum(lengths) if self.padding_free else len(lengths) * max(lengths) for lengths in passes]

    def batch(self, group: Sequence[int]) -> dict[str, Any]:
        """The tensors of one pass (B × T, or 1 × T packed); an empty group gets a batch with nothing to train."""
        if not group:
            ids = self.examples[0].input_ids
            return self.collated([Example(ids, [IGNORED] * len(ids))])
        batch = self.collated([each for row in group for each in self.examples_of(row)])
        targets = self.objective.targets(group)
        return batch if targets is None else {**batch, "targets": targets.to(self.args.device)}

    def collated(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The tensors of these examples, laid out as in a pass."""
        rows = [{"input_ids": one.input_ids, "labels": one.labels} for one in examples]
        batch = dict(self.data_collator(rows))
        if self.noise is not None:
            self.noise.lengths = token_lengths(batch)
        return batch

    def _save_memory(self, rows: Sequence[int]) -> str | None:
        """Halve the tokens per pass while a pass has two examples, then recompute activations; returns what changed.

        None where neither is possible, and with several processes, which could not agree on it.
        """
        if self.args.world_size > 1:
            return None
        largest = max(self.pass_tokens(rows))
        if largest > max(self._size(row) for row in rows):
            self.micro_tokens = largest // 2
            return f"with {self.micro_tokens} tokens a forward pass at most, after {largest}"
        if not self.may_recompute:
            return None
        self.may_recompute = False
        recompute(self.model, "full")
        return "with activations computed again instead of kept"

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss of the pass divided by `num_items_in_batch`, its count in the whole step.

        The router's loss of a mixture of experts counts by the pass's share of the step's tokens, so once a step.
        `inputs` are those of `batch`; the result is a scalar. On a CPU, TRL's own computes logits at every position,
        prompts included, and an entropy for its log; without these a step takes a quarter less time.
        """
        if return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        mask = inputs.get("attention_mask")
        with self.router.collected() if self.router is not None else nullcontext():
            losses = self.token_losses(inputs, model=model)
        if self._group:
            losses = self.objective.loss(losses, self._trained_tokens(losses.device), self._group)
            self.row_losses |= dict(zip(self._group, losses.detach(), strict=True))
        items = num_items_in_batch if num_items_in_batch is not None else (inputs["labels"][:, 1:] != IGNORED).sum()
        averaged = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        loss = losses.sum() * averaged / items
        balance = self.router.take(mask) if self.router is not None else None
        if balance is not None and self._group:
            balance = balance * averaged * self._tokens(self._group) / self._step_tokens
            self._balance += balance.detach()
            return loss + balance
        return loss

    def token_losses(self, inputs: dict[str, Any], way: str | None = None, *, model: Any = None) -> torch.Tensor:
        """Nats of each trained token (N, of the labels B × T that are not ignored), by default in the trainer's way."""
        model, way = model if model is not None else self.model, way or self.way
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            trained = inputs["labels"][:, 1:] != IGNORED
            fused: torch.Tensor = -model(**inputs, use_cache=False, fused_lm_head=True).log_probs[trained].float()
            return fused
        losses: torch.Tensor = model(**inputs, token_losses=way)
        return losses

    def _trained_tokens(self, device: torch.device) -> torch.Tensor:
        """The number of trained tokens of each example of the pass (E)."""
        return torch.tensor([each.trained for row in self._group for each in self.examples_of(row)], device=device)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """The options' schedule, in which no step has the rate 0: of n steps of warm-up, the first has 1/(n+1)."""
        scheduler: LambdaLR | None = getattr(self, "lr_scheduler", None)
        if scheduler is None:
            rate = partial(
                learning_rate,
                steps=num_training_steps,
                warmup=self.args.get_warmup_steps(num_training_steps),
                falls=_FALLS[str(self.args.lr_scheduler_type.value)],
            )
            self.lr_scheduler = scheduler = LambdaLR(optimizer or self.optimizer, rate)
        return scheduler

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save the layout too, which the options do not determine."""
        with self.saving(self.state.global_step):
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
                layout = {"micro_tokens": self.micro_tokens, "kernels": self.passed, "checks": self.verdicts}
                write_json(folder / _LAYOUT, layout)

    def train(self, resume_from_checkpoint: str | None = None, **arguments: Any) -> Any:
        """Train, or resume from a checkpoint with its passes and kernels, and with what failed in its self-check."""
        if resume_from_checkpoint is not None:
            layout = read_json(Path(resume_from_checkpoint) / _LAYOUT) or {}
            self.micro_tokens = layout.get("micro_tokens", self.micro_tokens)
            self._resume_with(layout.get("kernels", {}), layout.get("checks", {}))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **arguments)

    def _resume_with(self, kernels: Mapping[str, bool], verdicts: Mapping[str, bool]) -> None:
        if any(passed and not kernels.get(name, True) for name, passed in self.passed.items()):
            self.use_kernels(kernels)
        self.adopt({name: agrees and verdicts.get(name, True) for name, agrees in self.verdicts.items()})


_FALLS: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant_with_warmup": lambda progress: 1.0,
}
"""By transformers' name of a schedule: share of the highest rate by the share of the steps after the warm-up."""


def learning_rate(step: int, *, steps: int, warmup: int, falls: Callable[[float], float]) -> float:
    """Share of the highest rate at a step, counted from 0, of `steps` of which the first `warmup` rise."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return falls(min(1.0, (step - warmup) / max(1, steps - warmup)))


def _random_state() -> list[torch.Tensor]:
    """PyTorch's random state on the CPU and, where there is one, on this process's GPU."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


class Noise:
    """Adds uniform noise of at most alpha / √(L x d) to a session of L tokens in d dimensions.

    Jain et al., 2023, "NEFTune: Noisy Embeddings Improve Instruction Finetuning", algorithm 1. transformers' version
    uses the length of the row, which in packed rows holds several sessions.
    """

    def __init__(self, model: Any, alpha: float) -> None:
        self._alpha = alpha
        self.lengths = torch.empty(0)
        """B × T: at each position, the length of its session; to be set before each forward pass."""
        model.get_input_embeddings().register_forward_hook(self._add)

    def _add(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        bound = self._alpha / (self.lengths.to(output.device) * output.size(-1)).sqrt()
        noise = torch.empty_like(output, dtype=torch.float32).uniform_(-1, 1) * bound.unsqueeze(-1)
        return output + noise.to(output.dtype)


def token_lengths(batch: dict[str, Any]) -> torch.Tensor:
    """The length of the session at each position (B × T) of a padded or packed batch."""
    if "attention_mask" in batch:
        counts: torch.Tensor = batch["attention_mask"].sum(1, keepdim=True)
        return counts.expand_as(batch["attention_mask"])
    document = (batch["position_ids"][0] == 0).cumsum(0) - 1
    return document.bincount()[document].unsqueeze(0)


def recompute(model: Any, how: str, *, layers: int | None = None) -> None:
    """Set the first `layers` layers, or all, to recompute activations in the backward pass; changes the model in place.

    `how` is `none`, `full` (keeps each layer's input) or `selective` (attention's output too).
    """
    if how == "none":
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    stack = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in stack[layers:] if layers is not None else []:
        layer.gradient_checkpointing = False


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep attention's output: it is the most expensive to recompute, and its backward pass needs it."""
    is_attention = "attention" in str(operation)
    return CheckpointPolicy.MUST_SAVE if is_attention else CheckpointPolicy.PREFER_RECOMPUTE
