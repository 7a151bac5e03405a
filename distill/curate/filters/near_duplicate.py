"""Near-duplicates by ROUGE-L to an earlier session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from distill import recipe
from distill.curate.filters import MOST_COMPARED, Compared, both_ends, frames_of, without_frame
from distill.text.prompt_frames import FramedText, PromptFrames, PromptIndex
from distill.types import Session, Verdict


class NearDuplicate:
    """Keeps the first of similar sessions: greedy in task order, each compared with the earlier ones that are kept.

    Texts are compared by the words of every script, and by their characters where their words are the same. What at
    least ten prompts share, such as the frame "… Try to explain your answer. Your explanation should …", does not count
    (`PromptFrames`).
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: near_duplicate`."""

        rouge_l: Annotated[float, Field(ge=0, le=1)] = 0.7
        """Greatest ROUGE-L F-measure with any earlier kept session (Self-Instruct, section 2.2)."""
        on: Compared = "prompt"

    scope: Literal["set"] = "set"
    takes_frames = True
    """The stage gives `decide_all` the frames of all prompts."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def decide_all(self, sessions: Sequence[Session], frames: PromptFrames | None = None) -> list[Verdict]:
        """A dropped session's neighbour is the most similar kept one; `frames` are by default those of the sessions."""
        frames = frames_of(sessions) if frames is None else frames
        index = PromptIndex(self.options.rouge_l)
        texts = (without_frame(session, self.options.on, frames) for session in sessions)
        return [self._decide(session, text, index) for session, text in zip(sessions, texts, strict=True)]

    def _decide(self, session: Session, framed: FramedText, index: PromptIndex) -> Verdict:
        text = framed._replace(text=both_ends(framed.text, MOST_COMPARED))
        near = index.near(text)
        if near is None:
            index.add(session.id, text)
            return Verdict(rule="near_duplicate", keep=True, reason="ok", threshold=self.options.rouge_l)
        return Verdict(
            rule="near_duplicate",
            keep=False,
            reason="near_duplicate",
            value=near.rouge_l,
            threshold=self.options.rouge_l,
            neighbour=near.id,
        )
