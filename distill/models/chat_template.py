r"""Renders conversations to token ids and a loss mask, identically for training, likelihoods and generation.

A template is a Jinja chat template, and training uses the same one that is saved with the student, so the two cannot
diverge. The mask is found by rendering: the answer is what a conversation has beyond its own prompt.

- `alpaca`  Stanford Alpaca's form without input (a task's input follows its instruction in the user message); the
  first system message replaces the preamble.
- `vicuna`  FastChat's v1.1: `… USER: question ASSISTANT: answer</s>` with the tokenizer's own end token.
- `chatml`  `<|im_start|>role\n…<|im_end|>\n`, without a default system message. A tokenizer that lacks those tokens
  spells them as text and ends answers with its own end token.
- `own`     the chat template of the model's tokenizer, on a fixed date; it needs no {% generation %} marks.

In the first three, white space around an answer is not part of it: a newline there would merge with the template's.
`distill.train.mask_check` verifies every mask independently before the first step.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal, Protocol, get_args

from distill.errors import DistillError, RecipeError, one_line
from distill.models.templates import source as template_source
from distill.models.templates.control_tokens import is_call, pattern_of, plain_controls
from distill.types import Message

Template = Literal["alpaca", "vicuna", "chatml", "own"]
TEMPLATES: tuple[str, ...] = get_args(Template)
TrainOn = Literal["all", "last"]
"""Which answers of a conversation are trained."""

IGNORED = -100
"""The label of a token that is not trained."""
_UNUSED_CHARS = "".join(map(chr, (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900))))
"""Characters that texts rarely hold: Unicode's noncharacters and its private use area."""


class Tokenizer(Protocol):
    """The parts of a Hugging Face tokenizer that are used here."""

    eos_token: Any
    bos_token: Any
    chat_template: Any

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Token objects (`content`, `special`, `lstrip`, `rstrip`) by id."""

    def encode(self, text: str, /, **options: Any) -> list[int]:
        """Ids of a text."""

    def apply_chat_template(self, conversation: Any, /, **options: Any) -> Any:
        """A conversation rendered by a chat template."""


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation for training; both lists have the same length."""

    input_ids: list[int]
    labels: list[int]
    """The ids of the answers and their end tokens, `IGNORED` elsewhere."""

    @property
    def trained(self) -> int:
        """Number of tokens in the loss."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True, slots=True)
class _Span:
    text: str
    trained: bool


def encode(
    messages: Sequence[Message],
    template: str,
    tokenizer: Tokenizer,
    *,
    truncated: bool = False,
    train_on: TrainOn = "all",
    unlearnt: Collection[int] = (),
) -> Example:
    """Ids and labels of a whole conversation that ends with an answer; every assistant turn is trained, or the last.

    `unlearnt` has the numbers, from 0, of assistant turns that are context only. `truncated` says that the last answer
    was cut off: it gets no end token, so that the student does not learn to stop there. Control tokens that a message
    merely mentions stay text. Raises `DistillError` for a conversation that the template cannot render and
    `RecipeError` for a template that cannot be masked.
    """
    if not messages or messages[-1].role != "assistant":
        raise DistillError("the conversation does not end with an assistant turn; expected an answer to train on")
    if messages[0].role == "assistant":
        raise DistillError(
            "the conversation begins with an assistant turn; expected a user or system turn first: leave it out by "
            "curate's rule `format`"
        )
    rendering = _Rendering(template, tokenizer, messages)
    return rendering.example(rendering.spans(truncated=truncated, train_on=train_on, unlearnt=unlearnt))


def prompt_ids(messages: Sequence[Message], template: str, tokenizer: Tokenizer) -> list[int]:
    """Ids up to where the next answer starts: exactly the untrained prefix that `encode` gives with that answer.

    Generated text continues them; strip its white space.
    """
    rendering = _Rendering(template, tokenizer, messages)
    return rendering.example(rendering.prompt_spans()).input_ids


def end_ids(template: str, tokenizer: Tokenizer) -> list[int]:
    """The ids that end an answer: the one trained first, then the tokenizer's own end token if it is another."""
    probe = (Message("user", "a"), Message("assistant", "b"))
    own = tokenizer.encode(tokenizer.eos_token, add_special_tokens=False) if tokenizer.eos_token else []
    return list(dict.fromkeys([encode(probe, template, tokenizer).labels[-1], *own]))


