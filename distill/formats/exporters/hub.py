"""Exports a folder ready to upload to the Hugging Face Hub: Parquet per split, and a card. Uploads nothing."""

from __future__ import annotations

from pathlib import Path

from distill.core.files import building
from distill.errors import RunFolderError
from distill.formats.exporters import ExportJob, ExportResult
from distill.formats.parquet import write_parquet
from distill.run.dataset_card import card
from distill.types import Session

SPLITS = {"kept": "train", "test": "test", "dropped": "dropped"}


class HubExporter:
    """`README.md` and `data/SPLIT-00000-of-00001.parquet`; with the kept rows go those held out, as the split test."""

    def export(self, job: ExportJob) -> ExportResult:
        """Write the folder. Raises `RunFolderError` where there is one that is not empty."""
        splits = _splits(job)
        with building(job.out) as folder:
            _fill(folder, job.run, splits)
            folder.rename(job.out)
        return ExportResult(sum(map(len, splits.values())))


def _splits(job: ExportJob) -> dict[str, list[Session]]:
    which = ["kept", "test"] if job.which == "kept" else [job.which]
    found = {SPLITS[name]: rows for name in which if (rows := job.sessions(name))}
    if SPLITS[job.which] not in found:
        raise RunFolderError(f"{job.run} has no {job.which} rows to write")
    return found


def _fill(folder: Path, run: Path, splits: dict[str, list[Session]]) -> None:
    (folder / "data").mkdir()
    files = {split: f"data/{split}-00000-of-00001.parquet" for split in splits}
    for split, sessions in splits.items():
        write_parquet(folder / files[split], sessions)
    rows = {split: len(sessions) for split, sessions in splits.items()}
    (folder / "README.md").write_text(card(run, files, rows), encoding="utf-8")
