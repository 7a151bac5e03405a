"""Keeps sessions in the languages that are wanted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from distill import recipe
from distill.filters import Compared, prose_of, texts_of
from distill.types import Session, Verdict

MOST_CHARACTERS = 200
"""So much of a side is looked at; the whole of 999 Alpaca answers gives the same verdicts in twice the time."""

_NOT_PROSE = re.compile(r"https?://\S+|[\w.+-]{1,64}@[\w.-]{1,64}|[\d_]+")
_SAME = {"arz": "ar", "nb": "no", "nn": "no", "zlm": "ms", "wuu": "zh", "yue": "zh"}
"""Codes that are told apart by the library and seldom by a recipe."""


class Language:
    """Language of prompt, answer or both, by py3langid (a naive Bayes model over bytes; Lui and Baldwin, ACL 2012).

    Code, addresses and digits are left out. Short texts and uncertain ones are `unknown`, and kept.
    """

    class Options(recipe.Options):
        """Options of `filter: language`."""

        keep: Annotated[tuple[str, ...], Field(min_length=1)] = ("en",)
        """ISO 639-1 codes, such as `en`, `de`, `zh`."""
        on: Compared = "prompt"
        """`prompt` (the user's turns), `answer`, or `both`: each must be in one of the languages, on its own.
        Translations are right answers in other languages, so that answers are not looked at unless told."""
        min_letters: Annotated[int, Field(ge=1)] = 20
        """Texts with fewer letters are unknown (ours: of 77 sentences in 16 languages the 3 mistaken have 8 to 10)."""
        min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.5
        """Below it a language is unknown (ours, read off real prompts)."""
        unknown: Literal["keep", "drop"] = "keep"

        @field_validator("keep")
        @classmethod
        def _known(cls, keep: tuple[str, ...]) -> tuple[str, ...]:
            for code in keep:
                if not re.fullmatch(r"[a-z]{2,3}", code):
                    raise ValueError(f"{code!r} is no ISO 639 code, such as en")
            return keep

    scope: Literal["row"] = "row"

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, session: Session) -> list[tuple[str, float, int]]:
        """Language, confidence in [0, 1] and letters, of each side that is looked at."""
        sides: tuple[Compared, ...] = ("prompt", "answer") if self.options.on == "both" else (self.options.on,)
        return [_language(_letters(texts_of(session, side))) for side in sides]

    def decide(self, value: Sequence[tuple[str, float, int]]) -> Verdict:
        """Drop what is surely in another language; a verdict names the first such, else the first language."""
        chosen = self.options
        named = [self._named(*side) for side in value]
        other = next((name for name in named if name not in (*chosen.keep, "unknown")), None)
        if other is None and chosen.unknown == "drop" and "unknown" in named:
            other = "unknown"
        reason = "ok" if other is None else "unknown_language" if other == "unknown" else "other_language"
        shown = other or next(iter(named), "unknown")
        return Verdict(rule="language", keep=other is None, reason=reason, value=shown, threshold=" ".join(chosen.keep))

    def _named(self, language: str, confidence: float, letters: int) -> str:
        sure = letters >= self.options.min_letters and confidence >= self.options.min_confidence
        return language if sure else "unknown"


def _letters(texts: Sequence[str]) -> str:
    """The beginning of the prose, white space collapsed."""
    prose = " ".join(prose_of(text[: 4 * MOST_CHARACTERS])[0] for text in texts)
    return " ".join(_NOT_PROSE.sub(" ", prose[: 2 * MOST_CHARACTERS]).split())[:MOST_CHARACTERS]


def _language(text: str) -> tuple[str, float, int]:
    letters = sum(map(str.isalpha, text))
    if not letters:
        return "unknown", 0.0, 0
    code, confidence = _identifier().classify(text)
    return _SAME.get(code, code), round(float(confidence), 4), letters


@cache
def _identifier() -> Any:
    """The model that comes with the library, 100 languages, loaded once (0.8 s)."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
