"""The objective `preference`: which of two answers is better, by direct preference optimisation and its kin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from distill.core.hashing import json_sha256
from distill.errors import DistillError
from distill.recipe import BaseOptions, Recipe
from distill.train.objectives.cross_entropy import sums
from distill.train.objectives.sft import Sft
from distill.types import Pair, Session

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerCallback

    from distill.core.console import Say
    from distill.models.chat_template import Example
    from distill.train.callbacks import Log
    from distill.train.objectives import TrainingData
    from distill.train.options import TrainSettings
    from distill.train.step_guard import GuardedTrainer

Loss = Literal["sigmoid", "sigmoid_norm", "ipo", "simpo", "sft"]
BETAS: Mapping[Loss, float] = {"sigmoid": 0.1, "sigmoid_norm": 5.0, "ipo": 0.1, "simpo": 2.5}
"""By default. 0.1 is Rafailov et al.'s and TRL's; 5 is Tülu 3's (arXiv 2411.15124); 2.5, with a gamma of 1.375, is
SimPO's for instruction-tuned models (arXiv 2405.14734), as TRL's documentation gives it."""
GAMMA = 1.375
LEARNING_RATES = {"qlora": 1e-5, "lora": 1e-5, "full": 5e-7}
"""By default. 5e-7 is what Zephyr (arXiv 2310.16944) and Tülu 3 published for all weights, an adapter takes ten times
and more of it."""


class PreferenceOptions(BaseOptions):
    """How the chosen answer is set off against the rejected one."""

    loss: Loss | list[Loss] = "sigmoid"
    """`sigmoid` is DPO (Rafailov et al., 2023, arXiv 2305.18290); `sigmoid_norm` the same per token, which does not
    reward length; `ipo` aims at a margin instead of ever more (Azar et al., 2023, arXiv 2310.12036); `simpo` needs no
    reference (Meng et al., 2024, arXiv 2405.14734). A list adds cross entropy on the chosen answer: [sigmoid, sft], for
    answers with reasoning (Pang et al., 2024, arXiv 2404.19733)."""
    beta: Annotated[float, Field(gt=0)] | None = None
    """How closely the student stays at the reference: 0.1 for `sigmoid` and `ipo`, 5 for `sigmoid_norm`, 2.5 for
    `simpo` when left out."""
    gamma: Annotated[float, Field(ge=0)] | None = None
    """Margin that `simpo` aims at, in units of its reward; 1.375 when left out."""

    @model_validator(mode="after")
    def _one_loss(self) -> PreferenceOptions:
        if len(set(self.losses) - {"sft"}) != 1 or len(set(self.losses)) != len(self.losses):
            raise ValueError("loss: give one of sigmoid, sigmoid_norm, ipo and simpo, or a list of it and sft")
        if self.gamma is not None and "simpo" not in self.losses:
            raise ValueError("gamma is of `loss: simpo`; take it out")
        return self

    @property
    def losses(self) -> list[Loss]:
        """The losses that are added up."""
        return self.loss if isinstance(self.loss, list) else [self.loss]

    @property
    def main(self) -> Loss:
        """The loss that compares the two answers."""
        return next(one for one in self.losses if one != "sft")

    def for_train(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults of other keys of `train`, by those that the recipe gives."""
        rate = LEARNING_RATES.get(str(given.get("method", "qlora")), LEARNING_RATES["qlora"])
        return {"learning_rate": rate, "epochs": 1, "train_on": "last"}


