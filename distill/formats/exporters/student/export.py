"""Exports a student: writes to a temporary folder, verifies it against the trained one, then renames.

An export that is over a limit, or that is interrupted, is never left at the path of a finished one.
"""

from __future__ import annotations

import json
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
from distill.formats.exporters.student.tensors import BYTES, left_out, require_space, weights_in
from distill.models.device import free_memory
from distill.models.gguf import quantising, writing
from distill.models.gguf.reading import read_gguf
from distill.models.gguf.support import require_supported
from distill.models.templates.check import SAVED, TemplateReport, by_template, check, dialogues_of
from distill.run import model_card, students
from distill.run.layout import FILES
from distill.run.record import read_record, versions
from distill.types import Session

RECEIPT = "export.json"
GGUF = "model.gguf"
_PHASES = ("the trained student reads", "writing", "the {to} export reads")
"""Notes of the progress bar; each phase counts a third."""

_WHOLE = {
    "float16": Limits(kl=2e-4, disagree=0.02),
    "bfloat16": Limits(kl=1e-2, disagree=0.1),
    "float32": Limits(kl=1e-5, disagree=0.001),
}
_GGUF = {
    "float16": _WHOLE["float16"],
    "float32": _WHOLE["float32"],
    "q8_0": Limits(kl=2e-2, disagree=0.06),
    "q6_k": Limits(kl=5e-2, disagree=0.1),
    "q5_k_m": Limits(kl=0.2, disagree=0.2),
    "q4_k_m": Limits(kl=0.2, disagree=0.2),
}
"""About ten times the measured effect on a trained student (SmolLM2-135M, 24 of 30 layers, QLoRA; KL in nats per token,
top-1 agreement of 2,088 tokens). Whole weights, stored and computed in float16: 1.8e-5, 99.7%; bfloat16: 1.2e-3, 97.8%.
GGUF, computed in float32: float16 1.1e-6, 99.95%; q8_0 1.1e-3, 98.5%; q6_k 4.8e-3, 97.4%; q5_k_m 0.039, 90.6%; q4_k_m
0.050, 89.5%. The faults that they should catch cost more: the same adapter merged into the weights before their
quantisation 0.26, 75.6%."""
AUTO = "auto"
"""The smallest of `SMALLER` that is within `AUTO_LIMITS`."""
SMALLER = ("q4_k_m", "q5_k_m", "q6_k", "q8_0", "float16")
AUTO_LIMITS = Limits(kl=0.01, disagree=1.0)
"""Bound of the loss by quantisation: weights of float16 lose 1e-6."""


@dataclass(frozen=True, slots=True)
class Form:
    """One form of export."""

    limits: Mapping[str, Limits]
    """By storage dtype; the first is the default."""
    require: Callable[[StudentFolder], None] | None
    """Raises `ModelError` for a student that cannot have this form, before any work."""
    write: Callable[[StudentFolder, Path, str, Watch], list[str]]
    """Writes into a folder in a dtype; returns remarks on what the export lacks."""
    load: Callable[[StudentFolder, Path], tuple[Any, Any]]
    """Model and tokenizer of the written export, loaded as by any user."""


def _require_gguf(student: StudentFolder) -> None:
    require_supported(student.config().to_dict(), json.loads(student.tokenizer.backend_tokenizer.to_str()))


def _require_ollama(student: StudentFolder) -> None:
    _require_gguf(student)
    ollama.fixed_texts(student.template, student.tokenizer)


def _write_gguf(student: StudentFolder, folder: Path, dtype: str, watch: Watch) -> list[str]:
    model = student.merged().cpu()
    kinds = writing.write_gguf(
        folder / GGUF,
        model,
        student.tokenizer,
        template=student.template,
        name=student.name,
        dtype=dtype,
        watch=watch,
    )
    return [
        *_fallback(kinds, dtype),
        *writing.differences(model.config),
        *left_out(student.original, model.state_dict()),
    ]


def _fallback(kinds: Mapping[str, tuple[str, bool]], dtype: str) -> list[str]:
    counts, fell = quantising.counted(kinds)
    if not fell:
        return []
    types = ", ".join(f"{name} {count}" for name, count in counts.items())
    return [
        f"{fell} of {sum(counts.values())} matrices have another type than {dtype} gives them, as their rows are no"
        f" multiple of its block: {types}"
    ]