def jinja(template: str, tokenizer: Tokenizer) -> str:
    """The chat template to save with a student, so that `apply_chat_template` gives the ids it was trained on.

    Raises `RecipeError` for an unknown name, for `own` where the tokenizer has none, or without an end token.
    """
    if template not in TEMPLATES:
        raise RecipeError(f'unknown template "{template}"; expected one of {", ".join(TEMPLATES)}')
    if template == "own":
        return template_source.own(tokenizer.chat_template)
    end = "'<|im_end|>'" if template == "chatml" and _is_special(tokenizer, "<|im_end|>") else "eos_token"
    if end == "eos_token" and not tokenizer.eos_token:
        raise RecipeError(
            f"template {template}: the tokenizer has no end token, so no answer could end; use template own, or name "
            "its eos_token in the model's tokenizer_config.json"
        )
    return (
        template_source.TEXTS[template]
        .replace("BOS", "{{ bos_token }}" if starts_with_bos(tokenizer) else "")
        .replace("END", end)
    )


def controls(template: str, tokenizer: Tokenizer) -> dict[str, int]:
    """Ids, by content, of the control tokens: those that are special, and others that the template writes."""
    special = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return special | plain_controls(jinja(template, tokenizer), tokenizer)


def _is_special(tokenizer: Tokenizer, text: str) -> bool:
    return any(token.special and token.content == text for token in tokenizer.added_tokens_decoder.values())


