"""Exports JSON rows: Stanford Alpaca, OpenAI fine-tuning, ShareGPT, and preference pairs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from distill.core.files import to_json
from distill.formats.exporters import ExportJob, ExportResult, Reshape, write_json_rows
from distill.formats.preferences import pair_of
from distill.formats.turns import irregularity, unlearnt_places
from distill.text.references import carried
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
    """One question and its answer, with its reference; no system turn, further turn, id or other meta."""
    messages = session.messages
    if (fault := irregularity(messages)) is not None:
        return fault
    if messages[0].role == "system":
        return "system_turn"
    if len(messages) > 2:
        return "several_turns"
    if unlearnt_places(session):
        return "unlearnt"
    turns = {"instruction": messages[0].content, "input": "", "output": messages[1].content}
    return {**turns, **carried(session.meta)}


def _openai(session: Session) -> dict[str, Any] | str:
    """A conversation without id or meta, since OpenAI refuses other keys; an answer for context has `weight: 0`."""
    unlearnt = unlearnt_places(session)
    turns = [
        {**to_json(message), **({"weight": 0} if place in unlearnt else {})}
        for place, message in enumerate(session.messages)
    ]
    return irregularity(session.messages) or {"messages": turns}


def _sharegpt(session: Session) -> dict[str, Any] | str:
    """Id, conversation and reference, no other meta; `cleaned` tells our importer that there is no HTML in it.

    An answer for context has axolotl's `train: false`.
    """
    if (fault := irregularity(session.messages)) is not None:
        return fault
    unlearnt = unlearnt_places(session)
    turns = [
        {"from": SPEAKERS[message.role], "value": message.content, **({"train": False} if place in unlearnt else {})}
        for place, message in enumerate(session.messages)
    ]
    return {"id": session.id, "conversations": turns, "cleaned": True, **carried(session.meta)}


def _pair(session: Session) -> dict[str, Any] | str:
    """A pair in our own format, with id and meta; see `pair_of`."""
    if (fault := irregularity(session.messages)) is not None:
        return fault
    row: dict[str, Any] | None = to_json(pair_of(session))
    return row or "no_rejected"


def _dpo(session: Session) -> dict[str, Any] | str:
    """A pair as TRL's preference trainers read it: `prompt`, `chosen` and `rejected`, each a list of turns."""
    row = _pair(session)
    if isinstance(row, str):
        return row
    return {"prompt": row["messages"][:-1], "chosen": row["messages"][-1:], "rejected": [row["rejected"]]}


alpaca = partial(JsonExporter, _alpaca)
dpo = partial(JsonExporter, _dpo, array=False)
openai = partial(JsonExporter, _openai, array=False)
pairs = partial(JsonExporter, _pair, array=False)
sharegpt = partial(JsonExporter, _sharegpt)
