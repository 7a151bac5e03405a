"""The contents of one foreign row, and the parts that every schema reads alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distill.formats.json_rows import ForeignRow
from distill.formats.turns import (
    TURN_KEYS,
    WEIGHTS,
    MalformedRow,
    Turn,
    first_key,
    is_blank,
    learnt_part,
    regular,
    turns_of,
    with_system,
)
from distill.text import references
from distill.types import Message

MEDIA_KEYS = ("images", "image", "videos", "video", "audios", "audio")
LABEL_KEYS = ("label", "kto_tag")
"""False in sets for KTO where the answer is not to be imitated."""
ID_KEYS = ("id", "conversation_id", "prompt_id", "message_tree_id")
"""The first usable one names a row."""
META_KEYS = ("category",)
"""Columns that become meta."""
REFERENCE_KEYS = ("reference", "checks")
"""Columns of the right answer and of how answers are checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRow:
    """The contents of one row."""

    line: int
    messages: tuple[Message, ...]
    """The conversation; without an answer it ends with the question."""
    instruction: str
    """The first user turn, without its input."""
    input: str = ""
    rejected: Message | None = None
    """The rejected answer of a preference; the chosen one ends the conversation."""
    id: str | None = None
    """The row's own id."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    repairs: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    """Columns with a value that was not used; `messages.name` is one of turns."""
    again: bool = False
    """Another answer to the previous row's task."""

    @property
    def is_answered(self) -> bool:
        """Whether the conversation ends with an answer."""
        return bool(self.messages) and self.messages[-1].role == "assistant"


class Columns(Mapping[str, Any]):
    """A row whose columns are found by their names in any case, and that remembers which of them were read."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row
        self._names = {str(key).lower(): key for key in row}
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        name = self._names[key]
        self._read.add(name)
        return self._row[name]

    def __contains__(self, key: object) -> bool:
        return key in self._names

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a column, or the default; of the mixin, but without an exception for each missing key."""
        return self[key] if key in self._names else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)

    def ignored(self, texts: Iterable[str]) -> Iterator[str]:
        """Columns, and keys of turns, that hold something, were not read, and repeat none of the texts."""
        known = {text.strip() for text in texts}
        for key, value in self._row.items():
            if key in self._read:
                items = value if isinstance(value, list) else ()
                names = dict.fromkeys(name for item in items if isinstance(item, Mapping) for name in _unread(item))
                yield from (f"{key}.{name}" for name in names)
            elif not is_blank(value) and value != "[]" and not (isinstance(value, str) and value.strip() in known):
                yield str(key)


def _unread(turn: Mapping[str, Any]) -> Iterator[str]:
    if TURN_KEYS.issuperset(turn):
        return iter(())
    return (str(key) for key, value in turn.items() if str(key).lower() not in TURN_KEYS and not is_blank(value))


def conversation(row: ForeignRow, turns: Sequence[Turn], repairs: Sequence[str] = ()) -> ParsedRow:
    """The row of a conversation, repaired, after the repairs made so far. Raises `MalformedRow`."""
    usable, more = regular(turns)
    usable, cuts = learnt_part(usable)
    meta = {name: row.value[name] for name in META_KEYS if usable_id(row.value.get(name)) is not None}
    return ParsedRow(
        line=row.line,
        messages=messages_of(usable),
        instruction=next(turn.content for turn in usable if turn.role == "user"),
        id=row_id(row),
        meta={**meta, **reference_of(row), **weights_meta(usable)},
        repairs=tuple(dict.fromkeys([*repairs, *more, *cuts])),
    )


def reference_of(row: ForeignRow) -> dict[str, Any]:
    """The `reference` and `checks` of a row, as meta. Raises `MalformedRow` for a faulty check."""
    entries = {name: row.value[name] for name in REFERENCE_KEYS if name in row.value}
    if "checks" in entries and not isinstance(entries["checks"], list):
        del entries["checks"]
    try:
        references.read(entries, references.Check())
    except ValueError as error:
        raise MalformedRow("bad_check", str(error)) from error
    return references.carried(entries)


def conversation_turns(row: ForeignRow, keys: Sequence[str]) -> list[Turn]:
    """The turns of a row's conversation after its system message and history. Raises `MalformedRow`."""
    key = first_key(row.value, keys) or next((name for name in keys if name in row.value), keys[0])
    return with_system(row.value, [*history_of(row), *turns_of(row.value.get(key))])


def history_of(row: ForeignRow) -> list[Turn]:
    """The earlier turns that LLaMA-Factory and ms-swift hold in a column of their own. Raises `MalformedRow`."""
    history = row.value.get("history")
    return [] if is_blank(history) else turns_of(history)


def require_usable(row: Mapping[str, Any]) -> None:
    """Raise `MalformedRow` where a row needs more than its text, or is marked as not to be imitated."""
    if (key := first_key(row, MEDIA_KEYS)) is not None:
        raise MalformedRow("not_text", f"`{key}` holds more than text; only text can be learnt")
    if (key := next((name for name in LABEL_KEYS if row.get(name) is False), None)) is not None:
        raise MalformedRow("unwanted", f"`{key}` is false: an answer that is not to be imitated")


def text_of(row: ForeignRow, key: str, *, required: bool = True) -> str:
    """The text of a column. Raises `MalformedRow`."""
    value = row.value.get(key)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        kind = "nothing" if value is None else type(value).__name__
        raise MalformedRow("not_text", f"`{key}`: found {kind}, expected a text")
    if required and not value.strip():
        raise MalformedRow("no_text", f"`{key}` is empty")
    return value


def usable_id(value: Any) -> str | None:
    """The row's own id, if it is usable."""
    is_id = isinstance(value, (str, int)) and not isinstance(value, bool)
    return str(value) if is_id and str(value).strip() else None


def row_id(row: ForeignRow) -> str | None:
    """The first usable id of a row."""
    return next((id for name in ID_KEYS if (id := usable_id(row.value.get(name))) is not None), None)


def messages_of(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """The messages of foreign turns."""
    return tuple(Message(turn.role, turn.content) for turn in turns)


def weights_meta(turns: Sequence[Turn]) -> dict[str, list[int]]:
    """Meta on answers that are context only."""
    weights = [int(turn.learnt) for turn in turns if turn.role == "assistant"]
    return {WEIGHTS: weights} if 0 in weights else {}
