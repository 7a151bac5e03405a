"""How surprising a model finds the teacher's answers: the most direct measure of imitation."""

from __future__ import annotations

from typing import Literal

from distill import recipe
from distill.metrics import Answered, Measure, Model, Scores
from distill.types import Completion, Failure, Flow, Message, Request


class Likelihood:
    """Negative log-likelihood of the teacher's answer under a model, by the byte."""

    class Options(recipe.Options):
        """None."""

    scope: Literal["model"] = "model"
    models: tuple[Model, ...] = ("base", "student", "teacher")
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
    )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def score(self, messages: tuple[Message, ...], model: Model, reference: Answered) -> Flow[Scores]:
        """`nll_per_byte`, 0 or more, in nats. Excluded: empty answers of the teacher, failed requests, end tokens."""
        size = len(reference.text.encode())
        if size == 0:
            return {}
        answer: Completion | Failure = yield Request(
            role=model, messages=messages, kind="likelihood", continuation=reference.text
        )
        if isinstance(answer, Failure) or answer.loglikelihood is None:
            return {}
        return {"nll_per_byte": -answer.loglikelihood / size}
