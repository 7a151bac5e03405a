"""Exports Stanford Alpaca rows: one question and its answer; no system turn, further turn, id or meta."""

from __future__ import annotations

from typing import Any

from distill.formats.exporters import ExportJob, ExportResult, write_json_rows
from distill.formats.schemas import irregularity
from distill.types import Session


class AlpacaExporter:
    """A JSON array; JSON lines in a file called .jsonl."""

    def export(self, job: ExportJob) -> ExportResult:
        """Write the sessions of one question; the others are refused, not flattened."""
        return write_json_rows(job, _row, array=True)


def _row(session: Session) -> dict[str, Any] | str:
    messages = session.messages
    if (why := irregularity(messages)) is not None:
        return why
    if messages[0].role == "system":
        return "system_turn"
    if len(messages) > 2:
        return "several_turns"
    return {"instruction": messages[0].content, "input": "", "output": messages[1].content}
