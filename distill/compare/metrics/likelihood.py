"""NLL of the teacher's answers under a model, and agreement of its most likely tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from distill.compare.metrics import Measure, ModelAnswer, NoOptions, Scores
from distill.types import Completion, Failure, Flow, Message, Model, Request


class Likelihood:
    """Negative log-likelihood per byte of the teacher's answer under a model."""

    Options = NoOptions
    scope: Literal["model"] = "model"
    models: tuple[Model, ...] = ("base", "previous", "student", "teacher")
    measures = (
        Measure(
            name="nll_per_byte",
            title="NLL of the teacher's answers",
            unit="nats/byte",
            better="lower",
            explanation="Negative log-likelihood of the teacher's first answer after the same prompt, divided by its "
            "UTF-8 bytes, so that models with other tokenizers compare; the end token is left out.",
            likeness=True,
        ),
        Measure(
            name="token_agreement",
            title="Agreement with the teacher's tokens",
            unit="share",
            better="higher",
            explanation="Share of the tokens of the teacher's first answer that are the model's own first choice after "
            "the prompt and the teacher's tokens before, by the model's own tokenizer; models with different "
            "tokenizers do not compare by it.",
            likeness=True,
        ),
    )

    def __init__(self, options: NoOptions | None = None) -> None:
        self.options = options or NoOptions()

    def score(self, messages: tuple[Message, ...], model: Model, reference: ModelAnswer) -> Flow[Scores]:
        """`nll_per_byte`, 0 or more, in nats; `token_agreement`, 0 to 1.

        Excluded: empty answers of the teacher, failed requests, end tokens.
        """
        size = len(reference.text.encode())
        if size == 0:
            return {}
        answer: Completion | Failure = yield Request(
            role=model, messages=messages, kind="likelihood", continuation=reference.text
        )
        if isinstance(answer, Failure) or answer.loglikelihood is None:
            return {}
        agreement = _agreement(answer.raw)
        return {"nll_per_byte": -answer.loglikelihood / size, **agreement}


def _agreement(raw: Mapping[str, Any]) -> Scores:
    tokens, agrees = raw.get("logprobs"), raw.get("agrees")
    if not isinstance(tokens, list) or not tokens or not isinstance(agrees, int):
        return {}
    return {"token_agreement": agrees / len(tokens)}
