"""Exports a folder ready to upload to the Hugging Face Hub: Parquet per split, and a card. Uploads nothing."""

from __future__ import annotations

from distill.errors import RunFolderError
from distill.formats.exporters import ExportJob, ExportResult, new_folder
from distill.formats.parquet import write_parquet
from distill.run.dataset_card import card
from distill.types import Session

SPLITS = {"kept": "train", "test": "test", "dropped": "dropped"}


class HubExporter:
    """`README.md` and `data/SPLIT-00000-of-00001.parquet`; with the kept rows go those held out, as the split test."""

    def export(self, job: ExportJob) -> ExportResult:
        """Write the folder. Raises `RunFolderError` where there is one that is not empty."""
        splits = _splits(job)
        files = {split: f"data/{split}-00000-of-00001.parquet" for split in splits}
        rows = {split: len(sessions) for split, sessions in splits.items()}
        with new_folder(job.out) as folder:
            (folder / "data").mkdir()
            for split, sessions in splits.items():
                write_parquet(folder / files[split], sessions)
            (folder / "README.md").write_text(card(job.run, files, rows), encoding="utf-8")
        return ExportResult(sum(rows.values()))


def _splits(job: ExportJob) -> dict[str, list[Session]]:
    which = ["kept", "test"] if job.which == "kept" else [job.which]
    found = {SPLITS[name]: rows for name in which if (rows := job.sessions(name))}
    if SPLITS[job.which] not in found:
        raise RunFolderError(f"{job.run} has no {job.which} rows to write")
    return found
