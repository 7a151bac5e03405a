"""Registry and interface of exporters of rows, comparisons and students."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from distill.core.files import json_text, write_atomically
from distill.core.jsonl import read_sessions
from distill.errors import RunFolderError
from distill.run.layout import FILES
from distill.types import Session

EXPORTERS = {
    "alpaca": "distill.formats.exporters.json_files:alpaca",
    "dpo": "distill.formats.exporters.json_files:dpo",
    "hub": "distill.formats.exporters.tables:HubExporter",
    "openai": "distill.formats.exporters.json_files:openai",
    "pairs": "distill.formats.exporters.json_files:pairs",
    "parquet": "distill.formats.exporters.tables:ParquetExporter",
    "sharegpt": "distill.formats.exporters.json_files:sharegpt",
}
COMPARISONS = {
    "alpaca_eval": "distill.formats.exporters.alpaca_eval:AlpacaEvalExporter",
    "inspect": "distill.formats.exporters.inspect_log:InspectExporter",
    "llm_comparator": "distill.formats.exporters.llm_comparator:LlmComparatorExporter",
}
"""Exporters of a comparison's results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportJob:
    """Input and output of an export."""

    run: Path
    out: Path
    which: str = "kept"
    """`kept`, `test` or `dropped`."""
    system: bool = True
    """Whether rows keep their system turn."""

    def sessions(self, which: str | None = None) -> list[Session]:
        """The rows to write, without their system turn unless `system`. Raises `RunFolderError`."""
        path = self.run / FILES[which or self.which]
        if not path.is_file():
            raise RunFolderError(f"{self.run} has no {path.name} yet; type: distill curate {self.run}")
        sessions = read_sessions(path)
        return sessions if self.system else [_without_system(session) for session in sessions]


def _without_system(session: Session) -> Session:
    turns = session.messages
    return replace(session, messages=turns[1:]) if turns and turns[0].role == "system" else session


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The result of an export."""

    written: int
    """Rows."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """Rows that the format cannot hold, by reason."""


class Exporter(Protocol):
    """A part that writes one format."""

    def export(self, job: ExportJob) -> ExportResult:
        """Write all of it or nothing. Raises `RunFolderError`."""


Reshape = Callable[[Session], dict[str, Any] | str]
"""Returns the row of a session, or the reason why the format cannot hold it."""


def write_json_rows(job: ExportJob, reshape: Reshape, *, array: bool) -> ExportResult:
    """Write the sessions as JSON lines; with `array` as one JSON array, unless the file is called .jsonl.

    Raises `RunFolderError` where the format can hold none of them.
    """
    lines: list[str] = []
    refused: Counter[str] = Counter()
    for session in job.sessions():
        row = reshape(session)
        if isinstance(row, str):
            refused[row] += 1
        else:
            lines.append(json_text(row))
    if not lines:
        why = ", ".join(f"{reason} {count}" for reason, count in refused.most_common()) or "there are none"
        advice = "leave it out with --no-system, or " if "system_turn" in refused else ""
        raise RunFolderError(f"none of the run's rows can be written in this format ({why}); {advice}try another --to")
    is_array = array and job.out.suffix != ".jsonl"
    write_atomically(job.out, ["[\n", ",\n".join(lines), "\n]\n"] if is_array else (f"{line}\n" for line in lines))
    return ExportResult(len(lines), refused)
