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

import torch
from safetensors import SafetensorError

from distill.core import student_folder
from distill.core.console import Progress, Say, Silent
from distill.core.files import building, require_free, set_usual_modes, write_json
from distill.core.hashing import file_sha256
from distill.core.jsonl import read_sessions
from distill.core.weights import student_fingerprint
from distill.errors import ModelError, RecipeError, RunFolderError
from distill.formats.exporters.student import adapter, merged, ollama
from distill.formats.exporters.student.receipt import ExportDeviation, Limits, Reference, rows_of
from distill.formats.exporters.student.source import StudentFolder, base_name, read_student
from distill.models import loading
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
_PHASES = 3
"""Phases of the progress: the trained model reads, the export is written, the export reads."""

Watch = Callable[[int, int], None]
"""Called with the work done in a phase, and all of it."""

_WHOLE = {
    "float16": Limits(kl=1e-4, disagree=0.005),
    "bfloat16": Limits(kl=2e-3, disagree=0.02),
    "float32": Limits(kl=1e-5, disagree=0.001),
}
_GGUF = {"float16": _WHOLE["float16"], "float32": _WHOLE["float32"], "q8_0": Limits(kl=2e-2, disagree=0.06)}
"""Some ten times what rounding the weights was measured to cost a trained student (SmolLM2-135M, 24 of 30 layers,
QLoRA; KL in nats per token, top-1 agreement of 1,116 tokens): float32 2.7e-9, 100%; float16 1.2e-6, 100%; bfloat16
1.1e-4, 99.5%; q8_0 1.5e-3, 97.9%. The faults that they are there to catch cost far more: the same adapter merged into
the weights before their quantisation 0.26, 75.6%."""


@dataclass(frozen=True, slots=True)
class Form:
    """One form of export."""

    limits: Mapping[str, Limits]
    """By storage dtype; the first is the default."""
    require: Callable[[StudentFolder], None] | None
    """Raises `ModelError` for a student that has no such form, before any work."""
    write: Callable[[StudentFolder, Path, str, Watch], None]
    load: Callable[[StudentFolder, Path], tuple[Any, Any]]
    """Model and tokenizer of what was written, loaded as by any user."""


def _require_gguf(student: StudentFolder) -> None:
    writing.require_supported(student.config(), student.tokenizer)


def _require_ollama(student: StudentFolder) -> None:
    _require_gguf(student)
    ollama.fixed_texts(student.template, student.tokenizer)


def _write_adapter(student: StudentFolder, folder: Path, dtype: str, watch: Watch) -> None:
    adapter.write_adapter(student, folder, dtype=dtype)


def _write_merged(student: StudentFolder, folder: Path, dtype: str, watch: Watch) -> None:
    merged.write_whole(student, student.merged(), folder, dtype=dtype)


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
    about = [f"{student.name}, a student trained with distill; what it is made of stands in README.md"]
    text = ollama.modelfile(
        GGUF,
        ollama.fixed_texts(student.template, student.tokenizer),
        stops=[str(student.tokenizer.convert_ids_to_tokens(id_)) for id_ in student.end_ids],
        system=student.system,
        about=about,
    )
    (folder / "Modelfile").write_text(text, encoding="utf-8")


def _load_adapter(student: StudentFolder, folder: Path) -> tuple[Any, Any]:
    return adapter.load_adapter(student, folder), loading.load_tokenizer(folder)


def _load_merged(student: StudentFolder, folder: Path) -> tuple[Any, Any]:
    model = loading.load_causal(folder, dtype=torch.float32, device=student.device)
    return model, loading.load_tokenizer(folder)


def _load_gguf(student: StudentFolder, folder: Path) -> tuple[Any, Any]:
    model, tokenizer = read_gguf(folder / GGUF)
    return model.to(student.device).eval(), tokenizer


FORMS: Mapping[str, Form] = {
    "adapter": Form(_WHOLE, adapter.require_adapter, _write_adapter, _load_adapter),
    "merged": Form(_WHOLE, None, _write_merged, _load_merged),
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
    """Write a run's student to the new folder `out` and say what was written, a line each.

    `to` is one of `FORMS`, `dtype` one of its `limits`; `max_kl` replaces the limit of nats per token. Raises
    `RecipeError` for a dtype that the form has not, `ModelError` for a student that has no such form and for an export
    that is over a limit (it is left at OUT.failed), `RunFolderError` where nothing can be written.
    """
    form = FORMS[to]
    dtype = dtype or next(iter(form.limits))
    if dtype not in form.limits:
        raise RecipeError(f"--dtype {dtype}: {to} is written in {', '.join(form.limits)}")
    limits = form.limits[dtype] if max_kl is None else replace(form.limits[dtype], kl=max_kl)
    _require_free(run, out)
    student = read_student(student_folder.current(run), name=_name(run), system=_system(run))
    if form.require is not None:
        form.require(student)
    with building(out, faults=(SafetensorError,)) as folder:
        outcome = _make(student, run, folder, form=form, to=to, dtype=dtype, steps=_Steps(progress or Silent()))
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
    """Facts gathered during an export."""

    comparison: ExportDeviation
    checked: TemplateReport
    on: str
    """Which rows it was compared on."""


class _Steps:
    """Progress over the phases, in percent."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._phase = 0
        self._note = ""

    def begin(self, note: str) -> None:
        """Go on to the next phase."""
        self._phase += 1
        self._note = note
        self.watch(0, 1)

    def watch(self, done: int, total: int) -> None:
        """Report the work done in the phase."""
        share = (self._phase - 1 + done / max(1, total)) / _PHASES
        self._progress.update(round(100 * share), 100, self._note)


def _make(
    student: StudentFolder, run: Path, folder: Path, *, form: Form, to: str, dtype: str, steps: _Steps
) -> _Outcome:
    """Write the export into `folder` and compare it."""
    on, sessions = _sessions(run)
    rows = rows_of(sessions, student.template, student.tokenizer, context=student.context)
    if not rows:
        raise RunFolderError(
            f"{run} has no held-out and no kept conversation to compare an export on; run curate again"
        )
    reference = Reference(folder / ".trained", rows)
    try:
        steps.begin("the trained student reads")
        reference.record(student.trained(), lambda done: steps.watch(done, reference.tokens))
        free_memory()
        steps.begin("writing")
        form.write(student, folder, dtype, steps.watch)
        free_memory()
        steps.begin(f"the {to} export reads")
        model, tokenizer = form.load(student, folder)
        comparison = reference.compare(model, lambda done: steps.watch(done, reference.tokens))
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


def _name(run: Path) -> str:
    return str(read_record(run).get("name") or run.name)


def _system(run: Path) -> str | None:
    """The system message that all training began with, if there was one; by its recipe where rows are others."""
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
    """Move a whole export to where it belongs; an earlier failed one makes room."""
    if out.name.endswith(".failed"):
        shutil.rmtree(out, ignore_errors=True)
    if out.is_dir():
        out.rmdir()  # empty, as was made sure of
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
        "end_tokens": [str(student.tokenizer.convert_ids_to_tokens(id_)) for id_ in student.end_ids],
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
