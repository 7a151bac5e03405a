"""What the stages of one invocation share: recipe, run folder, journal and engines."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from distill.core import console, interrupts
from distill.engine.batch.runner import Passes
from distill.engine.budget import Budget, TokenPrice, cost_usd, spent_usd
from distill.engine.engine import Engine
from distill.engine.journal.keys import Question
from distill.engine.journal.records import StageSends
from distill.engine.journal.store import Journal
from distill.engine.policy import BoundEndpoint
from distill.engine.providers import Provider
from distill.errors import RecipeError
from distill.recipe import BaseOptions, Collect, Recipe, SamplingOptions
from distill.run.endpoints import OTHER_ROLES, Teachers
from distill.run.record import StageRecord
from distill.types import Sampling

BASE = "base"
"""The role of the student's model before training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options of one invocation, beside the recipe."""

    allowed: Collection[str] = ()
    """Packages whose code the recipe may run."""
    retry_failed: bool = False
    """Send permanently failed requests again."""
    accept_partial: bool = False
    """Go on from a stage that is only partly done."""
    wait: bool = True
    """Wait for a provider's batches; else the run ends while they are open."""
    redo: Collection[str] = ()
    """Stages that run again although they are current."""
    offline_student: bool = False
    """Ask the teacher although the student's model is not on this machine, without looking for it on the Hub."""
    new_journal: bool = False
    """Continue although the journal lacks sends that run.json counts; their cost stays spent."""
    yes: bool = False
    """Do finished stages again, whatever they cost."""
    confirm: Callable[[str], bool] | None = None
    """Asks for consent to that, where `yes` is False; without it there is none."""
    takeover: bool = False
    """Continue in a run folder of another recipe."""
    hint: str = ""
    """A line for a person at a terminal, before the first stage that runs."""
    stand_in: bool = False
    """The teacher is a stand-in, so that nothing is said about its tasks."""


DEFAULTS = RunOptions()


@dataclass(frozen=True, slots=True)
class Context:
    """Recipe, folder, journal and endpoints of one invocation."""

    folder: Path
    recipe: Recipe
    journal: Journal
    teachers: Teachers
    """A local one starts its server at the first request."""
    options: RunOptions = DEFAULTS
    lost_sends: Mapping[str, StageSends] = field(default_factory=dict)
    """By stage, sends that the journal has lost; their cost stays spent."""
    on_miss: Callable[[str, str, Question], None] | None = None
    """Where given, nothing is sent: it is called with the asking part of a stage, a flow's name, and the flow's first
    question that the journal does not answer."""


def stop_teacher(context: Context) -> None:
    """Stop local servers; they start again at the next request."""
    context.teachers.stop()


def identity(context: Context, roles: Collection[str] = OTHER_ROLES) -> dict[str, Any]:
    """Options of the teachers and of the endpoints for `roles` that determine the answers, by key."""
    return context.teachers.identity(roles)


def _with_samplings(options: BaseOptions, recipe: Recipe) -> BaseOptions:
    """The options, with a missing `ROLE_sampling` taken from the recipe's section of that role."""
    samplings = {
        f"{role}_sampling": one.sampling
        for role, one in recipe.roles.items()
        if one.sampling != SamplingOptions() and getattr(options, f"{role}_sampling", one) is None
    }
    return options.model_copy(update=samplings)


def judge_sampling(recipe: Recipe) -> Sampling:
    """Sampling of the judge; where a teacher judges, only the settings that its endpoint needs."""
    if (judge := recipe.roles.get("judge")) is not None:
        return judge.sampling.sampling()
    teacher = recipe.main_teacher
    own = teacher.sampling.sampling() if teacher is not None else Sampling()
    return Sampling(extra_body=own.extra_body, reasoning_effort=own.reasoning_effort)


IN_PROCESS_BATCH = 32


def engine_for(
    context: Context,
    stage: str,
    progress: console.Progress,
    endpoints: Mapping[str, BoundEndpoint],
    *,
    local: bool = False,
    part: str = "",
) -> Engine:
    """An engine for `part` of a stage. `local`: the models run in this process, free of charge and in batches."""
    interrupts.check()
    collect = context.recipe.collect or Collect()
    on_miss = None if context.on_miss is None else partial(context.on_miss, f"{stage} {part}".rstrip())
    return Engine(
        context.journal,
        endpoints,
        concurrency=max(collect.concurrency, IN_PROCESS_BATCH) if local else collect.concurrency,
        attempts=collect.attempts,
        retry_failed=context.options.retry_failed,
        progress=progress,
        stage=stage,
        budget=Budget({}) if local or on_miss is not None else _budget(context, stage),
        on_miss=on_miss,
        say=console.silent if local else console.say,
    )


