"""Importers of JSON and JSON Lines files: Alpaca, OpenAI, ShareGPT and other schemas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill.formats.importers import Address
from distill.formats.json_rows import RejectedRow, json_rows
from distill.formats.schemas import (
    ParsedRow,
    alpaca,
    openai,
    own,
    parse,
    prompt_response,
    questions,
    self_instruct,
    sharegpt,
)


class AlpacaImporter:
    """A JSON array, or JSON lines."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """What every row says."""
        return parse(json_rows(Path(address.path)), alpaca)


class OpenAIImporter:
    """A JSON array, or JSON lines."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """What every row says."""
        return parse(json_rows(Path(address.path)), openai)


class PromptResponseImporter:
    """A JSON array, or JSON lines."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """What every row says."""
        return parse(json_rows(Path(address.path)), prompt_response)


class QuestionsImporter:
    """A JSON array, or JSON lines."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """What every row says."""
        return parse(json_rows(Path(address.path)), questions)


class SelfInstructImporter:
    """A JSON array, or JSON lines."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """What every row says."""
        return parse(json_rows(Path(address.path)), self_instruct)


class ShareGPTImporter:
    """A JSON array, or JSON lines."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """What every row says."""
        return parse(json_rows(Path(address.path)), sharegpt)


class DistillImporter:
    """A JSON array, or JSON lines."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """What every row says."""
        return parse(json_rows(Path(address.path)), own)
