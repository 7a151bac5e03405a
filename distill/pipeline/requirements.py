"""Checks that the packages and endpoints that a recipe needs are present before it runs."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path

from distill.core import credentials, processes, registry
from distill.core.extras import install
from distill.curate.filters import FILTERS
from distill.curate.stage import roles_of_filters
from distill.engine import probe
from distill.engine.probe import Findings
from distill.errors import MissingPackage, RecipeError
from distill.recipe import Recipe, Teacher
from distill.run.context import BASE
from distill.train.trackers import require_trackers

LM_EVAL = "lm_eval"
"""The package of EleutherAI's lm-evaluation-harness."""
TRAINING_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")


def require(loaded: Recipe, stages: Sequence[str], allowed: Collection[str]) -> None:
    """Check for everything that must be there before these stages run.

    Raises `MissingPackage` for a package that is not installed, `RecipeError` for an unknown task of lm-eval, and where
    a launcher has started several processes for more than training.
    """
    if loaded.train is not None and "train" in stages:
        require_trackers(loaded.train.options.report_to)
    if processes.count() > 1 and list(stages) != ["train"]:
        raise RecipeError(
            f"a launcher has started {processes.count()} processes of distill, and only training is shared by several; "
            "type: accelerate launch -m distill train RUN, and the other commands without accelerate"
        )
    compares = "compare" in stages and compares_here(loaded)
    asks_base = "curate" in stages and BASE in roles_of_filters(loaded, allowed)
    if "train" in stages or compares or asks_base or serves_here(loaded):
        require_training_packages("distill run")
    if "compare" in stages:
        require_benchmarks(loaded)


def require_roles(file: str | Path, loaded: Recipe) -> None:
    """Raise `RecipeError` where a shipped curation rule asks a model that the recipe does not have."""
    has = {"judge": loaded.teacher is not None, "base": loaded.student is not None}
    needs = {"judge": "a `teacher` to grade (and `judge`, where another shall)", "base": "a `student`, whom it asks"}
    for rule in loaded.curate or ():
        part = registry.part(FILTERS, rule.filter, kind="filter") if ":" not in rule.filter else None
        if not has.get(role := getattr(part, "role", ""), True):
            raise RecipeError(f"{file}: curate.{rule.filter}: needs {needs[role]}")


def require_training_packages(command: str) -> None:
    """Raise `MissingPackage` where a package of the `train` extra is not installed; imports none of them."""
    absent = [name for name in TRAINING_PACKAGES if find_spec(name) is None]
    if absent:
        raise MissingPackage(f"`{command}` needs {', '.join(absent)}, which is not installed; type: {install('train')}")


def require_benchmarks(loaded: Recipe) -> None:
    """Raise `MissingPackage` where compare wants lm_eval and it is not installed, `RecipeError` for an unknown task."""
    if loaded.compare is None or loaded.compare.lm_eval is None:
        return
    if find_spec(LM_EVAL) is None:
        raise MissingPackage(f"compare.lm_eval needs the package {LM_EVAL}; type: {install('lm-eval')}")
    from distill.compare.lm_eval_tasks import Harness

    Harness().require(loaded.compare.lm_eval.tasks)


def warnings(recipe: Recipe) -> list[str]:
    """A line for each variable and package that the run will need and that is not there."""
    texts = [
        f"warning: {section}.{key}: the variable {credentials.shown(name)} is not set; the run will need it"
        for section, one in recipe.models.items()
        for name, key in one.variables.items()
        if name not in os.environ
    ]
    if recipe.compare is not None and recipe.compare.lm_eval is not None and find_spec("lm_eval") is None:
        texts.append(f"warning: compare.lm_eval needs the package lm_eval; type: {install('lm-eval')}")
    return texts


def literal_secrets(recipe: Recipe) -> list[str]:
    """A line for each secret that stands in a recipe itself."""
    return [
        f"{section}: a secret stands in the recipe itself ({name}); it is struck out of the run folder's copy, which "
        "then cannot be run: put it into an environment variable, and write $NAME in its place"
        for section, one in recipe.models.items()
        for name, _ in one.literals
    ]


def known_faults(recipe: Recipe) -> list[str]:
    """Options that the teachers' endpoints ignore, by the findings in the cache; sends nothing."""
    texts = [f"warning: {line}" for line in literal_secrets(recipe)]
    for teacher in recipe.teachers:
        findings = probe.load(teacher.base_url, teacher.model) if teacher.base_url else None
        if findings is not None:
            lines = unheeded(recipe, teacher, findings)
            texts += [f"warning: {line} (probed {probe.age(findings)})" for line in lines]
    return texts


def unheeded(recipe: Recipe, teacher: Teacher, findings: Findings) -> list[str]:
    """One line for each option of a recipe that a teacher's endpoint ignores or refuses."""
    texts = probe.warnings(findings, teacher.sampling.sampling())
    if recipe.compare is not None and recipe.compare.sampling is not None:
        texts += probe.warnings(findings, recipe.compare.sampling.sampling(), section="compare.sampling")
    if recipe.collect is not None and getattr(recipe.collect.options, "system", None):
        texts += _unheeded_system(findings)
    asks_raw = recipe.collect is not None and getattr(recipe.collect.options, "ask", None) == "completion"
    if asks_raw and findings.verdict("completions") == "refused":
        texts.append("collect asks raw prompts, but this endpoint has no /completions: set collect.ask to chat")
    ask = getattr(recipe.expand.options, "ask", None) if recipe.expand is not None else None
    if ask is not None:
        if ask != "chat" and findings.verdict("completions") == "refused":
            texts.append("expand asks raw prompts, but this endpoint has no /completions: expand will fail")
        if findings.verdict("stop") == "ignored":
            texts.append("expand stops its answers, but this endpoint ignores stop: they are cut after the fact")
    return texts


def _unheeded_system(findings: Findings) -> list[str]:
    lines = {
        "ignored": "collect.system is set, but this endpoint ignores system messages: answers are given without it",
        "refused": "collect.system is set, but this endpoint refuses system messages: requests will fail",
    }
    return [lines[verdict]] if (verdict := findings.verdict("system")) in lines else []


def serves_here(loaded: Recipe) -> bool:
    """Whether a teacher is a model that this process starts, which needs torch."""
    others = (loaded.roles | loaded.respondents).values()
    return any(one.serve == "transformers" for one in (*loaded.teachers, *others))


def compares_here(loaded: Recipe) -> bool:
    """Whether compare asks a model that this process loads: the student or its base."""
    section = loaded.compare
    return section is not None and any(
        getattr(section, side) is None and side not in section.answers for side in ("student", "base")
    )
