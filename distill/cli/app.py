"""The application that commands register with, and the arguments and options that several of them take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distill.cli import completion

app = typer.Typer(
    name="distill",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

RecipePath = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="a recipe: a YAML file, or a shipped one's name", autocompletion=completion.recipes
    ),
]
RecipeOrRun = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE_OR_RUN", help="a recipe, or a run folder", autocompletion=completion.recipes_and_runs
    ),
]
RunFolder = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="a run folder, such as runs/quickstart", autocompletion=completion.runs),
]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="the run folder; by default runs/NAME")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=C",
        help="override a key of the recipe; may be given again",
        autocompletion=completion.settings,
    ),
]
AllowParts = Annotated[
    list[str] | None,
    typer.Option("--allow-parts", metavar="PACKAGE", help="let the recipe run code of this package (module:thing)"),
]
AcceptPartial = Annotated[bool, typer.Option("--accept-partial", help="continue from a stage that is only partly done")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="with collect.mode batch: end while batches are open")]
NewJournal = Annotated[
    bool,
    typer.Option("--new-journal", help="continue although the journal lost bought answers; their cost stays spent"),
]
Redo = Annotated[
    str | None,
    typer.Option(
        "--redo",
        metavar="A,B",
        help="run these stages again although they are current; buys nothing twice",
        autocompletion=completion.stages,
    ),
]
Yes = Annotated[
    bool, typer.Option("--yes", help="do finished stages again, also where that costs money or over ten minutes")
]
Takeover = Annotated[bool, typer.Option("--takeover", help="go on in the run folder of another recipe")]
OfflineStudent = Annotated[
    bool, typer.Option("--offline-student", help="ask the teacher without looking for the student's model on the Hub")
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="ask permanently failed requests again")]
