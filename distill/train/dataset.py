"""Converts sessions to token ids and checked loss masks, holds some out, and reports what is left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from distill import types as types_module
from distill.core import console
from distill.core.hashing import text_sha256
from distill.errors import DistillError
from distill.formats.turns import part_meta, unlearnt_places
from distill.models import chat_template
from distill.text.prompt_frames import FramedText, PromptFrames, PromptIndex
from distill.text.tokens import normalise
from distill.train.mask_check import MaskGate, MaskReport, MaskRow, UnspeltError
from distill.types import Session

if TYPE_CHECKING:
    from distill.train.options import TrainOptions


REPORT_ROWS = 100
"""Rows between two updates of the progress."""


@dataclass(frozen=True, slots=True)
class Examples:
    """The training examples, and what was left out."""

    ids: list[str]
    """Session id of each example; `ID#2` is the second part of a session that was split."""
    examples: list[chat_template.Example]
    left_out: Counter[str]
    """Counts: sessions that are `too_long` or have an `empty` answer, `parts` of split sessions that are too long,
    `unspelt` rows, with characters that the tokenizer cannot encode, and `unlearnt` ones, with no answer to learn."""
    split: Counter[str] = field(default_factory=Counter)
    """Counts of split `sessions`, and of their `parts`."""
    too_long: list[tuple[int, int]] = field(default_factory=list)
    """Tokens and pairs of each session left out for its length."""
    checked: MaskReport = field(default_factory=MaskReport)
    """Findings of the mask gate."""
    rows: list[MaskRow] = field(default_factory=list)
    """Each example with its messages."""

    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(example.input_ids) for example in self.examples]


def examples_of(sessions: Sequence[Session], template: str, tokenizer: Any, options: TrainOptions) -> Examples:
    """The examples of `usable_examples`. Raises `DistillError` too where there are none."""
    examples = usable_examples(sessions, template, tokenizer, options)
    if not examples.examples:
        raise DistillError(f"none of the {len(sessions)} sessions can be trained on: {_why(examples, options)}")
    return examples


def usable_examples(sessions: Sequence[Session], template: str, tokenizer: Any, options: TrainOptions) -> Examples:
    """Examples of the sessions that have an answer and, depending on `over_length`, fit `max_length`.

    Raises `MaskError` where the gate finds a fault, and `DistillError` when a session does not fit the template, or
    when one is too long under `over_length: raise`.
    """
    gate = MaskGate(template, tokenizer, train_on=options.train_on, lost_system=options.lost_system)
    examples = Examples([], [], Counter(), checked=gate.checked)
    maker = _Maker(template, tokenizer, options, examples)
    with console.progress("masks", len(sessions), unit="rows") as bar:
        for number, session in enumerate(sessions, start=1):
            for row in maker.rows(session):
                try:
                    gate.check(row)
                except UnspeltError:
                    examples.left_out["unspelt"] += 1
                    continue
                examples.ids.append(row.id)
                examples.examples.append(row.example)
                examples.rows.append(row)
            if number % REPORT_ROWS == 0:
                bar.update(number)
    return examples


def _why(examples: Examples, options: TrainOptions) -> str:
    """Why rows were left out, and what to do about it."""
    reasons = {
        "too_long": f"are longer than train.max_length={options.max_length} tokens (raise it)",
        "empty": "have no answer (collect more)",
        "unspelt": "hold characters that the tokenizer does not know (take another student.model)",
        "unlearnt": "have no answer to learn (the weights of those to train are 0)",
    }
    info = [f"{examples.left_out[name]} {reason}" for name, reason in reasons.items() if examples.left_out[name]]
    return ", ".join(info) or "collect more"


def session_of(row: str) -> str:
    """Id of the session that a row belongs to."""
    return re.sub(r"#\d+$", "", row)


class _Maker:
    """Converts sessions to examples one at a time, and counts what it leaves out."""

    def __init__(self, template: str, tokenizer: Any, options: TrainOptions, examples: Examples) -> None:
        self._template, self._tokenizer, self._options, self._examples = template, tokenizer, options, examples

    def rows(self, session: Session) -> Iterator[MaskRow]:
        """The session's row, the rows of its parts, or none."""
        learnt = self._learnt(session)
        if not learnt and unlearnt_places(session):
            self._examples.left_out["unlearnt"] += 1
            return
        if not all(session.messages[place].content.strip() for place in learnt):
            self._examples.left_out["empty"] += 1
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

    def _learnt(self, session: Session) -> list[int]:
        """Numbers of the messages to learn."""
        answers = [place for place, message in enumerate(session.messages) if message.role == "assistant"]
        unlearnt = unlearnt_places(session)
        return [
            place for place in (answers if self._options.train_on == "all" else answers[-1:]) if place not in unlearnt
        ]

    def _row(self, session: Session) -> MaskRow:
        truncated, unlearnt = bool(session.meta.get("truncated")), unlearnt_places(session)
        try:
            example = chat_template.encode(
                session.messages,
                self._template,
                self._tokenizer,
                truncated=truncated,
                train_on=self._options.train_on,
                unlearnt=unlearnt,
            )
        except DistillError as error:
            raise type(error)(f"session {session.id}: {error}") from error
        return MaskRow(session.id, session.messages, example, truncated, unlearnt)

    def _fits(self, row: MaskRow) -> bool:
        return len(row.example.input_ids) <= self._options.max_length

    def _leave_out(self, row: MaskRow) -> None:
        self._examples.left_out["too_long"] += 1
        pairs = sum(message.role == "assistant" for message in row.messages)
        self._examples.too_long.append((len(row.example.input_ids), pairs))

    def _parts(self, session: Session, whole: MaskRow) -> Iterator[MaskRow]:
        """The rows of a session that is split before questions, each starting with the system turn."""
        divided = list(self._divided(session))
        parts = [part for part in divided if self._learnt(part)]
        self._examples.left_out["unlearnt"] += len(divided) - len(parts)
        rows = [self._row(part) for part in parts]
        fitting = [row for row in rows if self._fits(row)]
        if not fitting:
            self._leave_out(whole)
            return
        self._examples.left_out["parts"] += len(rows) - len(fitting)
        self._examples.split.update(sessions=1, parts=len(fitting))
        yield from fitting

    def _divided(self, session: Session) -> Iterator[Session]:
        """Parts with as many whole pairs as fit; with `train_on: last`, one part with the last pairs."""
        first = sum(message.role == "system" for message in session.messages[:1])
        places = list(accumulate(map(len, types_module.pairs(session.messages[first:])), initial=first))
        end = len(places) - 1

        def part(start: int, stop: int, number: int = 1) -> Session:
            return _part(session, first, (places[start], places[stop]), number)

        if self._options.train_on == "last":
            start = end - 1
            while start > 0 and self._fits(self._row(part(start - 1, end))):
                start -= 1
            yield part(start, end)
            return
        cuts = types_module.spans(end, lambda start, stop: self._fits(self._row(part(start, stop))))
        for number, (start, stop) in enumerate(cuts, start=1):
            yield part(start, stop, number)


