"""Drives the stages of a recipe over one run folder: what is current is skipped, what is bought is replayed."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distill import assets, console, embedded, recipe, shelf
from distill.engine.drive import Engine
from distill.errors import BudgetStop, DistillError, Interrupted, MissingPackage, RecipeError, RunFolderError, StageIncomplete
from distill.filters import FILTERS
from distill.fingerprints import file_sha256, json_sha256, sources_sha256, tree_sha256
from distill.forecast import stages_of
from distill.journal import Journal
from distill.metrics import METRICS
from distill.recipe import Options, Recipe
from distill.run import STAGES, Run, StageRecord, measured, opened
from distill.strategies import STRATEGIES
from distill.train import TrainOptions

TRAINING_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")
SHARED_SOURCES = ("distill.types", "distill.rows", "distill.text")


# --- recipes and parts


class _Unchecked(Options):
    """Stands for the options of a part of the user's own that must not be imported."""

    model_config = {**Options.model_config, "extra": "allow"}


def parts(*, allowed: Collection[str] = (), importing: bool = True) -> recipe.Parts:
    """The shelves' option models; with `importing=False`, parts of the user's own are believed unseen."""

    def lookup(names: Mapping[str, str], kind: str, needs: str) -> Callable[[str], type[Options]]:
        def options_of(name: str) -> type[Options]:
            if ":" in name and not importing:
                return _Unchecked
            part = shelf.part(names, name, kind=kind, allowed=allowed)
            if not hasattr(part, needs):
                fitting = [other for other in names if hasattr(shelf.part(names, other, kind=kind), needs)]
                raise RecipeError(f'{kind} "{name}" does not fit here{shelf.suggest(name, fitting)}')
            options: type[Options] = part.Options
            return options

        return options_of

    return recipe.Parts(
        expand=lookup(STRATEGIES, "strategy", "propose"),
        collect=lookup(STRATEGIES, "strategy", "flow"),
        filter=lookup(FILTERS, "filter", "scope"),
        metric=lookup(METRICS, "metric", "score"),
        train=TrainOptions,
    )


def load_recipe(
    path: Path, *, overrides: Iterable[str] = (), allowed: Collection[str] = (), importing: bool = True
) -> Recipe:
    """The recipe of a file, of a run folder, or a shipped one by its bare name. Raises `RecipeError`."""
    return recipe.load(_recipe_file(path), parts(allowed=allowed, importing=importing), overrides=overrides)


def _recipe_file(path: Path) -> Path:
    if path.is_dir():
        inside = path / "recipe.yaml"
        if not inside.is_file():
            raise RecipeError(f"{path} is no run folder: it has no recipe.yaml; give a recipe or a run folder")
        return inside
    if not path.exists() and path.suffix == "" and len(path.parts) == 1:
        shipped = sorted(file.stem for file in assets.find("recipes").glob("*.yaml"))
        if path.name not in shipped:
            raise RecipeError(f'no file and no shipped recipe "{path}"{shelf.suggest(path.name, shipped)}')
        return assets.find(f"recipes/{path.name}.yaml")
    return path


