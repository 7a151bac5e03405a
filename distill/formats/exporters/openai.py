"""Exports OpenAI fine-tuning rows: conversations without ids or meta, since other keys are refused."""

from __future__ import annotations

from typing import Any

from distill.core.files import to_json
from distill.formats.exporters import ExportJob, ExportResult, write_json_rows
from distill.formats.schemas import irregularity
from distill.types import Session


class OpenAIExporter:
    """JSON lines."""

    def export(self, job: ExportJob) -> ExportResult:
        """Write the sessions."""
        return write_json_rows(job, _row, array=False)


def _row(session: Session) -> dict[str, Any] | str:
    return irregularity(session.messages) or {"messages": to_json(session.messages)}
