"""Names of a run folder's files and stages."""

from __future__ import annotations

from distill.recipe import Recipe

FILES = {"kept": "kept.jsonl", "test": "test.jsonl", "dropped": "dropped.jsonl"}
"""Which rows of a run may be written, and where they are."""


def stages_of(recipe: Recipe) -> list[str]:
    """The stages that a recipe has, in order; the report is always one."""
    has = {"report": True, "collect": recipe.collect is not None or bool(recipe.sources)}
    return [name for name in STAGES if has.get(name, getattr(recipe, name, None) is not None)]


STAGES = ("expand", "collect", "curate", "train", "compare", "report")
