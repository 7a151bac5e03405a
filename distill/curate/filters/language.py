"""Keeps sessions in the given languages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator

from distill import recipe
from distill.curate.filters import Compared, prose_of, texts_of
from distill.types import Session, Verdict

MOST_CHARACTERS = 200
"""Characters examined per side; with all characters, 999 Alpaca answers get the same verdicts in twice the time."""
LEAST_PROBABILITY = 0.0005
"""Less likely languages are not reported."""

OPENING_LETTERS, LEAST_OPENING = 12, 0.1
"""Fewest letters of an opening, and the least probability of the wanted languages (measured: all of 15 English openings
such as `Translate this:` have at least 0.14, all of 18 openings in 13 other languages at most 0.02)."""

_OPENING = re.compile(r"\n|(?<=[.:?!])\s")
_NOT_PROSE = re.compile(r"https?://\S+|[\w.+-]{1,64}@[\w.-]{1,64}|[\d_]+")
_NO_LANGUAGE = "zxx"
_SAME = {"arz": "ar", "nb": "no", "nn": "no", "zlm": "ms", "wuu": "zh", "yue": "zh"}
"""Languages that the library distinguishes and recipes usually do not."""


class Side(NamedTuple):
    """Languages of a session's prompts, or of its answers."""

    letters: int
    """In bytes."""
    languages: Mapping[str, float]
    """Probabilities of the likely ones, best first."""
    opening: Mapping[str, float] = {}
    """Probabilities for a prompt's opening, if long enough; only where the prompt is in no wanted language."""


class Language:
    """Language of prompt, answer or both, by py3langid (a naive Bayes model over bytes; Lui and Baldwin, ACL 2012).

    Code, addresses and digits are ignored. A text is dropped when no wanted language is likely; very short texts are
    `unknown` and kept. A prompt that only quotes another language is kept as well: one whose opening, up to the first
    colon, line break or sentence end, is in a wanted language ("Translate into English: …").
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: language`."""

        keep: Annotated[tuple[str, ...], Field(min_length=1)] = ("en",)
        """ISO 639-1 codes, such as `en`, `de`, `zh`."""
        on: Compared = "prompt"
        """`prompt` (the user's turns), `answer`, or `both`, of which each must be in one of the languages. A correct
        translation is in another language, so answers are not examined by default."""
        min_letters: Annotated[int, Field(ge=1)] = 24
        """Texts with fewer letters are unknown. Letters count as their bytes in UTF-8, since a Chinese character holds
        as much information as three Latin letters. Measured: 9 of 999 Alpaca answers are single words or lists of
        names, mistaken for another language, and all of those have at most 22."""
        min_probability: Annotated[float, Field(ge=0, le=1)] = 0.02
        """Least probability of the wanted languages together (measured: English has at least 0.022 in each of 999
        Alpaca prompts, and at most 0.014 in 65 short sentences of 15 other languages)."""
        unknown: Literal["keep", "drop"] = "keep"
        """What becomes of texts whose language is not known."""

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

    def measure(self, session: Session) -> list[Side]:
        """Languages of each side that is examined."""
        sides: tuple[Compared, ...] = ("prompt", "answer") if self.options.on == "both" else (self.options.on,)
        return [self._side(texts_of(session, side), has_opening=side == "prompt") for side in sides]

    def _side(self, texts: Sequence[str], *, has_opening: bool) -> Side:
        letters, languages = _languages(_letters(texts))
        if not has_opening or next(iter(languages), "") in self.options.keep:
            return Side(letters, languages)
        opening, likely = _languages(_letters([_OPENING.split(texts[0].strip(), 1)[0]] if texts else []))
        return Side(letters, languages, likely if opening >= OPENING_LETTERS else {})

    def decide(self, value: Sequence[Side]) -> Verdict:
        """Drop a session with a side in another language; a verdict names that language, else the first side's."""
        results = [self._result(side) for side in value]
        faults = [(reason, language) for reason, language in results if reason != "ok"]
        reason, language = (faults or results)[0]
        languages = " ".join(self.options.keep)
        return Verdict(rule="language", keep=not faults, reason=reason, value=language, threshold=languages)

    def _result(self, side: Side) -> tuple[str, str]:
        """The reason and the likeliest language of one side."""
        if side.letters < self.options.min_letters or next(iter(side.languages)) == _NO_LANGUAGE:
            return ("ok" if self.options.unknown == "keep" else "unknown_language"), "unknown"
        is_wanted = self._probability(side.languages) >= self.options.min_probability
        opens = self._probability(side.opening) >= max(LEAST_OPENING, self.options.min_probability)
        return ("ok" if is_wanted or opens else "other_language"), next(iter(side.languages))

    def _probability(self, languages: Mapping[str, float]) -> float:
        return sum(languages.get(code, 0.0) for code in self.options.keep)


def _letters(texts: Sequence[str]) -> str:
    """The beginning of the texts' prose, with white space collapsed."""
    prose = " ".join(prose_of(text[: 4 * MOST_CHARACTERS])[0] for text in texts)
    return " ".join(_NOT_PROSE.sub(" ", prose[: 2 * MOST_CHARACTERS]).split())[:MOST_CHARACTERS]


def _languages(text: str) -> tuple[int, dict[str, float]]:
    letters = len("".join(filter(str.isalpha, text)).encode(errors="replace"))
    probabilities: Counter[str] = Counter()
    for code, probability in _identifier().rank(text) if letters else ():
        if probability < LEAST_PROBABILITY:
            break
        probabilities[_SAME.get(code, code)] += probability
    return letters, {code: round(probability, 4) for code, probability in probabilities.most_common()}


@cache
def _identifier() -> Any:
    """The library's own model of 100 languages, loaded once (0.8 s)."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
