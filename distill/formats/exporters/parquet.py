"""Parquet: it holds everything, the meta as JSON text."""

from __future__ import annotations

from distill.errors import RunFolderError
from distill.formats.exporters import Exported, ExportJob
from distill.formats.parquet import write_parquet


class Parquet:
    """One file with the columns `id`, `messages` and `meta`."""

    def export(self, job: ExportJob) -> Exported:
        """Write the sessions."""
        sessions = job.sessions()
        if not sessions:
            raise RunFolderError(f"{job.run} has no {job.which} rows to write")
        return Exported(write_parquet(job.out, sessions))