def require_training_packages(command: str) -> None:
    """Raise `MissingPackage` where a package of the `train` extra is not installed; imports none of them."""
    missing = [name for name in TRAINING_PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingPackage(
            f"`{command}` needs {', '.join(missing)}, which is not installed; type: pip install 'distill[train]'"
        )


# --- one run


@dataclass(slots=True)
class Context:
    """What the stages of one invocation share."""

    run: Run
    recipe: Recipe
    journal: Journal
    retry_failed: bool
    accept_partial: bool
    allowed: Collection[str]
    teacher: Any | None
    """The teacher's provider; a local one starts its server at the first request."""
    closers: ExitStack = field(default_factory=ExitStack)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run.folder


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage as the pipeline sees it."""

    work: Callable[[Context, StageRecord], Mapping[str, Any]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sources: tuple[str, ...]
    options: Callable[[Context], Any]
    """What of the recipe decides the stage's outputs."""
    teacher: bool = False


def run_recipe(
    path: Path,
    *,
    run_dir: Path | None = None,
    overrides: Iterable[str] = (),
    stages: Sequence[str] | None = None,
    retry_failed: bool = False,
    accept_partial: bool = False,
    allowed: Collection[str] = (),
) -> Path:
    """Run a recipe's stages that are not current; returns the run folder.

    Raises `RecipeError` for a bad recipe, `BudgetStop` and `Interrupted` with everything finished kept.
    """
    loaded = load_recipe(path, overrides=overrides, allowed=allowed)
    folder = run_dir or (path if path.is_dir() else Path("runs") / loaded.name)
    names = _chosen(loaded, stages)
    if {"train", "compare"} & set(names) or _serves_here(loaded):
        require_training_packages("distill run")
    with opened(folder, loaded) as run, Journal.open(folder / "journal.sqlite") as journal:
        context = Context(run, loaded, journal, retry_failed, accept_partial, allowed, _teacher(loaded, folder))
        with context.closers:
            ran = _run_stages(context, names)
    _farewell(folder, ran)
    return folder


def _chosen(loaded: Recipe, stages: Sequence[str] | None) -> list[str]:
    available = stages_of(loaded)
    for name in stages or ():
        if name not in STAGES:
            raise RecipeError(f'unknown stage "{name}"{shelf.suggest(name, STAGES)}')
        if name not in available:
            raise RecipeError(f"the recipe has no section `{name}`; add one, or leave the stage out")
    return [name for name in available if stages is None or name in stages]


def _run_stages(context: Context, names: Sequence[str]) -> list[str]:
    """Run those of the stages that are not current, in order; returns the names of those that ran."""
    context.run.describe(_teacher_facts(context))
    ran = []
    for name in names:
        _require_earlier(context, name)
        if _run_stage(context, name):
            ran.append(name)
    return ran


def _require_earlier(context: Context, name: str) -> None:
    """The stages before this one must be done, or partly done within what the recipe or the user accepts."""
    for earlier in stages_of(context.recipe):
        if earlier == name or name == "report":
            return
        entry = context.run.stage(earlier)
        if entry is None or entry["status"] in ("running", "failed"):
            raise StageIncomplete(f"`{name}` needs a finished `{earlier}`; type: distill {earlier} {context.folder}")
        if entry["status"] == "partial" and not (context.accept_partial or entry["detail"] == ACCEPTABLE):
            raise StageIncomplete(
                f"`{earlier}` is only partly done; run it again, or add --accept-partial to go on with what there is"
            )


ACCEPTABLE = "failures within collect.max_failed"


def _run_stage(context: Context, name: str) -> bool:
    stage = PIPELINE[name]
    inputs = {item: tree_sha256(context.folder / item) for item in stage.inputs if (context.folder / item).exists()}
    fingerprint = json_sha256([inputs, stage.options(context), sources_sha256(_sources(context, stage))])
    if context.run.is_current(name, fingerprint) and not (context.retry_failed and stage.teacher):
        return False
    console.say(f"{name}: started")
    record = context.run.begin(name, fingerprint, inputs)
    try:
        with measured(record):
            record.counts = dict(stage.work(context, record))
        record.status = "partial" if record.detail == ACCEPTABLE else "done"
    except (BudgetStop, Interrupted) as stop:
        record.status, record.detail = "partial", str(stop)
        if not (context.accept_partial and isinstance(stop, BudgetStop)):
            raise
    except BaseException as error:
        record.status, record.detail = "failed", str(error) or type(error).__name__
        raise
    finally:
        context.run.save(name, record, stage.outputs)
    console.say(f"{name}: {record.status} in {record.seconds:.1f} s{_brief(record.counts)}")
    return True


def _brief(counts: Mapping[str, Any]) -> str:
    pieces = [f"{key.replace('_', ' ')} {value:,}" for key, value in counts.items() if isinstance(value, int)]
    return f" ({', '.join(pieces)})" if pieces else ""


def _farewell(folder: Path, ran: Sequence[str]) -> None:
    from distill.forecast import headline

    if not ran:
        console.say(f"{folder}: nothing to do, every stage is current")
    for line in headline(folder):
        console.result(line)
    if (folder / "report.html").exists():
        console.result(f"report: {(folder / 'report.html').resolve()}")


# --- the teacher


def _serves_here(loaded: Recipe) -> bool:
    return loaded.teacher is not None and loaded.teacher.serve == "transformers"


def _teacher(loaded: Recipe, folder: Path) -> Any | None:
    """The teacher's provider; nothing is started or asked yet. Raises `RecipeError` for a missing key variable."""
    teacher = loaded.teacher
    if teacher is None:
        return None
    if teacher.serve is not None:
        from distill.providers.local import LocalTeacher

        return LocalTeacher(teacher.model, log=folder / "teacher.log", server=teacher.serve)
    from distill.providers.openai import OpenAIProvider

    return OpenAIProvider(
        teacher.base_url or "",
        teacher.model,
        api_key=_secret(teacher.api_key_env, "teacher.api_key_env"),
        headers={name: _secret(variable, f"teacher.headers_env.{name}") or "" for name, variable in teacher.headers_env.items()},
        revision=teacher.revision,
        timeout_seconds=teacher.timeout_seconds,
    )


def _secret(variable: str | None, key: str) -> str | None:
    if variable is None:
        return None
    value = os.environ.get(variable)
    if not value:
        raise RecipeError(f"{key}: the variable {variable} is not set; type: export {variable}=…")
    return value


def _teacher_facts(context: Context) -> dict[str, Any] | None:
    teacher = context.recipe.teacher
    if teacher is None or context.teacher is None:
        return None
    endpoint = context.teacher.endpoint
    return {
        "model": teacher.model,
        "url": endpoint.url,
        "fingerprint": endpoint.fingerprint,
        "served_by": teacher.serve,
        "terms": teacher.terms,
        "sampling": teacher.sampling.model_dump(exclude_none=True),
    }
