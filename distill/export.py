"""Writes what a run made in a format of others: the `export` command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from distill import shelf
from distill.errors import RecipeError, RunFolderError
from distill.exporters import COMPARISONS, EXPORTERS, FILES, Exporter, Job
from distill.run import read_record

MODELS: Mapping[str, str] = {}
"""Writers of a run's student, by name. They stand with what needs torch, so that the shelf of rows knows none."""


def export(run: Path, *, to: str, out: Path, which: str = "kept") -> list[str]:
    """Write a run's rows, or its student, and say what was written, a line each.

    Raises `RecipeError` for an unknown format or rows, `RunFolderError` for no run, and where nothing can be written.
    """
    exporter: Exporter = shelf.part({**EXPORTERS, **COMPARISONS, **MODELS}, to, kind="format")()
    if which not in FILES:
        raise RecipeError(f'--which: unknown rows "{which}"{shelf.suggest(which, FILES)}')
    read_record(run)
    if not out.absolute().parent.is_dir():
        raise RunFolderError(f"cannot write {out}: there is no folder {out.parent}; make it first")
    done = exporter.export(Job(run=run, out=out, which=which))
    lines = [f"{out}: {done.written:,} {'prompts' if to in COMPARISONS else 'rows'} as {to}"]
    if done.refused:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in done.refused.items())
        lines.append(f"{sum(done.refused.values()):,} rows left out, which {to} cannot hold: {reasons}")
    return lines
