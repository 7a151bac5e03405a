"""How a student's next-token probabilities differ from its teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from types import MappingProxyType
from typing import Any, Literal

from distill.compare.metrics import PAIR, Measure, NoOptions, Scores, Text
from distill.types import Completion, Failure, Flow, Model, Request

DRAFT = 4
"""Tokens that the student drafts for one verification by the teacher."""
_BOTH = "Both read the same tokens, each in its own template; the end token is left out."


class Probabilities:
    """The student's distributions beside the teacher's: divergence, first choices, and use as a draft model."""

    Options = NoOptions
    scope: Literal["pair"] = "pair"
    models: tuple[Model, ...] = ("base", "previous", "student")
    teacher: Scores = MappingProxyType(
        {"divergence": 0, "divergence_own": 0, "first_choices": 1, "acceptance": 1, "draft_tokens": 1 + DRAFT}
    )
    measures = (
        Measure(
            name="divergence",
            title="KL(teacher ‖ model), teacher's answers",
            unit="nats/token",
            better="lower",
            explanation="Divergence of the model's next-token distribution from the teacher's, over the whole "
            f"vocabulary at temperature 1, mean over the tokens of the teacher's first answer. {_BOTH}",
        ),
        Measure(
            name="divergence_own",
            title="KL(teacher ‖ model), own answers",
            unit="nats/token",
            better="lower",
            explanation="The same on the tokens of the model's own answer: how far its distributions lie from the "
            "teacher's where its own words have led it.",
        ),
        Measure(
            name="first_choices",
            title="Same first choice as the teacher",
            unit="share",
            better="higher",
            explanation="Share of the tokens of the teacher's first answer at which both models hold the same token "
            "for the most probable; also the acceptance rate of a greedy draft.",
        ),
        Measure(
            name="acceptance",
            title="Acceptance as the teacher's draft",
            unit="share",
            better="higher",
            explanation="Σ min(p, q), mean over the tokens of the teacher's first answer: the probability that the "
            "teacher accepts a token drafted by the model in speculative decoding at temperature 1 (Leviathan et al., "
            "2023, arXiv 2211.17192).",
        ),
        Measure(
            name="draft_tokens",
            title="Tokens per verification",
            unit="tokens",
            better="higher",
            explanation=f"Tokens that one pass of the teacher yields if the model drafts {DRAFT}: 1 + Σ of the "
            f"products of 1 to {DRAFT} acceptances in a row, mean over the places of the teacher's first answer with "
            f"{DRAFT} tokens to come (shorter answers are left out). Runs are counted as they are; the formula from "
            "the mean acceptance takes places for independent, and acceptances come in blocks.",
        ),
    )

    def __init__(self, options: NoOptions | None = None) -> None:
        self.options = options or NoOptions()

    def score(self, reference: Text, own: Text | None) -> Flow[Scores]:
        """The measures, `divergence_own` only with an answer of its own. Excluded: empty answers, failed requests."""
        texts = {name: text for name, text in (("held", reference), ("own", own)) if text is not None and text[1]}
        requests = tuple(
            Request(role=PAIR, messages=messages, kind="likelihood", continuation=text)
            for messages, text in texts.values()
        )
        if not requests:
            return {}
        replies: tuple[Completion | Failure, ...] = yield requests
        raw = {name: {} if isinstance(one, Failure) else one.raw for name, one in zip(texts, replies, strict=True)}
        divergence = _numbers(raw.get("own", {}), "divergence")
        return {**_on_reference(raw.get("held", {})), **({"divergence_own": fmean(divergence)} if divergence else {})}


def _on_reference(raw: Mapping[str, Any]) -> dict[str, float]:
    divergence, acceptance, same = (
        _numbers(raw, "divergence"), _numbers(raw, "acceptance"), raw.get("same_first"),
    )  # fmt: skip
    if not divergence or not acceptance or not isinstance(same, int):
        return {}
    scores = {
        "divergence": fmean(divergence),
        "first_choices": same / len(divergence),
        "acceptance": fmean(acceptance),
    }
    return {**scores, "draft_tokens": draft_tokens(acceptance)} if len(acceptance) >= DRAFT else scores


def _numbers(raw: Mapping[str, Any], name: str) -> list[float]:
    values = raw.get(name)
    return values if isinstance(values, list) else []


def draft_tokens(acceptance: Sequence[float], *, draft: int = DRAFT) -> float:
    """Tokens that one verification yields, the teacher's own among them: 1 to `draft` + 1.

    `acceptance` has the probability of each token of an answer of at least `draft` tokens. The mean, over starts t with
    `draft` tokens to come, of 1 + Σ_j Π_{i<j} α_{t+i}.
    """
    totals = []
    for start in range(len(acceptance) - draft + 1):
        total, product = 1.0, 1.0
        for one in acceptance[start : start + draft]:
            product *= one
            total += product
        totals.append(total)
    return fmean(totals)
