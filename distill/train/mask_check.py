"""Verifies every row's loss mask by a second method before the first step.

`models.chat_template` finds the mask by rendering a conversation piece by piece. Here the whole conversation is
rendered at once by the template that is saved with the student; a second rendering, with every message between two
characters that occur nowhere else, shows which message each part of the text belongs to. The byte offsets of each token
then decide whether it may be trained. A single wrong label stops the run and is named.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise, zip_longest
from typing import Any, Literal

from distill.errors import MaskError
from distill.models import chat_template
from distill.models.chat_template import IGNORED, Example, TrainOn
from distill.models.templates.control_tokens import is_call, is_thought
from distill.models.token_bytes import Spelling
from distill.train.mask_text import bare, places, quoted, span
from distill.types import Message

LostSystem = Literal["refuse", "accept"]
_PRIVATE = (0xF0000, 0xF8000, 0x100000, 0x108000)
"""Starts of ranges for private use in Unicode; messages are marked with a range that none of them uses."""


class UnspeltError(MaskError):
    """A row contains characters that the tokenizer cannot encode."""


@dataclass(frozen=True, slots=True)
class MaskRow:
    """One example with the session it was made from."""

    id: str
    """The session's; with `#2` behind it for the second part of a session that was split."""
    messages: Sequence[Message]
    example: Example
    truncated: bool = False
    """Whether the last answer was cut off, so that it must have no end token."""
    unlearnt: frozenset[int] = frozenset()
    """Numbers of the messages, from 0, that are answers for context only."""

    def encoded(self, template: str, tokenizer: Any, train_on: TrainOn) -> Example:
        """The row in another template and tokenizer. Raises `DistillError` where that cannot render it."""
        return chat_template.encode(
            self.messages, template, tokenizer, truncated=self.truncated, train_on=train_on, unlearnt=self.unlearnt
        )


@dataclass(slots=True)
class MaskReport:
    """Findings of the mask check."""

    rows: int = 0
    merging: list[str] = field(default_factory=list)
    """Rows that have other ids when tokenised at once, where a token would cross the edge of an answer."""
    mentioning: list[str] = field(default_factory=list)
    """Rows whose messages spell control tokens, which stay text."""
    joined: list[str] = field(default_factory=list)
    """Rows whose system turn the template merges into the user turn."""
    lost: list[str] = field(default_factory=list)
    """Rows whose system turn the template drops, as `lost_system: accept` allows."""


@dataclass(frozen=True, slots=True)
class _Text:
    """The text of a row's tokens, with the byte offsets of each."""

    text: str
    starts: list[int]
    ends: list[int]
    readable: str
    """The rendered template, normalised as the tokenizer does."""
    exact: bool
    """Whether the text equals the rendered template; otherwise they differ in white space."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """What the template writes around some turns."""

    control: set[int]
    """Ids that no message may hold."""
    ids: list[int]
    """Those among the template's own, in order."""
    calls: dict[int, int]
    """How often it writes each mark of a tool call, which an answer may hold too."""


