"""Exports JSON rows: Stanford Alpaca, OpenAI fine-tuning and ShareGPT."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from distill.core.files import to_json
from distill.formats.exporters import ExportJob, ExportResult, Reshape, write_json_rows
from distill.formats.turns import irregularity
from distill.types import Session

SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}


@dataclass(frozen=True, slots=True)
class JsonExporter:
    """JSON lines; with `array` a JSON array, unless the file is called .jsonl."""

    reshape: Reshape
    array: bool = True

    def export(self, job: ExportJob) -> ExportResult:
        """Write the sessions that the format can hold; the others are refused, not flattened."""
        return write_json_rows(job, self.reshape, array=self.array)


def _alpaca(session: Session) -> dict[str, Any] | str:
    """One question and its answer; no system turn, further turn, id or meta."""
    messages = session.messages
    if (fault := irregularity(messages)) is not None:
        return fault
    if messages[0].role == "system":
        return "system_turn"
    if len(messages) > 2:
        return "several_turns"
    return {"instruction": messages[0].content, "input": "", "output": messages[1].content}


def _openai(session: Session) -> dict[str, Any] | str:
    """A conversation without id or meta, since OpenAI refuses other keys."""
    return irregularity(session.messages) or {"messages": to_json(session.messages)}


def _sharegpt(session: Session) -> dict[str, Any] | str:
    """Id and conversation, without meta; `cleaned` tells our importer that there is no HTML in it."""
    if (fault := irregularity(session.messages)) is not None:
        return fault
    turns = [{"from": SPEAKERS[message.role], "value": message.content} for message in session.messages]
    return {"id": session.id, "conversations": turns, "cleaned": True}


alpaca = partial(JsonExporter, _alpaca)
openai = partial(JsonExporter, _openai, array=False)
sharegpt = partial(JsonExporter, _sharegpt)
