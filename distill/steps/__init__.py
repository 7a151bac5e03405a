"""What each stage is to the pipeline: the call that does it, the files it reads and writes, and what makes it stale."""

from __future__ import annotations

from collections.abc import Mapping

from distill.steps import currency, rules, sessions, student
from distill.steps.asking import passes
from distill.steps.context import ACCEPTABLE, BASE, Context, Stage, compares_here, serves_here, stop_teacher
from distill.steps.currency import sources_of
from distill.steps.rules import roles_of_filters
from distill.steps.sessions import choice_of, growth_of, tasks_of
from distill.steps.student import settings_of

__all__ = [
    "ACCEPTABLE",
    "BASE",
    "PIPELINE",
    "Context",
    "Stage",
    "choice_of",
    "compares_here",
    "growth_of",
    "passes",
    "roles_of_filters",
    "serves_here",
    "settings_of",
    "sources_of",
    "stop_teacher",
    "tasks_of",
]

STUDENT_SOURCES = tuple(
    f"distill.student.{name}"
    for name in ("batches", "generate", "gguf_reading", "harness", "inprocess", "likelihood", "models", "spelling")
)
TRAIN_SOURCES = tuple(
    f"distill.student.{name}"
    for name in (
        "adapter",
        "attempt",
        "attention",
        "best",
        "build",
        "checkpoints",
        "examples",
        "fitting",
        "fused",
        "gate",
        "gguf_reading",
        "guarded",
        "guards",
        "held",
        "identity",
        "interrupt",
        "kernels",
        "layout",
        "lean",
        "lines",
        "log",
        "models",
        "neftune",
        "precision",
        "pruning",
        "recompute",
        "saving",
        "sft",
        "trainer",
        "watch",
    )
)
COMPARING_SOURCES = tuple(
    f"distill.comparing.{name}"
    for name in (
        "asking",
        "audit",
        "benchmarks",
        "coverage",
        "entries",
        "found",
        "headline",
        "judging",
        "leaks",
        "prompts",
        "remarks",
        "surprise",
    )
)
REPORTING_SOURCES = tuple(
    f"distill.reporting.{name}"
    for name in ("comparison", "figures", "pairs", "provenance", "rows", "stages", "surprise")
)
TURN_SOURCES = (
    "distill.grades",
    "distill.reasoning",
    *(
        f"distill.strategies.{name}"
        for name in ("checks", "dialogue", "echoes", "finals", "frames", "thoughts", "turns")
    ),
)
"""What strategies share."""
FILTER_SOURCES = tuple(
    f"distill.{name}"
    for name in ("filters", "filters.likelihoods", "grades", "reasoning", "chat", "student.likelihood")
)
"""What filters share."""

CARD_SOURCES = ("distill.card", "distill.model_card")

PIPELINE: Mapping[str, Stage] = {
    "expand": Stage(
        sessions.expanding,
        inputs=(),
        outputs=("tasks.jsonl", "refused.jsonl"),
        sources=(
            "distill.expand",
            "distill.novelty",
            "distill.overlaps",
            "distill.prompts",
            "distill.reasoning",
            "distill.strategies.echoes",
            "distill.strategies.frames",
            "distill.strategies.pool",
            "distill.engine.drive",
            "distill.engine.flows",
        ),
        options=currency.expand_options,
        teacher=True,
        prompts="prompts/strategies",
    ),
    "collect": Stage(
        sessions.collecting,
        inputs=("tasks.jsonl",),
        outputs=("sessions.jsonl", "failures.jsonl", "rejected.jsonl"),
        sources=("distill.collect", "distill.engine.flows", "distill.prompts", "distill.teachers", *TURN_SOURCES),
        options=currency.collect_options,
        teacher=True,
        prompts="prompts/strategies",
    ),
    "curate": Stage(
        rules.curating,
        inputs=("sessions.jsonl",),
        outputs=("kept.jsonl", "dropped.jsonl", "test.jsonl"),
        sources=(
            *(f"distill.{name}" for name in ("curate", "funnel", "novelty", "overlaps", "sieve")),
            *FILTER_SOURCES,
        ),
        options=currency.curate_options,
        teacher=True,
        prompts="prompts/judges",
    ),
    "train": Stage(
        student.training,
        inputs=("kept.jsonl",),
        outputs=("student",),
        sources=("distill.train", "distill.chat", *TRAIN_SOURCES),
        options=currency.train_options,
    ),
    "compare": Stage(
        student.comparing,
        inputs=("test.jsonl", "kept.jsonl", "student"),
        outputs=("answers.jsonl", "scores.json"),
        sources=(
            "distill.compare",
            "distill.chat",
            "distill.grades",
            "distill.stats",
            *COMPARING_SOURCES,
            *STUDENT_SOURCES,
        ),
        options=currency.compare_options,
        teacher=True,
    ),
    "report": Stage(
        student.reporting,
        inputs=("student", "scores.json", "answers.jsonl", "kept.jsonl", "dropped.jsonl", "test.jsonl", "tasks.jsonl"),
        outputs=("report.html",),
        sources=("distill.report", "distill.funnel", *CARD_SOURCES, *REPORTING_SOURCES),
        options=currency.report_options,
        prompts="prompts/report",
    ),
}
