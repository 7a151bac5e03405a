"""Dataset card: a README.md with YAML front matter for the Hugging Face Hub.

All of it comes from the run's own records. What others wrote (names, terms) is shown as text, never as markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distill.errors import RunFolderError
from distill.run.record import read_record

LONGEST = 300
"""Characters shown of a text that others wrote."""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_MARKUP = re.compile(r"([\\`*_\[\]<>|#!~&$])")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]+")


def card(run: Path, files: Mapping[str, str], rows: Mapping[str, int]) -> str:
    """The whole card. `files` are the data files by split, relative to the card; `rows` their rows.

    Raises `RunFolderError` for a folder that is no run.
    """
    record, recipe = read_record(run), recipe_of(run)
    name = str(record.get("name") or run.name)
    sections = [
        _origin(record, recipe),
        _rows(rows),
        sources(recipe, record),
        filters(recipe, record),
        cost(record),
        _fields(),
        _limits(record, recipe),
    ]
    text = "\n\n".join(["# " + plain(name), *(part for part in sections if part)])
    return f"---\n{_head(name, recipe, files, rows)}---\n\n{text}\n"


def plain(value: Any, *, longest: int = LONGEST) -> str:
    """A text of others as markdown that shows it and does nothing else, on one line."""
    text = " ".join(CONTROL.sub(" ", str(value)).split())
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return _MARKUP.sub(r"\\\1", text).replace("://", ":\u200b//").replace("@", "@\u200b")


def recipe_of(run: Path) -> dict[str, Any]:
    """The run's resolved recipe. Raises `RunFolderError`."""
    try:
        found = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunFolderError(f"{run}/recipe.yaml cannot be read ({' '.join(str(error).split())[:120]})") from error
    return found if isinstance(found, dict) else {}


def _head(name: str, recipe: Mapping[str, Any], files: Mapping[str, str], rows: Mapping[str, int]) -> str:
    total = sum(rows.values())
    head = {
        "pretty_name": name,
        "license": "other",
        "license_name": "see-sources-and-teacher",
        "license_link": "README.md",
        "task_categories": ["text-generation"],
        "tags": ["distillation", "instruction-tuning", *(["synthetic"] if recipe.get("collect") else [])],
        "size_categories": [next((size for bound, size in SIZES if total < bound), "n>1M")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": path} for split, path in files.items()],
            }
        ],
    }
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in markdown; its cells are markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def number(value: Any) -> str:
    """A number with its thousands parted; a dash for what is none."""
    return f"{value:,}" if isinstance(value, (int, float)) else "—"


def _rows(rows: Mapping[str, int]) -> str:
    return table(("split", "rows"), ((split, number(count)) for split, count in rows.items()))


