"""Runs tasks of EleutherAI's lm-evaluation-harness (the package `lm_eval`) on a model in this process.

Tasks are looked up by name in the package's own index; a name is never read as a path. No code is fetched, neither a
data set's nor a metric's, and tasks that execute a model's output are refused.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from difflib import get_close_matches
from io import StringIO
from logging import ERROR, getLogger
from typing import Any

from distill.errors import DistillError, MissingPackage, RecipeError
from distill.models.third_party import first_line, quietly
from distill.recipe import Benchmarks

SEED, FEWSHOT_SEED = 0, 1234
"""The harness's own defaults, so that its command line gives the same examples and the same draws."""


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
        """The tasks that a name stands for, by their own names, with their documents, which may be downloaded.

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


def run(model: Any, tokenizer: Any, task: Any, options: Benchmarks) -> dict[str, Any]:
    """Run one task on a model; returns its row for lm_eval/.

    `higher` has each metric that is a mean over documents, with whether higher is better; `left_out` has the other
    metrics, which have no value for one document. Raises `DistillError` where the harness cannot.
    """
    import numpy
    import torch

    name = str(task.task_name)
    _settle(task, options.shots)
    random.seed(SEED)
    numpy.random.seed(FEWSHOT_SEED)
    torch.manual_seed(FEWSHOT_SEED)
    with _quiet_harness():
        from lm_eval import evaluate
        from lm_eval.models.huggingface import HFLM

        try:
            lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=options.batch)
            results = evaluate(
                lm=lm, task_dict={"tasks": {name: task}}, limit=options.limit, bootstrap_iters=0,
                apply_chat_template=options.chat, fewshot_as_multiturn=options.chat,
            )  # fmt: skip
        except Exception as error:  # tasks are code of many authors
            raise DistillError(f"compare.lm_eval: {name} cannot be run: {first_line(error)}") from error
    means = {metric for metric, by in task.aggregation().items() if getattr(by, "__name__", "") == "mean"}
    higher = task.higher_is_better()
    samples = results["samples"][name]
    metrics = sorted({metric for sample in samples for metric in sample["metrics"]})
    return {
        "task": name,
        "version": str(task.VERSION),
        "higher": {metric: higher.get(metric) for metric in metrics if metric in means},
        "left_out": [metric for metric in metrics if metric not in means],
        "documents": documents(samples, means),
    }


def _settle(task: Any, shots: int | None) -> None:
    """Set the number of examples before each question, unless the task itself sets 0, which forbids them."""
    own = task.get_config("num_fewshot")
    if own is None or (shots is not None and own != 0):
        task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)


def documents(samples: Sequence[Mapping[str, Any]], means: Collection[str]) -> list[dict[str, Any]]:
    """One row per document: its place and hash, and its finite number by each of the metrics `means` and filter.

    `samples`: one row per document and filter, as the harness logs them.
    """
    by_document: dict[tuple[int, str], dict[str, float]] = {}
    for sample in samples:
        values = by_document.setdefault((sample["doc_id"], sample["doc_hash"]), {})
        for metric in sample["metrics"]:
            value = _number(sample.get(metric))
            if metric in means and value is not None:
                values[f"{metric},{sample['filter']}"] = value
    return [{"id": id_, "hash": hash_, "values": values} for (id_, hash_), values in by_document.items()]


def _number(value: Any) -> float | None:
    """A finite number as JSON has it, from Python's or numpy's; `None` for any other value."""
    plain = value.item() if hasattr(value, "item") else value
    return float(plain) if isinstance(plain, (bool, int, float)) and math.isfinite(plain) else None


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Keep the harness's progress bars and advice off the terminal."""
    logger = getLogger("lm_eval")
    before = logger.level
    logger.setLevel(ERROR)
    try:
        with quietly(), redirect_stderr(StringIO()):
            yield
    finally:
        logger.setLevel(before)
