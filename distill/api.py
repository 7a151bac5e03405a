"""What `import distill` offers to run recipes with: the whole of one, or a stage, from a script or a notebook."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from os import PathLike
from pathlib import Path
from typing import TypedDict, Unpack

from distill import console, loops, pipeline, processes
from distill.catalogue import Overrides, Source
from distill.errors import Interrupted, disk_fault
from distill.run_folder import RunFolder, open_run


class Options(TypedDict, total=False):
    """What every function here takes by keyword."""

    run_dir: str | PathLike[str] | None
    """The run folder; left out, that of a run which is given, else `runs/NAME` in the current folder."""
    overrides: Overrides
    """Changes to the recipe: `{"train.epochs": 3}`, or `["train.epochs=3"]` as on the command line."""
    retry_failed: bool
    """Ask permanently failed requests again."""
    accept_partial: bool
    """Go on from a stage that is only partly done."""
    allow_parts: Collection[str]
    """Packages whose code the recipe may run."""
    wait: bool
    """For a provider's batches; with False the stage ends while they are open."""
    fresh: bool
    """Train from the start, whatever checkpoints or student there are."""
    new_journal: bool
    """Go on where the journal lacks sends that run.json knows of; what they cost stays spent."""
    quiet: bool
    """Print nothing; the run's log has it all the same."""


def run_recipe(source: Source, *, stages: Sequence[str] | None = None, **options: Unpack[Options]) -> RunFolder:
    """Run a recipe from where it stands to its report, or those `stages` alone; returns the run, opened.

    `source` is a recipe's path, a shipped recipe's name, what a recipe's file holds, a loaded recipe, or a run. Stages
    that are current are skipped, and bought answers never bought again. Lines and progress go to standard error. The
    options are those of `Options`: run_dir, overrides, retry_failed, accept_partial, allow_parts, wait, fresh,
    new_journal and quiet.

    Raises `DistillError`, one line to be read: `RecipeError` for the recipe or an option, `StageIncomplete` where a
    stage before is missing or too much has failed, `BudgetStop` at the end of the budget, `Interrupted` after Ctrl-C
    (with what is finished kept: call again to go on), and those of the stages.
    """
    processes.share_cores()
    run_dir = options.get("run_dir")
    with _told(), console.silenced() if options.get("quiet") else nullcontext():
        folder = pipeline.run_recipe(
            source,
            stages=stages,
            run_dir=Path(run_dir) if run_dir is not None else None,
            overrides=options.get("overrides", ()),
            retry_failed=options.get("retry_failed", False),
            accept_partial=options.get("accept_partial", False),
            allowed=options.get("allow_parts", ()),
            wait=options.get("wait", True),
            fresh=options.get("fresh", False),
            new_journal=options.get("new_journal", False),
        )
    return open_run(folder)


def expand_tasks(source: Source, **options: Unpack[Options]) -> RunFolder:
    """Grow tasks from the recipe's seeds; then `run.tasks` has them. As `run_recipe` otherwise."""
    return run_recipe(source, stages=["expand"], **options)


def collect_sessions(source: Source, **options: Unpack[Options]) -> RunFolder:
    """Have the teachers answer the tasks; then `run.sessions` has them. As `run_recipe` otherwise."""
    return run_recipe(source, stages=["collect"], **options)


def curate_sessions(source: Source, **options: Unpack[Options]) -> RunFolder:
    """Keep or drop each session; then `run.kept`, `run.dropped` and `run.test` have them. As `run_recipe` otherwise."""
    return run_recipe(source, stages=["curate"], **options)


def train_student(source: Source, **options: Unpack[Options]) -> RunFolder:
    """Train the student on the kept sessions; then `run.student` is its folder. As `run_recipe` otherwise."""
    return run_recipe(source, stages=["train"], **options)


def compare_models(source: Source, **options: Unpack[Options]) -> RunFolder:
    """Ask base, student and teacher the held-out prompts; then see `run.comparison`. As `run_recipe` otherwise."""
    return run_recipe(source, stages=["compare"], **options)


@contextmanager
def _told() -> Iterator[None]:
    """Ctrl-C, and every fault that a user can meet, as a `DistillError`."""
    try:
        with loops.interruptible(), processes.current_folder_off_path():
            yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted; what was finished is kept: run it again to go on") from None
    except OSError as error:
        if (fault := disk_fault(error)) is None:
            raise
        raise fault from error
