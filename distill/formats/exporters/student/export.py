"""Exports a student: writes to a temporary folder, verifies it against the trained one, then renames.

An export that is over a limit, or that is interrupted, is never left at the path of a finished one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from distill.core import student_folder
from distill.core.console import Progress, Say, Silent
from distill.core.files import building, require_free, set_usual_modes, write_json
from distill.core.hashing import file_sha256
from distill.core.jsonl import read_sessions
from distill.core.weights import student_fingerprint
from distill.errors import ModelError, RecipeError, RunFolderError
from distill.formats.exporters.student import adapter, merged, ollama
from distill.formats.exporters.student.receipt import ExportDeviation, Limits, Reference, Watch, rows_of
from distill.formats.exporters.student.source import StudentFolder, base_name, read_student
from distill.models.device import free_memory
from distill.models.gguf import writing
from distill.models.gguf.reading import read_gguf
from distill.models.template_check import SAVED, TemplateReport, by_template, check, dialogues_of
from distill.run import model_card, students
from distill.run.layout import FILES
from distill.run.record import read_record, versions
from distill.types import Session

RECEIPT = "export.json"
GGUF = "model.gguf"
_PHASES = ("the trained student reads", "writing", "the {to} export reads")
"""Notes of the progress bar; each phase counts a third."""

_WHOLE = {
    "float16": Limits(kl=1e-4, disagree=0.005),
    "bfloat16": Limits(kl=2e-3, disagree=0.02),
    "float32": Limits(kl=1e-5, disagree=0.001),
}
_GGUF = {"float16": _WHOLE["float16"], "float32": _WHOLE["float32"], "q8_0": Limits(kl=2e-2, disagree=0.06)}
"""About ten times the measured effect of rounding the weights of a trained student (SmolLM2-135M, 24 of 30 layers,
QLoRA; KL in nats per token, top-1 agreement of 1,116 tokens): float32 2.7e-9, 100%; float16 1.2e-6, 100%; bfloat16
1.1e-4, 99.5%; q8_0 1.5e-3, 97.9%. The faults that they should catch cost far more: the same adapter merged into the
weights before their quantisation 0.26, 75.6%."""


@dataclass(frozen=True, slots=True)
class Form:
    """One form of export."""

    limits: Mapping[str, Limits]
    """By storage dtype; the first is the default."""
    require: Callable[[StudentFolder], None] | None
    """Raises `ModelError` for a student that cannot have this form, before any work."""
    write: Callable[[StudentFolder, Path, str, Watch], None]
    load: Callable[[StudentFolder, Path], tuple[Any, Any]]
    """Model and tokenizer of the written export, loaded as by any user."""


def _require_gguf(student: StudentFolder) -> None:
    writing.require_supported(student.config(), student.tokenizer)


def _require_ollama(student: StudentFolder) -> None:
    _require_gguf(student)
    ollama.fixed_texts(student.template, student.tokenizer)


def _write_gguf(student: StudentFolder, folder: Path, dtype: str, watch: Watch) -> None:
    writing.write_gguf(
        folder / GGUF,
        student.merged().cpu(),
        student.tokenizer,
        template=student.template,
        name=student.name,
        dtype=dtype,
        watch=watch,
    )


def _write_ollama(student: StudentFolder, folder: Path, dtype: str, watch: Watch) -> None:
    _write_gguf(student, folder, dtype, watch)
    text = ollama.modelfile(
        GGUF,
        ollama.fixed_texts(student.template, student.tokenizer),
        stops=student.end_tokens,
        system=student.system,
        about=f"{student.name}, a student trained with distill; README.md says what it is made of",
    )
    (folder / "Modelfile").write_text(text, encoding="utf-8")


def _load_gguf(student: StudentFolder, folder: Path) -> tuple[Any, Any]:
    model, tokenizer = read_gguf(folder / GGUF)
    return model.to(student.device).eval(), tokenizer


FORMS: Mapping[str, Form] = {
    "adapter": Form(_WHOLE, adapter.require_adapter, adapter.write_adapter, adapter.load_adapter),
    "merged": Form(_WHOLE, None, merged.write_merged, merged.load_merged),
    "gguf": Form(_GGUF, _require_gguf, _write_gguf, _load_gguf),
    "ollama": Form(_GGUF, _require_ollama, _write_ollama, _load_gguf),
}


def export_student(
    run: Path,
    *,
    to: str,
    out: Path,
    dtype: str | None = None,
    max_kl: float | None = None,
    progress: Progress | None = None,
    say: Say,
) -> list[str]:
    """Write a run's student to the new folder `out`; returns the lines to report.

    `to` is one of `FORMS`, `dtype` one of its `limits`; `max_kl` replaces the limit of nats per token. Raises
    `RecipeError` for a dtype that the form does not have, `ModelError` for a student that cannot have the form and for
    an export over a limit (it is left at OUT.failed), `RunFolderError` where nothing can be written.
    """
    form = FORMS[to]
    dtype = dtype or next(iter(form.limits))
    if dtype not in form.limits:
        raise RecipeError(f"--dtype {dtype}: {to} is written in {', '.join(form.limits)}")
    limits = form.limits[dtype] if max_kl is None else replace(form.limits[dtype], kl=max_kl)
    _require_free(run, out)
    name = str(read_record(run).get("name") or run.name)
    student = read_student(student_folder.current(run), name=name, system=trained_system(run))
    if form.require is not None:
        form.require(student)
    with building(out, faults=(SafetensorError,)) as folder:
        outcome = _make(student, run, folder, to=to, dtype=dtype, progress=progress or Silent())
        passed = outcome.comparison.within(limits)
        receipt = _receipt(student, folder, to=to, dtype=dtype, outcome=outcome, limits=limits, passed=passed)
        write_json(folder / RECEIPT, receipt)
        model_card.write(folder / "README.md", run, form=to, receipt=receipt)
        _place(folder, out if passed else _failed(out))
    for difference in outcome.checked.differences:
        if not difference.spelled:
            say(f"warning: {difference.line()}")
    if not passed:
        raise ModelError(
            f"{_deviation_line(outcome.comparison, limits)}; the export is over its limit and was put at {_failed(out)}"
        )
    return _lines(out, to, dtype, outcome, limits)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Results of the checks of an export."""

    comparison: ExportDeviation
    checked: TemplateReport
    on: str
    """The rows that it was compared on."""


