"""Tries within seconds, before the first step, what training takes for granted about a model.

On a few of the run's own rows: that our loss is the model's own (heads with more than a linear layer, soft caps, scaled
logits, further losses); that with our kernels the gradients are those of plain autograd; that sessions that are packed
or padded together do not change each other's loss; and that a batched step of our decoder is that of `generate`. Where
one fails, training takes the slower way that is right. Counted are the weights that 4 bits hold and adapters reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from distill.core.console import silent
from distill.errors import ModelError
from distill.models.alone import can_batch
from distill.models.chat_template import IGNORED, Example
from distill.models.generation import Batch
from distill.models.pruning import decoder_of
from distill.models.quantization import packed_layers, require_right_gradients, unpacked
from distill.models.third_party import first_line, quietly
from distill.models.trial import FAULTS, attempt, is_mistake, is_near
from distill.train import row_check
from distill.train.kernels.patch import causal_of, started_adapters
from distill.train.sft_trainer import Trainer

ROW_TOKENS, PAIR_TOKENS, LEAST_TOKENS = 64, 32, 8
"""Most tokens of the row whose gradients are compared and of each of two sessions laid together, and least of any."""
ADAPTER_SCALE = 0.02
"""Standard deviation of an adapter's B in the trials; its initial zeros would hide half of an adapter's arithmetic."""
LOSS = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
"""Largest difference of a row's losses by norm, relative to the expected ones, by the dtype of computation. A session
that another one sees is off by 0.01 and more in float32, on models with random weights."""
GRADIENT = {torch.float32: 1e-2, torch.bfloat16: 0.25, torch.float16: 0.25}
"""The same for a weight's gradient, in which rounding adds up over the layers."""
SMALL = 1e-3
"""Share of the largest gradient's norm below which another weight's gradient is rounding, and not compared."""
FEW = 0.9
"""Share of the weights of the layers that adapters, or 4 bits, cover in a dense model, and more."""
_ADAPTED, _QUANTISED = "adapters reach", "4 bits hold"


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """The outcome of a self-check."""

    verdicts: dict[str, bool]
    """By trial, whether it agreed: `kernel` and `fused` (ways of the loss), `gradients`, `packed`, `padded`, and
    `decoder`; those that do not apply are missing."""
    adapted: float | None
    """Share of the weights of the decoder's layers that adapters reach; None without adapters."""
    quantised: float | None
    """Share of them that is held in 4 bits; None in other methods."""
    findings: tuple[str, ...]
    """What is not as assumed, each as a clause."""
    skipped: str | None = None
    """Why nothing was tried."""

    def line(self, name: str = "self-check") -> str:
        """The outcome as one line that begins with `name`."""
        if self.skipped is not None:
            return f"{name}: skipped, {self.skipped}"
        shares = {_ADAPTED: self.adapted, _QUANTISED: self.quantised}
        told = " ".join(self.findings)
        covered = [f"{part} {share:.0%}" for part, share in shares.items() if share is not None and part not in told]
        of = [f"{' and '.join(covered)} of the layers' weights"] if covered else []
        return f"{name}: {'; '.join([*(self.findings or ['as assumed']), *of])}"

    def as_json(self) -> dict[str, Any]:
        """For checks.json, run.json and the model card."""
        return {**asdict(self), "line": self.line()}


def check(trainer: Trainer, ids: Sequence[str], tokenizer: Any, *, method: str) -> SelfCheck:
    """Try the trainer's model, and set the trainer to what agreed; weights and random state stay as they are.

    Raises `ModelError` where the model's own forward and backward pass fail on a row, or 4-bit layers lose gradients.
    """
    require_right_gradients(trainer.model)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return SelfCheck({}, None, None, (), "weights that are divided among processes are not tried")
    with _trial(trainer), quietly():
        verdicts = _verdicts(trainer)
    verdicts = _of_all(trainer, verdicts)
    trainer.adopt(verdicts)
    shares = _shares(trainer.model)
    adapted = shares["adapted"] if method != "full" else None
    quantised = shares["quantised"] if method == "qlora" else None
    rows = row_check.findings(causal_of(trainer.model), ids, trainer.examples, tokenizer)
    uncovered = _uncovered(trainer, {_ADAPTED: adapted, _QUANTISED: quantised})
    found = (*_differences(trainer, verdicts), *uncovered, *rows)
    return SelfCheck(verdicts, adapted, quantised, found)