class MaskGate:
    """Checks rows against one template."""

    def __init__(
        self, template: str, tokenizer: Any, *, train_on: TrainOn = "all", lost_system: LostSystem = "refuse"
    ) -> None:
        self._name, self._tokenizer, self._train_on = template, tokenizer, train_on
        self._accepts_loss = lost_system == "accept"
        self._jinja = chat_template.jinja(template, tokenizer)
        self.spelling = Spelling(tokenizer)
        self._special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._control = {id_: mark for mark, id_ in chat_template.controls(template, tokenizer).items()}
        self._frames: dict[tuple[str, ...], _Frame] = {}
        self.checked = MaskReport()

    def check(self, row: MaskRow) -> None:
        """Raise `MaskError`, naming row and token, where a mask differs from what the template requires.

        Raises `UnspeltError` instead where the tokenizer cannot encode a character.

        Checked: each label is the token's own id or `IGNORED`; the tokens spell the rendered template, and equal its
        tokenisation at once; every control token comes from the template; no turn is lost; exactly the answers to
        learn and their end tokens are trained; a truncated answer ends its row.
        """
        self._check_labels(row)
        rendered = self._render(row.messages)
        natural = self._tokenizer.encode(rendered, add_special_tokens=False)
        text = self._check_text(row, rendered, natural)
        self._check_ids(row, rendered, text, natural)
        self._check_control(row)
        ends = self._check_turns(row, rendered, text)
        self._check_mask(row, text, self._trainable(row, rendered, text, ends))
        self.checked.rows += 1

    def _render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        return chat_template.applied(messages, self._name, self._jinja, self._tokenizer, prompt=prompt)

    # Tokens and text

    def _check_labels(self, row: MaskRow) -> None:
        ids, labels = row.example.input_ids, row.example.labels
        if len(ids) != len(labels):
            raise self._fault(row, f"{len(ids)} tokens and {len(labels)} labels; expected as many")
        for place, (id_, label) in enumerate(zip(ids, labels, strict=True)):
            if label not in (IGNORED, id_):
                raise self._fault(row, f"{self._describe(row, place)} is trained towards the id {label}")
        if not row.example.trained:
            raise self._fault(row, "no token is trained")

    def _check_text(self, row: MaskRow, rendered: str, natural: Sequence[int]) -> _Text:
        """Compare the text of the row's tokens with the rendered template."""
        pieces = self.spelling.pieces(row.example.input_ids)
        spelt = b"".join(pieces).decode("utf-8", "backslashreplace")
        whole = b"".join(self.spelling.pieces(natural)).decode("utf-8", "backslashreplace")
        if whole != rendered and bare(whole) != bare(self.spelling.readable(rendered)):
            raise UnspeltError(f"session {row.id}: the tokenizer has no tokens for some of its characters")
        exact = rendered.startswith(spelt)
        readable = rendered if exact else self.spelling.readable(rendered)
        about = self._mentions(row) and bare(readable).startswith(bare(spelt))
        if not exact and not whole.startswith(spelt) and not about:
            expected = rendered if whole == rendered else whole
            raise self._fault(row, self._parting(row, pieces, expected))
        rest = rendered[len(spelt) :] if exact else bare(readable)[len(bare(spelt)) :]
        for token in self._control.values():
            rest = rest.replace(token, "")
        if rest.strip():
            raise self._fault(row, f"the tokens end early: the template goes on with {quoted(rest.strip())}")
        ends = list(accumulate(map(len, pieces)))
        return _Text(spelt, [0, *ends[:-1]], ends, readable, exact)

    def _parting(self, row: MaskRow, pieces: Sequence[bytes], expected: str) -> str:
        """Describes the first token that differs from the template."""
        expected_bytes, spelt = expected.encode(), b"".join(pieces)
        parting = next((at for at, (a, b) in enumerate(zip_longest(spelt, expected_bytes)) if a != b), 0)
        place = bisect_right(list(accumulate(map(len, pieces))), parting)
        there = expected_bytes[parting : parting + 40].decode("utf-8", "ignore")
        info = self._describe(row, min(place, len(pieces) - 1))
        has = f"does not spell what the template has: {quoted(there)}" if there else "stands behind the template's end"
        return f"{info} {has}"

    def _check_ids(self, row: MaskRow, rendered: str, text: _Text, natural: Sequence[int]) -> None:
        """Compare with the ids of the whole text; only a message's control token or a merge at an edge may differ."""
        ids = row.example.input_ids
        if ids == list(natural[: len(ids)]):
            return
        if self._mentions(row):
            self.checked.mentioning.append(row.id)
            return
        if self._merges(row, rendered, text, natural):
            self.checked.merging.append(row.id)
            return
        at = next(at for at, (a, b) in enumerate(zip_longest(ids, natural)) if a != b)
        other = quoted(self.spelling.pieces([natural[at]])[0].decode("utf-8", "backslashreplace"))
        raise self._fault(
            row, f"{self._describe(row, at)} is {other} (id {natural[at]}) in one pass over the whole text"
        )

    def _merges(self, row: MaskRow, rendered: str, text: _Text, natural: Sequence[int]) -> bool:
        """Whether a token of the whole text crosses the edge of an answer, or cutting there gives the row's ids."""
        edges = self._edges(row, rendered, text)
        if not set(edges) <= set(accumulate(map(len, self.spelling.pieces(natural)))):
            return True
        spelt = text.text.encode()
        parts = [spelt[start:end].decode(errors="ignore") for start, end in pairwise([0, *edges, len(spelt)])]
        ids = [id_ for part in parts for id_ in self._tokenizer.encode(part, add_special_tokens=False)]
        return ids == row.example.input_ids

    def _edges(self, row: MaskRow, rendered: str, text: _Text) -> list[int]:
        """Byte offsets where trained spans begin and end, and where untrained answers begin."""
        trained = [label != IGNORED for label in row.example.labels]
        edges = {text.starts[at] for at in range(1, len(trained)) if trained[at] != trained[at - 1]}
        for at, message in enumerate(row.messages):
            prompt = self._render(row.messages[:at], prompt=True) if message.role == "assistant" else ""
            if prompt and text.exact and rendered.startswith(prompt):
                edges.add(len(prompt.encode()))
        return sorted(edge for edge in edges if 0 < edge < text.ends[-1])

    def _mentions(self, row: MaskRow) -> bool:
        return any(token in message.content for message in row.messages for token in self._control.values())

    def _check_control(self, row: MaskRow) -> None:
        """Compare the row's control tokens with those of the same turns without their contents."""
        frame = self._frame(tuple(message.role for message in row.messages))
        controls = [at for at, id_ in enumerate(row.example.input_ids) if id_ in frame.control]
        for place, expected in zip_longest(controls, frame.ids[: len(controls)]):
            if row.example.input_ids[place] != expected:
                raise self._fault(row, f"{self._describe(row, place)} is real where a message only mentions it")
        answers = [message.content for message in row.messages if message.role == "assistant"]
        for id_, written in frame.calls.items():
            allowed = written + sum(answer.count(self._control[id_]) for answer in answers)
            if row.example.input_ids.count(id_) > allowed:
                place = row.example.input_ids.index(id_)
                raise self._fault(row, f"{self._describe(row, place)} is real where no answer calls a tool")

    def _frame(self, roles: tuple[str, ...]) -> _Frame:
        if roles not in self._frames:
            text = self._render([Message(role, "x") for role in roles])
            ids = self._tokenizer.encode(text, add_special_tokens=False)
            # a plain token that the normaliser hides in some places, as after `x`, is text to the tokenizer
            works = {id_ for id_, mark in self._control.items() if ids.count(id_) >= text.count(mark)}
            plain = {id_ for id_ in works - self._special if not is_call(self._control[id_])}
            control = self._special | plain
            calls = {id_: ids.count(id_) for id_ in works - control}
            self._frames[roles] = _Frame(control, [id_ for id_ in ids if id_ in control], calls)
        return self._frames[roles]

    # Turns

    def _check_turns(self, row: MaskRow, rendered: str, text: _Text) -> dict[int, int]:
        """Check that no turn is lost; returns the end of each answer, in characters that are not white space."""
        marks, framed = self._framed(row)
        positions = places(framed, marks)
        for at, message in enumerate(row.messages):
            if message.content.strip() and not (2 * at in positions and 2 * at + 1 in positions):
                self._check_lost(row, at)
        self._note_joined(row, framed, marks)
        if bare(marks.sub("", framed)) != bare(rendered):
            return {}
        if not text.exact:
            positions = places(self.spelling.readable(framed), marks)
        return {at: positions[2 * at + 1] for at in range(len(row.messages)) if 2 * at + 1 in positions}

    def _framed(self, row: MaskRow) -> tuple[re.Pattern[str], str]:
        """The conversation rendered with every message between two marks, after the pattern that finds the marks."""
        count, contents = 2 * len(row.messages), "".join(message.content for message in row.messages)
        classes = {base: re.compile(f"[{chr(base)}-{chr(base + count - 1)}]") for base in _PRIVATE}
        base = next((base for base, marks in classes.items() if not marks.search(contents)), _PRIVATE[0])
        framed = [
            Message(message.role, f"{chr(base + 2 * at)}{message.content}{chr(base + 2 * at + 1)}")
            for at, message in enumerate(row.messages)
        ]
        return classes[base], self._render(framed)

    def _check_lost(self, row: MaskRow, at: int) -> None:
        role, content = row.messages[at].role, row.messages[at].content
        if role == "assistant":
            return  # `_answer` checks each
        if role == "system" and self._accepts_loss:
            self.checked.lost.append(row.id)
            return
        remedy = ", or train.lost_system to accept" if role == "system" else ""
        raise MaskError(
            f"template {self._name} leaves out the {role} turn of session {row.id} ({quoted(content)}); set "
            f"student.template to chatml{remedy}"
        )

    def _note_joined(self, row: MaskRow, framed: str, marks: re.Pattern[str]) -> None:
        """Note a system turn that no control token separates from the question after it."""
        marks_by_number = {ord(mark[0]) % 0x8000: mark for mark in marks.finditer(framed)}
        if row.messages[0].role == "system" and {1, 2} <= marks_by_number.keys() and self._name == "own":
            between = framed[marks_by_number[1].end() : marks_by_number[2].start()]
            if not any(token in between for token in self._control.values()):
                self.checked.joined.append(row.id)

    # The mask

    def _trainable(self, row: MaskRow, rendered: str, text: _Text, ends: dict[int, int]) -> list[range]:
        """Token range of each answer to train, including its end token."""
        answers = [at for at, message in enumerate(row.messages) if message.role == "assistant"]
        turns = [at for at in (answers if self._train_on == "all" else answers[-1:]) if at not in row.unlearnt]
        if empty := [at for at in turns if not row.messages[at].content.strip()]:
            raise self._fault(row, f"the answer in turn {empty[0] + 1} is empty")
        return [self._answer(row, rendered, text, at, ends.get(at)) for at in turns]

    def _answer(self, row: MaskRow, rendered: str, text: _Text, at: int, end: int | None) -> range:
        prompt = self._render(row.messages[:at], prompt=True)
        if not rendered.startswith(prompt):
            raise self._fault(row, f"turn {at + 1} follows another prompt in the whole text than when it is asked for")
        readable = str if text.exact else self.spelling.readable
        begin, whole, words = (
            len(bare(readable(prompt))),
            bare(text.readable),
            bare(readable(row.messages[at].content)),
        )
        end = whole.find(words, begin) + len(words) if end is None else end
        opened = whole[max(end - len(words), 0) : begin]
        if not whole[:end].endswith(words) or (opened and not is_thought(opened)):
            raise self._fault(row, f"the template changes the answer in turn {at + 1}, {quoted(words)}")
        if end > begin + len(words) and prompt == self._render(row.messages[:at]):
            header = whole[begin : end - len(words)]
            raise self._fault(
                row,
                f"the template ignores add_generation_prompt: the answer in turn {at + 1} would begin with "
                f"{quoted(header)}",
            )
        if end > len(bare(text.text)):
            raise self._fault(row, f"{self._describe(row, len(text.ends) - 1)} is the last, before the answer ends")
        first = self._first(row, text, begin, len(prompt.encode()) if text.exact else None)
        last = bisect_left(text.ends, span(text.text, end - 1)[1]) if end > begin else first - 1
        if row.truncated and at == len(row.messages) - 1:
            return self._cut(row, text, first, last)
        behind = range(last + 1, len(text.ends))
        for ends in (self._special, self._control):
            for place in behind:
                if row.example.input_ids[place] in ends:
                    return range(first, place + 1)
        raise self._fault(row, f"{self._describe(row, last)} is the last of an answer, and no end token follows")

    def _first(self, row: MaskRow, text: _Text, begin: int, exact: int | None) -> int:
        """The answer's first token: at the end of its prompt, or near it where the text differs in white space."""
        least = most = exact or 0
        if exact is None:
            least, most = span(text.text, begin - 1)[1], span(text.text, begin)[0]
        place = bisect_left(text.starts, least)
        if place == len(text.starts) or text.starts[place] > most:
            token = self._describe(row, max(place - 1, 0))
            raise self._fault(row, f"{token} holds the end of a prompt and an answer's start")
        labels = row.example.labels
        while exact is None and place < len(labels) and text.ends[place] <= most and labels[place] == IGNORED:
            place += 1  # white space that may belong to either
        return place

    def _cut(self, row: MaskRow, text: _Text, first: int, last: int) -> range:
        """All tokens from the first on; only white space may follow the answer's last."""
        rest = text.text.encode()[text.ends[last] :]
        if rest.decode(errors="ignore").strip():
            raise self._fault(row, f"{self._describe(row, last + 1)} follows an answer that was cut off")
        return range(first, len(row.example.input_ids))

    def _check_mask(self, row: MaskRow, text: _Text, answers: Sequence[range]) -> None:
        trained = set(chain.from_iterable(answers))
        last = {answer[-1] for answer in answers}
        for place, label in enumerate(row.example.labels):
            if (label != IGNORED) == (place in trained):
                continue
            if label != IGNORED:
                raise self._fault(row, f"{self._describe(row, place)} belongs to the prompt, and is trained")
            what = "ends an answer" if place in last else "belongs to an answer"
            raise self._fault(row, f"{self._describe(row, place)} {what}, and is not trained")

    def _describe(self, row: MaskRow, place: int) -> str:
        id_ = row.example.input_ids[place]
        name = quoted(self.spelling.pieces([id_])[0].decode("utf-8", "backslashreplace"))
        return f"token {place + 1} of {len(row.example.input_ids)}, {name} (id {id_}),"

    def _fault(self, row: MaskRow, what: str) -> MaskError:
        return MaskError(
            f"mask gate: session {row.id}: {what} (template {self._name}); nothing is trained: leave the row out by a "
            "rule of curate, or use another student.template"
        )
