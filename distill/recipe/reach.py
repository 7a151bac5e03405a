"""What a recipe sends to which host, and what it reads and runs from outside its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from distill.core import assets, credentials
from distill.core.embedded import EMBEDDED
from distill.recipe.recipe import Recipe
from distill.recipe.sections import SamplingOptions, Teacher

HUB, WANDB = "huggingface.co", "api.wandb.ai"


@dataclass(frozen=True, slots=True)
class Reach:
    """The hosts, files and code outside its folder that a recipe refers to."""

    hosts: Mapping[str, tuple[str, ...]]
    """By host, with its port where the address has one: names of the environment variables whose values it is sent."""
    files: tuple[str, ...]
    """Absolute paths of files and folders read outside the recipe's folder, links followed."""
    parts: tuple[str, ...]
    """Dotted paths of parts that are not shipped, such as `mypkg.mine:Thing`; they run with `--allow-parts` only."""

    def lines(self) -> list[str]:
        """One line for each host, file and dotted path."""
        return [
            *(f"sends to {host}{_with_variables(names)}" for host, names in self.hosts.items()),
            *(f"reads {path}, outside the recipe's folder" for path in self.files),
            *(f"runs {part}, which is not part of distill" for part in self.parts),
        ]


def reach_of(recipe: Recipe, folder: Path) -> Reach:
    """What a loaded recipe, whose file lies in `folder`, sends, reads and runs. Sends nothing, imports nothing."""
    hosts: dict[str, dict[str, None]] = {}
    for host, variables in _sent(recipe):
        hosts.setdefault(host, {}).update(dict.fromkeys(variables))
    inside = (folder.resolve(), (assets.root() / "prompts").resolve())
    paths = sorted({str(Path(each).resolve()) for each in _paths(recipe)})
    outside = [each for each in paths if not any(Path(each).is_relative_to(one) for one in inside)]
    parts = dict.fromkeys(name for name in _part_names(recipe) if ":" in name)
    return Reach({host: tuple(names) for host, names in hosts.items()}, tuple(outside), tuple(parts))


def _with_variables(names: Sequence[str]) -> str:
    texts = [
        f"${name}" if credentials.shown(name) == name else f"a variable {credentials.shown(name)}" for name in names
    ]
    return f", with {', '.join(texts)}" if texts else ""


def _sent(recipe: Recipe) -> Iterator[tuple[str, Sequence[str]]]:
    """Each host, and variables sent to it."""
    for section in recipe.models.values():
        if section.base_url is not None:
            yield urlsplit(section.base_url).netloc, [*section.variables]
        elif "/" in section.model and not Path(section.model).is_absolute():
            yield HUB, ["HF_TOKEN"]
    for sampling, models in _samplings(recipe):
        if names := credentials.variables(None, sampling.extra_body):
            yield from ((urlsplit(one.base_url).netloc, names) for one in models if one.base_url is not None)
    student = recipe.student.model if recipe.student is not None else ""
    if any(source.hub for source in recipe.sources) or ("/" in student and not Path(student).is_absolute()):
        yield HUB, ["HF_TOKEN"]
    if recipe.compare is not None and recipe.compare.lm_eval is not None:
        yield HUB, ["HF_TOKEN"]
    if recipe.train is not None and "wandb" in recipe.train.options.report_to:
        yield WANDB, ["WANDB_API_KEY"]


def _samplings(recipe: Recipe) -> Iterator[tuple[SamplingOptions, Sequence[Teacher]]]:
    """The samplings outside the models' own sections, each with the models that it may be sent to."""
    for section in (recipe.expand, recipe.collect):
        for name, value in section.options if section is not None and isinstance(section.options, BaseModel) else ():
            role = recipe.roles.get(name.removesuffix("_sampling"))
            if isinstance(value, SamplingOptions):
                yield value, (role,) if role is not None else recipe.teachers
    if recipe.compare is not None and recipe.compare.sampling is not None:
        yield recipe.compare.sampling, (*recipe.teachers, *recipe.respondents.values())


def _paths(recipe: Recipe) -> Iterator[str]:
    """Every local path of a loaded recipe."""
    yield from recipe.files
    yield from recipe.reuse
    if recipe.student is not None and recipe.student.continues is not None:
        yield recipe.student.continues
    tokenizers = (source.tokenizer for source in recipe.sources)
    models = (one.model for one in (*recipe.models.values(), recipe.student) if one is not None and _is_local(one))
    yield from (each for each in (*tokenizers, *models) if each is not None and Path(each).is_absolute())


def _is_local(section: Any) -> bool:
    return getattr(section, "base_url", None) is None and section.model not in EMBEDDED


def _part_names(recipe: Recipe) -> Iterator[str]:
    yield from (section.strategy for section in (recipe.expand, recipe.collect) if section is not None)
    yield from (rule.filter for rule in recipe.curate or ())
    yield from (one.metric for one in (recipe.compare.metrics if recipe.compare is not None else ()))
    yield from (source.importer for source in recipe.sources)
