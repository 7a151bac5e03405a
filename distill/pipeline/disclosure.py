"""What a recipe sends, reads and executes, for a user who has not written it: `check` and the first lines of `run`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill.core import assets, credentials
from distill.core.embedded import EMBEDDED
from distill.engine.providers.addresses import normalise_url
from distill.recipe import Recipe

MOST_FILES = 5
"""Files named in one line."""


def disclosures(recipe: Recipe, folder: Path) -> Iterator[str]:
    """A line for each endpoint with the variables sent there, and for outside files, downloads and code.

    `folder` is the recipe's. Files in it and shipped ones are not named; nothing is for a recipe that uses no others.
    """
    yield from _endpoints(recipe)
    outside = [path for path in _local_paths(recipe) if not _is_within(path, folder, assets.root())]
    if outside:
        more = f" and {len(outside) - MOST_FILES} more" if len(outside) > MOST_FILES else ""
        yield f"reads {', '.join(outside[:MOST_FILES])}{more}, outside the recipe's folder"
    if downloads := [*_hub_models(recipe), *(source.hub for source in recipe.sources if source.hub), *_tasks(recipe)]:
        yield f"downloads {', '.join(dict.fromkeys(downloads))} from the Hugging Face Hub"
    if recipe.train is not None and "wandb" in recipe.train.options.report_to:
        yield "sends figures of the training to W&B"
    if code := [name for name in _part_names(recipe) if ":" in name]:
        yield f"executes {', '.join(dict.fromkeys(code))}, if --allow-parts names the package"


def folder_of(source: object) -> Path:
    """The folder of a recipe's file or a run; the current folder for a recipe that is no file."""
    path = Path(source) if isinstance(source, (str, Path)) else Path()
    return path if path.is_dir() else path.parent


def _endpoints(recipe: Recipe) -> Iterator[str]:
    sections = {key: one for key, one in recipe.models.items() if one.base_url is not None}
    for url in dict.fromkeys(normalise_url(one.base_url or "") for one in sections.values()):
        there = {key: one for key, one in sections.items() if normalise_url(one.base_url or "") == url}
        variables = dict.fromkeys(name for one in there.values() for name in one.variables)
        names = ", ".join(f"${name}" if credentials.shown(name) == name else "a variable" for name in variables)
        yield f"sends prompts to {url} ({', '.join(there)}){f', with {names}' if names else ''}"


def _local_paths(recipe: Recipe) -> list[str]:
    """Files, folders, models and other runs that the recipe refers to, as absolute paths."""
    tokenizers = [source.tokenizer for source in recipe.sources if source.tokenizer is not None]
    paths = [*recipe.files, *recipe.reuse, *tokenizers, *_served_models(recipe)]
    return [path for path in dict.fromkeys(paths) if Path(path).is_absolute()]


def _hub_models(recipe: Recipe) -> list[str]:
    return [name for name in _served_models(recipe) if name not in EMBEDDED and not Path(name).is_absolute()]


def _tasks(recipe: Recipe) -> list[str]:
    """Tasks of lm-eval, whose documents are data sets of the Hub."""
    return list(recipe.compare.lm_eval.tasks) if recipe.compare is not None and recipe.compare.lm_eval else []


def _served_models(recipe: Recipe) -> list[str]:
    """Models that this machine loads."""
    models = [one.model for one in recipe.models.values() if one.base_url is None]
    return models + ([recipe.student.model] if recipe.student is not None else [])


def _part_names(recipe: Recipe) -> list[str]:
    strategies = [section.strategy for section in (recipe.expand, recipe.collect) if section is not None]
    filters = [rule.filter for rule in recipe.curate or ()]
    metrics = [metric.metric for metric in recipe.compare.metrics] if recipe.compare is not None else []
    return [*strategies, *filters, *metrics, *(source.format for source in recipe.sources if source.format)]


def _is_within(path: str, *folders: Path) -> bool:
    return any(Path(path).is_relative_to(folder.resolve()) for folder in folders)
