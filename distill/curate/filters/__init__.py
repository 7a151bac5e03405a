"""Registry of filters, and functions that extract a session's texts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from distill import recipe
from distill.text.prompt_frames import FramedText, PromptFrames
from distill.types import Session

FILTERS = {
    "contamination": "distill.curate.filters.contamination:Contamination",
    "empty": "distill.curate.filters.empty:Empty",
    "exact_duplicate": "distill.curate.filters.exact_duplicate:ExactDuplicate",
    "format": "distill.curate.filters.format:Format",
    "ifd": "distill.curate.filters.likelihoods:Ifd",
    "judge": "distill.curate.filters.judge:Judge",
    "keyword": "distill.curate.filters.keywords:Keyword",
    "label": "distill.curate.filters.label:Label",
    "language": "distill.curate.filters.language:Language",
    "length": "distill.curate.filters.length:Length",
    "minhash": "distill.curate.filters.minhash:MinHash",
    "near_duplicate": "distill.curate.filters.near_duplicate:NearDuplicate",
    "pairs": "distill.curate.filters.pairs:Pairs",
    "perplexity": "distill.curate.filters.likelihoods:Perplexity",
    "pii": "distill.curate.filters.pii:PersonalData",
    "quota": "distill.curate.filters.quota:Quota",
    "refusal": "distill.curate.filters.refusal:Refusal",
    "repetition": "distill.curate.filters.repetition:Repetition",
    "selection": "distill.curate.filters.selection:Selection",
    "semantic_duplicate": "distill.curate.filters.semantic_duplicate:SemanticDuplicate",
    "truncated": "distill.curate.filters.truncated:Truncated",
    "verified": "distill.curate.filters.verified:Verified",
}


class AskingOptions(recipe.BaseOptions):
    """Options shared by filters that ask a model."""

    every_row: bool = False
    """Ask about rows that another rule has dropped as well; by default nothing is paid for them."""


Compared = Annotated[
    Literal["prompt", "answer", "both"],
    Field(
        description="The text by which rows are compared: the first user message, the answer, or both as one text. By"
        " `answer`, every `Yes` is a duplicate of the first one: use `both` for tasks whose answers are labels."
    ),
]


def prompt_of(session: Session) -> str:
    """The first user message; empty where there is none."""
    return session.prompt


def answers_of(session: Session) -> list[str]:
    """The assistant's messages, in order."""
    return [message.content for message in session.messages if message.role == "assistant"]


def texts_of(session: Session, on: Compared) -> list[str]:
    """Every user turn (`prompt`), every answer, or both, in order; system messages are excluded."""
    roles = {"prompt": ("user",), "answer": ("assistant",), "both": ("user", "assistant")}[on]
    return [message.content for message in session.messages if message.role in roles]


def compared_text(session: Session, on: Compared) -> str:
    """The text by which a session is compared with others."""
    answer = "\n".join(answers_of(session))
    if on == "both":
        return f"{prompt_of(session)}\n{answer}"
    return prompt_of(session) if on == "prompt" else answer


def without_frame(session: Session, on: Compared, frames: PromptFrames) -> FramedText:
    """The text by which a session is compared with others, without its prompt's frame."""
    if on == "answer" or not frames:
        return FramedText(compared_text(session, on))
    text, frame = frames.without(prompt_of(session))
    return FramedText("\n".join((text, *answers_of(session))) if on == "both" else text, frame)


def frames_of(sessions: Iterable[Session]) -> PromptFrames:
    """The frames that the sessions' prompts share."""
    return PromptFrames(map(prompt_of, sessions))


MOST_EXAMINED = 200_000
"""Characters of a text that a rule examines which needs more than a second per million."""
MOST_COMPARED = 50_000
"""Characters of a text that are compared by ROUGE-L, in time that grows with their square; two texts take 0.1 s."""


def both_ends(text: str, most: int = MOST_EXAMINED) -> str:
    """The text; of one over `most` characters, the first and the last half of as many, as two paragraphs."""
    return text if len(text) <= most else f"{text[: most // 2]}\n\n{text[-most // 2 :]}"


def prose_of(text: str) -> tuple[str, str | None]:
    """The text without code, and the opening line of an unclosed code fence.

    Code is text in fences (CommonMark 0.31, section 4.5; at any indentation, because lists indent them) and in
    backticks within a line.
    """
    if "`" not in text and "~~~" not in text:
        return text, None
    lines: list[str] = []
    fence_line: str | None = None
    for line in text.splitlines():
        fence = _FENCE.match(line)
        if fence_line is None and fence:
            fence_line = line.strip()
        elif fence_line is None:
            lines.append(_CODE.sub(" ", line))
        elif fence and not fence["info"].strip() and fence["marks"].startswith(_marks(fence_line)):
            fence_line = None
    return "\n".join(lines), fence_line


_FENCE = re.compile(r"\s*(?P<marks>`{3,}|~{3,})(?P<info>[^`]*)$")
_CODE = re.compile(r"`[^`]{1,500}`")


def _marks(line: str) -> str:
    return line[: len(line) - len(line.lstrip(line[0]))]
