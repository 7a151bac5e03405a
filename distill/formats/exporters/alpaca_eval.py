"""Exports AlpacaEval outputs: one file of answers per model, and the command that judges them."""

from __future__ import annotations

from collections import Counter

from distill.core.files import building, write_json
from distill.errors import RunFolderError
from distill.formats.exporters import ExportJob, ExportResult
from distill.formats.exporters.comparisons import Row, answer_text, compared, display_name, prompt_text
from distill.types import MODELS

COMMAND = (
    "alpaca_eval --model_outputs student.json --reference_outputs teacher.json --annotators_config YOUR_JUDGE "
    "--precomputed_leaderboard None --fn_metric get_winrate --output_path out\n"
)
"""The win rate is not length-controlled: AlpacaEval's length control is fitted to its own 805 prompts."""


class AlpacaEvalExporter:
    """A folder with base.json, student.json, teacher.json, teacher_again.json and command.txt."""

    def export(self, job: ExportJob) -> ExportResult:
        """Write the prompts that every model answered, each text once: AlpacaEval joins the files by it."""
        scores, rows = compared(job.run)
        models = [model for model in MODELS if any(model in row["answers"] for row in rows)]
        refused: Counter[str] = Counter()
        prompts: dict[str, Row] = {}
        for row in rows:
            if any(model not in row["answers"] for model in models):
                refused["a_model_has_no_answer"] += 1
            elif (text := prompt_text(row)) in prompts:
                refused["same_prompt"] += 1
            else:
                prompts[text] = row
        if not prompts:
            raise RunFolderError(f"{job.run}: no prompt was answered by all models, so there is nothing to write")
        with building(job.out) as new:
            for model in models:
                about = {"generator": display_name(scores, model), "dataset": "distill"}
                outputs = [
                    {"instruction": text, "output": answer_text(row, model), **about} for text, row in prompts.items()
                ]
                write_json(new / f"{model}.json", outputs)
            (new / "command.txt").write_text(COMMAND, encoding="utf-8")
            new.rename(job.out)
        return ExportResult(len(prompts), refused)
