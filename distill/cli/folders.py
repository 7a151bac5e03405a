"""Commands about run folders: status, differences, the next round, cache misses, the page, cleaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from distill.cli import completion
from distill.cli.app import AllowParts, RecipeOrRun, RunDir, RunFolder, Set, app
from distill.core import console


@app.command()
def show(
    run_folder: RunFolder,
    funnel: Annotated[
        bool, typer.Option("--funnel", help="rows lost by each curation rule, overlaps of rules, examples")
    ] = False,
    worst: Annotated[
        int | None,
        typer.Option("--worst", metavar="N", min=1, help="page through the N prompts that the student does worst on"),
    ] = None,
) -> None:
    """Show a run's stages, rows, tokens and cost.

    With --funnel, what curation dropped; with --worst, where the student does worst, with the differences marked.

    Example: distill show runs/quickstart --worst 10
    """
    from distill.cli import show as views

    if worst is not None:
        console.page(views.worst_lines(run_folder, worst, console.painted))
        return
    for line in views.funnel_lines(run_folder) if funnel else views.status_lines(run_folder):
        console.result(line)


@app.command()
def diff(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_A RUN_B …", help="two run folders, or more for a curve", autocompletion=completion.runs
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="everything as one JSON object")] = False,
) -> None:
    """Compare two runs on the prompts that both have.

    What got better or worse, and is it more than noise? For three runs or more: each measure over the amount of
    training data, with the untrained base at 0.

    Example: distill diff runs/quickstart runs/quickstart-next
    """
    from distill.compare import diff as held
    from distill.core.files import to_json
    from distill.core.json_values import storable
    from distill.errors import RecipeError

    if len(runs) < 2:
        raise RecipeError("diff: one run is given; name two, or more for a curve over data size")
    results = [held.read(folder) for folder in runs]
    result = held.diff(*results) if len(results) == 2 else held.curve(results)
    if as_json:
        console.result(json.dumps(storable(to_json(result)), indent=1))
        return
    for line in held.lines(result) if len(results) == 2 else held.curve_lines(result):
        console.result(line)


@app.command(name="next")
def next_round(
    run_folder: RunFolder,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="where the recipe and its seeds go")] = Path(),
    tasks: Annotated[int | None, typer.Option("--tasks", min=1, help="tasks to grow; as many as before")] = None,
) -> None:
    """Plan another round from what the student does worst on.

    Writes seeds near prompts that it loses, those with little training data first, and a recipe that uses them. No
    held-out prompt becomes a seed.

    Example: distill next runs/quickstart --tasks 200
    """
    from distill.pipeline import next_round as next_round_module

    for line in next_round_module.plan(run_folder, out, tasks=tasks):
        console.result(line)


@app.command(name="explain-miss")
def explain_miss(
    recipe_or_run: RecipeOrRun,
    run_dir: RunDir = None,
    set_: Set = None,
    task: Annotated[str | None, typer.Option("--task", metavar="ID", help="only this task")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="how many to explain")] = 5,
    allow_parts: AllowParts = None,
) -> None:
    """Say why a run would ask again.

    Names the field in which a request differs from the nearest one in the journal. Asks nothing and writes nothing.

    Example: distill explain-miss runs/quickstart --set teacher.sampling.temperature=0.2
    """
    from distill.pipeline.explain_miss import misses

    for line in misses(
        recipe_or_run, run_dir=run_dir, overrides=set_ or (), task=task, limit=limit, allowed=allow_parts or ()
    ):
        console.result(line)


@app.command()
def ui(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="the folder of the runs, or one run")] = Path("runs"),
    port: Annotated[int, typer.Option(help="0 takes a free one")] = 8600,
) -> None:
    """Look at runs in a browser, while they work too.

    Opens a page of this machine alone: runs with their cost, progress, loss and newest answers; every row with its
    verdicts, its lineage and the request behind it; the report; a chat, which loads models only on a click. The
    address lets in one browser, once.

    Example: distill ui runs
    """
    from distill.ui import server

    server.serve(runs.expanduser(), port=port, say=console.say, show=console.open_page)


@app.command()
def clean(run_folder: RunFolder) -> None:
    """Make a run's folder smaller, keeping what it needs.

    Removes the previous student (student.previous, which a retraining leaves) and temporary files of killed processes,
    and trims the journal. Answers, rows, the student and an unfinished training are never touched.

    Example: distill clean runs/quickstart
    """
    from distill.pipeline import explain_miss as explain_miss_module

    for line in explain_miss_module.clean(run_folder):
        console.result(line)
