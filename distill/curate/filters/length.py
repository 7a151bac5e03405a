"""Drops answers outside of length bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from distill import recipe
from distill.core.embedded import EMBEDDED, fetch
from distill.core.extras import install
from distill.curate.filters import answers_of
from distill.errors import MissingPackage
from distill.models import pretrained
from distill.text.words import word_count
from distill.types import Session, Verdict

Bound = Annotated[int, Field(ge=0)] | None

_UNITS = ("words", "chars", "tokens")


class Length:
    """Inclusive bounds on the length of an answer; of several answers, on their total length."""

    class Options(recipe.BaseOptions):
        """Options of `filter: length`; a bound left out does not apply."""

        path_fields: ClassVar[tuple[str, ...]] = ("tokenizer",)
        min_words: Bound = None
        """Fewest words, split at white space; in scripts without spaces (Chinese, Thai …) each character is a word."""
        max_words: Bound = None
        """Most words."""
        min_chars: Bound = None
        """Fewest characters; for languages that write no spaces."""
        max_chars: Bound = None
        """Most characters."""
        min_tokens: Bound = None
        """Fewest tokens of `tokenizer`, without begin and end tokens."""
        max_tokens: Bound = None
        """Most tokens of `tokenizer`."""
        tokenizer: str | None = None
        """Tokenizer for the token bounds: `smollm2`, or a local folder with a tokenizer.json."""

        @model_validator(mode="after")
        def _ordered(self) -> Length.Options:
            for unit in _UNITS:
                least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
                if least is not None and most is not None and least > most:
                    raise ValueError(f"min_{unit} {least} is above max_{unit} {most}; no answer could be kept")
            if self.tokenizer is None and not self.min_tokens == self.max_tokens is None:
                raise ValueError("min_tokens and max_tokens need a `tokenizer`: smollm2, or a local folder")
            return self

    scope: Literal["row"] = "row"

    def __init__(self, options: Options) -> None:
        self.options = options
        self._count: Callable[[str], int] | None = None

    def __reduce__(self) -> tuple[type[Length], tuple[Length.Options]]:
        """Pickles the options only: each process loads the tokenizer itself."""
        return type(self), (self.options,)

    def measure(self, session: Session) -> dict[str, int]:
        """Words, characters and, where there is a tokenizer, tokens of the answer. Raises `ModelError`."""
        answer = "\n".join(answers_of(session))
        counts = {"words": word_count(answer), "chars": len(answer)}
        if self.options.tokenizer is not None:
            self._count = self._count or _counter(self.options.tokenizer)
            counts["tokens"] = self._count(answer)
        return counts

    def decide(self, value: dict[str, int]) -> Verdict:
        """Keep an answer within all bounds; a verdict names the first one violated, else the number of words."""
        for unit in (unit for unit in _UNITS if unit in value):
            least, most = getattr(self.options, f"min_{unit}"), getattr(self.options, f"max_{unit}")
            if least is not None and value[unit] < least:
                return _outside(f"too_few_{unit}", value[unit], least)
            if most is not None and value[unit] > most:
                return _outside(f"too_many_{unit}", value[unit], most)
        return Verdict(rule="length", keep=True, reason="ok", value=value["words"])


def _outside(reason: str, count: int, bound: int) -> Verdict:
    return Verdict(rule="length", keep=False, reason=reason, value=count, threshold=bound)


def _counter(name: str) -> Callable[[str], int]:
    """Counts the tokens of a text. Raises `MissingPackage`, or `ModelError` where there is no tokenizer."""
    try:
        if name in EMBEDDED:
            file = fetch(name)
            embedded = pretrained.load_tokenizer(file.parent, gguf_file=file.name)
            return lambda text: len(embedded.encode(text, add_special_tokens=False))
        return pretrained.token_counter(Path(name))
    except ImportError as error:
        raise MissingPackage(
            f"length counts tokens with {error.name}, which is not installed; type: {install('train')}"
        ) from error
