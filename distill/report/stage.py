"""Stage report: one HTML file that opens without a network; headline first, details below.

Its Content-Security-Policy allows only its own style and scripts, by hash. Texts of models are not trusted: every value
passes `visible` and Jinja's escaping, or is JSON that the script inserts as text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from distill.core import student_folder
from distill.core.files import write_atomically
from distill.core.hashing import json_sha256
from distill.core.student_folder import current, is_student
from distill.report import answer_rows, comparison, label_tables, numbers, run_sections
from distill.report.comparison import facts
from distill.run import funnel, model_card, students
from distill.run.context import Context
from distill.run.layout import STAGES
from distill.run.reading import json_object, validated
from distill.run.record import RunRecord, StageRecord, read_record
from distill.run.remarks import stale, student_remark
from distill.run.scores import Comparison, read_scores
from distill.text.tokens import visible

REVISION = 2
"""To be raised with any change of what the stage writes for the same inputs and options, its templates included."""
SECTIONS = {
    "scores.json": "headline and metrics",
    "answers.jsonl": "answers side by side",
    "student/train_log.jsonl": "loss curve",
    "dropped.jsonl": "dropped rows",
}
"""Section of the page that needs each file."""
LIBRARIES = ("vendor/diff.min.js", "vendor/markdown-it.min.js")
"""Libraries of the viewer, with their licences beside them in page/vendor."""
PAGE = Path(__file__).parent / "page"
"""Template, style and script of the page."""
UNSHOWN = ("fingerprint", "revision", "options")
"""Keys of a stage in run.json that the page does not show; `fingerprint` is in records of older versions."""
TABLE_MODELS = ("base", "previous", "student", "teacher_again", "teacher")
"""`previous` only where the student continued another."""


def report(folder: Path, *, title: str | None = None) -> dict[str, int]:
    """Write `folder`/report.html from the run's files; the page names the sections that are left out.

    The same files give the same bytes. Returns counts: `bytes` of the page, `prompts` and `dropped` rows shown,
    `left_out` sections. Raises `RunFolderError` when `folder` is no run, a file is damaged or nothing can be written.
    """
    page = shape(folder, title=title)
    html = render(page)
    write_atomically(folder / "report.html", [html])
    counts = {key: len(page[key]) for key in ("dropped", "left_out")}
    return {"bytes": len(html.encode()), "prompts": page["prompts"], **counts}


def shape(folder: Path, *, title: str | None = None) -> dict[str, Any]:
    """The template's values from the run's files."""
    document, student = read_record(folder), current(folder)
    record = validated(RunRecord, document, folder / "run.json")
    before = {name: record.stages[name] for name in STAGES if name in record.stages and name != "report"}
    changes = {name: change for name, change in stale(folder, document).items() if name in before}
    stages = before | {name: replace(before[name], status="stale", detail=change) for name, change in changes.items()}
    record = replace(record, stages=stages)
    training = students.training(folder, document) if is_student(student) else None
    origin = validated(RunRecord, {**document, **(training or {})}, folder / "run.json")
    recipe = numbers.plain_text(folder / "recipe.yaml")
    if training is not None and training["recipe"] != students.recipe(folder):
        recipe = yaml.safe_dump(training["recipe"], sort_keys=False, allow_unicode=True, width=120)
    page_title = title or f"{record.name or folder.name} – distill report"
    return {
        "title": page_title,
        "warnings": [
            *filter(None, [student_remark(folder)]),
            *(run_sections.warning(name, stage) for name, stage in stages.items() if stage.status != "done"),
        ],
        "left_out": [f"{what} (no {file})" for file, what in SECTIONS.items() if not (folder / file).is_file()],
        **_comparison_parts(folder, record, page_title),
        **_run_parts(
            folder, record, replace(record, stages={**stages, **(origin.stages if training is not None else {})})
        ),
        "facts": facts(origin, json_object(student / "base.json"), read_scores(folder) or Comparison(), recipe),
        "versions": origin.versions,
        "recipe": recipe,
    }


def _comparison_parts(folder: Path, record: RunRecord, title: str) -> dict[str, Any]:
    """The parts of the page about the comparison."""
    scores, answers = read_scores(folder), numbers.rows(folder / "answers.jsonl")
    is_fresh = "compare" not in record.stages or record.stages["compare"].status == "done"
    shown_scores = scores or Comparison()
    metrics = [comparison.metric_of(name, measure) for name, measure in shown_scores.metrics.items()]
    titles = answer_rows.titles_of(shown_scores)
    return {
        "models": shown_scores.titles,
        "headline": (shown_scores.headline if is_fresh else "") or run_sections.headline(record),
        "gap": comparison.gap(metrics, shown_scores.lead),
        "extremes": comparison.extremes(shown_scores),
        "trust": comparison.trust(shown_scores, record, metrics) if scores else [],
        "metrics": metrics,
        "judge": comparison.judge(shown_scores.judge),
        "labels": label_tables.labels(shown_scores.labels),
        "benchmarks": comparison.benchmarks(shown_scores.lm_eval),
        "notes": shown_scores.notes,
        "worst": [answer_rows.card(row, titles) for row in answer_rows.worst_first(answers)[: answer_rows.WORST]],
        "data": answer_rows.in_script(answer_rows.data(answers, shown_scores, title)) if answers else None,
        "prompts": len(answers),
        "coverage": shown_scores.coverage,
    }


def _run_parts(folder: Path, record: RunRecord, of_student: RunRecord) -> dict[str, Any]:
    """The parts of the page about the run; `of_student` has the stages that made the student."""
    student = current(folder)
    table = [run_sections.stage_row(name, stage) for name, stage in record.stages.items()]
    dropped, dropped_total = answer_rows.spread(numbers.stream(folder / "dropped.jsonl"))
    return {
        "funnel": list(run_sections.with_places(run_sections.funnel_bars(of_student))),
        "rules": funnel.read(folder, record.counts("curate")),
        "stages": [*table, run_sections.total(table)] if table else [],
        "curve": run_sections.curve(numbers.rows(student / "train_log.jsonl")),
        "samples": answer_rows.samples(numbers.rows(student / "samples.jsonl")),
        "mask": answer_rows.mask(json_object(student / "masks.json")),
        "dropped": [answer_rows.dropped_row(row) for row in dropped],
        "dropped_total": dropped_total,
        "files": [(name, *output) for name, stage in record.stages.items() for output in stage.outputs.items()],
    }


def _piece(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8").rstrip()


def render(page: Mapping[str, Any]) -> str:
    """The page as HTML: every value escaped, style and scripts allowed by their hashes alone."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FunctionLoader(_piece),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else _plain(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name: getattr(numbers, name) for name in ("number", "duration", "fixed", "percent", "size", "money")
    }
    style = _piece("page.css")
    names = (*LIBRARIES, "page.js") if page["data"] is not None else ("page.js",)
    scripts = [_piece(name) for name in names]
    sources = " ".join(f"'{_hash(script)}'" for script in scripts)
    return environment.get_template("page.html.jinja").render(
        page=page, models=page["models"], table_models=_table_models(page["metrics"]),
        style=Markup(style), scripts=[Markup(script) for script in scripts], data=Markup(page["data"] or ""),
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src {sources}; base-uri 'none'; "
        "form-action 'none'",
    )  # fmt: skip


def _table_models(metrics: Sequence[comparison.MetricRow]) -> list[str]:
    has_previous = any("previous" in metric.measure.by for metric in metrics)
    return [model for model in TABLE_MODELS if model != "previous" or has_previous]


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _plain(value: Any) -> Any:
    return "–" if value is None else visible(value) if isinstance(value, str) else value


def options(context: Context) -> dict[str, Any]:
    """A hash of each other stage's entry in run.json, which the report shows."""
    stages = read_record(context.folder).get("stages", {})
    return {
        f"{name} sha256": json_sha256({key: value for key, value in entry.items() if key not in UNSHOWN})
        for name, entry in stages.items()
        if name != "report"
    }


def run(context: Context, record: StageRecord) -> Mapping[str, Any]:
    """The stage report."""
    if student_folder.is_student(student := student_folder.current(context.folder)):
        model_card.write(student / "README.md", context.folder)
    return report(context.folder, title=context.recipe.name)
