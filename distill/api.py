"""The Python API: runs a recipe or one stage from a script or notebook, and opens run folders."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from distill.core import console, credentials, event_loop, processes
from distill.core.extras import install
from distill.core.jsonl import read_jsonl
from distill.core.student_folder import STUDENT, current
from distill.engine.journal.store import NAME, Journal
from distill.errors import Interrupted, MissingPackage, RunFolderError, disk_fault
from distill.pipeline import runner
from distill.pipeline.parts import Overrides, Source, load_recipe
from distill.pipeline.requirements import require_training_packages
from distill.recipe import Recipe
from distill.run.context import RunOptions
from distill.run.layout import stage_that_writes
from distill.run.record import read_record
from distill.run.scores import Comparison, require_scores

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


class Options(TypedDict, total=False):
    """Keyword options of every function here."""

    run_dir: str | PathLike[str] | None
    """The run folder; by default the given run's, else `runs/NAME` in the current folder."""
    overrides: Overrides
    """Changes to the recipe: `{"train.epochs": 3}`, or `["train.epochs=3"]` as on the command line."""
    retry_failed: bool
    """Ask permanently failed requests again."""
    accept_partial: bool
    """Continue from a stage that is only partly done."""
    allow_parts: Collection[str]
    """Packages whose code the recipe may run."""
    wait: bool
    """Wait for a provider's batches; with False the stage ends while they are open."""
    redo: Collection[str]
    """Stages to run again although they are current: `["train"]` starts over, ignoring checkpoints."""
    fresh: bool
    """The same as `redo=["train"]`."""
    offline_student: bool
    """Ask the teacher without looking for the student's model on the Hub."""
    new_journal: bool
    """Continue although the journal lacks sends that run.json counts; their cost stays spent."""
    yes: bool
    """Do finished stages again, also where that costs money or over ten minutes."""
    takeover: bool
    """Continue in a run folder of another recipe."""
    quiet: bool
    """Print nothing; the run's log still has every line."""


def run_recipe(source: Source, *, stages: Sequence[str] | None = None, **options: Unpack[Options]) -> RunFolder:
    """Run all stages of a recipe that are not current, or only those of `stages`; returns the opened run.

    `source` is a recipe's path, a shipped recipe's name, the contents of a recipe's file, a loaded recipe, or a run.
    Stages that are current are skipped, and bought answers are never bought again. Lines and progress go to standard
    error. The options are those of `Options`: run_dir, overrides, retry_failed, accept_partial, allow_parts, wait,
    redo, offline_student, new_journal, yes, takeover and quiet.

    Raises `DistillError`, a message of one line: `RecipeError` for the recipe or an option, `StageIncomplete` where an
    earlier stage is missing or too much has failed, `ConsentNeeded` where finished stages would cost money or over ten
    minutes once more and `yes` is not given (nothing has run then), `BudgetStop` at the end of the budget,
    `Interrupted` after Ctrl-C (finished work is kept: call again to continue), and those of the stages.
    """
    processes.share_cores()
    run_dir = options.get("run_dir")
    with _as_distill_errors(), console.silenced() if options.get("quiet") else nullcontext():
        folder = runner.run_recipe(
            source,
            stages=stages,
            run_dir=Path(run_dir) if run_dir is not None else None,
            overrides=options.get("overrides", ()),
            options=RunOptions(
                retry_failed=options.get("retry_failed", False),
                accept_partial=options.get("accept_partial", False),
                allowed=options.get("allow_parts", ()),
                wait=options.get("wait", True),
                redo=["train"] if options.get("fresh") else options.get("redo", ()),
                offline_student=options.get("offline_student", False),
                new_journal=options.get("new_journal", False),
                yes=options.get("yes", False),
                takeover=options.get("takeover", False),
            ),
        )
    return open_run(folder)


def expand_tasks(source: Source, **options: Unpack[Options]) -> RunFolder:
    """Grow tasks from the recipe's seeds, into `run.tasks`; otherwise like `run_recipe`."""
    return run_recipe(source, stages=["expand"], **options)


