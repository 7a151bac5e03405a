"""Runs tasks of EleutherAI's lm-evaluation-harness (the package `lm_eval`) on a model in this process.

Tasks are taken by their names from the package's own index: a name is never read as a path. Nothing brings code of its
own: not a data set, not a metric of the Hub; and tasks that execute what a model writes are refused.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from difflib import get_close_matches
from io import StringIO
from logging import ERROR, getLogger
from typing import Any

from distill.errors import DistillError, MissingPackage, RecipeError
from distill.models.third_party import first_line, quietly

SEED, FEWSHOT_SEED = 0, 1234
"""The harness's own defaults, so that its command line gives the same examples and the same draws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Settings of a task; `None` is the task's default."""

    limit: int | None = None
    """Number of documents of each task, from its first on."""
    shots: int | None = None
    """Examples before each question."""
    chat: bool = False
    """Whether questions are put in the model's chat template."""
    batch: int = 8


@dataclass(frozen=True, slots=True)
class TaskRun:
    """One model's results on a task."""

    version: str
    means: Mapping[str, bool | None]
    """The metrics that are a mean over documents, each with whether higher is better."""
    others: tuple[str, ...]
    """The metrics that are none, and have no value for one document."""
    samples: Sequence[Mapping[str, Any]]
    """One row per document and filter, as the harness logs them."""


class Harness:
    """The harness's index of tasks, read once."""

    def __init__(self, manager: Any = None) -> None:
        """`manager`: an index other than the package's own."""
        import evaluate

        evaluate.config.HF_EVALUATE_OFFLINE = True  # else a metric's code would come from the Hub
        if manager is None:
            from lm_eval.tasks import TaskManager

            with _quiet_harness():
                manager = TaskManager()
        self._manager = manager

    def require(self, names: Sequence[str]) -> None:
        """Raise `RecipeError` for a name that is no task, group or tag, and for a task that runs code."""
        index = self._manager.task_index
        for name in names:
            if name not in index:
                close = get_close_matches(name, index, n=1)
                hint = f'did you mean "{close[0]}"?' if close else "`lm_eval ls tasks` lists them"
                raise RecipeError(f'compare.lm_eval: unknown task "{name}"; {hint}')
            _require_harmless(name, (index[name].cfg or {}).get("unsafe_code"))

    def tasks(self, name: str) -> dict[str, Any]:
        """The tasks that a name stands for, by their own names; fetches their documents.

        Raises as `require`, `MissingPackage` where a task needs another, `DistillError` without its documents.
        """
        self.require([name])
        with _quiet_harness():
            try:
                tasks: dict[str, Any] = self._manager.load([name])["tasks"]
            except ModuleNotFoundError as error:
                raise MissingPackage(
                    f"compare.lm_eval: {name} needs more than lm_eval: {first_line(error)}; install it, or what "
                    "lm_eval calls the kind of task: pip install 'lm_eval[ifeval]', 'lm_eval[math]' …"
                ) from error
            except Exception as error:  # every data set fails in its own way
                raise DistillError(f"compare.lm_eval: {name} cannot be loaded: {first_line(error)}") from error
        for each, task in tasks.items():
            _require_harmless(each, getattr(task, "UNSAFE_CODE", None))
            remote = [metric for metric, by in getattr(task, "_metric_fn_list", {}).items() if by is None]
            if remote:
                raise RecipeError(
                    f"compare.lm_eval: {each} measures by {remote[0]}, whose code is on the Hub and is not fetched; "
                    "take it out"
                )
        return tasks


def _require_harmless(name: str, runs_code: Any) -> None:
    if runs_code:
        raise RecipeError(f"compare.lm_eval: {name} runs code that the model writes, so it is refused; take it out")


def run(model: Any, tokenizer: Any, task: Any, setting: Setting) -> TaskRun:
    """Have a model do one task. Raises `DistillError` where the harness cannot."""
    import numpy
    import torch

    name = str(task.task_name)
    _settle(task, setting)
    random.seed(SEED)
    numpy.random.seed(FEWSHOT_SEED)
    torch.manual_seed(FEWSHOT_SEED)
    with _quiet_harness():
        from lm_eval import evaluate
        from lm_eval.models.huggingface import HFLM

        try:
            lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=setting.batch)
            results = evaluate(
                lm=lm, task_dict={"tasks": {name: task}}, limit=setting.limit, bootstrap_iters=0,
                apply_chat_template=setting.chat, fewshot_as_multiturn=setting.chat,
            )  # fmt: skip
        except Exception as error:  # tasks are code of many authors
            raise DistillError(f"compare.lm_eval: {name} cannot be run: {first_line(error)}") from error
    means = {metric for metric, by in task.aggregation().items() if getattr(by, "__name__", "") == "mean"}
    higher = task.higher_is_better()
    samples = results["samples"][name]
    metrics = sorted({metric for sample in samples for metric in sample["metrics"]})
    return TaskRun(
        str(task.VERSION),
        {metric: higher.get(metric) for metric in metrics if metric in means},
        tuple(metric for metric in metrics if metric not in means),
        samples,
    )


def _settle(task: Any, setting: Setting) -> None:
    """Set the number of examples before each question, unless the task forbids them with a 0 of its own."""
    own = task.get_config("num_fewshot")
    if own is None or (setting.shots is not None and own != 0):
        task.set_config(key="num_fewshot", value=setting.shots or 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Keep the harness's bars, and its advice, off the terminal."""
    logger = getLogger("lm_eval")
    before = logger.level
    logger.setLevel(ERROR)
    try:
        with quietly(), redirect_stderr(StringIO()):
            yield
    finally:
        logger.setLevel(before)
