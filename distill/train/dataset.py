"""Converts sessions to token ids and loss masks, each checked; reports what is left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from distill import types as types_module
from distill.core import console
from distill.core.console import Progress, Silent
from distill.core.hashing import text_sha256
from distill.errors import DistillError
from distill.models import chat_template
from distill.text.rouge_index import NoveltyIndex, comparable
from distill.text.tokens import normalise
from distill.train.mask_check import MaskGate, MaskReport, MaskRow, UnspeltError
from distill.types import Message, Session

if TYPE_CHECKING:
    from distill.train.options import TrainOptions


REPORT_ROWS = 100


@dataclass(frozen=True, slots=True)
class Examples:
    """The training examples, and what was left out."""

    ids: list[str]
    """Of the sessions, one an example; `ID#2` is the second part of a session that was split."""
    examples: list[chat_template.Example]
    left_out: Counter[str]
    """How many sessions are `too_long`, how many `empty`; how many `parts` of split ones are too long themselves; how
    many rows are `unspelt`: they hold characters that the tokenizer has no tokens for."""
    split: Counter[str] = field(default_factory=Counter)
    """How many `sessions` were split, and into how many `parts`."""
    too_long: list[tuple[int, int]] = field(default_factory=list)
    """Tokens and pairs of each session that is left out for its length."""
    checked: MaskReport = field(default_factory=MaskReport)
    """What the mask gate has seen."""

    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(example.input_ids) for example in self.examples]


def examples_of(
    sessions: Sequence[Session], template: str, tokenizer: Any, options: TrainOptions, progress: Progress | None = None
) -> Examples:
    """The sessions' examples, but for those with an empty answer and, by `over_length`, those over `max_length` tokens.

    Raises `MaskError` where the gate finds a fault, and `DistillError` when a session does not fit the template, when
    one is too long under `over_length: raise`, or when none is left.
    """
    gate = MaskGate(template, tokenizer, train_on=options.train_on, lost_system=options.lost_system)
    found = Examples([], [], Counter(), checked=gate.checked)
    maker = _Maker(template, tokenizer, options, found)
    bar = progress or Silent()
    for number, session in enumerate(sessions, start=1):
        for row in maker.rows(session):
            try:
                gate.check(row)
            except UnspeltError:
                found.left_out["unspelt"] += 1
                continue
            found.ids.append(row.id)
            found.examples.append(row.example)
        if number % REPORT_ROWS == 0:
            bar.update(number, len(sessions))
    if not found.examples:
        raise DistillError(f"none of the {len(sessions)} sessions can be trained on: {_why(found, options)}")
    return found


def _why(found: Examples, options: TrainOptions) -> str:
    """What left out rows, and what helps."""
    reasons = {
        "too_long": f"are longer than train.max_length={options.max_length} tokens (raise it)",
        "empty": "have no answer (collect more)",
        "unspelt": "hold characters that the tokenizer does not know (take another student.model)",
    }
    info = [f"{found.left_out[name]} {reason}" for name, reason in reasons.items() if found.left_out[name]]
    return ", ".join(info) or "collect more"


def session_of(row: str) -> str:
    """The id of the session that a row with this id would be a part of."""
    return re.sub(r"#\d+$", "", row)


class _Maker:
    """Converts sessions to examples one at a time, and counts what it leaves out."""

    def __init__(self, template: str, tokenizer: Any, options: TrainOptions, found: Examples) -> None:
        self._template, self._tokenizer, self._options, self._found = template, tokenizer, options, found

    def rows(self, session: Session) -> Iterator[MaskRow]:
        """The session's row, or those of its parts, or none."""
        if _has_empty_answer(session, self._options.train_on):
            self._found.left_out["empty"] += 1
            return
        row = self._row(session)
        if self._fits(row):
            yield row
        elif self._options.over_length == "split":
            yield from self._parts(session, row)
        elif self._options.over_length == "drop":
            self._leave_out(row)
        else:
            raise DistillError(
                f"session {session.id} has {len(row.example.input_ids)} tokens, more than train.max_length="
                f"{self._options.max_length}; raise that, or set train.over_length to split or drop"
            )

    def _row(self, session: Session) -> MaskRow:
        truncated = bool(session.meta.get("truncated"))
        try:
            example = chat_template.encode(
                session.messages,
                self._template,
                self._tokenizer,
                truncated=truncated,
                train_on=self._options.train_on,
            )
        except DistillError as error:
            raise type(error)(f"session {session.id}: {error}") from error
        return MaskRow(session.id, session.messages, example, truncated)

    def _fits(self, row: MaskRow) -> bool:
        return len(row.example.input_ids) <= self._options.max_length

    def _leave_out(self, row: MaskRow) -> None:
        self._found.left_out["too_long"] += 1
        pairs = sum(message.role == "assistant" for message in row.messages)
        self._found.too_long.append((len(row.example.input_ids), pairs))

    def _parts(self, session: Session, whole: MaskRow) -> Iterator[MaskRow]:
        """The rows of a session cut before questions, each with the system turn in front."""
        rows = [self._row(part) for part in self._divided(session)]
        fitting = [row for row in rows if self._fits(row)]
        if not fitting:
            self._leave_out(whole)
            return
        self._found.left_out["parts"] += len(rows) - len(fitting)
        self._found.split.update(sessions=1, parts=len(fitting))
        yield from fitting

    def _divided(self, session: Session) -> Iterator[Session]:
        """As many whole pairs as fit, from the first on; where only the last answer is trained, the last ones alone."""
        system = [message for message in session.messages[:1] if message.role == "system"]
        pairs = list(types_module.pairs(session.messages[len(system) :]))
        end = len(pairs)
        if self._options.train_on == "last":
            start = end - 1
            while start > 0 and self._fits(self._row(_part(session, system, pairs[start - 1 :], 1, last=True))):
                start -= 1
            yield _part(session, system, pairs[start:], 1, last=True)
            return

        def fits(start: int, stop: int) -> bool:
            return self._fits(self._row(_part(session, system, pairs[start:stop], 1, last=stop == end)))

        for number, (start, stop) in enumerate(types_module.spans(end, fits), start=1):
            yield _part(session, system, pairs[start:stop], number, last=stop == end)