def _part(session: Session, first: int, span: tuple[int, int], number: int) -> Session:
    """The session's `first` message, if it is the system turn, and a span of its messages.

    Only the last part contains the answer that may be truncated.
    """
    start, stop = span
    truncated = stop == len(session.messages) and bool(session.meta.get("truncated"))
    return replace(
        session,
        id=f"{session.id}#{number}",
        messages=(*session.messages[:first], *session.messages[start:stop]),
        meta={**part_meta(session, start, stop), "truncated": truncated},
    )


def checked_examples(
    sessions: Sequence[Session],
    template: str,
    tokenizer: Any,
    options: TrainOptions,
    say: Callable[[str], None],
) -> Examples:
    """Examples whose rows have all passed the mask gate; reports what is left out and the gate's findings."""
    examples = examples_of(sessions, template, tokenizer, options)
    for line in notes(examples, len(sessions), options):
        say(line)
    return examples


def notes(examples: Examples, total: int, options: TrainOptions) -> Iterator[str]:
    """Lines on what is left out of `total` sessions and why, and on the mask gate's findings."""
    left_out, limit = examples.left_out, f"train.max_length={options.max_length}"
    if left_out["too_long"]:
        yield f"{left_out['too_long']} of {total} sessions are longer than {limit} and left out"
    if examples.split["sessions"]:
        number = examples.split["sessions"]
        yield f"{number} of {total} sessions are longer than {limit} and split into {_parts(examples)}"
    if left_out["empty"]:
        yield f"{left_out['empty']} of {total} sessions have an empty answer and are left out"
    if left_out["unlearnt"]:
        yield f"{left_out['unlearnt']} sessions or parts have no answer to learn, by their weights, and are left out"
    if left_out["unspelt"]:
        yield f"{left_out['unspelt']} rows hold characters that the tokenizer has no tokens for and are left out"
    yield from _mask_findings(examples.checked)


