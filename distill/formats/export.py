"""The `export` command: writes a run's rows, comparison or student in another format."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.core import console, files, registry
from distill.core.extras import install
from distill.core.files import make_parent
from distill.errors import MissingPackage, RecipeError
from distill.formats.exporters import COMPARISONS, EXPORTERS, Exporter, ExportJob
from distill.run.layout import FILES
from distill.run.record import read_record
from distill.run.remarks import comparison_remark, student_remark

MODELS: Mapping[str, str] = {
    "adapter": "a PEFT adapter, with its base where that is not published",
    "merged": "whole weights, as plain transformers loads them",
    "gguf": "one file for llama.cpp",
    "ollama": "that file and a Modelfile",
}
"""Forms of a run's student; their exporters need torch."""


def export(
    run: Path,
    *,
    to: str,
    out: Path,
    which: str | None = None,
    dtype: str | None = None,
    max_kl: float | None = None,
    system: bool = True,
) -> list[str]:
    """Write a run's rows, its comparison or its student; returns the lines to report.

    `which` (default `kept`) and `system` (whether to keep system turns) are for rows, `dtype` and `max_kl` for
    students. Raises `RecipeError` for an unknown format or unknown rows, `RunFolderError` where there is no run or
    nothing can be written, `ModelError` for a student that cannot have the form or an export over a limit,
    `MissingPackage` without the training packages.
    """
    rows = {**EXPORTERS, **COMPARISONS}
    if to not in MODELS and to not in rows:
        raise RecipeError(f'--to: unknown format "{to}"{registry.suggest(to, [*rows, *MODELS])}')
    if to in MODELS and which is not None:
        raise RecipeError(f"--which chooses rows, and {to} is a form of the student; leave it out")
    if to in rows and (dtype is not None or max_kl is not None):
        raise RecipeError(f"--dtype and --max-kl are for {', '.join(MODELS)}; {to} holds rows: leave them out")
    if not system and to not in EXPORTERS:
        raise RecipeError(f"--no-system is for {', '.join(EXPORTERS)}, whose rows have turns; leave it out")
    if which is not None and which not in FILES:
        raise RecipeError(f'--which: unknown rows "{which}"{registry.suggest(which, FILES)}')
    read_record(run)
    make_parent(out)
    line = student_remark(run) if to in MODELS else comparison_remark(run) if to in COMPARISONS else None
    if line is not None:
        console.warn(line)
    if to in MODELS:
        return _student(run, to=to, out=out, dtype=dtype, max_kl=max_kl)
    return _rows(to, ExportJob(run=run, out=out, which=which or "kept", system=system))


def _rows(to: str, job: ExportJob) -> list[str]:
    exporter: Exporter = registry.part({**EXPORTERS, **COMPARISONS}, to, kind="format")()
    result = exporter.export(job)
    lines = [f"{job.out}: {result.written:,} {'prompts' if to in COMPARISONS else 'rows'} as {to}"]
    if result.refused:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in result.refused.items())
        lines.append(f"{sum(result.refused.values()):,} rows left out, which {to} cannot hold: {reasons}")
    return lines


def _student(run: Path, *, to: str, out: Path, dtype: str | None, max_kl: float | None) -> list[str]:
    try:
        from distill.formats.exporters.student.export import export_student
    except ImportError as error:
        raise MissingPackage(
            f"--to {to} needs {error.name or error}, which is not installed; type: {install('train')}"
        ) from error
    with console.progress("export", 100, "%") as bar:
        lines = export_student(run, to=to, out=out, dtype=dtype, max_kl=max_kl, progress=bar, say=console.say)
    return [*lines, *harness_commands(run, out, to=to)]


def harness_commands(run: Path, out: Path, *, to: str) -> list[str]:
    """Commands of the lm-evaluation-harness for an export, and for a base that was exported with it.

    The tasks are those of the run's comparison, else TASK. An adapter on quantised weights that were not exported has
    no command, since the harness would apply it to other weights than those of its training.
    """
    info = (files.read_json(run / "scores.json") or {}).get("lm_eval") or {}
    receipt = files.read_json(out / "export.json") or {}
    base = out / "base" if (out / "base").is_dir() else receipt.get("base")
    if to == "merged":
        models = {"student": f"pretrained={out}"}
    elif to == "adapter" and base and (isinstance(base, Path) or not receipt.get("quantised")):
        models = {"base": f"pretrained={base}", "student": f"pretrained={base},peft={out}"}
    else:
        models = {}
    return [f"lm-eval, {model}: {_harness_command(arguments, info)}" for model, arguments in models.items()]


def _harness_command(model: str, info: Mapping[str, Any]) -> str:
    words = ["lm_eval", "--model", "hf", "--model_args", f"{model},dtype=float32"]
    words += ["--tasks", ",".join(info.get("tasks") or ["TASK"]), "--batch_size", str(info.get("batch") or 8)]
    words += ["--limit", str(info["limit"])] if info.get("limit") else []
    words += ["--num_fewshot", str(info["shots"])] if info.get("shots") is not None else []
    words += ["--apply_chat_template"] if info.get("chat") else []
    return shlex.join([*words, "--log_samples", "--output_path", "lm_eval_out"])