def _part(
    session: Session, system: Sequence[Message], pairs: Sequence[Sequence[Message]], number: int, *, last: bool
) -> Session:
    """Only the last part ends with the answer that may have been cut off."""
    messages = (*system, *(message for pair in pairs for message in pair))
    truncated = last and bool(session.meta.get("truncated"))
    return replace(
        session, id=f"{session.id}#{number}", messages=messages, meta={**session.meta, "truncated": truncated}
    )


def _has_empty_answer(session: Session, train_on: chat_template.TrainOn) -> bool:
    answers = [message.content for message in session.messages if message.role == "assistant"]
    return not all(answer.strip() for answer in (answers if train_on == "all" else answers[-1:]))


def checked_examples(
    sessions: Sequence[Session],
    template: str,
    tokenizer: Any,
    options: TrainOptions,
    say: Callable[[str], None],
) -> Examples:
    """What is trained on, each row through the gate, and a line for all that the reader should know of it."""
    with console.progress("masks", len(sessions), unit="rows") as bar:
        found = examples_of(sessions, template, tokenizer, options, bar)
    for line in notes(found, len(sessions), options):
        say(line)
    return found


def notes(found: Examples, total: int, options: TrainOptions) -> Iterator[str]:
    """What the reader should know of `total` sessions: what is left out and why, and what the gate has seen."""
    left_out, limit = found.left_out, f"train.max_length={options.max_length}"
    if left_out["too_long"]:
        yield f"{left_out['too_long']} of {total} sessions are longer than {limit} and left out"
    if found.split["sessions"]:
        yield f"{found.split['sessions']} of {total} sessions are longer than {limit} and split into {_parts(found)}"
    if left_out["empty"]:
        yield f"{left_out['empty']} of {total} sessions have an empty answer and are left out"
    if left_out["unspelt"]:
        yield f"{left_out['unspelt']} rows hold characters that the tokenizer has no tokens for and are left out"
    yield from _mask_findings(found.checked)


