"""Forecasts what a teacher's probabilities cost, for an objective that learns from them."""

from __future__ import annotations

from collections.abc import Iterator

from distill.core.embedded import EMBEDDED
from distill.models.tokenizer_identity import FromFile, difference, tokenizer_file
from distill.recipe import Recipe, Teacher
from distill.train.objectives.soft import SoftOptions, may_score

REPLY_BYTES = 80
"""Bytes of one alternative in a response body, about 1.6 KB a token with 20 of them, before SQLite."""
ENTRY_BYTES, TOKEN_BYTES = 6, 8
"""Bytes of an entry in soft_targets.arrow, and of what else is kept of a token."""
TOKENS_PER_SECOND = (100.0, 300.0)
"""Approximate speed of the embedded teacher at scoring rows on two CPU cores, busy and idle; one busy core does 76."""


def scoring_teachers(recipe: Recipe) -> list[Teacher]:
    """The teachers elsewhere that will be asked to score kept rows, as their answers come without probabilities."""
    if _options(recipe) is None:
        return []
    return [one for one in recipe.teachers if may_score(one) and not one.sampling.top_logprobs]


def lines(recipe: Recipe, *, rows: int, answer_tokens: int | None, prompt_tokens: int) -> list[str]:
    """The lines of `check` on soft targets, for `rows` rows of at most `answer_tokens`; none for other objectives."""
    options = _options(recipe)
    if options is None:
        return []
    return [
        *_tokenizers(recipe),
        *_bytes(recipe, options, rows * (answer_tokens or 0)),
        *_scoring(recipe, rows * (prompt_tokens + answer_tokens) if answer_tokens else 0),
        *_too_few(recipe, options),
    ]


def _options(recipe: Recipe) -> SoftOptions | None:
    options = recipe.train.objective.options if recipe.train is not None else None
    return options if isinstance(options, SoftOptions) else None


def _tokenizers(recipe: Recipe) -> Iterator[str]:
    """Whether each teacher's tokenizer is the student's, where files say so."""
    assert recipe.student is not None
    ours = tokenizer_file(recipe.student.model)
    for teacher in recipe.teachers:
        theirs = tokenizer_file(teacher.model)
        if teacher.model == recipe.student.model:
            found = ""
        elif ours is None or theirs is None:
            continue
        else:
            found = difference(FromFile(theirs), FromFile(ours))
        name = teacher.display_name
        yield (
            f"train: {name} has another tokenizer than the student ({found}); soft targets are mapped by bytes"
            if found
            else f"train: {name} and the student have one tokenizer"
        )


def _bytes(recipe: Recipe, options: SoftOptions, tokens: int) -> Iterator[str]:
    """The size of the journal's part and of soft_targets.arrow; the former is bought anew in a finished run."""
    asked = max((one.sampling.top_logprobs or 0 for one in recipe.teachers), default=0)
    if asked:
        size = (
            f"about {tokens * asked * REPLY_BYTES / 1e6:,.1f} MB"
            if tokens
            else f"{asked * REPLY_BYTES:,} bytes a token"
        )
        yield (
            f"collect: top_logprobs {asked} adds at most {size} to the journal; to ask for them in a finished run "
            "changes its requests, so that all answers are bought again"
        )
    yield f"train: soft_targets.arrow takes {_size(tokens, options.k * ENTRY_BYTES + TOKEN_BYTES)}"


def _size(tokens: int, each: int) -> str:
    return f"at most about {tokens * each / 1e6:,.1f} MB" if tokens else f"{each:,} bytes per trained token"


def _scoring(recipe: Recipe, tokens: int) -> Iterator[str]:
    """What is computed or asked before the first step."""
    for teacher in recipe.teachers:
        if teacher.serve is None:
            continue
        slow, fast = TOKENS_PER_SECOND
        is_known = teacher.model in EMBEDDED and tokens
        minutes = (
            f", in at most about {tokens / fast / 60:.1f} to {tokens / slow / 60:.1f} min on two CPU cores"
            if is_known
            else ""
        )
        yield f"train: {teacher.display_name} reads the kept rows once before the first step, for soft targets{minutes}"
    for teacher in scoring_teachers(recipe):
        yield (
            f"train: {teacher.display_name}'s endpoint is asked to score the kept rows (prompt_logprobs, or echo), in "
            f"the template of {teacher.model} on this machine"
        )


def _too_few(recipe: Recipe, options: SoftOptions) -> Iterator[str]:
    for teacher in recipe.teachers:
        if teacher.serve is None and (few := teacher.sampling.top_logprobs or options.k) < options.k:
            yield (
                f"warning: train.objective.k is {options.k}, and {teacher.display_name} gives {few} top_logprobs: "
                f"its targets hold {few} tokens and the answer's own"
            )