def _write_ollama(student: StudentFolder, folder: Path, dtype: str, watch: Watch) -> list[str]:
    remarks = _write_gguf(student, folder, dtype, watch)
    text = ollama.modelfile(
        GGUF,
        ollama.fixed_texts(student.template, student.tokenizer),
        stops=student.end_tokens,
        system=student.system,
        about=f"{student.name}, a student trained with distill; README.md says what it is made of",
    )
    (folder / "Modelfile").write_text(text, encoding="utf-8")
    return remarks


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

    `to` is one of `FORMS`, `dtype` one of its `limits`, or `auto` of a GGUF; `max_kl` replaces the limit of nats per
    token. Raises `RecipeError` for a dtype that the form does not have, `ModelError` for a student that cannot have the
    form and for an export over a limit (it is left at OUT.failed), `RunFolderError` where nothing can be written.
    """
    form = FORMS[to]
    dtype = dtype or next(iter(form.limits))
    if dtype not in (*form.limits, *([AUTO] if form.limits is _GGUF else [])):
        raise RecipeError(f"--dtype {dtype}: {to} is written in {', '.join(form.limits)}")
    quantising.require(SMALLER[0] if dtype == AUTO else dtype)
    _require_free(run, out)
    name = str(read_record(run).get("name") or run.name)
    student = read_student(student_folder.current(run), name=name, system=trained_system(run))
    if form.require is not None:
        form.require(student)
    with building(out, faults=(SafetensorError,)) as folder:
        outcome = _make(student, run, folder, out, to=to, dtype=dtype, max_kl=max_kl, progress=progress or Silent())
        place = out if outcome.passed else out.with_name(f"{out.name}.failed")
        receipt = _receipt(student, folder, to=to, outcome=outcome)
        write_json(folder / RECEIPT, receipt)
        model_card.write(folder / "README.md", run, form=to, receipt=receipt)
        _place(folder, place)
    for difference in outcome.checked.differences:
        if not difference.spelled:
            say(f"warning: {difference.line()}")
    for remark in outcome.remarks:
        say(f"warning: {remark}")
    if not outcome.passed:
        raise ModelError(f"{_deviation_line(outcome)}; the export is over its limit and was put at {place}")
    return _lines(out, to, outcome)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Results of the checks of an export."""

    comparison: ExportDeviation
    limits: Limits
    dtype: str
    computed_in: str
    """The dtype in which the export computes when it is loaded without options."""
    checked: TemplateReport
    on: str
    """The rows that it was compared on."""
    remarks: tuple[str, ...]
    """What it lacks."""

    @property
    def passed(self) -> bool:
        """Whether it keeps its limits."""
        return self.comparison.within(self.limits)


def _watch(progress: Progress, phase: int, to: str) -> Watch:
    """Reports the work done in one of the phases, as percent of all."""

    def watch(done: int, total: int) -> None:
        share = (phase + done / max(1, total)) / len(_PHASES)
        progress.update(round(100 * share), 100, _PHASES[phase].format(to=to))

    watch(0, 1)
    return watch


def _make(
    student: StudentFolder,
    run: Path,
    folder: Path,
    out: Path,
    *,
    to: str,
    dtype: str,
    max_kl: float | None,
    progress: Progress,
) -> _Outcome:
    """Write the export into `folder` and compare it; with `auto`, in one dtype after another until one is close."""
    on, sessions = _sessions(run)
    rows = rows_of(sessions, student.template, student.tokenizer, context=student.context)
    if not rows:
        raise RunFolderError(
            f"{run} has no held-out and no kept conversation to compare an export on; run curate again"
        )
    reference = Reference(folder / ".trained", rows)
    require_space(out, _bytes(student, to, dtype) + reference.tokens * len(student.tokenizer) * 4)
    try:
        reference.record(student.trained(), _watch(progress, 0, to))
        for storage in SMALLER if dtype == AUTO else (dtype,):
            free_memory()
            remarks = FORMS[to].write(student, folder, storage, _watch(progress, 1, to))
            free_memory()
            comparison, computed_in, tokenizer = _compared(student, folder, reference, to, _watch(progress, 2, to))
            limits = AUTO_LIMITS if dtype == AUTO else _limits(FORMS[to], storage, computed_in)
            limits = limits if max_kl is None else replace(limits, kl=max_kl)
            if comparison.within(limits):
                break
    finally:
        reference.close()
    readings = {SAVED: by_template(tokenizer)}
    checked = check(dialogues_of(sessions), template=student.template, tokenizer=student.tokenizer, readings=readings)
    return _Outcome(comparison, limits, storage, computed_in, checked, on, tuple(remarks))


