"""Commands before a run: start a recipe, check it, try it, examine machine and endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distill.cli import completion
from distill.cli.app import RecipePath, Set, app
from distill.core import console
from distill.errors import RecipeError


@app.command()
def check(
    recipe: RecipePath,
    set_: Set = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="ask the teacher's endpoint a dozen tiny questions: which options does it honour?"
        ),
    ] = False,
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            metavar="NAME",
            help="list the differences from a shipped recipe",
            autocompletion=completion.shipped,
        ),
    ] = None,
) -> None:
    """Validate a recipe; forecast its cost and what it sends.

    The forecast is requests, tokens, USD, memory and time, by formulas: no model is loaded and no request is sent. With
    --probe, also ask the teacher's endpoint which parameters have any effect there, and list the recipe's options that
    it ignores; the findings are cached for later checks and runs.

    Example: distill check recipes/quickstart.yaml --probe
    """
    from distill.pipeline import forecast, origins, parts
    from distill.recipe import reach_of

    if like is not None:
        from distill.pipeline import starter

        for line in starter.departures(recipe, like):
            console.result(line)
        return
    loaded = parts.load_recipe(recipe, overrides=set_ or (), importing=False)
    origins.say_which(recipe, loaded, set_ or ())
    run = recipe if recipe.is_dir() else Path("runs") / loaded.name
    origins.require_other_run(loaded, run)
    valid, *forecasts = forecast.lines(loaded, probed=not probe, run=run)
    for line in (valid, *reach_of(loaded, parts.folder_of(recipe)).lines(), *forecasts):
        console.result(line)
    if probe:
        from distill.pipeline import doctor

        doctor.examine_teachers(loaded)


@app.command()
def smoke(
    recipe: RecipePath,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="keep the run there; by default it is deleted")
    ] = None,
) -> None:
    """Run a recipe through once in seconds, with a tiny model.

    A random model, few rows, every stage and part, real NF4 on a CPU. Prints the keys that it changes: models, sizes,
    paths and counts.

    Example: distill smoke alpaca-7b
    """
    import tempfile

    from distill.pipeline import smoke as smoking

    with tempfile.TemporaryDirectory(prefix="distill-smoke-") as temporary:
        for line in smoking.lines(smoking.smoke(recipe, run_dir or Path(temporary))):
            console.result(line)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="where the copy goes")] = Path(),
    like: Annotated[
        str | None,
        typer.Option(
            "--like", metavar="NAME", help="a shipped recipe, such as alpaca-7b", autocompletion=completion.shipped
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="what the copy is called")] = None,
) -> None:
    """Start a recipe of your own: a copy of a shipped one.

    The seeds and prompts that it names are copied beside it. Without --like it is a copy of quickstart.

    Example: distill init --like alpaca-7b
    """
    from distill.pipeline import starter

    for line in starter.init(folder, like=like, name=name):
        console.result(line)


@app.command()
def doctor(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL_OR_RUN]",
            help="an endpoint, such as …/v1; or a run, or an export",
            autocompletion=completion.runs,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="the model to ask, where the endpoint has several")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="VAR", help="the environment variable that holds the key")
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="URL", help="of a run: the server that runs its student already")
    ] = None,
) -> None:
    """Look at this machine, an endpoint or a run: what is missing?

    An endpoint is asked a dozen tiny questions, to show which parameters (temperature, seed, stop, logprobs …) it
    honours, ignores or refuses; the findings are cached for later checks and runs.

    For a run: is every row of its journal sound? With a student, and for an export with whole weights: do its saved
    chat template and its server produce the very tokens that it was trained on? The first differing token is shown, and
    the exit code is 1.

    Example: distill doctor http://127.0.0.1:8000/v1 --model smollm2

    Example: distill doctor runs/quickstart
    """
    from distill.pipeline import doctor as examination
    from distill.run.layout import run_named

    if url is not None and Path(url).is_dir():
        is_sound = examination.examine_folder(Path(url), at=at, api_key_env=api_key_env)
    elif at is not None:
        raise RecipeError("--at needs a run: give its folder as well")
    elif url is not None and ":" not in url:
        run = run_named(Path(url).name)
        near = f'did you mean "{run}"?' if run is not None else "give a run, or a URL that ends in /v1"
        raise RecipeError(f"{url} is no folder and no address; {near}")
    else:
        is_sound = examination.examine(url, model=model, api_key_env=api_key_env)
    if not is_sound:
        raise typer.Exit(1)
