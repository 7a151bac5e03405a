"""Bytes of each token id, and display of examples with their trained tokens marked.

A tokenizer's `decode` does not give them: it drops spaces at the ends of pieces, and turns half a character into a
replacement character.
"""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from distill.core.files import write_json
from distill.models.chat_template import IGNORED, Example

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Spelling:
    """The bytes of token ids, for byte-level tokenizers (GPT-2's alphabet) and those that write a space as ▁."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces = {id_: token.content.encode() for id_, token in tokenizer.added_tokens_decoder.items()}
        probe = tokenizer.convert_ids_to_tokens(tokenizer.encode("a b", add_special_tokens=False))
        self._alphabet = _byte_alphabet() if "Ġ" in "".join(probe) else {}
        self._normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each id; those of a special token are its name."""
        new = sorted(set(ids) - self._pieces.keys())
        for id_, token in zip(new, self._tokenizer.convert_ids_to_tokens(new), strict=True):
            self._pieces[id_] = self._bytes_of(token)
        return [self._pieces[id_] for id_ in ids]

    def readable(self, text: str) -> str:
        """The text as tokens spell it, up to white space: normalised, and with spaces for ▁ if that means one."""
        text = self._normalizer.normalize_str(text) if self._normalizer is not None else text
        return text if self._alphabet else text.replace("▁", " ")

    def _bytes_of(self, token: str) -> bytes:
        if self._alphabet:
            return bytes(self._alphabet[char] for char in token if char in self._alphabet)
        byte = _BYTE.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def _byte_alphabet() -> Mapping[str, int]:
    """The byte of each character in GPT-2's alphabet (openai/gpt-2, encoder.py); printable bytes are themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


@dataclass(frozen=True, slots=True)
class MarkedExample:
    """One example for display, with its trained tokens."""

    id: str
    """Id of the session."""
    ids: Sequence[int]
    texts: Sequence[str]
    """Text of each token; a character in several tokens belongs to the last of them."""
    trained: Sequence[bool]

    def stretches(self) -> Iterator[tuple[str, bool]]:
        """The text in alternating untrained and trained stretches."""
        for trained, group in groupby(zip(self.texts, self.trained, strict=True), key=lambda pair: pair[1]):
            yield "".join(text for text, _ in group), trained


def token_texts(pieces: Sequence[bytes]) -> list[str]:
    """The pieces as text; a character in several of them belongs to the last."""
    decoder = getincrementaldecoder("utf-8")("backslashreplace")
    return [decoder.decode(piece) for piece in pieces]


def marked_examples(
    names: Sequence[str], examples: Sequence[Example], tokenizer: Any, *, count: int
) -> list[MarkedExample]:
    """`count` of the examples, evenly spaced, with the text of their tokens."""
    spelling, count = Spelling(tokenizer), min(count, len(examples))
    places = [number * len(examples) // count for number in range(count)]
    return [
        MarkedExample(
            names[place],
            examples[place].input_ids,
            token_texts(spelling.pieces(examples[place].input_ids)),
            [label != IGNORED for label in examples[place].labels],
        )
        for place in places
    ]


def write_masks(path: Path, rows: Sequence[MarkedExample], *, template: str, train_on: str, checked: int) -> None:
    """Write examples for the report: `{template, train_on, checked, sessions: [{id, ids, texts, trained}]}`.

    `ids`, `texts` and `trained` have one entry per token; `checked` is the number of rows that passed the mask check.
    The texts come from users and teachers, and must be escaped where they are shown.
    """
    sessions = [{"id": row.id, "ids": row.ids, "texts": row.texts, "trained": row.trained} for row in rows]
    write_json(path, {"template": template, "train_on": train_on, "checked": checked, "sessions": sessions})