def _parts(found: Examples) -> str:
    parts, lost = found.split["parts"], found.left_out["parts"]
    beyond = f"; {lost} more are too long themselves and left out" if lost else ""
    return f"{parts} parts{beyond}"


def _mask_findings(checked: MaskReport) -> Iterator[str]:
    info = (
        (checked.merging, "have tokens as they will be generated, which one pass over the text would merge otherwise"),
        (checked.mentioning, "mention special tokens, which stay text in training"),
        (checked.joined, "have a system turn, which the template puts into the user's"),
        (checked.lost, "have a system turn, which the template leaves out (train.lost_system: accept)"),
    )
    for rows, what in info:
        if rows:
            yield f"{len(rows)} of {checked.rows} rows (such as {rows[0]}) {what}"


NEAR = 0.7
"""ROUGE-L of two questions above which they count as one; that of the test split."""
SHARE, LEAST, MOST, LEAST_SESSIONS = 0.05, 4, 64, 40
"""Of the sessions, where the recipe does not say."""
CHOICE = 4


def rows_to_hold(asked: int | None, sessions: int) -> int:
    """How many sessions are held out."""
    if asked is not None:
        return asked
    return 0 if sessions < LEAST_SESSIONS else min(max(int(sessions * SHARE), LEAST), MOST)


def hold_out(
    sessions: Sequence[Session], rows: int, *, seed: int, eligible: Collection[str]
) -> tuple[list[Session], set[str]]:
    """The sessions to hold out of the eligible ones, in their order, and the ids of others near to them.

    Those are not to be trained on either: it would show how well an answer was learnt by heart. Which ones are held
    out depends on the seed and their questions; of `CHOICE` times as many candidates, those with the fewest near ones.
    """
    if not rows:
        return [], set()
    tokens = {session.id: comparable(_question(session)) for session in sessions}
    order = sorted((one for one in sessions if one.id in eligible), key=lambda one: _digest(one, seed))
    candidates = _apart(order, tokens, CHOICE * rows)
    index = _index(candidates, tokens)
    near = Counter(found.id for session in sessions if (found := index.near(tokens[session.id])) is not None)
    held = set(sorted(candidates, key=lambda id_: near[id_])[:rows])
    index = _index(sorted(held), tokens)
    beside = {id_ for id_ in tokens if id_ not in held and index.near(tokens[id_]) is not None}
    return [session for session in sessions if session.id in held], beside


def _apart(order: Sequence[Session], tokens: dict[str, list[str]], most: int) -> list[str]:
    """The first ids whose questions are not near to each other's."""
    index = NoveltyIndex(NEAR)
    found: list[str] = []
    for session in order:
        if len(found) < most and index.near(tokens[session.id]) is None:
            index.add(session.id, tokens[session.id])
            found.append(session.id)
    return found


def _index(ids: Sequence[str], tokens: dict[str, list[str]]) -> NoveltyIndex:
    index = NoveltyIndex(NEAR)
    for id_ in ids:
        index.add(id_, tokens[id_])
    return index


def _digest(session: Session, seed: int) -> str:
    return text_sha256(f"watch:{seed}:{normalise(_question(session))}")


def _question(session: Session) -> str:
    return next((message.content for message in session.messages if message.role == "user"), "")


def split_held_out(
    found: Examples, sessions: Sequence[Session], asked: int | None, seed: int
) -> tuple[Examples, list[Session]]:
    """What is trained on, and the sessions that are held out to watch it by.

    Raises `DistillError` where nothing is left to train on.
    """
    ids = set(found.ids)
    usable = [session for session in sessions if session.id in ids]
    rows = rows_to_hold(asked, len(usable))
    held, beside = hold_out(sessions, rows, seed=seed, eligible=ids)
    apart = {session.id for session in held} | beside
    places = [place for place, id_ in enumerate(found.ids) if not {id_, session_of(id_)} & apart]
    if not places:
        raise DistillError(f"train.eval_rows={rows} leaves none of {len(usable)} sessions to train on; lower it")
    taught = replace(found, ids=[found.ids[at] for at in places], examples=[found.examples[at] for at in places])
    return taught, held
