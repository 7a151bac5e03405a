"""Log-likelihoods of given answers under a model in this process, and how two models' distributions differ there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from distill.engine.providers import ProviderError
from distill.errors import DistillError
from distill.models import chat_template
from distill.models.generation import not_finite
from distill.models.padding import by_length, context_tokens, padded
from distill.models.token_bytes import Spelling, token_texts
from distill.types import Message

if TYPE_CHECKING:
    from distill.models.in_process import LoadedModel

BATCH_TOKENS = 1_024
"""Padded tokens in one batch: enough for full speed on a CPU, few enough that rows have similar lengths. Their float32
logits take at most 0.2 GB with a vocabulary of 49,152."""
MAX_ROWS = 64


def loglikelihoods(
    model: Any,
    tokenizer: Any,
    template: str,
    pairs: Sequence[tuple[Sequence[Message], str]],
    *,
    batch_tokens: int = BATCH_TOKENS,
    watch: Callable[[int], None] | None = None,
) -> list[ContinuationScores | ProviderError]:
    """For each (prompt, continuation): log-probabilities, in nats, of the continuation's tokens.

    Prompt and continuation are rendered and tokenised as for training; the end token is excluded, and an empty
    continuation has no tokens. A pair that does not fit the context, cannot be rendered or has no finite sum fails
    alone. `watch` is called after each batch with the number of pairs done.
    """
    texts = [_text(model, tokenizer, template, *pair) for pair in pairs]
    results: list[ContinuationScores | ProviderError] = [
        text if isinstance(text, ProviderError) else ContinuationScores() for text in texts
    ]
    spelling = Spelling(tokenizer)
    scored = [(index, text) for index, text in enumerate(texts) if isinstance(text, _Text) and text.scored]
    done = len(pairs) - len(scored)
    for group in by_length([len(text.ids) for _, text in scored], rows=MAX_ROWS, tokens=batch_tokens):
        with torch.inference_mode():
            scores = _scores(model, [scored[place][1] for place in group])
        for place, one in zip(group, scores, strict=True):
            index, text = scored[place]
            widths = tuple(map(len, token_texts(spelling.pieces(text.ids[text.start :]))))
            results[index] = replace(one, widths=widths) if math.isfinite(one.total) else not_finite()
        done += len(group)
        if watch is not None:
            watch(done)
    return results


@dataclass(frozen=True, slots=True)
class ContinuationScores:
    """Scores of a continuation, all with one entry per token."""

    logprobs: tuple[float, ...] = ()
    """In nats, given all tokens before."""
    agrees: tuple[bool, ...] = ()
    """Whether the token is the model's most probable one there."""
    widths: tuple[int, ...] = ()
    """Characters that the token spells; a character in several tokens counts at the last of them."""

    @property
    def total(self) -> float:
        """The sum of the log-probabilities."""
        return math.fsum(self.logprobs)


@dataclass(frozen=True, slots=True)
class _Text:
    """Ids of a prompt with its continuation."""

    ids: list[int]
    start: int
    """Position at which the continuation begins."""

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return len(self.ids) - self.start

    def targets(self, device: torch.device) -> torch.Tensor:
        """Ids of the scored tokens."""
        return torch.tensor(self.ids[self.start :], device=device)


def _text(
    model: Any, tokenizer: Any, template: str, messages: Sequence[Message], continuation: str
) -> _Text | ProviderError:
    try:
        start = len(chat_template.prompt_ids(messages, template, tokenizer))
        whole = [*messages, Message("assistant", continuation)]
        ids = chat_template.encode(whole, template, tokenizer, truncated=True).input_ids
    except DistillError as error:
        return ProviderError("template", str(error))
    if len(ids) > context_tokens(model):
        return ProviderError("context_length", f"{len(ids)} tokens, and the model takes {context_tokens(model)}")
    if not start:
        return ProviderError("empty_prompt", "the prompt has no tokens")
    return _Text(ids, start)


def _scores(model: Any, texts: Sequence[_Text]) -> list[ContinuationScores]:
    """Scores of one right-padded batch."""
    return [
        _of_logs(torch.log_softmax(logits.float(), dim=-1), text.targets(logits.device))
        for logits, text in zip(_logits(model, texts), texts, strict=True)
    ]


def _of_logs(logs: torch.Tensor, targets: torch.Tensor) -> ContinuationScores:
    logprobs = logs.gather(-1, targets[:, None])[:, 0]
    return ContinuationScores(tuple(logprobs.double().tolist()), tuple((logs.argmax(-1) == targets).tolist()))


def _logits(model: Any, texts: Sequence[_Text]) -> Iterator[torch.Tensor]:
    """For each text of one right-padded batch, the logits (n × V) that predict its n scored tokens.

    They are computed only from the shortest prompt's last token on.
    """
    ids, mask = padded([text.ids for text in texts], on_left=False, device=model.device)
    first = min(text.start for text in texts) - 1
    logits = model(
        input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=ids.shape[1] - first
    ).logits  # B × (T − first) × V, of which position p predicts token first + p + 1
    for row, text in enumerate(texts):
        yield logits[row, text.start - 1 - first : len(text.ids) - 1 - first]


# Two models


PAIR_TOKENS = 512
"""Padded tokens in one batch of two models, whose logits are both in memory."""
TILE = 128
"""Positions whose distributions are compared at once: 25 MB in float32 with a vocabulary of 49,152, a few times."""