def collect_sessions(source: Source, **options: Unpack[Options]) -> RunFolder:
    """Have the teachers answer the tasks, into `run.sessions`; otherwise like `run_recipe`."""
    return run_recipe(source, stages=["collect"], **options)


def curate_sessions(source: Source, **options: Unpack[Options]) -> RunFolder:
    """Keep or drop each session, into `run.kept`, `run.dropped` and `run.test`; otherwise like `run_recipe`."""
    return run_recipe(source, stages=["curate"], **options)


def train_student(source: Source, **options: Unpack[Options]) -> RunFolder:
    """Train the student on the kept sessions, into `run.student`; otherwise like `run_recipe`."""
    return run_recipe(source, stages=["train"], **options)


def compare_models(source: Source, **options: Unpack[Options]) -> RunFolder:
    """Ask base, student and teacher the held-out prompts, for `run.comparison`; otherwise like `run_recipe`."""
    return run_recipe(source, stages=["compare"], **options)


@contextmanager
def _as_distill_errors() -> Iterator[None]:
    """Turn Ctrl-C and faults of the disk into a `DistillError`."""
    credentials.learn_proxies()
    try:
        with event_loop.interruptible(), processes.current_folder_off_path():
            yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted; what was finished is kept: run it again to go on") from None
    except OSError as error:
        if (fault := disk_fault(error)) is None:
            raise
        raise fault from error


Rows = Literal["tasks", "refused", "sessions", "failures", "kept", "dropped", "test", "answers"]


@dataclass(frozen=True, slots=True)
class JournalCounts:
    """Counts of the journal's rows."""

    answers: int
    failures: int
    sends: int
    """Sent requests, including retries."""
    prompt_tokens: int
    """Prompt tokens of the answers, as the endpoints report them."""
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's folder. Members raise `RunFolderError` where the stage that writes them has not run.

    Rows are a `datasets.Dataset`, memory-mapped from the cache of `datasets`, so that a file may be larger than memory;
    `rows(…, streaming=True)` reads without a cache.
    """

    folder: Path

    def __fspath__(self) -> str:
        """The folder's path, so that a run can be used wherever a path can."""
        return os.fspath(self.folder)

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(read_record(self.folder)["name"])

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe. Raises `RecipeError` where a file that it refers to has changed since."""
        return load_recipe(self.folder, importing=False)

    @property
    def stages(self) -> Mapping[str, Mapping[str, Any]]:
        """Entries of run.json by stage that has begun: `status`, `seconds`, `counts`, `tokens`, `usd` …"""
        return dict(read_record(self.folder).get("stages", {}))

    @property
    def tasks(self) -> Dataset:
        """The tasks that expand wrote: `id`, `instruction`, `input`, `meta`."""
        return self.rows("tasks")

    @property
    def sessions(self) -> Dataset:
        """Every answered task, in task order: `id`, `messages` (each `role`, `content`), `meta`."""
        return self.rows("sessions")

    @property
    def kept(self) -> Dataset:
        """The sessions to train on, with `verdicts`, one per rule."""
        return self.rows("kept")

    @property
    def dropped(self) -> Dataset:
        """The sessions that a rule dropped, with all verdicts."""
        return self.rows("dropped")

    @property
    def test(self) -> Dataset:
        """The sessions held out for compare, never trained on."""
        return self.rows("test")

    @property
    def answers(self) -> Dataset:
        """One row per held-out prompt: `messages`, and `answers` and `scores` by model."""
        return self.rows("answers")

    @overload
    def rows(self, which: Rows, *, streaming: Literal[False] = False) -> Dataset: ...
    @overload
    def rows(self, which: Rows, *, streaming: Literal[True]) -> IterableDataset: ...
    def rows(self, which: Rows, *, streaming: bool = False) -> Dataset | IterableDataset:
        """The rows of a file; `refused` has the format of tasks, `failures` has tasks without an answer.

        Raises `MissingPackage` without `datasets`, and `RunFolderError` for a file that is not there or damaged.
        """
        path = self._file(f"{which}.jsonl")
        datasets = _datasets()
        if path.stat().st_size == 0:
            return datasets.IterableDataset.from_generator(tuple) if streaming else datasets.Dataset.from_dict({})
        try:
            return datasets.load_dataset("json", data_files=str(path), split="train", streaming=streaming)
        except datasets.exceptions.DatasetsError as error:
            raise RunFolderError(f"{path} cannot be read: {error.__cause__ or error}; run its stage again") from error

    @property
    def train_log(self) -> Dataset:
        """One row per step: `step`, `steps`, `epoch`, `loss`, `learning_rate`, `grad_norm`, `tokens`, `seconds`.

        The loss is in nats per trained token; tokens and seconds are cumulative.
        """
        steps = [row for row in read_jsonl(self._file("student/train_log.jsonl")) if "event" not in row]
        return _datasets().Dataset.from_list(steps)

    @property
    def student(self) -> Path:
        """The trained student's folder: an adapter or whole weights, the tokenizer, the chat template."""
        return self._file("student/base.json").parent

    def load_student(self, *, merge: bool = True) -> tuple[Any, Any]:
        """The trained student as (model, tokenizer) of transformers, on the GPU where there is one.

        With `merge=False` the adapter stays beside the weights, which are in 4 bits where they were trained so. Raises
        `ModelError` where its base has changed since, `MissingPackage` without the training packages.
        """
        folder = self.student
        require_training_packages("load_student")
        processes.share_cores()
        from distill.models.loading import load_student

        return load_student(folder, adapter=True, merge=merge)

    @property
    def comparison(self) -> Comparison:
        """How the student compares with its base and its teacher."""
        self._file("scores.json")
        return require_scores(self.folder)

    @property
    def report(self) -> Path:
        """The path of the report, which opens in any browser without a network."""
        return self._file("report.html")

    @property
    def journal(self) -> JournalCounts:
        """Counts over all invocations. Raises `RunFolderError` without a journal."""
        with Journal.open(self.folder / NAME, read_only=True) as journal:
            counts, tokens = journal.counts(), journal.tokens()
        return JournalCounts(
            answers=counts["answers"],
            failures=counts["failures"],
            sends=counts["intents"],
            prompt_tokens=tokens.prompt_tokens,
            completion_tokens=tokens.completion_tokens,
        )

    def _file(self, name: str) -> Path:
        first, _, rest = name.partition("/")
        path = current(self.folder) / rest if first == STUDENT else self.folder / name
        if not path.is_file():
            raise RunFolderError(f"{self.folder} has no {name}: run its stage `{stage_that_writes(first)}` first")
        return path


