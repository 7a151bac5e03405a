"""Exports an Inspect evaluation log with the student's answers and every score, written by Inspect itself."""

from __future__ import annotations

from typing import Any

from distill.errors import MissingPackage, RecipeError
from distill.formats.exporters import ExportJob, ExportResult
from distill.formats.exporters.comparisons import Row, answer_text, compared, display_name, prompt_text
from distill.run.scores import Comparison
from distill.text import references

SUFFIXES = (".json", ".eval")


class InspectExporter:
    """One file, .json or .eval: a sample per prompt, with its reference, else the teacher's answer, as its target."""

    def export(self, job: ExportJob) -> ExportResult:
        """Write the prompts that the student answered. Raises `MissingPackage` without inspect-ai."""
        if job.out.suffix not in SUFFIXES:
            raise RecipeError(f"--out {job.out}: Inspect's logs are called {' or '.join(SUFFIXES)}")
        try:
            from inspect_ai.log import write_eval_log
        except ImportError as error:
            raise MissingPackage(
                "--to inspect needs inspect-ai, which is not installed; type: pip install inspect-ai"
            ) from error
        scores, rows = compared(job.run)
        answered = [row for row in rows if "student" in row["answers"]]
        write_eval_log(_log(answered, scores, job.run.name), str(job.out))
        return ExportResult(
            len(answered), {"no_answer": len(rows) - len(answered)} if len(rows) > len(answered) else {}
        )


def _log(rows: list[Row], scores: Comparison, run: str) -> Any:
    from datetime import UTC, datetime

    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalPlan, EvalResults, EvalSpec, EvalStats

    created = datetime.now(UTC).isoformat(timespec="seconds")
    return EvalLog(
        status="success",
        eval=EvalSpec(
            created=created,
            task=f"distill/{run}",
            dataset=EvalDataset(name=run, samples=len(rows)),
            model=display_name(scores, "student"),
            config=EvalConfig(),
        ),
        plan=EvalPlan(),
        results=EvalResults(total_samples=len(rows), completed_samples=len(rows), scores=_results(scores)),
        stats=EvalStats(started_at=created, completed_at=created),
        samples=[_sample(row, scores) for row in rows],
    )


def _results(scores: Comparison) -> list[Any]:
    """The student's mean of each measure."""
    from inspect_ai.log import EvalMetric, EvalScore

    results = []
    for name, entry in scores.metrics.items():
        if (estimate := entry.by.get("student")) is not None:
            values = {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
            metrics = {key: EvalMetric(name=key, value=value) for key, value in values.items() if value is not None}
            results.append(EvalScore(name=name, scorer="distill", metrics=metrics))
    return results


def _sample(row: Row, scores: Comparison) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score

    text = answer_text(row, "student") or ""
    values = row["scores"].get("student", {})
    return EvalSample(
        id=row["id"],
        epoch=1,
        input=prompt_text(row),
        target=references.shown(row) or answer_text(row, "teacher") or "",
        output=ModelOutput.from_content(display_name(scores, "student"), text),
        scores={name: Score(value=value, answer=text) for name, value in values.items()},
        metadata={"category": row.get("category", "all"), "base": answer_text(row, "base") or ""},
    )
