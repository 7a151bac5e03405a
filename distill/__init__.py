"""Train a small model to imitate a large one: collect a teacher's answers, curate them, train, compare."""

from __future__ import annotations

TYPE_CHECKING = False
"""As of `typing`, whose import would be a tenth of the time until Ctrl-C is obeyed."""

# isort: off
if TYPE_CHECKING:
    from typing import Any

    from distill.api import (
        JournalCounts as JournalCounts,
        RunFolder as RunFolder,
        collect_sessions as collect_sessions,
        compare_models as compare_models,
        curate_sessions as curate_sessions,
        expand_tasks as expand_tasks,
        open_run as open_run,
        run_recipe as run_recipe,
        soft_targets as soft_targets,
        train_student as train_student,
    )
    from distill.collect.sessions import (
        one_turn as one_turn,
        opening as opening,
    )
    from distill.compare.metrics import (
        Measure as Measure,
        ModelAnswer as ModelAnswer,
        ModelMetric as ModelMetric,
        Sample as Sample,
        Scores as Scores,
        TextMetric as TextMetric,
    )
    from distill.curate.filters import (
        AskingOptions as AskingOptions,
        answers_of as answers_of,
        prompt_of as prompt_of,
        texts_of as texts_of,
    )
    from distill.engine.engine import Engine as Engine
    from distill.engine.journal.store import Journal as Journal
    from distill.engine.providers import (
        Provider as Provider,
        ProviderError as ProviderError,
        Reply as Reply,
    )
    from distill.errors import DistillError as DistillError
    from distill.formats.exporters import (
        ExportJob as ExportJob,
        ExportResult as ExportResult,
        Exporter as Exporter,
        write_json_rows as write_json_rows,
    )
    from distill.pipeline.parts import load_recipe as load_recipe
    from distill.recipe import (
        Asks as Asks,
        BaseOptions as BaseOptions,
        Recipe as Recipe,
    )
    from distill.run.scores import (
        Comparison as Comparison,
        Measured as Measured,
    )
    from distill.train.objectives.sft import Sft as Sft
    from distill.types import (
        AskingFilter as AskingFilter,
        Completion as Completion,
        Endpoint as Endpoint,
        Failure as Failure,
        Flow as Flow,
        Growth as Growth,
        Message as Message,
        Pair as Pair,
        Request as Request,
        RowFilter as RowFilter,
        Sampling as Sampling,
        Session as Session,
        SetFilter as SetFilter,
        Task as Task,
        Usage as Usage,
        Verdict as Verdict,
    )
# isort: on

__version__ = "0.1.0"

_PUBLIC = {
    "ModelAnswer": "distill.compare.metrics",
    "AskingFilter": "distill.types",
    "AskingOptions": "distill.curate.filters",
    "Asks": "distill.recipe",
    "Comparison": "distill.run.scores",
    "Completion": "distill.types",
    "DistillError": "distill.errors",
    "Endpoint": "distill.types",
    "Engine": "distill.engine.engine",
    "ExportJob": "distill.formats.exporters",
    "ExportResult": "distill.formats.exporters",
    "Exporter": "distill.formats.exporters",
    "Failure": "distill.types",
    "Flow": "distill.types",
    "Growth": "distill.types",
    "Journal": "distill.engine.journal.store",
    "JournalCounts": "distill.api",
    "Measure": "distill.compare.metrics",
    "Measured": "distill.run.scores",
    "Message": "distill.types",
    "ModelMetric": "distill.compare.metrics",
    "BaseOptions": "distill.recipe",
    "Pair": "distill.types",
    "Provider": "distill.engine.providers",
    "ProviderError": "distill.engine.providers",
    "Recipe": "distill.recipe",
    "Reply": "distill.engine.providers",
    "Request": "distill.types",
    "RowFilter": "distill.types",
    "RunFolder": "distill.api",
    "Sample": "distill.compare.metrics",
    "Sampling": "distill.types",
    "Scores": "distill.compare.metrics",
    "Session": "distill.types",
    "SetFilter": "distill.types",
    "Sft": "distill.train.objectives.sft",
    "Task": "distill.types",
    "TextMetric": "distill.compare.metrics",
    "Usage": "distill.types",
    "Verdict": "distill.types",
    "answers_of": "distill.curate.filters",
    "collect_sessions": "distill.api",
    "compare_models": "distill.api",
    "curate_sessions": "distill.api",
    "expand_tasks": "distill.api",
    "load_recipe": "distill.pipeline.parts",
    "one_turn": "distill.collect.sessions",
    "open_run": "distill.api",
    "opening": "distill.collect.sessions",
    "prompt_of": "distill.curate.filters",
    "run_recipe": "distill.api",
    "soft_targets": "distill.api",
    "texts_of": "distill.curate.filters",
    "train_student": "distill.api",
    "write_json_rows": "distill.formats.exporters",
}
"""Names and their modules, imported when first asked for; type checkers read the same above."""

__all__ = [*sorted(_PUBLIC), "__version__"]  # noqa: PLE0604 - the names come from the table above


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'distill' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