def starts_with_bos(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts a begin token before every text."""
    if not tokenizer.bos_token:
        return False
    return tokenizer.encode("a")[:1] == tokenizer.encode(tokenizer.bos_token, add_special_tokens=False)[:1]


def render(messages: Sequence[Message], template: str, tokenizer: Tokenizer) -> str:
    """The text up to the next answer as `apply_chat_template` gives it: a control token in a message becomes real.

    Raises `DistillError` for a conversation that the template cannot render.
    """
    return applied(messages, template, jinja(template, tokenizer), tokenizer, prompt=True)


def applied(messages: Sequence[Message], name: str, source: str, tokenizer: Tokenizer, *, prompt: bool) -> str:
    """The text that a chat template (`source`) gives. Raises `DistillError`, naming it `name`, where it gives none."""
    from jinja2 import TemplateError

    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(
            tokenizer.apply_chat_template(turns, chat_template=source, tokenize=False, add_generation_prompt=prompt)
        )
    except (TemplateError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise DistillError(
            f"template {name} cannot render the conversation: {one_line(str(error))}; set student.template to "
            "chatml, which takes any turns, or leave such rows out by a rule of curate"
        ) from error


def default_system(template: str, tokenizer: Tokenizer) -> str:
    """The system turn that a template writes where a conversation has none; empty for none."""
    source, probe = jinja(template, tokenizer), _UNUSED_CHARS[-1]
    user = Message("user", probe)
    try:
        plain, given = (
            applied(turns, template, source, tokenizer, prompt=True).partition(probe)[0]
            for turns in ([user], [Message("system", probe), user])
        )
    except DistillError:
        return ""
    marks = pattern_of(token.content for token in tokenizer.added_tokens_decoder.values())
    return marks.split(plain[len(given) :])[0].strip() if plain.startswith(given) else ""


def _check_roles(messages: Sequence[Message], template: str) -> None:
    for index, message in enumerate(messages):
        if message.role not in ("system", "user", "assistant"):
            raise DistillError(
                f'template {template} has no place for a "{message.role}" turn; expected system, user or assistant'
            )
        if message.role == "system" and index:
            raise DistillError(
                f"template {template}: turn {index + 1} is a system turn; expected it first or not at all"
            )


class _Rendering:
    """One conversation in one template, with a mark inside each control token that a message merely mentions.

    A special token stays text by an option of the tokenizer, so its mark is taken out of the text before it is encoded.
    For other control tokens there is none: the text is encoded in two parts, cut at the mark.
    """

    def __init__(self, template: str, tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
        self._jinja, self._tokenizer, self._name = jinja(template, tokenizer), tokenizer, template
        if template != "own":
            _check_roles(messages, template)
        self._special = {
            token.content: (id_, token) for id_, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self._pattern = pattern_of(self._special)
        self._plain = plain_controls(self._jinja, tokenizer)
        self._plain_pattern = pattern_of(self._plain)
        text = "".join(message.content for message in messages)
        self._mark, self._cut = islice((char for char in _UNUSED_CHARS if char not in text), 2)
        self._messages = [Message(message.role, self._broken(message)) for message in messages]

    def _broken(self, message: Message) -> str:
        def cut(match: re.Match[str]) -> str:
            is_kept = message.role == "assistant" and is_call(match[0])
            return match[0] if is_kept else match[0][0] + self._cut + match[0][1:]

        text = self._pattern.sub(lambda match: match[0][0] + self._mark + match[0][1:], message.content)
        return self._plain_pattern.sub(cut, text)

    def _render(self, count: int, *, prompt: bool) -> str:
        return applied(self._messages[:count], self._name, self._jinja, self._tokenizer, prompt=prompt)

    def spans(self, *, truncated: bool, train_on: TrainOn, unlearnt: Collection[int]) -> list[_Span]:
        """The text of the conversation in untrained and trained spans; nothing follows the last end token.

        Raises `RecipeError` where an answer cannot be trained.
        """
        last = len(self._messages) - 1
        answers = {index for index, message in enumerate(self._messages) if message.role == "assistant"}
        turns = (answers if train_on == "all" else {last}) - set(unlearnt)
        spans = list(self._answers(self._render(last + 1, prompt=False), turns))
        if truncated:
            answer = spans[-1].text
            spans[-1] = _Span(answer[: self._end(last, answer).start()].rstrip(), trained=spans[-1].trained)
        return spans

    def prompt_spans(self) -> list[_Span]:
        """The text up to the next answer, cut at earlier answers as `spans` cuts it."""
        whole = self._render(len(self._messages), prompt=True)
        spans = list(self._answers(whole, frozenset()))
        return [*spans, _Span(whole[sum(len(span.text) for span in spans) :], trained=False)]

    def _answers(self, whole: str, turns: Collection[int]) -> Iterator[_Span]:
        """Each answer and the text before it; one outside `turns` that is rendered differently later is skipped."""
        position = 0
        for index, message in enumerate(self._messages):
            if message.role != "assistant":
                continue
            place = self._answer(index, whole, is_trained=index in turns)
            if place is not None:
                start, answer = place
                yield _Span(whole[position:start], trained=False)
                yield _Span(answer, trained=index in turns)
                position = start + len(answer)

    def _answer(self, index: int, whole: str, *, is_trained: bool) -> tuple[int, str] | None:
        """Start of an answer in `whole`, and its text with the end token."""
        prompt, full = self._render(index, prompt=True), self._render(index + 1, prompt=False)
        if full.startswith(prompt):
            answer = full[len(prompt) :]
            answer = answer[: self._end(index, answer).end()]
            if whole.startswith(prompt + answer):
                return len(prompt), answer
        if not is_trained:
            return None
        elsewhere = "set train_on to last, or use" if index + 1 < len(self._messages) else "use"
        raise RecipeError(
            f"template {self._name} renders an answer differently when it is generated, when it is last and when "
            f"more follows, so it cannot be trained; {elsewhere} template chatml"
        )

    def _end(self, index: int, answer: str) -> re.Match[str]:
        """The control token that ends an answer: the first one after its words, a special one where there is any."""
        words, start = self._messages[index].content.strip(), 0
        matches = list(self._pattern.finditer(answer)) or list(self._plain_pattern.finditer(answer))
        if not matches:
            raise RecipeError(f"template {self._name} ends answers with no special token; use template chatml")
        holding = []
        for match in matches:
            if words in answer[start : match.start()]:
                holding.append(match)
            start = match.end()
        return (holding or matches)[-1]

    def example(self, spans: Sequence[_Span]) -> Example:
        """Ids and labels of the spans; no token extends from one span into the next."""
        input_ids: list[int] = []
        labels: list[int] = []
        place: _Place = "start"
        alike = _places_alike(self._tokenizer)
        for piece, trained in self._pieces(spans):
            ids_of = _split_ids if place in alike else _inner_ids
            ids = [piece] if isinstance(piece, int) else self._checked(piece, ids_of(piece, self._tokenizer))
            input_ids += ids
            labels += ids if trained else [IGNORED] * len(ids)
            place = "special" if isinstance(piece, int) else "text"
        return Example(input_ids, labels)

    def _checked(self, text: str, ids: list[int]) -> list[int]:
        """The ids of a text, if each control token in them is spelled there: a normaliser may make one of others."""
        for mark, id_ in self._plain.items():
            if ids.count(id_) > text.count(mark):
                raise DistillError(
                    f"a message spells the control token {mark!a} in other characters; expected none of the "
                    "template's marks: leave it out by a rule of curate"
                )
        return ids

    def _pieces(self, spans: Sequence[_Span]) -> Iterator[tuple[int | str, bool]]:
        """Ids of the template's special tokens, the runs of plain text between them, and whether each is trained."""
        strips = False
        for span in spans:
            position = 0
            for match in chain(self._pattern.finditer(span.text), [None]):
                run = span.text[position : match.start() if match else None]
                id_, token = self._special[match[0]] if match else (None, None)
                run = run.lstrip() if strips else run
                run = run.rstrip() if token is not None and token.lstrip else run
                for part in filter(None, run.replace(self._mark, "").split(self._cut)):
                    yield part, span.trained
                    strips = False
                if match is not None and token is not None and id_ is not None:
                    yield id_, span.trained
                    position, strips = match.end(), token.rstrip


_Place = Literal["start", "special", "text"]
"""What precedes a run of plain text."""


def _places_alike(tokenizer: Tokenizer) -> frozenset[_Place]:
    """The places at which a run of plain text has the same ids as by itself.

    SentencePiece-like tokenizers add a space before every text, or only at its start: in the other places, the ids of
    the run by itself would contain an extra space.
    """
    alone = _split_ids("a", tokenizer)
    if alone == _inner_ids("a", tokenizer):
        return frozenset(("start", "special", "text"))
    if tokenizer.encode(tokenizer.eos_token + "a", add_special_tokens=False)[1:] == alone:
        return frozenset(("start", "special"))
    return frozenset(("start",))


def _split_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    return token_ids(text, tokenizer, add_special_tokens=False, split_special_tokens=True)


def token_ids(text: str, tokenizer: Tokenizer, **options: bool) -> list[int]:
    """Ids of a text. Raises `DistillError` where the tokenizer panics, as at a regular expression without end."""
    try:
        return list(tokenizer.encode(text, **options))
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust; no Exception
            raise
        reason = one_line(str(error))
        raise DistillError(f"the tokenizer fails at a text of {len(text):,} characters: {reason}") from error


def _inner_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a text that follows other text, taken after a character that does not merge with its beginning."""
    for anchor in "\n", "a", "0", ".":
        before, ids = _split_ids(anchor, tokenizer), _split_ids(anchor + text, tokenizer)
        if ids[: len(before)] == before:
            return ids[len(before) :]
    return _split_ids(text, tokenizer)
