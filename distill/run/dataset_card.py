"""Dataset card: a README.md with YAML front matter for the Hugging Face Hub, from the run's own records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import RunFolderError
from distill.run import students
from distill.run.cards import public, render
from distill.run.reading import validated
from distill.run.record import RunRecord, read_record

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def card(run: Path, files: Mapping[str, str], rows: Mapping[str, int]) -> str:
    """The whole card. `files` are the data files by split, relative to the card; `rows` their rows.

    Raises `RunFolderError` for a folder that is no run.
    """
    record = validated(RunRecord, public(read_record(run)), run / "run.json")
    recipe = public(students.recipe(run))
    if not recipe:
        raise RunFolderError(f"{run}/recipe.yaml cannot be read; run its first stage again")
    name = record.name or run.name
    return render(
        "dataset_card.md.jinja",
        _head(name, recipe, files, rows),
        name=name,
        record=record,
        recipe=recipe,
        rows=rows,
        dropped=dropped_by_rule(record, recipe),
    )


def _head(name: str, recipe: Mapping[str, Any], files: Mapping[str, str], rows: Mapping[str, int]) -> dict[str, Any]:
    total = sum(rows.values())
    data_files = [{"split": split, "path": path} for split, path in files.items()]
    return {
        "pretty_name": name,
        "license": "other",
        "license_name": "see-sources-and-teacher",
        "license_link": "README.md",
        "task_categories": ["text-generation"],
        "tags": ["distillation", "instruction-tuning", *(["synthetic"] if recipe.get("collect") else [])],
        "size_categories": [next((size for bound, size in SIZES if total < bound), "n>1M")],
        "configs": [{"config_name": "default", "data_files": data_files}],
    }


def dropped_by_rule(record: RunRecord, recipe: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Each curation rule with its options and the rows that it was the first to drop."""
    dropped: Counter[str] = Counter()
    for code, count in record.counts("curate").get("by_rule", {}).items():
        dropped[code.rpartition("/")[0]] += count
    rules = [(str(rule["filter"]), rule) for rule in recipe.get("curate") or []]
    rows = [(name, _options(rule), dropped.pop(name, 0)) for name, rule in rules]
    return rows + [(name, "", count) for name, count in dropped.items()]


def _options(rule: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}: {value}" for key, value in rule.items() if key != "filter" and value not in (None, [], {})
    )
