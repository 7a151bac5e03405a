"""A run opened for reading from Python: its rows as `datasets`, its record, comparison and journal as plain values.

Each member reads its file when it is asked for, so that a run can be looked at while it goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from distill import processes
from distill.catalogue import load_recipe, require_training_packages
from distill.embedded import read_json
from distill.errors import MissingPackage, RunFolderError
from distill.extras import install
from distill.journal import NAME, Journal
from distill.recipe import Recipe
from distill.rows import read_jsonl
from distill.run import read_record
from distill.stats import Difference, Gap, Interval
from distill.steps import PIPELINE
from distill.students import STUDENT, current

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Rows = Literal["tasks", "refused", "sessions", "failures", "kept", "dropped", "test", "answers"]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one measure says of all models: means with their 95% intervals over prompts."""

    title: str
    unit: str
    better: str
    """`lower`, `higher`, `near 1`, or `teacher`: the nearer to the teacher's value."""
    explanation: str
    by: Mapping[str, Interval]
    """Of `base`, `student`, `teacher` and `teacher_again`, those that have the measure."""
    student_minus_base: Difference | None = None
    p: float | None = None
    """Of that difference, by flipping signs."""
    gap_closed: Gap | None = None
    """The student's share of the way from the base to `gap_target`."""
    gap_target: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What scores.json says; what is not named here is in the file."""

    headline: str
    prompts: int
    """On which all models were compared."""
    metrics: Mapping[str, Measured]
    lead: str | None = None
    """The measure that the headline begins with."""
    cut_share: Mapping[str, float] = field(default_factory=dict)
    """By model, the share of answers that were cut off at the token limit."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JournalCounts:
    """What the journal holds."""

    answers: int
    failures: int
    sends: int
    """Requests that were sent, retries included."""
    prompt_tokens: int
    """Of the answers, as reported by whoever gave them."""
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's folder. Members raise `RunFolderError` where the stage that writes them has not run.

    Rows are a `datasets.Dataset`, memory-mapped from the cache of `datasets`, so that a file may be larger than memory;
    `rows(…, streaming=True)` reads without a cache.
    """

    folder: Path

    def __fspath__(self) -> str:
        """The folder's path, so that a run may stand wherever a run's path may."""
        return os.fspath(self.folder)

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(read_record(self.folder)["name"])

    @property
    def recipe(self) -> Recipe:
        """The recipe as it was resolved. Raises `RecipeError` where a file that it names has changed since."""
        return load_recipe(self.folder, importing=False)

    @property
    def stages(self) -> Mapping[str, Mapping[str, Any]]:
        """What run.json says of each stage that has begun: `status`, `seconds`, `counts`, `tokens`, `usd` …"""
        found: Mapping[str, Mapping[str, Any]] = read_record(self.folder).get("stages", {})
        return found

    @property
    def tasks(self) -> Dataset:
        """What expand has grown: `id`, `instruction`, `input`, `meta`."""
        return self.rows("tasks")

    @property
    def sessions(self) -> Dataset:
        """Every answered task, in task order: `id`, `messages` (each `role`, `content`), `meta`."""
        return self.rows("sessions")

    @property
    def kept(self) -> Dataset:
        """The sessions that the student is trained on, with `verdicts`: one of each rule."""
        return self.rows("kept")

    @property
    def dropped(self) -> Dataset:
        """The sessions that a rule has dropped, with all verdicts."""
        return self.rows("dropped")

    @property
    def test(self) -> Dataset:
        """The sessions that are held out for compare, and never trained on."""
        return self.rows("test")

    @property
    def answers(self) -> Dataset:
        """A held-out prompt each: `messages`, and `answers` and `scores` by model."""
        return self.rows("answers")

    @overload
    def rows(self, which: Rows, *, streaming: Literal[False] = False) -> Dataset: ...
    @overload
    def rows(self, which: Rows, *, streaming: Literal[True]) -> IterableDataset: ...
    def rows(self, which: Rows, *, streaming: bool = False) -> Dataset | IterableDataset:
        """The rows of a file; those of `refused` are as tasks are, those of `failures` tasks without an answer.

        Raises `MissingPackage` without `datasets`, and `RunFolderError` for a file that is not there or damaged.
        """
        path = self._file(f"{which}.jsonl")
        datasets = _datasets()
        if path.stat().st_size == 0:
            return datasets.IterableDataset.from_generator(_nothing) if streaming else datasets.Dataset.from_dict({})
        try:
            return datasets.load_dataset("json", data_files=str(path), split="train", streaming=streaming)
        except datasets.exceptions.DatasetsError as error:
            raise RunFolderError(f"{path} cannot be read: {error.__cause__ or error}; run its stage again") from error

    @property
    def train_log(self) -> Dataset:
        """A row each step: `step`, `steps`, `epoch`, `loss`, `learning_rate`, `grad_norm`, `tokens`, `seconds`.

        The loss is in nats a trained token; tokens and seconds are those so far.
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
        from distill.student.models import load_student

        return load_student(folder, adapter=True, merge=merge)

    @property
    def comparison(self) -> Comparison:
        """How the student compares with its base and its teacher."""
        from pydantic import TypeAdapter, ValidationError

        path = self._file("scores.json")
        try:
            return TypeAdapter(Comparison).validate_python(read_json(path))
        except ValidationError as error:
            raise RunFolderError(f"{path} is none of ours: {error.errors()[0]['msg']}; compare again") from error

    @property
    def report(self) -> Path:
        """The report's path; it opens in any browser, without a network."""
        return self._file("report.html")

    @property
    def journal(self) -> JournalCounts:
        """What was bought, in all invocations. Raises `RunFolderError` where there is no journal."""
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
            stage = next(each for each, one in PIPELINE.items() if Path(name).parts[0] in one.outputs)
            raise RunFolderError(f"{self.folder} has no {name}: run its stage `{stage}` first")
        return path


def open_run(path: str | os.PathLike[str]) -> RunFolder:
    """A run's folder, opened for reading. Raises `RunFolderError` for what is none."""
    folder = Path(path)
    read_record(folder)
    return RunFolder(folder)


def _nothing() -> Iterator[dict[str, Any]]:
    yield from ()


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingPackage(f"rows need `datasets`, which is not installed; type: {install('data')}") from error
    return datasets