def open_run(path: str | os.PathLike[str]) -> RunFolder:
    """Open a run's folder for reading. Raises `RunFolderError` for another folder."""
    folder = Path(path)
    read_record(folder)
    return RunFolder(folder)


def soft_targets(run: str | os.PathLike[str]) -> Dataset:
    """The teacher's probabilities that a run's student was trained on: one row per trained token.

    `session` (with `#2` behind it for the second part of one that was split) and `turn`, the number of the message from
    0; `teacher`; `token` and `ids`, the answer's own token and the most probable ones, in the student's vocabulary;
    `logprobs`, theirs in nats; `tail`, the log of what they leave out. A token that learnt by cross entropy alone has
    no `ids` and a `tail` of `None`. Raises `RunFolderError` for a run without soft targets.
    """
    folder = open_run(run).folder
    datasets = _datasets()
    import pyarrow

    from distill.train.objectives.soft_file import NAME as SOFT_TARGETS
    from distill.train.objectives.soft_file import by_token

    try:
        return datasets.Dataset(by_token(folder / SOFT_TARGETS))
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{folder} has no {SOFT_TARGETS}; set train.objective: {{kind: soft}}, and run its stage `train`"
        ) from error
    except (pyarrow.ArrowException, KeyError, ValueError) as error:
        raise RunFolderError(f"{folder / SOFT_TARGETS} cannot be read; run the stage `train` again") from error


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingPackage(f"rows need `datasets`, which is not installed; type: {install('data')}") from error
    return datasets