@contextmanager
def _trial(trainer: Trainer) -> Iterator[None]:
    """Within the block: evaluation mode, adapters that do something, and the autocast and kernels of training."""
    devices = [trainer.args.device] if trainer.args.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        started_adapters(trainer.model, ADAPTER_SCALE),
        trainer.accelerator.autocast(),
    ):
        yield


def _verdicts(trainer: Trainer) -> dict[str, bool]:
    row = _row(trainer)
    expected, gradients = _own_results(trainer, row)
    trainer.use_kernels()
    verdicts = dict(_ways(trainer, row, expected, gradients))
    trainer.adopt(verdicts)
    return verdicts | _layouts(trainer) | {"decoder": _decodes(trainer)}


def _ways(
    trainer: Trainer, row: dict[str, Any], expected: Tensor, gradients: Sequence[Tensor | None]
) -> Iterator[tuple[str, bool]]:
    """The ways of the loss from the fastest to the first that agrees, and whether its gradients do too."""
    for way in trainer.ways():
        losses = attempt(trainer.token_losses, dict(row), way)
        agrees = way == "own" or (losses is not None and _near(trainer, expected, losses.detach()))
        yield way, agrees
        if agrees:
            mine = None if losses is None else attempt(_gradients, trainer, losses)
            yield "gradients", mine is not None and _gradients_agree(trainer, gradients, mine)
            return


def _row(trainer: Trainer) -> dict[str, Any]:
    """One row as the model's own forward takes it, of at most `ROW_TOKENS` tokens, all but the first trained."""
    usual = min(trainer.examples, key=lambda one: abs(len(one.input_ids) - ROW_TOKENS))
    return _alone(trainer, _cut(usual, ROW_TOKENS))


def _cut(example: Example, tokens: int) -> Example:
    ids = (example.input_ids * LEAST_TOKENS)[: max(LEAST_TOKENS, min(tokens, len(example.input_ids)))]
    return Example(ids, [IGNORED, *ids[1:]])


def _alone(trainer: Trainer, example: Example) -> dict[str, Any]:
    tensors = {"input_ids": torch.tensor([example.input_ids]), "labels": torch.tensor([example.labels])}
    return {name: tensor.to(trainer.args.device) for name, tensor in tensors.items()}


def _own_results(trainer: Trainer, row: dict[str, Any]) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Losses and gradients by the model's own forward and plain autograd."""
    try:
        losses = trainer.token_losses(dict(row), "own")
        return losses.detach(), _gradients(trainer, losses)
    except FAULTS as error:
        if is_mistake(error):
            raise
        name = trainer.model.config.model_type
        remedy = "; use train.method: lora" if packed_layers(trainer.model) else ""
        raise ModelError(
            f"a {name} model cannot be trained with these options: its own forward fails ({first_line(error)}){remedy}"
        ) from error


def _gradients(trainer: Trainer, losses: Tensor) -> Sequence[Tensor | None]:
    gradients: Sequence[Tensor | None] = torch.autograd.grad(losses.mean(), _weights(trainer), allow_unused=True)
    return gradients


def _weights(trainer: Trainer) -> list[Tensor]:
    """The trained weights whose gradients are compared: adapters, else vectors, which stand in every layer."""
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    if hasattr(trainer.model, "peft_config"):
        return trained
    return [weight for weight in trained if weight.dim() == 1] or trained[:1]


def _near(trainer: Trainer, expected: Tensor, losses: Tensor) -> bool:
    return is_near(expected, losses, tolerance=LOSS[_dtype(trainer)])


def _dtype(trainer: Trainer) -> torch.dtype:
    device = trainer.args.device.type
    dtype: torch.dtype = trainer.model.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype


def _gradients_agree(trainer: Trainer, expected: Sequence[Tensor | None], mine: Sequence[Tensor | None]) -> bool:
    least = SMALL * max((float(one.norm()) for one in expected if one is not None), default=0.0)
    for one, other in zip(expected, mine, strict=True):
        if one is None or float(one.norm()) <= least:
            continue
        if other is None or not is_near(one, other, tolerance=GRADIENT[_dtype(trainer)]):
            return False
    return True


def _layouts(trainer: Trainer) -> dict[str, bool]:
    """Whether two sessions laid together have the losses of each alone, packed and else padded."""
    shortest = sorted(trainer.examples, key=lambda one: abs(len(one.input_ids) - PAIR_TOKENS))[:2]
    first, second = _cut(shortest[0], PAIR_TOKENS), _cut(shortest[-1], PAIR_TOKENS - LEAST_TOKENS)
    verdicts: dict[str, bool] = {}
    with torch.no_grad():
        expected = torch.cat([trainer.token_losses(_alone(trainer, one)) for one in (first, second)])
        for name in ("packed", "padded") if trainer.padding_free else ("padded",):
            trainer.lay_out(packed=name == "packed")
            batch = trainer._prepare_inputs(trainer.collated([first, second]))
            losses = attempt(trainer.token_losses, batch)
            verdicts[name] = losses is not None and _near(trainer, expected, losses)
            if verdicts[name]:
                break
    return verdicts


def _decodes(trainer: Trainer) -> bool:
    with unpacked(trainer.model):
        return can_batch(trainer.model, Batch, say=silent)


def _of_all(trainer: Trainer, verdicts: dict[str, bool]) -> dict[str, bool]:
    """The verdicts of all processes together, so that they compute alike."""
    every = gather_object([verdicts]) if trainer.args.world_size > 1 else [verdicts]
    return {name: all(one.get(name, True) for one in every) for one in every for name in one}


_CLAUSES = {
    "gradients": "our kernels' gradients are not those of plain autograd, so they are off",
    "packed": "packed sessions see each other or fail in this model, so they are padded",
    "padded": "padding changes the loss of this model, so each session has its own pass",
    "decoder": "it cannot be batched for generation, so its answers are generated one by one",
}


def _differences(trainer: Trainer, verdicts: dict[str, bool]) -> Iterator[str]:
    if verdicts.get("gradients", True) and not verdicts.get("fused", True):
        yield "the output head is more than a linear layer, so the loss is that of the model's own forward"
    yield from (clause for name, clause in _CLAUSES.items() if not verdicts.get(name, True))


def _shares(model: Any) -> dict[str, float]:
    """Shares of the weights of the decoder's layers, embeddings and output head excluded."""
    causal = causal_of(model)
    decoder, head = decoder_of(causal), causal.get_output_embeddings()
    whole = {id(one.weight) for one in decoder.modules() if isinstance(one, torch.nn.Embedding)} | {id(head.weight)}
    own = [one for name, one in decoder.named_parameters() if "lora_" not in name and id(one) not in whole]
    sizes = {id(one): _size(one) for one in own}
    total = max(1, sum(sizes.values()))
    adapted = {id(_adapted(module)) for module in decoder.modules() if hasattr(module, "lora_A")}
    return {
        "adapted": sum(sizes.get(one, 0) for one in adapted) / total,
        "quantised": sum(sizes[id(one)] for one in own if hasattr(one, "quant_state")) / total,
    }


def _adapted(module: Any) -> Any:
    """The weight that a module of PEFT adapts; experts are parameters of a module that may be wrapped twice."""
    return getattr(module.get_base_layer(), getattr(module, "parameter_name", "weight"))


def _size(weight: Any) -> int:
    state = getattr(weight, "quant_state", None)
    return int(weight.numel() if state is None else state.shape.numel())


def _uncovered(trainer: Trainer, shares: Mapping[str, float | None]) -> Iterator[str]:
    experts = sorted({type(one).__name__ for one in trainer.model.modules() if "Experts" in type(one).__name__})
    rest = f" ({' and '.join(experts)} are no linear layers)" if experts else ""
    for name, share in shares.items():
        if share is not None and share < FEW and (name == _QUANTISED or trainer.adapts_all):
            yield f"{name} {share:.0%} of the layers' weights only{rest}"