def counts_of(record: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    """What a stage counted; nothing where it has not run."""
    counts = record.get("stages", {}).get(stage, {}).get("counts")
    return counts if isinstance(counts, dict) else {}


def teachers_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What run.json says of each teacher."""
    found = record.get("teachers") or ([record["teacher"]] if record.get("teacher") else [])
    return [one for one in found if isinstance(one, dict)]


def _origin(record: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """How the data came to be, in a paragraph and a list."""
    made = "Conversations for training a small model, made by distill " + plain(record.get("version", "")) + "."
    return "\n".join(["## How it was made", "", made, "", *(f"- {step}" for step in steps_of(record, recipe))])


def steps_of(record: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    """What was done for the data, a sentence per step."""
    collect, expand = recipe.get("collect"), recipe.get("expand")
    steps = []
    if expand:
        tasks = number(counts_of(record, "expand").get("tasks"))
        steps.append(f"{tasks} tasks were grown from seeds by the strategy {plain(expand.get('strategy'))}.")
    if collect:
        counts = counts_of(record, "collect")
        steps.append(
            f"A teacher was asked {number(counts.get('tasks'))} tasks by the strategy"
            f" {plain(collect.get('strategy'))}; {number(counts.get('failed'))} got no answer."
        )
    if recipe.get("sources"):
        counts = counts_of(record, "collect")
        steps.append(
            f"{number(counts.get('imported'))} conversations of others were imported;"
            f" {number(counts.get('import_rejected'))} rows were malformed."
        )
    if recipe.get("curate"):
        steps.append("Rules kept or dropped each conversation, as told below.")
    return steps


def sources(recipe: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Teachers with their terms, and imported data with its licences."""
    lines = ["## Sources and terms", ""]
    sampling = [
        f"- Teacher: {plain(one.get('name') or one.get('model'))} ({plain(one.get('model'))}). Terms, as the makers of"
        f" this data state them: {plain(one.get('terms'))}."
        for one in teachers_of(record)
        if recipe.get("collect")
    ]
    imported = [
        f"- Imported: {plain(source.get('name'))}, format {plain(source.get('from', 'hub'))}"
        + (f", {plain(source['hub'])}" if source.get("hub") else "")
        + (f", revision {plain(source['revision'])}" if source.get("revision") else "")
        + f". Licence: {plain(source.get('licence') or 'not stated')}."
        for source in recipe.get("sources") or []
    ]
    seeds = recipe.get("expand", {}).get("seeds") if recipe.get("expand") else None
    given = recipe.get("collect", {}).get("tasks") if recipe.get("collect") else None
    named = [
        f"- {what}: {plain(Path(str(value)).name)}{_sha256(recipe, value)}."
        for what, value in (("Seeds", seeds), ("Tasks", given))
        if value
    ]
    found = [*sampling, *imported, *named]
    return "\n".join([*lines, *(found or ["Not recorded."])])


def _sha256(recipe: Mapping[str, Any], path: Any) -> str:
    """Of a file that the recipe names, as it was when the run began."""
    known = recipe.get("files")
    digest = known.get(str(path)) if isinstance(known, dict) else None
    return f", SHA-256 {plain(digest)}" if digest else ""


def filters(recipe: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Each rule with its options, and what it dropped first."""
    dropped = counts_of(record, "curate").get("by_rule") or {}
    by_rule: dict[str, int] = {}
    for code, count in dropped.items():
        name = str(code).rpartition("/")[0]
        by_rule[name] = by_rule.get(name, 0) + count
    rules = [rule for rule in recipe.get("curate") or [] if isinstance(rule, dict)]
    rows = [
        (plain(rule.get("filter")), plain(_options(rule)) or "—", number(by_rule.pop(str(rule.get("filter")), 0)))
        for rule in rules
    ]
    rows += [(plain(name), "—", number(count)) for name, count in by_rule.items()]
    if not rows:
        return ""
    note = "A row counts for the first rule against it."
    return "\n".join(["## Filters", "", table(("rule", "options", "rows dropped"), rows), "", note])


def _options(rule: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}: {value}" for key, value in rule.items() if key != "filter" and value not in (None, [], {})
    )


def cost(record: Mapping[str, Any]) -> str:
    """Requests, tokens and USD by stage; empty where nothing was asked."""
    stages = [(name, stage) for name, stage in record.get("stages", {}).items() if stage.get("requests")]
    if not stages:
        return ""
    rows = [
        (
            plain(name),
            number(stage["requests"].get("asked")),
            number(stage.get("tokens", {}).get("prompt")),
            number(stage.get("tokens", {}).get("completion")),
            "—" if stage.get("usd") is None else f"{stage['usd']:.4f}",
        )
        for name, stage in stages
    ]
    head = ("stage", "requests, last run", "prompt tokens", "answer tokens", "USD, all runs")
    return "\n".join(["## Cost", "", table(head, rows)])


def _fields() -> str:
    return (
        "## Fields\n\n- `id`: unique in the data."
        "\n- `messages`: turns of `role` (system, user, assistant) and `content`."
        "\n- `meta`: JSON text: where the row is from, its licence, the teacher, and whether its answer was cut off"
        " (`truncated`)."
    )


def _limits(record: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    lines = ["## Limits", ""]
    if recipe.get("collect"):
        lines.append("- Answers are a model's, unchecked by people: they may be wrong, biased or out of date.")
    if cut := counts_of(record, "collect").get("truncated"):
        lines.append(f"- {number(cut)} answers were cut off at the token limit before curation.")
    if test := counts_of(record, "curate").get("test"):
        lines.append(
            f"- {number(test)} prompts were held out for testing; training rows near one of them were dropped."
        )
    lines.append("- Whether training on this data is allowed follows from the terms and licences above.")
    return "\n".join(lines)
