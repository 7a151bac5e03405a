"""Exports ShareGPT rows: ids and conversations, without meta."""

from __future__ import annotations

from typing import Any

from distill.formats.exporters import ExportJob, ExportResult, write_json_rows
from distill.formats.schemas import irregularity
from distill.types import Session

NAMES = {"user": "human", "assistant": "gpt", "system": "system"}


class ShareGPTExporter:
    """A JSON array; JSON lines in a file called .jsonl. `cleaned` tells our importer that there is no HTML in it."""

    def export(self, job: ExportJob) -> ExportResult:
        """Write the sessions."""
        return write_json_rows(job, _row, array=True)


def _row(session: Session) -> dict[str, Any] | str:
    if (why := irregularity(session.messages)) is not None:
        return why
    turns = [{"from": NAMES[message.role], "value": message.content} for message in session.messages]
    return {"id": session.id, "conversations": turns, "cleaned": True}
