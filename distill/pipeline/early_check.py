"""Looks at the student's model before a stage is paid for, and tries it on rows made of seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.core import console
from distill.core.embedded import EMBEDDED
from distill.core.model_files import describe_on_hub, local_folder
from distill.core.weights import looks_like_path
from distill.curate.stage import roles_of_filters
from distill.expand.seeds import load_seeds
from distill.formats.importers import load_tasks
from distill.pipeline.staleness import as_it_would_begin
from distill.pipeline.student_forecast import training_lines
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
    """Say what the student can be, and try its model if `train` is among the stages, before a teacher is asked.

    The embedded model is not tried before teachers that are served here: training tries it, and nothing was paid.

    Raises what training would raise for this model, template and options; `ModelError` where the Hub does not give the
    model's configuration.
    """
    recipe, order = context.recipe, list(STAGES)
    before = [name for name in names if STAGES[name].asks_teacher and order.index(name) < order.index("train")]
    if not roles_of_filters(recipe, context.options.allowed):
        before = [name for name in before if name != "curate"]
    asks = recipe.teachers and any(run.changes(name, as_it_would_begin(context, name)) != [] for name in before)
    if not asks or recipe.student is None or not _is_known(recipe.student.model, context.options.offline_student):
        return
    for line in training_lines(recipe):
        console.say(line)
    if "train" in names and not _costs_nothing_to_fail(recipe):
        console.say(try_model(seed_sessions(recipe), settings_of(recipe)))


def _costs_nothing_to_fail(recipe: Recipe) -> bool:
    """Whether the embedded model, which our tests train, learns from teachers that are served here for nothing."""
    return recipe.student is not None and recipe.student.model in EMBEDDED and all(one.serve for one in recipe.teachers)


def _is_known(model: str, offline: bool) -> bool:
    """Whether the configuration of a model is here; looks on the Hub unless `offline`."""
    if model in EMBEDDED or looks_like_path(model) or local_folder(model) is not None:
        return True
    if offline:
        console.warn(f"student.model: {model} is not on this machine, and not looked for (--offline-student)")
    else:
        describe_on_hub(model)
    return not offline


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