def bound(context: Context, providers: Mapping[str, Provider]) -> dict[str, BoundEndpoint]:
    """Providers with the limits and prices that the recipe has for their names."""
    known = context.teachers.endpoints
    return {name: replace(known.get(name) or BoundEndpoint(one), provider=one) for name, one in providers.items()}


def _prices(context: Context) -> dict[str, TokenPrice]:
    return {name: one.price for name, one in context.teachers.endpoints.items() if one.price is not None}


def _budget(context: Context, stage: str) -> Budget:
    """The run's cap, or the stage's own where less of that is left; the sends of the journal count as spent."""
    recipe, prices = context.recipe, _prices(context)
    caps = [] if recipe.budget_usd is None else [(recipe.budget_usd, spent(context, None))]
    if stage == "collect" and recipe.collect is not None and recipe.collect.budget_usd is not None:
        caps.append((recipe.collect.budget_usd, spent(context, stage)))
    cap, already = min(caps, key=lambda item: item[0] - item[1], default=(None, 0.0))
    return Budget(prices, cap_usd=cap, spent_usd=already)


def spent(context: Context, stage: str | None) -> float:
    """USD spent so far by one stage, or by all, lost sends included; 0 without prices."""
    lost_sends = sum(sent.usd for of, sent in context.lost_sends.items() if stage in (None, of))
    return lost_sends + spent_usd(context.journal.costs(), _prices(context), stage)


def passes(context: Context, stage: str, progress: console.Progress) -> Passes:
    """The runner that collects through a provider's batch interface."""
    from distill.engine.batch.client import BatchJobs

    interrupts.check()
    providers: dict[str, Any] = {name: one.provider for name, one in _endpoints(context, stage).items()}
    jobs = {name: BatchJobs(provider) for name, provider in providers.items()}
    return Passes(
        context.journal,
        jobs,
        stage=stage,
        budget=_budget(context, stage),
        wait=context.options.wait,
        progress=progress,
        retry_failed=context.options.retry_failed,
    )


def _endpoints(context: Context, stage: str) -> dict[str, BoundEndpoint]:
    """Endpoints that a stage sends requests to; those of every role where the strategy does not name its roles."""
    section = context.recipe.collect if stage == "collect" else context.recipe.expand
    cost = getattr(section.options, "asks" if stage == "collect" else "cost", None) if section is not None else None
    return context.teachers.of_roles(getattr(cost, "roles", OTHER_ROLES) if section is not None else ())


def _require_no_open_batch(context: Context, stage: str) -> None:
    """Raise `RecipeError` for open batches, whose requests would be bought twice."""
    still = [batch.name for batch in context.journal.batches(stage) if batch.state != "ingested"]
    if still:
        raise RecipeError(
            f"{stage}: {len(still)} batches are open at the provider, whose questions would be asked twice; set"
            f" collect.mode to batch until they are in, or type: distill collect {context.folder} --set"
            " collect.mode=batch --cancel-batches"
        )


@contextmanager
def asking(context: Context, stage: str, record: StageRecord, total: int | None) -> Iterator[Any]:
    """An engine for the teachers, with progress; its tally is recorded however the stage ends."""
    collect = context.recipe.collect
    is_batch = stage == "collect" and collect is not None and collect.mode == "batch" and context.on_miss is None
    if context.on_miss is None and not is_batch:
        _require_no_open_batch(context, stage)
    with console.progress(stage, total) as bar:
        engine: Engine | Passes
        if is_batch:
            engine = passes(context, stage, bar)
        else:
            engine = engine_for(context, stage, bar, _endpoints(context, stage))
        try:
            yield engine
        finally:
            account(context, stage, record, [engine])


def account(context: Context, stage: str, record: StageRecord, engines: Sequence[Engine | Passes]) -> None:
    """Record the requests, tokens and costs of a stage's engines."""
    tallies = [engine.tally for engine in engines]
    record.requests = {
        name: sum(getattr(tally, name) for tally in tallies) for name in ("asked", "replayed", "failed", "retried")
    }
    record.tokens = {
        "prompt": sum(tally.prompt_tokens for tally in tallies),
        "completion": sum(tally.completion_tokens for tally in tallies),
    }
    prices = _prices(context)
    costs = [cost for cost in context.journal.costs() if cost.stage == stage]
    record.usd = spent(context, stage) if prices else None
    record.costs = [
        {
            "teacher": cost.role,
            "model": cost.model,
            "outcome": cost.outcome,
            "sends": cost.sends,
            "prompt_tokens": cost.prompt_tokens,
            "completion_tokens": cost.completion_tokens,
            "usd": round(cost_usd(cost, prices), 8) if prices else None,
        }
        for cost in costs
    ]
    if (lost_sends := context.lost_sends.get(stage)) is not None:
        free = {"prompt_tokens": 0, "completion_tokens": 0}
        record.costs.append(
            {"teacher": "", "model": "", "outcome": "lost", "sends": lost_sends.sends, **free, "usd": lost_sends.usd}
        )
