"""Table of stages: function, input and output files, and options that make each one stale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distill.collect.stage import collect_options, collecting
from distill.compare.stage import compare_options, comparing
from distill.curate.stage import curate_options, curating
from distill.expand.stage import expand_options, expanding
from distill.report.stage import report_options, reporting
from distill.run.context import Context
from distill.run.record import StageRecord
from distill.train.stage import train_options, training


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage as the pipeline sees it."""

    work: Callable[[Context, StageRecord], Mapping[str, Any]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sources: tuple[str, ...]
    options: Callable[[Context], Any]
    """What of the recipe decides the stage's outputs."""
    teacher: bool = False
    """Whether the stage asks the teacher."""
    prompts: str | None = None
    """A shipped file or folder that the stage reads."""


STUDENT_SOURCES = (
    "distill.models.padding",
    "distill.models.generation",
    "distill.models.gguf.reading",
    "distill.compare.lm_eval_tasks",
    "distill.models.in_process",
    "distill.models.likelihood",
    "distill.models.loading",
    "distill.models.token_bytes",
)
TRAIN_SOURCES = (
    "distill.train.lora",
    "distill.train.loop",
    "distill.train.kernels.attention",
    "distill.train.evaluation",
    "distill.train.build",
    "distill.train.checkpoints",
    "distill.train.dataset",
    "distill.train.memory",
    "distill.train.kernels.fused",
    "distill.train.mask_check",
    "distill.models.gguf.reading",
    "distill.train.spike_guard",
    "distill.train.spikes",
    "distill.train.dataset",
    "distill.train.checkpoints",
    "distill.train.callbacks",
    "distill.train.kernels.autograd",
    "distill.train.packing",
    "distill.train.kernels.patch",
    "distill.core.jsonl",
    "distill.train.callbacks",
    "distill.models.loading",
    "distill.train.sft_trainer",
    "distill.models.device",
    "distill.models.pruning",
    "distill.train.sft_trainer",
    "distill.train.saving",
    "distill.train.sft_trainer",
    "distill.train.loop",
    "distill.train.evaluation",
)
COMPARING_SOURCES = (
    "distill.compare.answers",
    "distill.compare.judge_audit",
    "distill.compare.lm_eval",
    "distill.compare.training_overlap",
    "distill.compare.summary",
    "distill.compare.results",
    "distill.compare.summary",
    "distill.compare.judge",
    "distill.compare.training_overlap",
    "distill.compare.prompts",
    "distill.compare.summary",
    "distill.compare.token_nll",
)
REPORTING_SOURCES = (
    "distill.report.comparison",
    "distill.report.numbers",
    "distill.report.answer_rows",
    "distill.report.comparison",
    "distill.report.answer_rows",
    "distill.report.run_sections",
    "distill.report.token_shading",
)
TURN_SOURCES = (
    "distill.text.judge_replies",
    "distill.text.thinking",
    "distill.text.answer_checks",
    "distill.collect.dialogue",
    "distill.text.echoes",
    "distill.text.answer_checks",
    "distill.text.wrappers",
    "distill.text.thinking",
    "distill.collect.sessions",
)
"""What strategies share."""
FILTER_SOURCES = (
    "distill.curate.filters",
    "distill.curate.filters.likelihoods",
    "distill.text.judge_replies",
    "distill.text.thinking",
    "distill.models.chat_template",
    "distill.models.likelihood",
)
"""What filters share."""

CARD_SOURCES = ("distill.run.dataset_card", "distill.run.model_card")

PIPELINE: Mapping[str, Stage] = {
    "expand": Stage(
        expanding,
        inputs=(),
        outputs=("tasks.jsonl", "refused.jsonl"),
        sources=(
            "distill.expand.stage",
            "distill.text.rouge_index",
            "distill.text.rouge_index",
            "distill.core.assets",
            "distill.text.thinking",
            "distill.text.echoes",
            "distill.text.wrappers",
            "distill.expand.pool",
            "distill.engine.engine",
            "distill.engine.flows",
        ),
        options=expand_options,
        teacher=True,
        prompts="prompts/strategies",
    ),
    "collect": Stage(
        collecting,
        inputs=("tasks.jsonl",),
        outputs=("sessions.jsonl", "failures.jsonl", "rejected.jsonl"),
        sources=(
            "distill.collect.stage",
            "distill.engine.flows",
            "distill.core.assets",
            "distill.run.endpoints",
            *TURN_SOURCES,
        ),
        options=collect_options,
        teacher=True,
        prompts="prompts/strategies",
    ),
    "curate": Stage(
        curating,
        inputs=("sessions.jsonl",),
        outputs=("kept.jsonl", "dropped.jsonl", "test.jsonl"),
        sources=(
            "distill.curate.stage",
            "distill.run.funnel",
            "distill.text.rouge_index",
            "distill.text.rouge_index",
            "distill.curate.rows",
            *FILTER_SOURCES,
        ),
        options=curate_options,
        teacher=True,
        prompts="prompts/judges",
    ),
    "train": Stage(
        training,
        inputs=("kept.jsonl",),
        outputs=("student",),
        sources=("distill.train.stage", "distill.models.chat_template", *TRAIN_SOURCES),
        options=train_options,
    ),
    "compare": Stage(
        comparing,
        inputs=("test.jsonl", "kept.jsonl", "student"),
        outputs=("answers.jsonl", "scores.json"),
        sources=(
            "distill.compare.stage",
            "distill.models.chat_template",
            "distill.text.judge_replies",
            "distill.compare.stats",
            *COMPARING_SOURCES,
            *STUDENT_SOURCES,
        ),
        options=compare_options,
        teacher=True,
    ),
    "report": Stage(
        reporting,
        inputs=("student", "scores.json", "answers.jsonl", "kept.jsonl", "dropped.jsonl", "test.jsonl", "tasks.jsonl"),
        outputs=("report.html",),
        sources=("distill.report.stage", "distill.run.funnel", *CARD_SOURCES, *REPORTING_SOURCES),
        options=report_options,
        prompts="prompts/report",
    ),
}
