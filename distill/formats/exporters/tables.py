"""Exports Parquet: one file with every field, or a folder ready to upload to the Hugging Face Hub. Uploads nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from distill.core.extras import install
from distill.core.files import building, json_text, replacing, to_json
from distill.errors import MissingPackage, RunFolderError
from distill.formats.exporters import ExportJob, ExportResult
from distill.run.dataset_card import card
from distill.types import Session

SPLITS = {"kept": "train", "test": "test", "dropped": "dropped"}


class ParquetExporter:
    """One file with the columns `id`, `messages` and `meta`."""

    def export(self, job: ExportJob) -> ExportResult:
        """Write the sessions."""
        sessions = job.sessions()
        if not sessions:
            raise RunFolderError(f"{job.run} has no {job.which} rows to write")
        return ExportResult(write_parquet(job.out, sessions))


class HubExporter:
    """`README.md` and `data/SPLIT-00000-of-00001.parquet`; with the kept rows go those held out, as the split test."""

    def export(self, job: ExportJob) -> ExportResult:
        """Write the folder. Raises `RunFolderError` where there is one that is not empty."""
        which = ["kept", "test"] if job.which == "kept" else [job.which]
        splits = {SPLITS[name]: rows for name in which if (rows := job.sessions(name))}
        if SPLITS[job.which] not in splits:
            raise RunFolderError(f"{job.run} has no {job.which} rows to write")
        files = {split: f"data/{split}-00000-of-00001.parquet" for split in splits}
        counts = {split: len(sessions) for split, sessions in splits.items()}
        with building(job.out) as folder:
            (folder / "data").mkdir()
            for split, sessions in splits.items():
                write_parquet(folder / files[split], sessions)
            (folder / "README.md").write_text(card(job.run, files, counts), encoding="utf-8")
            folder.rename(job.out)
        return ExportResult(sum(counts.values()))


def write_parquet(path: Path, sessions: Iterable[Session]) -> int:
    """Write `id`, `messages` (role, content), `meta` (JSON, as rows differ in it), and `rejected` if there are pairs.

    Returns how many rows. Written beside `path` and renamed. Raises `MissingPackage` without pyarrow, `RunFolderError`.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingPackage(f"pyarrow is not installed; type: {install('data')}") from error
    turn = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    columns = [("id", pyarrow.string()), ("messages", pyarrow.list_(turn)), ("meta", pyarrow.string())]
    rows = [{**to_json(one), "meta": json_text(one.meta)} for one in sessions]
    schema = pyarrow.schema([*columns, *([("rejected", turn)] if any("rejected" in row for row in rows) else [])])
    with replacing(path) as file:
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), file)
    return len(rows)
