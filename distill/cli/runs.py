"""Commands that run a recipe: all of its stages, or one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from distill.cli import completion
from distill.cli.app import (
    AcceptPartial,
    AllowParts,
    NewJournal,
    NoWait,
    OfflineStudent,
    RecipeOrRun,
    RecipePath,
    Redo,
    RetryFailed,
    RunDir,
    Set,
    Takeover,
    Yes,
    app,
)
from distill.core import console


def _names(names: str | None) -> list[str]:
    return [name.strip() for name in names.split(",")] if names else []


def _run(
    recipe: Path,
    stages: Sequence[str] | None,
    run_dir: Path | None,
    overrides: Sequence[str] | None,
    redo: Sequence[str],
    allowed: Sequence[str] | None,
    **options: Any,
) -> None:
    """Run stages of a recipe; `options` are those of `RunOptions`."""
    from distill.pipeline.runner import run_recipe
    from distill.run.context import RunOptions

    confirm = console.confirmed if console.at_terminal() else None
    run_options = RunOptions(redo=redo, allowed=allowed or (), confirm=confirm, **options)
    run_recipe(recipe, run_dir=run_dir, overrides=overrides or (), stages=stages, options=run_options)


@app.command()
def run(
    recipe: RecipePath,
    run_dir: RunDir = None,
    set_: Set = None,
    stages: Annotated[
        str | None,
        typer.Option("--stages", metavar="A,B", help="only these stages", autocompletion=completion.stages),
    ] = None,
    redo: Redo = None,
    retry_failed: RetryFailed = False,
    accept_partial: AcceptPartial = False,
    no_wait: NoWait = False,
    offline_student: OfflineStudent = False,
    new_journal: NewJournal = False,
    yes: Yes = False,
    takeover: Takeover = False,
    allow_parts: AllowParts = None,
) -> None:
    """Run a recipe from where it stands to its report.

    Finished stages are skipped until their inputs or options change, or --redo names them; bought answers are never
    bought again. Doing finished work again that costs money or over ten minutes is asked for first.

    Example: distill run quickstart --set train.epochs=3
    """
    _run(
        recipe,
        _names(stages) or None,
        run_dir,
        set_,
        _names(redo),
        allow_parts,
        retry_failed=retry_failed,
        accept_partial=accept_partial,
        offline_student=offline_student,
        new_journal=new_journal,
        yes=yes,
        takeover=takeover,
        wait=not no_wait,
        hint=f"to watch it in a browser, type: distill ui {run_dir.parent if run_dir else 'runs'}",
    )


def _verb(name: str, help_text: str) -> None:
    """Add the command that runs one stage."""

    def command(
        recipe_or_run: RecipeOrRun,
        run_dir: RunDir = None,
        set_: Set = None,
        redo: Redo = None,
        retry_failed: RetryFailed = False,
        accept_partial: AcceptPartial = False,
        offline_student: OfflineStudent = False,
        new_journal: NewJournal = False,
        yes: Yes = False,
        takeover: Takeover = False,
        allow_parts: AllowParts = None,
    ) -> None:
        _run(
            recipe_or_run,
            [name],
            run_dir,
            set_,
            _names(redo),
            allow_parts,
            retry_failed=retry_failed,
            accept_partial=accept_partial,
            offline_student=offline_student,
            new_journal=new_journal,
            yes=yes,
            takeover=takeover,
        )

    app.command(name=name, help=f"{help_text}\n\nExample: distill {name} runs/quickstart")(command)


_verb("expand", "Grow tasks from the recipe's seeds: writes tasks.jsonl.")


@app.command()
def collect(
    recipe_or_run: RecipeOrRun,
    run_dir: RunDir = None,
    set_: Set = None,
    redo: Redo = None,
    retry_failed: RetryFailed = False,
    accept_partial: AcceptPartial = False,
    no_wait: NoWait = False,
    cancel_batches: Annotated[
        bool, typer.Option("--cancel-batches", help="cancel what is open at the provider; keep what is finished")
    ] = False,
    offline_student: OfflineStudent = False,
    new_journal: NewJournal = False,
    yes: Yes = False,
    takeover: Takeover = False,
    allow_parts: AllowParts = None,
) -> None:
    """Have the teachers answer the tasks: writes sessions.jsonl.

    Example: distill collect runs/quickstart
    """
    if cancel_batches:
        from distill.pipeline import runner
        from distill.run.context import RunOptions

        options = RunOptions(wait=not no_wait, new_journal=new_journal)
        runner.cancel_batches(recipe_or_run, run_dir=run_dir, overrides=set_ or (), options=options)
        return
    _run(
        recipe_or_run,
        ["collect"],
        run_dir,
        set_,
        _names(redo),
        allow_parts,
        retry_failed=retry_failed,
        accept_partial=accept_partial,
        offline_student=offline_student,
        new_journal=new_journal,
        yes=yes,
        takeover=takeover,
        wait=not no_wait,
    )


_verb("curate", "Keep or drop each session, and say why.\n\nWrites kept.jsonl, dropped.jsonl and test.jsonl.")


Plan = Annotated[
    bool, typer.Option("--plan", help="make one pass, and forecast memory and time of the training; write nothing")
]
ShowMasks = Annotated[
    int | None,
    typer.Option("--show-masks", min=1, metavar="N", help="show N examples with their trained tokens marked, and end"),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="the same as --redo train")]


@app.command()
def train(
    recipe_or_run: RecipeOrRun,
    run_dir: RunDir = None,
    set_: Set = None,
    plan: Plan = False,
    show_masks: ShowMasks = None,
    redo: Redo = None,
    fresh: Fresh = False,
    accept_partial: AcceptPartial = False,
    new_journal: NewJournal = False,
    yes: Yes = False,
    takeover: Takeover = False,
    allow_parts: AllowParts = None,
) -> None:
    """Fine-tune the student on the kept sessions: writes student/.

    The present student stays in use until the new one is finished; then it becomes student.previous, which
    `distill clean` removes.

    Before the first step the loss mask of every row is checked against the template; a fault stops with the row and
    the token. An interrupted training continues when the same command is typed again, or says what has changed;
    --redo train starts over, ignoring checkpoints and student.

    Example: distill train runs/quickstart --plan
    """
    from distill.pipeline import training_plan

    address: dict[str, Any] = {"run_dir": run_dir, "overrides": set_ or (), "allowed": allow_parts or ()}
    if plan:
        for line in training_plan.plan(recipe_or_run, **address):
            console.result(line)
    if show_masks is not None:
        training_plan.show_masks(recipe_or_run, show_masks, **address)
    if not plan and show_masks is None:
        again = ["train"] if fresh else _names(redo)
        options = {"accept_partial": accept_partial, "new_journal": new_journal, "yes": yes, "takeover": takeover}
        _run(recipe_or_run, ["train"], run_dir, set_, again, allow_parts, **options)


_verb("compare", "Ask student, base and teacher the held-out prompts.\n\nWrites answers.jsonl and scores.json.")
_verb("report", "Write report.html from what the run folder holds.")
