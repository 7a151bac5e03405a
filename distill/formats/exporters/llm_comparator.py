"""Exports LLM Comparator JSON: one file per pair of models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distill.core.files import building, write_json
from distill.errors import RunFolderError
from distill.formats.exporters import ExportJob, ExportResult
from distill.formats.exporters.comparisons import PAIRS, Row, answer_text, compared, display_name, prompt_text
from distill.run.scores import Comparison

POINTS = {"win": 1.0, "tie": 0.0, "loss": -1.0}
"""On LLM Comparator's scale of −1.5 to 1.5: above 0 the first model is better, and beyond ±0.25 it has won."""


class LlmComparatorExporter:
    """A folder with student-teacher.json, base-teacher.json and student-base.json.

    LLM Comparator's page fails on a missing field, so every example has all of them. It shows two models; the answer of
    the third is in a custom field.
    """

    def export(self, job: ExportJob) -> ExportResult:
        """Write each pair that has an answer to compare."""
        scores, rows = compared(job.run)
        answered = {pair: [row for row in rows if row["answers"].keys() >= set(pair)] for pair in PAIRS}
        pairs = {pair: answers for pair, answers in answered.items() if answers}
        if not pairs:
            raise RunFolderError(f"{job.run}: no prompt was answered by two models, so there is nothing to compare")
        with building(job.out) as new:
            for pair, answers in pairs.items():
                write_json(new / f"{pair[0]}-{pair[1]}.json", _comparison(answers, pair, scores, job.run.name))
            new.rename(job.out)
        return ExportResult(max(map(len, pairs.values())))


def _comparison(rows: Sequence[Row], pair: tuple[str, str], scores: Comparison, run: str) -> dict[str, Any]:
    third = next(model for model in ("base", "student", "teacher") if model not in pair)
    measures = {
        name: entry.title or name
        for name, entry in scores.metrics.items()
        if all(name in row["scores"].get(model, {}) for row in rows for model in pair)
    }
    numbers = [{"name": title, "type": "per_model_number"} for title in measures.values()]
    return {
        "metadata": {"source_path": run, "custom_fields_schema": [{"name": third, "type": "text"}, *numbers]},
        "models": [{"name": display_name(scores, model)} for model in pair],
        "examples": [_example(row, pair, third, measures) for row in rows],
    }


def _example(row: Row, pair: tuple[str, str], third: str, measures: Mapping[str, str]) -> dict[str, Any]:
    judgement = (row.get("judge") or {}).get("pairs", {}).get(":".join(pair))
    numbers = {title: [row["scores"][model][name] for model in pair] for name, title in measures.items()}
    return {
        "input_text": prompt_text(row),
        "tags": [row.get("category", "all")],
        "output_text_a": answer_text(row, pair[0]),
        "output_text_b": answer_text(row, pair[1]),
        "score": POINTS.get(judgement["outcome"], 0.0) if judgement else 0.0,
        "individual_rater_scores": list(_ratings(judgement, pair)) if judgement else [],
        "custom_fields": {third: answer_text(row, third) or "", **numbers},
    }


def _ratings(judgement: Mapping[str, Any], pair: tuple[str, str]) -> Iterator[dict[str, Any]]:
    """Each game as a rater's score, marked as flipped where the order of the answers was reversed."""
    points = {pair[0]: 1.0, pair[1]: -1.0, "tie": 0.0}
    for game in judgement["games"]:
        if game["verdict"] in points:
            yield {
                "score": points[game["verdict"]],
                "is_flipped": game["first"] != pair[0],
                "rating_label": game["verdict"],
                "rationale": game["reason"],
            }