def _compared(
    student: StudentFolder, folder: Path, reference: Reference, to: str, watch: Watch
) -> tuple[ExportDeviation, str, Any]:
    """What was written, compared as it loads; with the dtype in which it computes, and its tokenizer."""
    model, tokenizer = FORMS[to].load(student, folder)
    return reference.compare(model, watch), str(model.dtype).removeprefix("torch."), tokenizer


def _limits(form: Form, storage: str, computed_in: str) -> Limits:
    """The limits of an export by the coarser of the dtypes that it is stored in and computes in."""
    one, other = form.limits[storage], _WHOLE[computed_in]
    return Limits(kl=max(one.kl, other.kl), disagree=max(one.disagree, other.disagree))


def _bytes(student: StudentFolder, to: str, dtype: str) -> float:
    """Approximate size of an export."""
    adapter_bytes = sum(file.stat().st_size for file in student.folder.glob("adapter_*.safetensors"))
    if to == "adapter" and base_name(student.info) is not None:
        return adapter_bytes
    per_weight = BYTES[SMALLER[-1] if dtype == AUTO else dtype]
    return weights_in(student.weights, student.info["layers"]) * per_weight + adapter_bytes


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


def _place(folder: Path, out: Path) -> None:
    """Rename a complete export to its final path, replacing an earlier failed one."""
    if out.name.endswith(".failed"):
        shutil.rmtree(out, ignore_errors=True)
    if out.is_dir():
        out.rmdir()  # empty: `require_free` has checked it
    set_usual_modes(folder)
    folder.rename(out)


# Receipt and report


def _receipt(student: StudentFolder, folder: Path, *, to: str, outcome: _Outcome) -> dict[str, Any]:
    deviation, limits = outcome.comparison, outcome.limits
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        "format": to,
        "dtype": outcome.dtype,
        "run": student.name,
        "student": student_fingerprint(student.folder),
        "base": base_name(student.info),
        "quantised": bool(student.info["quantised"]),
        "template": student.template,
        "end_tokens": student.end_tokens,
        "passed": outcome.passed,
        "remarks": list(outcome.remarks),
        "compared": {
            "on": outcome.on,
            "rows": deviation.rows,
            "tokens": deviation.tokens,
            "mean_kl_nats": deviation.mean_kl,
            "max_kl_nats": deviation.max_kl,
            "top1_agreement": deviation.top1_agreement,
            "limits": {"mean_kl_nats": limits.kl, "top1_agreement": 1 - limits.disagree},
            "computed_in": outcome.computed_in,
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


def _deviation_line(outcome: _Outcome) -> str:
    deviation, limits = outcome.comparison, outcome.limits
    return (
        f"KL to the trained student {deviation.mean_kl:.2g} nats per token (limit {limits.kl:g}), the same most "
        f"probable token at {deviation.top1_agreement:.2%} of {deviation.tokens:,} (limit {1 - limits.disagree:.1%})"
    )


def _lines(out: Path, to: str, outcome: _Outcome) -> list[str]:
    files = [file for file in out.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    alike = "the same tokens" if outcome.checked.alike else f"{len(outcome.checked.differences)} differences"
    return [
        f"{out}: the student as {to}, {outcome.dtype}, {len(files)} files, {size / 1e6:,.1f} MB",
        f"{_deviation_line(outcome)}, computed in {outcome.computed_in}; {outcome.on}",
        f"asked in {outcome.checked.dialogues} dialogues by the trainer and by the saved chat template: {alike}",
    ]
