"""Instruction-following difficulty: drops answers that their instruction does not make more likely."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distill.curate.filters.likelihoods import Bounds, LikelihoodFilter, spoken, total_of, with_prompt, without_prompt
from distill.types import Completion, Failure, Flow, Session


class Ifd(LikelihoodFilter):
    """Instruction-following difficulty: loss of the answer after its instruction / loss of the answer alone.

    Li et al., 2023 ("From Quantity to Quality", arXiv 2308.12032, section 2.2). Near 0 the instruction gives the
    answer away; at 1 it is of no help; above 1 it misleads, and the paper leaves such rows out, as is done here by
    default. Both losses are means over the same tokens, so their quotient is that of the log-likelihoods. "Alone" is
    after an empty instruction in the student's template. Of several turns the log-likelihoods are summed. A session
    without an answer and one beyond the model's context are kept and labelled.
    """

    class Options(Bounds):
        """Options of `filter: ifd`."""

        min: Annotated[float, Field(ge=0)] | None = None
        """Least difficulty: below it there is little to learn from the row."""
        max: Annotated[float, Field(ge=0)] | None = 1.0
        """Greatest difficulty; `null` keeps what the instruction misleads about."""

    rule = "ifd"
    above = "misled"

    def measure(self, session: Session) -> Flow[float | str | None]:
        """The quotient; or a word on why there is none; `None` where the model failed."""
        turns = spoken(session)
        if not turns:
            return "no_answer"
        requests = tuple(make(session, turn) for make in (with_prompt, without_prompt) for turn in turns)
        answers: tuple[Completion | Failure, ...] = yield requests
        after, by_itself = total_of(answers[: len(turns)]), total_of(answers[len(turns) :])
        if not isinstance(after, float) or not isinstance(by_itself, float):
            return after if not isinstance(after, float) else by_itself
        return after / by_itself if by_itself < 0 else "no_answer"
