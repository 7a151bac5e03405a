"""The compare stage: base, student and teacher on the held-out prompts, side by side, with paired intervals.

Everything is asked through the engine, so a run that was killed asks nothing twice. One model is in memory at a time:
the teacher answers every prompt once more (the ceiling) and is stopped; base and student answer, and are asked how
probable they find the teacher's answers; last, the teacher is asked that too, where its weights are at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from distill.comparing.asking import Engines, ask_here, ask_teacher_again, ask_teacher_weights
from distill.comparing.entries import summary
from distill.comparing.found import Found, line, read_prompts, score_texts
from distill.embedded import read_base
from distill.journal import Journal
from distill.metrics import Model, ModelMetric, TextMetric
from distill.providers import Provider
from distill.rows import write_json, write_rows
from distill.stats import LEVEL, RESAMPLES
from distill.types import Sampling


def compare(
    folder: Path,
    *,
    engine: Engines,
    journal: Journal,
    metrics: Sequence[TextMetric | ModelMetric],
    sampling: Sampling,
    seed: int,
    teachers: Mapping[str, Provider],
    release_teacher: Callable[[], None] = lambda: None,
    teacher_weights: str | None = None,
) -> dict[str, int]:
    """Write answers.jsonl and scores.json from test.jsonl and student/; returns counts.

    All models draw with `sampling`; `seed` decides the draws of base and student, and the resamples. Of the
    `teachers`, by their names in the engine, the one that answered a prompt answers a second time, else the first; none
    leaves that out. `release_teacher` is called when it is not needed any more.
    `teacher_weights` is the teacher as a recipe names it, where it can be loaded here. Reads the journal for what is
    known of the teacher's first answers. Raises `DistillError` when base and student are the same model.
    """
    found = Found(read_prompts(folder, journal))
    local = replace(sampling, seed=seed)
    if found.prompts and teachers:
        ask_teacher_again(found, engine, teachers, sampling)
    release_teacher()
    if found.prompts:
        ask_here(found, engine, folder / "student", metrics, local)
        ask_teacher_weights(found, engine, metrics, teacher_weights)
    score_texts(found, metrics)
    found_summary = summary(found, metrics, seed)
    names = [Path(teacher.endpoint.model).name for teacher in teachers.values()]
    name = ", ".join(names) or Path(teacher_weights or "teacher").name
    described = _described(folder, name) if found.prompts else {}
    write_rows(folder / "answers.jsonl", (line(found, index) for index in range(len(found.prompts))))
    scores = {"prompts": len(found.prompts), "method": _method(sampling, seed), "models": described, **found_summary}
    write_json(folder / "scores.json", scores)
    missing = sum(found.missing.values())
    return {"prompts": len(found.prompts), "answers": sum(map(len, found.answers.values())), "missing": missing}


def _method(sampling: Sampling, seed: int) -> str:
    drawn = [
        f"{name} {value:g}"
        for name, value in (("temperature", sampling.temperature), ("top_p", sampling.top_p))
        if value is not None
    ]
    drawn += [f"at most {sampling.max_tokens} tokens"] if sampling.max_tokens else []
    return (
        f"means over prompts; {LEVEL:.0%} percentile intervals from {RESAMPLES:,} resamples of the prompts "
        f"(seed {seed}), differences paired by prompt; all models drew with {', '.join(drawn) or 'default sampling'}"
    )


def _described(folder: Path, teacher: str) -> dict[Model, dict[str, str]]:
    told = read_base(folder / "student")
    model = Path(told["model"]).name
    weights = ", 4-bit" if told["quantised"] else ""
    layers = f"{len(told['layers'])} layers of " if told["layers"] else ""
    return {
        "base": {"model": model, "description": f"the student before training: {layers}{model}{weights}"},
        "student": {"model": model, "description": "the same after training"},
        "teacher": {"model": teacher, "description": "the teacher's first answers, which are compared with"},
        "teacher_again": {"model": teacher, "description": "the teacher's second answer to each prompt, drawn anew"},
    }
