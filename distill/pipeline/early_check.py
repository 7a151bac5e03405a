"""Tries the student's model on rows made of seeds, before a stage of the same command is paid for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.core import console
from distill.expand.seeds import load_seeds
from distill.formats.importers import load_tasks
from distill.pipeline.staleness import as_it_would_begin
from distill.recipe import Recipe
from distill.run.context import Context
from distill.run.layout import STAGES
from distill.run.record import Run
from distill.train.stage import settings_of, try_model
from distill.types import Message, Session

ROWS, CHARACTERS = 4, 400
"""Most rows that are made of seeds, and most characters of a question or an answer in them."""
_SENTENCE = "A river begins as a spring in the hills, and other streams join it on its way to the sea."


def try_before_paying(context: Context, run: Run, names: Sequence[str]) -> None:
    """Try the model that `train` would load, where it is among the stages and one before it will ask a teacher.

    Raises what training would raise for this model, template and options.
    """
    recipe = context.recipe
    before = [name for name in names[: names.index("train")] if STAGES[name].asks_teacher] if "train" in names else []
    asks = recipe.teachers and any(run.changes(name, as_it_would_begin(context, name)) != [] for name in before)
    if asks:
        console.say(try_model(seed_sessions(recipe), settings_of(recipe)))


def seed_sessions(recipe: Recipe) -> list[Session]:
    """Sessions of the recipe's seeds or given tasks, each answered by its own example or else by itself."""
    pairs = [(_SENTENCE, _SENTENCE), (_SENTENCE[:40], _SENTENCE)]
    if recipe.expand is not None:
        seeds = load_seeds(Path(recipe.expand.seeds))[:ROWS]
        pairs = [(one.instruction, next((each.output for each in one.instances), "")) for one in seeds]
    elif recipe.collect is not None and recipe.collect.tasks is not None:
        pairs = [(one.instruction, "") for one in load_tasks(Path(recipe.collect.tasks))[:ROWS]]
    return [
        Session(f"seed-{number}", (_turn("user", question), _turn("assistant", answer.strip() or question)))
        for number, (question, answer) in enumerate(pairs, start=1)
    ]


def _turn(role: str, text: str) -> Message:
    return Message(role, text[:CHARACTERS])
