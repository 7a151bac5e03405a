"""Scores rows with a teacher at an endpoint, which reads a fixed text: vLLM's `prompt_logprobs`, or `echo`.

The row is sent as token ids to /completions at temperature 1, in the teacher's own template, so that the teacher's
tokenizer must be on this machine. Replies stay in the journal: what is scored is never bought again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

from distill.core.embedded import EMBEDDED
from distill.core.model_files import local_folder
from distill.errors import DistillError, ModelError, StageIncomplete
from distill.models import loading
from distill.models.chat_template import IGNORED, Example
from distill.models.token_bytes import Spelling
from distill.train.objectives import Endpoint
from distill.train.objectives.by_bytes import best_of, distribution
from distill.train.objectives.soft_file import SoftTarget, target_of
from distill.train.objectives.soft_source import Source
from distill.train.objectives.teacher_scores import Teacher, teacher_of
from distill.types import Answer, Completion, Failure, Request, Sampling


class NoScores(DistillError):
    """An endpoint that scores no text."""


ROWS_AT_ONCE = 256
"""Rows asked for between two updates of the progress."""
Entries: TypeAlias = Mapping[int, float]
"""Log-probabilities by token id, before they are checked."""


def elsewhere(name: str, source: Source) -> Teacher | None:
    """The teacher of that name at its endpoint; `None` where the tokenizer of its model is not on this machine."""
    endpoint = source.collected.endpoints.get(name)
    tokenizer = _tokenizer_of(endpoint.model) if endpoint is not None else None
    if endpoint is None or tokenizer is None:
        return None
    scorer = Scorer(endpoint, name, tokenizer, source.k)
    return teacher_of(
        name, tokenizer, source, identity=endpoint.identity, load=lambda: scorer, rows_at_once=ROWS_AT_ONCE
    )


def _tokenizer_of(model: str) -> Any:
    """The tokenizer of a model that is served elsewhere, where it is on this machine, else `None`."""
    folder = loading.materialise(model) if model in EMBEDDED else local_folder(model)
    try:
        return None if folder is None else loading.load_tokenizer(folder)
    except ModelError:
        return None


def _by_prompt_logprobs(raw: Mapping[str, Any], ids: Sequence[int], names: Names) -> list[Entries]:
    """VLLM's: per token null, or `{id: {logprob, rank, decoded_token}}` with k or k + 1 entries."""
    found = raw["choices"][0].get("prompt_logprobs") or raw["prompt_logprobs"]
    return [{int(id_): float(one["logprob"]) for id_, one in (each or {}).items()} for each in found]


def _by_echo(raw: Mapping[str, Any], ids: Sequence[int], names: Names) -> list[Entries]:
    """OpenAI's first completions API: names of tokens, with the log-probabilities of the names of others."""
    found = raw["choices"][0]["logprobs"]
    echoed = found.get("token_ids") or [names.id_of(name, own) for name, own in zip(found["tokens"], ids, strict=False)]
    if list(echoed[: len(ids)]) != list(ids):
        raise ValueError("other tokens came back than were sent")
    rows = zip(ids, found["token_logprobs"], found["top_logprobs"], strict=False)
    return [_named(own, logprob, others or {}, names) for own, logprob, others in rows]


def _named(own: int, logprob: float | None, others: Mapping[str, float], names: Names) -> Entries:
    if logprob is None:
        return {}
    known = {names.id_of(name, None): float(value) for name, value in others.items()}
    return {id_: value for id_, value in known.items() if id_ is not None} | {own: float(logprob)}


Read: TypeAlias = Callable[[Mapping[str, Any], Sequence[int], "Names"], list[Entries]]
WAYS: Mapping[str, tuple[Callable[[int], dict[str, Any]], Read]] = {
    "prompt_logprobs": (lambda k: {"prompt_logprobs": k}, _by_prompt_logprobs),
    "echo": (lambda k: {"echo": True, "logprobs": k}, _by_echo),
}
"""Ways to have a text scored: the fields of the request by k, and how the reply is read."""


class Names:
    """Token ids by the names that servers give them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _ids(self) -> dict[str, int]:
        pieces = Spelling(self._tokenizer).pieces(range(len(self._tokenizer)))
        named: dict[str, int] = {}
        for id_, piece in enumerate(pieces):
            named.setdefault(_name(piece), id_)
        return named

    def id_of(self, name: str, own: int | None) -> int | None:
        """The id of a name; `own` where several tokens may have it, as halves of characters do."""
        if number := re.fullmatch(r"token_id:(\d+)", name):
            return int(number[1])
        return own if "\ufffd" in name else self._ids.get(name)


def _name(piece: bytes) -> str:
    """A token as OpenAI's API writes it."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


class Scorer:
    """Has rows scored by an endpoint, in the way that it knows."""

    def __init__(self, endpoint: Endpoint, name: str, tokenizer: Any, k: int) -> None:
        self._endpoint, self._name, self._k = endpoint, name, k
        self._tokenizer, self._names = tokenizer, Names(tokenizer)
        self._way = ""

    def __call__(self, examples: Sequence[Example]) -> list[SoftTarget]:
        """The teacher's k most probable tokens at each trained token; a row that it refuses has no target.

        Raises `NoScores` where the endpoint scores no text, `StageIncomplete` where a later try may help.
        """
        way = self._way = self._way or self._known_way(examples[0])
        answers = self._endpoint.ask([self._request(one, way) for one in examples])
        transient = [one for one in answers if isinstance(one, Failure) and one.transient]
        if transient:
            raise StageIncomplete(
                f"{self._name} left {len(transient)} of {len(answers)} rows without scores ({transient[0].detail}); "
                "run it again to go on"
            )
        return [self._target(one, example, way) for one, example in zip(answers, examples, strict=True)]

    def _known_way(self, example: Example) -> str:
        """The first way in which the endpoint scores this row."""
        refusals = []
        for way in WAYS:
            (answer,) = self._endpoint.ask([self._request(example, way)])
            if isinstance(answer, Completion) and self._entries(answer, example, way) is not None:
                return way
            refusals.append(f"{way}: {answer.detail if isinstance(answer, Failure) else 'the reply has no scores'}")
        raise NoScores(f"{self._name} scores no given text ({'; '.join(refusals)})")

    def _request(self, example: Example, way: str) -> Request:
        fields, _ = WAYS[way]
        text = self._tokenizer.decode(example.input_ids)
        ids = {"prompt": list(example.input_ids)}
        sampling = Sampling(temperature=1.0, max_tokens=1, extra_body={**ids, **fields(self._k)})
        return Request(role="teacher", prompt=text, sampling=sampling)

    def _entries(self, answer: Completion, example: Example, way: str) -> list[Entries] | None:
        """The entries of each token sent; `None` where the reply does not have them."""
        try:
            found = WAYS[way][1](answer.raw, example.input_ids, self._names)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            return None
        return found[: len(example.input_ids)] if len(found) >= len(example.input_ids) else None

    def _target(self, answer: Answer, example: Example, way: str) -> SoftTarget:
        entries = self._entries(answer, example, way) if isinstance(answer, Completion) else None
        if entries is None:
            return target_of([{}] * example.trained, self._k)
        trained = [(place, label) for place, label in enumerate(example.labels) if label != IGNORED]
        rows = [best_of(distribution(entries[place].items()), label, self._k) for place, label in trained]
        return target_of(rows, self._k)