def _watch(progress: Progress, phase: int, to: str) -> Watch:
    """Reports the work done in one of the phases, as percent of all."""

    def watch(done: int, total: int) -> None:
        share = (phase + done / max(1, total)) / len(_PHASES)
        progress.update(round(100 * share), 100, _PHASES[phase].format(to=to))

    watch(0, 1)
    return watch


def _make(student: StudentFolder, run: Path, folder: Path, *, to: str, dtype: str, progress: Progress) -> _Outcome:
    """Write the export into `folder` and compare it."""
    form = FORMS[to]
    on, sessions = _sessions(run)
    rows = rows_of(sessions, student.template, student.tokenizer, context=student.context)
    if not rows:
        raise RunFolderError(
            f"{run} has no held-out and no kept conversation to compare an export on; run curate again"
        )
    reference = Reference(folder / ".trained", rows)
    try:
        watch = _watch(progress, 0, to)
        reference.record(student.trained(), watch)
        free_memory()
        form.write(student, folder, dtype, _watch(progress, 1, to))
        free_memory()
        watch = _watch(progress, 2, to)
        model, tokenizer = form.load(student, folder)
        comparison = reference.compare(model, watch)
    finally:
        reference.close()
    readings = {SAVED: by_template(tokenizer)}
    dialogues = dialogues_of(sessions)
    checked = check(dialogues, template=student.template, tokenizer=student.tokenizer, readings=readings)
    return _Outcome(comparison, checked, on)