def _parts(examples: Examples) -> str:
    parts, lost = examples.split["parts"], examples.left_out["parts"]
    beyond = f"; {lost} more are too long themselves and left out" if lost else ""
    return f"{parts} parts{beyond}"


def _mask_findings(checked: MaskReport) -> Iterator[str]:
    info = (
        (checked.merging, "have tokens as they will be generated, which one pass over the text would merge otherwise"),
        (checked.mentioning, "mention control tokens, which stay text in training"),
        (checked.joined, "have a system turn, which the template puts into the user's"),
        (checked.lost, "have a system turn, which the template leaves out (train.lost_system: accept)"),
    )
    for rows, what in info:
        if rows:
            yield f"{len(rows)} of {checked.rows} rows (such as {rows[0]}) {what}"


NEAR = 0.7
"""ROUGE-L from which two questions count as the same, as for the test split."""
SHARE, LEAST, MOST, LEAST_SESSIONS = 0.05, 4, 64, 40
"""Share of the sessions held out by default, its bounds in sessions, and the smallest set that is split."""
CHOICE = 4
"""Candidates per session to hold out."""


def rows_to_hold(rows: int | None, sessions: int) -> int:
    """Number of sessions to hold out; `rows` is the recipe's value."""
    if rows is not None:
        return rows
    return 0 if sessions < LEAST_SESSIONS else min(max(int(sessions * SHARE), LEAST), MOST)


def hold_out(
    sessions: Sequence[Session], rows: int, *, seed: int, eligible: Collection[str]
) -> tuple[list[Session], set[str]]:
    """The sessions to hold out, in their order, and the ids of others with nearly the same question.

    The latter are not trained on either, as evaluations would then measure memorisation. The choice depends on the seed
    and the questions only, without what ten of them share: of `CHOICE` times as many candidates, those with the fewest
    similar sessions.
    """
    if not rows:
        return [], set()
    frames = PromptFrames(session.prompt for session in sessions)
    questions = {session.id: frames.without(session.prompt) for session in sessions}
    order = sorted((one for one in sessions if one.id in eligible), key=lambda one: _digest(one, seed))
    candidates = _apart(order, questions, CHOICE * rows)
    index = _index(candidates, questions)
    near = Counter(other.id for session in sessions if (other := index.near(questions[session.id])) is not None)
    ids = set(sorted(candidates, key=lambda id_: near[id_])[:rows])
    index = _index(sorted(ids), questions)
    beside = {id_ for id_ in questions if id_ not in ids and index.near(questions[id_]) is not None}
    return [session for session in sessions if session.id in ids], beside


def _apart(order: Sequence[Session], questions: dict[str, FramedText], most: int) -> list[str]:
    """The first ids with no two similar questions."""
    index = PromptIndex(NEAR)
    ids: list[str] = []
    for session in order:
        if len(ids) < most and index.near(questions[session.id]) is None:
            index.add(session.id, questions[session.id])
            ids.append(session.id)
    return ids


def _index(ids: Sequence[str], questions: dict[str, FramedText]) -> PromptIndex:
    index = PromptIndex(NEAR)
    for id_ in ids:
        index.add(id_, questions[id_])
    return index


def _digest(session: Session, seed: int) -> str:
    return text_sha256(f"watch:{seed}:{normalise(session.prompt)}")


def split_held_out(
    examples: Examples, sessions: Sequence[Session], eval_rows: int | None, seed: int
) -> tuple[Examples, list[Session]]:
    """The examples to train on, and the sessions held out for evaluations.

    Raises `DistillError` where nothing is left to train on.
    """
    ids = set(examples.ids)
    usable = [session for session in sessions if session.id in ids]
    rows = rows_to_hold(eval_rows, len(usable))
    held_out, beside = hold_out(sessions, rows, seed=seed, eligible=ids)
    apart = {session.id for session in held_out} | beside
    places = [place for place, id_ in enumerate(examples.ids) if not {id_, session_of(id_)} & apart]
    if not places:
        raise DistillError(f"train.eval_rows={rows} leaves none of {len(usable)} sessions to train on; lower it")
    trained = replace(
        examples,
        ids=[examples.ids[at] for at in places],
        examples=[examples.examples[at] for at in places],
        rows=[examples.rows[at] for at in places],
    )
    return trained, held_out
