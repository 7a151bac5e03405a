"""Stanford Alpaca's rows: an instruction, an input and an output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill.formats.importers import Address
from distill.formats.json_rows import Rejected, json_rows
from distill.formats.schemas import (
    Parsed,
    alpaca,
    openai,
    own,
    parse,
    prompt_response,
    questions,
    self_instruct,
    sharegpt,
)


class Alpaca:
    """A JSON array, or JSON lines."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[Parsed | Rejected]:
        """What every row says."""
        return parse(json_rows(Path(address.path)), alpaca)


class OpenAI:
    """A JSON array, or JSON lines."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[Parsed | Rejected]:
        """What every row says."""
        return parse(json_rows(Path(address.path)), openai)


class PromptResponse:
    """A JSON array, or JSON lines."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[Parsed | Rejected]:
        """What every row says."""
        return parse(json_rows(Path(address.path)), prompt_response)


class Questions:
    """A JSON array, or JSON lines."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[Parsed | Rejected]:
        """What every row says."""
        return parse(json_rows(Path(address.path)), questions)


class SelfInstructSeeds:
    """A JSON array, or JSON lines."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[Parsed | Rejected]:
        """What every row says."""
        return parse(json_rows(Path(address.path)), self_instruct)


class ShareGPT:
    """A JSON array, or JSON lines."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[Parsed | Rejected]:
        """What every row says."""
        return parse(json_rows(Path(address.path)), sharegpt)


class Distill:
    """A JSON array, or JSON lines."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[Parsed | Rejected]:
        """What every row says."""
        return parse(json_rows(Path(address.path)), own)
