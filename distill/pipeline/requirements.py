"""Checks that the packages and endpoints that a recipe needs are present before it runs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

from distill.compare.prompts import of_file
from distill.compare.stage import sampling_of
from distill.core import credentials, processes, registry
from distill.core.extras import install
from distill.curate.filters import FILTERS
from distill.curate.stage import roles_of_filters
from distill.engine import probe
from distill.engine.probe import Findings
from distill.errors import MissingPackage, RecipeError, StageIncomplete
from distill.formats.importers import load_tasks
from distill.models.child_server import NO_VLLM
from distill.recipe import CheckOptions, Recipe, Teacher
from distill.run.context import BASE
from distill.run.record import run_record
from distill.text import references
from distill.train.objectives import OBJECTIVES
from distill.train.trackers import require_trackers

LM_EVAL = "lm_eval"
"""The package of EleutherAI's lm-evaluation-harness."""
TRAINING_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")


def require(recipe: Recipe, stages: Sequence[str], allowed: Collection[str]) -> None:
    """Check that everything these stages need is present.

    Raises `MissingPackage` for a package that is not installed; `RecipeError` for an unknown task of lm-eval, and where
    a launcher has started several processes for stages other than train.
    """
    if recipe.train is not None and "train" in stages:
        require_trackers(recipe.train.options.report_to)
    if processes.count() > 1 and list(stages) != ["train"]:
        raise RecipeError(
            f"a launcher has started {processes.count()} processes of distill, but only training runs in several; "
            "type: accelerate launch -m distill train RUN, and the other commands without accelerate"
        )
    compares = "compare" in stages and compares_here(recipe)
    asks_base = "curate" in stages and BASE in roles_of_filters(recipe, allowed)
    if "train" in stages or compares or asks_base or serves_here(recipe):
        require_training_packages("distill run")
    if "compare" in stages:
        require_benchmarks(recipe)


def require_results(folder: Path) -> None:
    """Raise `RunFolderError` where no run is there, `StageIncomplete` where none of its stages has a result."""
    stages = run_record(folder).stages
    if not any(stage.status in ("done", "partial") for name, stage in stages.items() if name != "report"):
        raise StageIncomplete(f"{folder} has no results to report yet; run it first: distill run {folder}")


def require_roles(file: str | Path, recipe: Recipe) -> None:
    """Raise `RecipeError` where a part asks a model that the recipe lacks, or draws samples at temperature 0."""
    has = {"judge": recipe.teacher is not None, "base": recipe.student is not None}
    needs = {"judge": "a `teacher` to grade (or a `judge`)", "base": "a `student`, whose model it asks"}
    for rule in recipe.curate or ():
        part = registry.part(FILTERS, rule.filter, kind="filter") if ":" not in rule.filter else None
        if not has.get(role := getattr(part, "role", ""), True):
            raise RecipeError(f"{file}: curate.{rule.filter}: needs {needs[role]}")
    metrics = recipe.compare.metrics if recipe.compare is not None else ()
    several = [one.metric for one in metrics if getattr(one.options, "samples", 1) > 1]
    if several and sampling_of(recipe).temperature == 0:
        raise RecipeError(
            f"{file}: compare.metrics.{several[0]}.samples: at temperature 0 all samples are the same; set"
            " compare.sampling.temperature above it, or leave out samples"
        )
    if recipe.train is not None and ":" not in (kind := recipe.train.objective.kind):
        objective = registry.part(OBJECTIVES, kind, kind="objective")(recipe.train.objective.options)
        if fault := objective.fault(recipe):
            raise RecipeError(f"{file}: train.objective: {fault}")


def require_training_packages(command: str) -> None:
    """Raise `MissingPackage` where a package of the `train` extra is not installed; imports none of them.

    Raises `UnsupportedSystem` on Windows.
    """
    processes.require_posix()
    absent = [name for name in TRAINING_PACKAGES if find_spec(name) is None]
    if absent:
        raise MissingPackage(f"`{command}` needs {', '.join(absent)}, which is not installed; type: {install('train')}")


def require_benchmarks(recipe: Recipe) -> None:
    """Raise `MissingPackage` where compare needs lm_eval and it is not installed, `RecipeError` for an unknown task."""
    if recipe.compare is None or recipe.compare.lm_eval is None:
        return
    if find_spec(LM_EVAL) is None:
        raise MissingPackage(f"compare.lm_eval needs the package {LM_EVAL}; type: {install('lm-eval')}")
    from distill.compare.lm_eval_tasks import Harness

    Harness().require(recipe.compare.lm_eval.tasks)


def warnings(recipe: Recipe) -> list[str]:
    """A line for each environment variable and package that the run will need and that is missing."""
    texts = [
        f"warning: {section}.{key}: the variable {credentials.shown(name)} is not set; the run will need it"
        for section, one in recipe.models.items()
        for name, key in one.variables.items()
        if name not in os.environ
    ]
    if recipe.compare is not None and recipe.compare.lm_eval is not None and find_spec("lm_eval") is None:
        texts.append(f"warning: compare.lm_eval needs the package lm_eval; type: {install('lm-eval')}")
    if any(one.serve == "vllm" for one in recipe.models.values()) and which("vllm") is None:
        texts.append(f"warning: {NO_VLLM}")
    return texts


