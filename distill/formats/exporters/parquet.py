"""Exports Parquet with every field; meta is JSON text."""

from __future__ import annotations

from distill.errors import RunFolderError
from distill.formats.exporters import ExportJob, ExportResult
from distill.formats.parquet import write_parquet


class ParquetExporter:
    """One file with the columns `id`, `messages` and `meta`."""

    def export(self, job: ExportJob) -> ExportResult:
        """Write the sessions."""
        sessions = job.sessions()
        if not sessions:
            raise RunFolderError(f"{job.run} has no {job.which} rows to write")
        return ExportResult(write_parquet(job.out, sessions))