@dataclass(frozen=True, slots=True)
class PairScores:
    """Two models at each token of one continuation."""

    teacher: ContinuationScores
    student: ContinuationScores
    divergence: tuple[float, ...]
    """KL(teacher ‖ student) over the whole vocabulary, in nats."""
    acceptance: tuple[float, ...]
    """Σ min(p, q): the probability that the teacher accepts a token drafted by the student (Leviathan et al., 2023)."""
    same_first: tuple[bool, ...]
    """Whether both have the same most probable token."""


def pair_scores(
    teacher: LoadedModel,
    student: LoadedModel,
    pairs: Sequence[tuple[Sequence[Message], str]],
    *,
    watch: Callable[[int], None] | None = None,
) -> list[PairScores | ProviderError]:
    """For each (prompt, continuation): how the teacher's and the student's next-token distributions differ.

    Each model reads the conversation in its own template; both must have one tokenizer. Vocabularies of different sizes
    are cut to their common rows. The end token is excluded. A pair that one of them cannot read fails alone. `watch` is
    called after each batch with the number of pairs done.
    """
    texts = [_pair_of_texts(teacher, student, *pair) for pair in pairs]
    results: list[PairScores | ProviderError] = [
        text if isinstance(text, ProviderError) else PairScores(ContinuationScores(), ContinuationScores(), (), (), ())
        for text in texts
    ]
    spelling = Spelling(student.tokenizer)
    scored = [(index, text) for index, text in enumerate(texts) if not isinstance(text, ProviderError)]
    scored = [(index, text) for index, text in scored if text[0].scored]
    lengths, done = [max(len(one.ids) for one in text) for _, text in scored], len(pairs) - len(scored)
    for group in by_length(lengths, rows=MAX_ROWS, tokens=PAIR_TOKENS):
        theirs, own = zip(*(scored[place][1] for place in group), strict=True)
        with torch.inference_mode():
            logits = zip(_logits(teacher.model, theirs), _logits(student.model, own), strict=True)
            for place, text, both in zip(group, own, logits, strict=True):
                one = _compared(*both, text.targets(both[0].device))
                widths = tuple(map(len, token_texts(spelling.pieces(text.ids[text.start :]))))
                is_finite = math.isfinite(one.teacher.total + one.student.total + math.fsum(one.divergence))
                teachers, students = (replace(side, widths=widths) for side in (one.teacher, one.student))
                whole = replace(one, teacher=teachers, student=students)
                results[scored[place][0]] = whole if is_finite else not_finite()
        done += len(group)
        if watch is not None:
            watch(done)
    return results


def _pair_of_texts(
    teacher: LoadedModel, student: LoadedModel, messages: Sequence[Message], continuation: str
) -> tuple[_Text, _Text] | ProviderError:
    theirs, own = (_text(one.model, one.tokenizer, one.template, messages, continuation) for one in (teacher, student))
    if isinstance(theirs, ProviderError):
        return theirs
    if isinstance(own, ProviderError):
        return own
    if theirs.ids[theirs.start :] != own.ids[own.start :]:
        return ProviderError("template", "the templates of teacher and student divide the answer into other tokens")
    return theirs, own


def _compared(theirs: torch.Tensor, own: torch.Tensor, targets: torch.Tensor) -> PairScores:
    """The scores from both models' logits (n × V each, V may differ) of n tokens with the ids `targets`."""
    rows = min(theirs.shape[-1], own.shape[-1])
    parts: list[PairScores] = []
    for start in range(0, len(targets), TILE):
        tile = slice(start, start + TILE)
        whole = [torch.log_softmax(one[tile].float(), dim=-1) for one in (theirs, own.to(theirs.device))]
        p, q = (one if one.shape[-1] == rows else torch.log_softmax(one[:, :rows], dim=-1) for one in whole)
        distances, same = token_distances(p, q), p.argmax(-1) == q.argmax(-1)
        teacher, student = (_of_logs(one, targets[tile]) for one in whole)
        per_token = (distances.forward, distances.acceptance, same)
        divergence, acceptance, same_first = (tuple(one.tolist()) for one in per_token)
        parts.append(PairScores(teacher, student, divergence, acceptance, same_first))
    return _joined(parts)


def _joined(parts: Sequence[PairScores]) -> PairScores:
    """The scores of consecutive tiles as one."""
    teacher, student = (
        ContinuationScores(
            tuple(chain.from_iterable(one.logprobs for one in side)),
            tuple(chain.from_iterable(one.agrees for one in side)),
        )
        for side in ([one.teacher for one in parts], [one.student for one in parts])
    )
    return PairScores(
        teacher,
        student,
        divergence=tuple(chain.from_iterable(one.divergence for one in parts)),
        acceptance=tuple(chain.from_iterable(one.acceptance for one in parts)),
        same_first=tuple(chain.from_iterable(one.same_first for one in parts)),
    )


@dataclass(frozen=True, slots=True)
class TokenDistances:
    """Distances of two distributions at each of n positions, each a tensor of n."""

    forward: torch.Tensor
    """KL(p ‖ q), in nats."""
    reverse: torch.Tensor
    """KL(q ‖ p), in nats."""
    acceptance: torch.Tensor
    """Σ min(p, q), 0 to 1."""


def token_distances(p: torch.Tensor, q: torch.Tensor) -> TokenDistances:
    """The distances of two distributions from their log-probabilities, n × V each."""
    return TokenDistances(_divergence(p, q), _divergence(q, p), torch.minimum(p, q).exp().sum(-1))


def _divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL of n × V log-probabilities; what p rules out counts nothing."""
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1)