def _sessions(run: Path) -> tuple[str, list[Session]]:
    """The rows to compare on: those held out, where there are any."""
    for which, on in (("test", "held-out rows"), ("kept", "trained rows, as none were held out")):
        path = run / FILES[which]
        sessions = read_sessions(path) if path.is_file() else []
        if sessions:
            return on, sessions
    return "no rows", []


def trained_system(run: Path) -> str | None:
    """The system message that begins all training rows, if there is one; from the recipe where rows have changed."""
    training = students.training(run, read_record(run))
    if training is not None and students.has_other_rows(run, training):
        return (training["recipe"].get("collect") or {}).get("system") or None
    path = run / FILES["kept"]
    systems = {
        session.messages[0].content if session.messages and session.messages[0].role == "system" else None
        for session in (read_sessions(path) if path.is_file() else [])
    }
    return systems.pop() if len(systems) == 1 else None


# Folders


def _require_free(run: Path, out: Path) -> None:
    if out.suffix == ".gguf":
        raise RecipeError(f"--out is the folder to make, with the file {GGUF} in it; try {out.with_suffix('')}")
    require_free(out)
    if student_folder.current(run).resolve() in (out.resolve(), *out.resolve().parents):
        raise RunFolderError(
            f"{out} lies in the student's own folder, which it would change; try {run / 'exports' / out.name}"
        )


def _failed(out: Path) -> Path:
    return out.with_name(f"{out.name}.failed")


def _place(folder: Path, out: Path) -> None:
    """Rename a complete export to its final path, replacing an earlier failed one."""
    if out.name.endswith(".failed"):
        shutil.rmtree(out, ignore_errors=True)
    if out.is_dir():
        out.rmdir()  # empty: `require_free` has checked it
    set_usual_modes(folder)
    folder.rename(out)


# Receipt and report


def _receipt(
    student: StudentFolder, folder: Path, *, to: str, dtype: str, outcome: _Outcome, limits: Limits, passed: bool
) -> dict[str, Any]:
    deviation = outcome.comparison
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        "format": to,
        "dtype": dtype,
        "run": student.name,
        "student": student_fingerprint(student.folder),
        "base": base_name(student.info),
        "quantised": bool(student.info["quantised"]),
        "template": student.template,
        "end_tokens": student.end_tokens,
        "passed": passed,
        "compared": {
            "on": outcome.on,
            "rows": deviation.rows,
            "tokens": deviation.tokens,
            "mean_kl_nats": deviation.mean_kl,
            "max_kl_nats": deviation.max_kl,
            "top1_agreement": deviation.top1_agreement,
            "limits": {"mean_kl_nats": limits.kl, "top1_agreement": 1 - limits.disagree},
            "computed_in": "float32",
        },
        "train_serve": {
            "dialogues": outcome.checked.dialogues,
            "by": list(outcome.checked.by),
            "differences": [asdict(difference) for difference in outcome.checked.differences],
        },
        "files": {
            str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in files
        },
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _deviation_line(deviation: ExportDeviation, limits: Limits) -> str:
    return (
        f"KL to the trained student {deviation.mean_kl:.2g} nats per token (limit {limits.kl:g}), the same most "
        f"probable token at {deviation.top1_agreement:.2%} of {deviation.tokens:,} (limit {1 - limits.disagree:.1%})"
    )


def _lines(out: Path, to: str, dtype: str, outcome: _Outcome, limits: Limits) -> list[str]:
    files = [file for file in out.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    alike = "the same tokens" if outcome.checked.alike else f"{len(outcome.checked.differences)} differences"
    return [
        f"{out}: the student as {to}, {dtype}, {len(files)} files, {size / 1e6:,.1f} MB",
        f"{_deviation_line(outcome.comparison, limits)}; {outcome.on}",
        f"asked in {outcome.checked.dialogues} dialogues by the trainer and by the saved chat template: {alike}",
    ]