def literal_secrets(recipe: Recipe) -> list[str]:
    """A line for each secret written in the recipe itself."""
    return [
        f"{section}: a secret is written in the recipe itself ({name}); it is redacted in the run folder's copy, "
        "which then cannot be run: put it into an environment variable, and write $NAME in its place"
        for section, one in recipe.models.items()
        for name, _ in one.literals
    ]


def known_faults(recipe: Recipe) -> list[str]:
    """Options that the teachers' endpoints ignore, by cached probe results; sends nothing."""
    texts = [f"warning: {line}" for line in literal_secrets(recipe)]
    for teacher in recipe.teachers:
        findings = probe.load(teacher.base_url, teacher.model) if teacher.base_url else None
        if findings is not None:
            lines = ignored_options(recipe, teacher, findings)
            texts += [f"warning: {line} (probed {probe.age(findings)})" for line in lines]
    return texts


def ignored_options(recipe: Recipe, teacher: Teacher, findings: Findings) -> list[str]:
    """One line for each option of a recipe that a teacher's endpoint ignores or refuses."""
    texts = probe.warnings(findings, teacher.sampling.sampling())
    if recipe.compare is not None and recipe.compare.sampling is not None:
        texts += probe.warnings(findings, recipe.compare.sampling.sampling(), section="compare.sampling")
    collect = getattr(recipe.collect, "options", None)
    expand = getattr(recipe.expand, "options", None)
    collect_ask, expand_ask = getattr(collect, "ask", None), getattr(expand, "ask", None)
    lines = {
        "collect.system is set, but this endpoint ignores system messages: answers are given without it": (
            getattr(collect, "system", None) and findings.verdict("system") == "ignored"
        ),
        "collect.system is set, but this endpoint refuses system messages: requests will fail": (
            getattr(collect, "system", None) and findings.verdict("system") == "refused"
        ),
        "collect asks raw prompts, but this endpoint has no /completions: set collect.ask to chat": (
            collect_ask == "completion" and findings.verdict("completions") == "refused"
        ),
        "expand asks raw prompts, but this endpoint has no /completions: expand will fail": (
            expand_ask not in (None, "chat") and findings.verdict("completions") == "refused"
        ),
        "expand stops its answers, but this endpoint ignores stop: they are cut after the fact": (
            expand_ask is not None and findings.verdict("stop") == "ignored"
        ),
    }
    return texts + [line for line, applies in lines.items() if applies]


def serves_here(recipe: Recipe) -> bool:
    """Whether the recipe has a model served by this process, which needs torch."""
    others = (recipe.roles | recipe.respondents).values()
    return any(one.serve == "transformers" for one in (*recipe.teachers, *others))


def compares_here(recipe: Recipe) -> bool:
    """Whether compare loads the student or its base into this process."""
    section = recipe.compare
    return section is not None and any(
        getattr(section, side) is None and side not in section.answers for side in ("student", "base")
    )


# References


def reference_warnings(recipe: Recipe) -> list[str]:
    """A line for each part that can check some of the given rows alone.

    Raises `RecipeError` where it can check none. Rows of `expand` and `sources` are not looked at.
    """
    parts = list(_parts(recipe))
    given = {kind: _given_rows(recipe, kind) for kind in dict.fromkeys(kind for *_, kind in parts)}
    return [line for where, options, kind in parts for line in _faults(where, options, given[kind])]


def _given_rows(recipe: Recipe, kind: str) -> Mapping[str, Mapping[str, Any]]:
    """What the rows of a given file have of references, by id; empty without a file."""
    if kind == "task" and recipe.collect is not None and recipe.collect.tasks is not None:
        return {task.id: task.meta for task in load_tasks(Path(recipe.collect.tasks))}
    if kind == "prompt" and recipe.compare is not None and recipe.compare.prompts is not None:
        return {prompt.id: prompt.last_solution for prompt in of_file(Path(recipe.compare.prompts))}
    return {}


def _parts(recipe: Recipe) -> Iterator[tuple[str, CheckOptions, str]]:
    """The parts that check answers: the name, the options, and the kind of rows."""
    if recipe.collect is not None and getattr(recipe.collect.options, "pick", "") == "check":
        yield "collect", recipe.collect.options, "task"
    for rule in recipe.curate or ():
        if isinstance(rule.options, CheckOptions) and not recipe.sources:
            yield f"curate.{rule.filter}", rule.options, "task"
    for metric in recipe.compare.metrics if recipe.compare is not None else ():
        if isinstance(metric.options, CheckOptions) and getattr(metric.options, "samples", 1) == 1:
            is_own = recipe.compare is not None and recipe.compare.prompts is None
            yield f"compare.metrics.{metric.metric}", metric.options, "task" if is_own else "prompt"


def _faults(where: str, options: CheckOptions, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    may_lack = getattr(options, "unreferenced", "drop") == "keep"
    faults = {
        id: references.fault(meta, options.default_check)
        for id, meta in rows.items()
        if references.raw(meta) is not None or not may_lack
    }
    faulty = {id: fault for id, fault in faults.items() if fault is not None}
    if not faulty:
        return
    id, fault = next(iter(faulty.items()))
    line = f"{where}: {len(faulty)} of {len(rows)} rows cannot be checked, the first {id}: {fault}"
    if len(faulty) == len(rows):
        raise RecipeError(line)
    yield f"warning: {line}"
