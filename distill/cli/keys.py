"""Commands about a recipe's keys: what one does, and their JSON Schema."""

from __future__ import annotations

from typing import Annotated

import typer

from distill.cli import completion
from distill.cli.app import app
from distill.core import console


@app.command()
def explain(
    key: Annotated[
        str | None,
        typer.Argument(metavar="[KEY]", help="such as train.epochs, curate or rouge_l", autocompletion=completion.keys),
    ] = None,
) -> None:
    """Say what a key, a section or a part of a recipe does.

    Shows its values, unit and default, the stage that reads it, and what a section holds. The end of a key is enough;
    without one, the sections are listed. The page recipes/KEYS.md has all keys.

    Example: distill explain train.epochs
    """
    from distill.pipeline import explain_key

    for line in explain_key.lines(key):
        console.result(line)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors.

    An editor with a YAML language server completes and checks a recipe by the file that its first line names.
    `distill init` writes that line (# yaml-language-server: $schema=recipe.schema.json) and the file beside it; after
    an upgrade, write this command's output there.

    Example: distill schema
    """
    from distill.pipeline import recipe_keys

    for line in recipe_keys.schema_text().splitlines():
        console.result(line)