class Preference(Sft):
    """Raises the probability of chosen answers against that of rejected ones, held near the starting student."""

    kind = "preference"
    Options = PreferenceOptions
    is_sharded = False
    watches_start = True

    def deciding(self) -> dict[str, Any]:
        """With the betas that a left-out one stands for."""
        loss, beta, gamma = self.options.losses, self._beta, self._gamma
        return {"train.objective.kind": self.kind, "train.objective.loss": [*loss, beta, gamma]}

    @property
    def _beta(self) -> float:
        beta: float | None = self.options.beta
        return BETAS[self.options.main] if beta is None else beta

    @property
    def _gamma(self) -> float:
        gamma: float | None = self.options.gamma
        return GAMMA if gamma is None else gamma

    def fault(self, recipe: Recipe) -> str:
        """No pairs; what sets policy and reference apart besides training, or the halves besides an answer."""
        assert recipe.train is not None
        if not _makes_pairs(recipe):
            return (
                "preference: nothing in the recipe makes pairs; take collect.strategy: pairs, or best_of with "
                "`curate: [{filter: pairs}]`, or give pairs as `sources`"
            )
        options = recipe.train.options
        if options.train_on != "last":
            return "preference: the answers of a pair differ in the last turn alone; take train.train_on out"
        if options.over_length == "split":
            return "preference: a pair is not split; take train.over_length: drop, or raise train.max_length"
        if options.lora.dropout or options.neftune_alpha:
            return "preference: the reference has neither dropout nor noise; take lora.dropout and neftune_alpha out"
        return ""

    def select(self, sessions: Sequence[Session], settings: TrainSettings, tokenizer: Any, say: Say) -> list[Session]:
        """The pairs that can be learnt; their rejected answers are encoded and checked as the chosen ones are.

        Raises `DistillError` where there are none.
        """
        from distill.train.dataset import usable_examples

        left_out = Counter(fault for one in sessions if (fault := _fault_of(one)))
        pairs = [one for one in sessions if isinstance(one, Pair) and not _fault_of(one)]
        found = usable_examples([_other(one) for one in pairs], settings.template, tokenizer, settings.options)
        self._rejected = dict(zip(found.ids, found.examples, strict=True))
        left_out["whose rejected answer is too long, empty or not spelt"] = len(pairs) - len(self._rejected)
        usable: list[Session] = [one for one in pairs if one.id in self._rejected]
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        if not usable:
            raise DistillError(
                f"train.objective preference: none of {len(sessions)} rows is a usable pair ({reasons}); collect with "
                "`strategy: pairs`, give pairs as a source, or train by `kind: sft`"
            )
        if reasons:
            say(f"{len(usable)} of {len(sessions)} rows are pairs to learn from; left out: {reasons}")
        return usable

    def prepare(self, data: TrainingData) -> Mapping[str, Any]:
        """Keep both halves of each row; returns the rejected ones, which decide the weights too."""
        from distill.train.objectives.reference import Halves, Source

        examples = data.examples
        by_id = {row.id: row.example for row in data.usable.rows}
        pairs = [Halves(by_id[id_], self._rejected[id_]) for id_ in examples.ids]
        self._held_out = [Halves(by_id[one.id], self._rejected[one.id]) for one in data.held_out]
        self._pairs, self._source = pairs, Source(data.run, data.settings, data.layers, examples.ids, data.say)
        for line in self._remarks(data):
            data.say(line)
        return {"rejected": json_sha256([[one.rejected.input_ids, one.rejected.labels] for one in pairs])}

    def _remarks(self, data: TrainingData) -> Iterator[str]:
        if data.settings.start is None:
            yield (
                f"the reference is {Path(data.settings.model).name} as it stands; where it cannot answer yet, train it"
                " by `kind: sft` first, and go on from that run: student: {model: runs/NAME}"
            )
        if not data.held_out or data.settings.options.eval_steps == 0:
            yield "nothing watches whether this training goes astray: no rows are held out (train.eval_rows: 8)"

    def lengths(self) -> Sequence[int]:
        """Tokens of both halves of each row."""
        return [pair.tokens for pair in self._pairs]

    def start(self, trainer: GuardedTrainer) -> None:
        """Take the starting student's log-probabilities, from the run's file as far as it has them."""
        from distill.train.objectives import reference

        self._trainer = trainer
        self._reference = reference.logprobs(trainer, self._pairs, self._source)
        self._held_reference = reference.computed(trainer, self._held_out)

    def examples(self, step: int, rows: Sequence[int]) -> dict[int, Sequence[Example]]:
        """Both halves of each pair, chosen before rejected."""
        self._tokens_per_pair = sum(self._pairs[row].chosen.trained for row in rows) / max(1, len(rows))
        return {row: self._pairs[row].both for row in rows}

    def count(self, examples: Sequence[Example]) -> int:
        """One: the mean is over pairs."""
        return 1

    def loss(self, nats: Tensor, tokens: Tensor, rows: Sequence[int]) -> Tensor:
        """Each pair's loss (R), and the step's mean cross entropy of a chosen token where `sft` is added."""
        logprobs, lengths = -sums(nats, tokens).view(-1, 2), tokens.view(-1, 2)
        expected = self._reference[list(rows)].to(logprobs)
        loss = pair_losses(logprobs, lengths, expected, loss=self.options.main, beta=self._beta, gamma=self._gamma)
        return loss - logprobs[:, 0] / self._tokens_per_pair if "sft" in self.options.losses else loss

    def callbacks(self, log: Log) -> Sequence[TrainerCallback]:
        """What watches the held-out pairs."""
        from distill.train.objectives.preference_watch import PairWatch

        return [PairWatch(self._trainer, log, self._held_out, self._held_reference, self._source.say)]


def pair_losses(
    logprobs: Tensor, lengths: Tensor, reference: Tensor, *, loss: Loss, beta: float, gamma: float = GAMMA
) -> Tensor:
    """Loss of each of P pairs from summed log-probabilities of its chosen and its rejected answer (P × 2 each).

    `lengths` are trained tokens. As in TRL 1.16's DPOTrainer, and for `simpo` in its CPOTrainer, whose margin is
    gamma / beta in nats a token.
    """
    from torch.nn.functional import logsigmoid

    scores = logprobs if loss == "simpo" else logprobs - reference
    if loss != "sigmoid":
        scores = scores / lengths
    margin = scores[:, 0] - scores[:, 1]
    if loss == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    return -logsigmoid(beta * margin - (gamma if loss == "simpo" else 0.0))


def _makes_pairs(recipe: Recipe) -> bool:
    """Whether there may be pairs among its rows, as far as the recipe says."""
    strategy = recipe.collect.strategy if recipe.collect is not None else ""
    is_sifted = any(rule.filter == "pairs" for rule in recipe.curate or ())
    return bool(recipe.sources) or strategy == "pairs" or ":" in strategy or (strategy == "best_of" and is_sifted)


def _fault_of(session: Session) -> str:
    """Why a row is no pair to learn from, as a clause; empty where it is one."""
    if not isinstance(session, Pair):
        return "without a rejected answer"
    if session.messages[-1].role != session.rejected.role:
        return "whose answers end in different roles"
    is_same = session.messages[-1].content.split() == session.rejected.content.split()
    return "whose answers are the same but for white space" if is_same else ""


def _other(pair: Pair) -> Session:
    """The session that ends in the rejected answer."""
    about = pair.meta.get("rejected")
    is_cut = isinstance(about, Mapping) and bool(about.get("truncated"))
    meta = {key: value for key, value in pair.meta.items() if key != "answer_weights"}
    return Session(pair.id, (*pair.messages[:-1], pair.rejected), {**meta, "truncated": is_cut})
