"""Forecasts requests, tokens, cost and time of a recipe (`check`) by formula, without a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.compare.answers import most_samples
from distill.compare.judge import REPLY_TOKENS
from distill.compare.metrics.instructions import Instructions
from distill.compare.prompts import of_file, of_metrics
from distill.core.console import money
from distill.core.embedded import EMBEDDED
from distill.core.jsonl import read_jsonl
from distill.curate.filters.judge import Judge
from distill.engine.budget import most_completion_tokens
from distill.engine.journal.store import NAME
from distill.engine.progress import PILOT, RunningMean, amount
from distill.errors import some_of
from distill.expand.pool import FEWEST_OUTSTANDING, MOST_OUTSTANDING, ProposalCost
from distill.expand.seeds import load_seeds
from distill.formats.importers import load_tasks
from distill.pipeline import signal_forecast
from distill.pipeline.requirements import known_faults, reference_warnings, warnings
from distill.pipeline.student_forecast import training_lines
from distill.recipe import Asks, Collect, Compare, Judging, Recipe, Teacher
from distill.run.context import _with_samplings
from distill.run.layout import stages_of
from distill.train.trackers import require_trackers
from distill.types import Request, Sampling

JUDGING = "compare (judge)"
GRADING_TOKENS = 320
"""Approximate prompt tokens of a request to a judge, without the session."""
PROMPT_TOKENS = 60
"""Approximate prompt tokens of one task with its system message."""
TOKENS_PER_SECOND = (45.0, 90.0)
"""Generation speed of the embedded teacher on two CPU cores, busy and idle."""
BYTES_A_TOKEN, MESSAGE_TOKENS = 4, 10
"""Approximate bytes per token of English; tokens that a chat template adds to a message."""
EXAMPLE_SECONDS = 5.0
"""Assumed latency of an answer, where none was measured."""
REFUSED, REFUSED_OF_FEW, FEW_SEEDS = 0.75, 0.9, 50
"""Share of an expansion's candidates that may be refused before its forecast is exceeded, and the same with fewer seeds
than `FEW_SEEDS`. SmolLM2-135M-Instruct had 35% refused with 192 seeds, 87% with 12."""


def lines(recipe: Recipe, *, probed: bool = True, run: Path | None = None) -> list[str]:
    """The lines that `check` prints.

    With `probed`, also what an earlier probe of the teacher's endpoint found. Where the folder `run` has tasks of this
    strategy, what its requests brought determines how many more are expected.
    """
    texts = [f"{recipe.name}: valid; stages {', '.join(stages_of(recipe))}"]
    texts += _spending(recipe, run)
    if recipe.train is not None:
        require_trackers(recipe.train.options.report_to)
    texts += training_lines(recipe) + _signals(recipe, run) + warnings(recipe) + reference_warnings(recipe)
    return texts + (known_faults(recipe) if probed else [])


@dataclass(frozen=True, slots=True, kw_only=True)
class StageForecast:
    """Requests and tokens of a stage."""

    stage: str
    models: Sequence[Teacher]
    """Those that are asked, each for its share."""
    fewest: int | None = None
    """Expected requests, at least; `None` where `requests` is an upper bound."""
    requests: int
    """An upper bound, else the expected number at most."""
    prompt_tokens: int
    """Approximate number per request."""
    answer_tokens: int | None
    """Upper bound per request; `None` where the length of answers is not bounded."""
    fewest_tokens: int = 0
    """Expected answer tokens of the fewest requests, at least."""
    note: str = ""
    at_once: int | None = None
    """Requests in flight on average, where fewer than the recipe's concurrency."""

    def line(self) -> str:
        """All of it, in words."""
        if not self.requests:
            return f"{self.stage}: no requests"
        if self.fewest is None:
            most = self._most()
            bound = "no bound on" if most is None else f"at most {most:,}"
            prompts = f"about {self.requests * self.prompt_tokens:,} prompt tokens"
            return f"{self.stage}: at most {self.requests:,} requests, {prompts}, {bound} answer tokens, {self._cost()}"
        prompts = amount(self.fewest * self.prompt_tokens, self.requests * self.prompt_tokens)
        answers = amount(self.fewest_tokens, self._most())
        return (
            f"{self.stage}: {amount(self.fewest, self.requests)} requests, {prompts} prompt tokens, {answers} answer "
            f"tokens, {self._cost()}; {self.note}; more are possible (budget_usd is the cap)"
        )

    def _most(self) -> int | None:
        return None if self.answer_tokens is None else self.requests * self.answer_tokens

    def _cost(self) -> str:
        if any(model.price is None for model in self.models):
            return "no price in the recipe"
        if (tokens := self._most()) is None:
            return "no bound on USD"
        most = self._usd(self.requests, tokens)
        if self.fewest is None:
            return f"up to about {money(most)}"
        return money(self._usd(self.fewest, self.fewest_tokens), most)

    def _usd(self, requests: int, answer_tokens: int) -> float:
        """USD by each model's price and share."""
        weights = sum(model.weight for model in self.models)
        return sum(
            model.weight
            / weights
            * (requests * self.prompt_tokens * model.price.input + answer_tokens * model.price.output)
            / 1e6
            for model in self.models
            if model.price is not None
        )


def _spending(recipe: Recipe, run: Path | None) -> list[str]:
    """Requests, tokens, USD and time of every stage that asks a teacher."""
    plans = [plan for plan in _plans(recipe, run) if plan.models]
    texts = [plan.line() for plan in plans]
    if recipe.main_teacher is None:
        return [*texts, *([] if texts else ["no teacher, judge or endpoint is asked: nothing is paid"])]
    times = _times([plan for plan in plans if recipe.teachers[0] in plan.models], recipe)
    return [*texts, *_replayed(recipe, run), *_caps(recipe), *times]


def _replayed(recipe: Recipe, run: Path | None) -> list[str]:
    """One line where the journals of other runs, or of this one, may have answers already."""
    own = [str(run)] if run is not None and (run / NAME).is_file() else []
    if not (journals := list(dict.fromkeys([*own, *recipe.reuse]))):
        return []
    return [f"not in these figures: answers that {some_of(journals)} has to the same requests are not asked for again"]


def _signals(recipe: Recipe, run: Path | None) -> list[str]:
    """The lines on soft targets, by the most that collect asks for."""
    collected = next((plan for plan in _plans(recipe, run) if plan.stage == "collect"), None)
    if collected is None:
        return signal_forecast.lines(recipe, rows=0, answer_tokens=None, prompt_tokens=0)
    return signal_forecast.lines(
        recipe,
        rows=collected.requests,
        answer_tokens=collected.answer_tokens,
        prompt_tokens=collected.prompt_tokens,
    )


def _plans(recipe: Recipe, run: Path | None) -> Iterator[StageForecast]:
    most = _longest(teacher.sampling.sampling() for teacher in recipe.teachers)
    tasks, prompt = (recipe.expand.tasks if recipe.expand else 0), PROMPT_TOKENS
    if recipe.expand is not None:
        yield _expanding(recipe, run)
    if recipe.collect is not None and recipe.collect.tasks is not None:
        rows = load_tasks(Path(recipe.collect.tasks))
        tasks = len(rows)
        prompt = (
            max(1, sum(len(row.instruction + row.input) for row in rows) // BYTES_A_TOKEN // tasks) + MESSAGE_TOKENS
        )
    if recipe.collect is not None and tasks:
        yield _collecting(recipe, tasks, prompt)
    graded_rows = (tasks if recipe.collect is not None else 0) + sum(source.take or 0 for source in recipe.sources)
    graders = [rule.options for rule in recipe.curate or () if isinstance(rule.options, Judge.Options)]
    yield from (_grading(options, recipe, graded_rows, prompt + (most or 0)) for options in graders if graded_rows)
    if tasks and (models := signal_forecast.scoring_teachers(recipe)):
        yield StageForecast(
            stage="train", models=models, requests=tasks, prompt_tokens=prompt + (most or 0), answer_tokens=1
        )
    if recipe.compare is not None:
        yield from _comparing(recipe, recipe.compare, prompt)
        if recipe.compare.judge is not None:
            yield _judging(recipe.compare.judge, recipe, prompt + 2 * (most or 0))


def _longest(samplings: Iterable[Sampling]) -> int | None:
    """The most tokens of an answer by any of these; `None` where one is not bounded."""
    bounds = [most_completion_tokens(Request(role="", sampling=one)) for one in samplings]
    known = [bound for bound in bounds if bound is not None]
    return max(known, default=0) if len(known) == len(bounds) else None


def _expanding(recipe: Recipe, run: Path | None) -> StageForecast:
    """From what a request brings if nothing is refused to what it brings if most is, and those in flight at the end."""
    section = recipe.expand
    assert section is not None
    seeds = load_seeds(Path(section.seeds))  # raises what expand would raise
    options = _with_samplings(section.options, recipe)
    cost = getattr(options, "cost", ProposalCost(1, PROMPT_TOKENS, 0))
    refused = REFUSED_OF_FEW if len(seeds) < FEW_SEEDS else REFUSED
    low = math.ceil(section.tasks / cost.tasks)
    high, note = math.ceil(low / (1 - refused)), f"the most if {refused:.0%} of the candidates are refused"
    if (observed := _yield_so_far(run, section.strategy)) is not None:
        low, end = observed.needed(section.tasks)
        high, note = end or max(high, low), f"by the {observed.mean:.1f} tasks that a request brought in {run}"
    window = getattr(options, "window", None) or min(MOST_OUTSTANDING, FEWEST_OUTSTANDING + high // FEWEST_OUTSTANDING)
    high += window - 1
    bound = _longest(cost.samplings) if cost.samplings else None
    return StageForecast(
        stage="expand",
        models=recipe.teachers[:1],
        fewest=low * cost.requests + cost.once,
        requests=high * cost.requests + cost.once,
        prompt_tokens=cost.prompt_tokens // cost.requests,
        answer_tokens=bound,
        fewest_tokens=low * min(cost.completion_tokens, (bound or cost.completion_tokens) * cost.requests),
        note=note,
        at_once=getattr(options, "window", None) or (FEWEST_OUTSTANDING + window) // 2,
    )


def _yield_so_far(run: Path | None, strategy: str) -> RunningMean | None:
    """The tasks of each request that a run has admitted; `None` where they are too few, or brought none."""
    files = [file for name in ("tasks", "refused") if run is not None and (file := run / f"{name}.jsonl").is_file()]
    counts: dict[int, int] = {}
    for file in files:
        for row in read_jsonl(file):
            meta = row.get("meta", {})
            if meta.get("strategy") == strategy and isinstance(number := meta.get("request"), int):
                counts[number] = counts.get(number, 0) + (file.stem == "tasks")
    if len(counts) < PILOT:
        return None
    observed = RunningMean()
    for count in counts.values():
        observed.add(count)
    return observed if observed.mean else None


def _collecting(recipe: Recipe, tasks: int, prompt: int) -> StageForecast:
    """Requests and tokens of a strategy for all tasks; answers of unbounded length do not count as later prompts."""
    section = recipe.collect
    assert section is not None
    options = _with_samplings(section.options, recipe)
    asks = getattr(options, "asks", Asks())
    bound = _longest([*(teacher.sampling.sampling() for teacher in recipe.teachers), *asks.samplings])
    prompt_tokens = prompt + (asks.prompt_tokens + asks.answers_read * (bound or 0)) // max(1, asks.requests)
    return StageForecast(
        stage="collect",
        models=recipe.teachers,
        requests=asks.requests * tasks,
        prompt_tokens=prompt_tokens,
        answer_tokens=bound,
    )


def _graders(recipe: Recipe) -> tuple[Teacher, ...]:
    """The judge, else the main teacher."""
    return (recipe.judge,) if recipe.judge is not None else recipe.teachers[:1]


def _grading(options: Judge.Options, recipe: Recipe, rows: int, tokens: int) -> StageForecast:
    """Every row is graded once, unless a rule without requests drops it."""
    own = recipe.judge.sampling.sampling() if recipe.judge is not None and options.max_tokens is None else None
    bound = _longest([own]) if own is not None and own.max_tokens else Judge.most_tokens(options)
    return StageForecast(
        stage="curate",
        models=_graders(recipe),
        requests=rows,
        prompt_tokens=GRADING_TOKENS + tokens,
        answer_tokens=bound,
    )


def _comparing(recipe: Recipe, compare: Compare, prompt: int) -> Iterator[StageForecast]:
    """The teacher's requests: one per held-out prompt, two per other prompt, none where its answers are recorded.

    Other prompts are those of `compare.prompts` and of the metric `instructions`. An endpoint that answers as student
    or base is asked each prompt once. The samples that a metric needs come on top.
    """
    own = [Instructions(one.options) for one in compare.metrics if isinstance(one.options, Instructions.Options)]
    of_prompts = of_file(Path(compare.prompts)) if compare.prompts is not None else ()
    others = [*of_metrics(own), *of_prompts]
    later = sum(1 + len(prompt.later) for prompt in others)
    before = recipe.held_out.count if compare.prompts is None else 0
    times = 1 if "teacher_again" in compare.answers else 2
    samples = most_samples(one.options for one in compare.metrics)
    more = (samples - 1) * (before + len(of_prompts))
    asked: dict[str, tuple[Sequence[Teacher], int]] = {
        f"compare ({side})": ((one,), before + later + more) for side, one in recipe.respondents.items()
    }
    if "teacher" not in compare.answers:
        again = more + before + len(of_prompts) if more else 0
        asked = {"compare": (recipe.teachers, before * (times - 1) + times * later + again), **asked}
    for stage, (models, requests) in asked.items():
        samplings = [compare.sampling or model.sampling for model in models]
        bound = _longest(one.sampling() for one in samplings)
        if requests:
            yield StageForecast(
                stage=stage, models=models, requests=requests, prompt_tokens=prompt, answer_tokens=bound
            )


def _judging(options: Judging, recipe: Recipe, tokens: int) -> StageForecast:
    """Both orders of each pair and the retests, and three single grades, for every prompt."""
    assert recipe.compare is not None
    path = recipe.compare.prompts
    prompts = len(of_file(Path(path))) if path is not None else recipe.held_out.count
    games = len(options.pairs) * (2 * prompts + min(options.retest, prompts)) if options.mode != "single" else 0
    times = games + (3 * prompts if options.mode != "pairwise" else 0)
    own = most_tokens(recipe.judge) if recipe.judge is not None else None
    return StageForecast(
        stage=JUDGING,
        models=_graders(recipe),
        requests=times,
        prompt_tokens=GRADING_TOKENS + tokens,
        answer_tokens=options.max_tokens or own or REPLY_TOKENS,
    )


def is_paid(section: Teacher) -> bool:
    """Whether asking a model may cost money: it has a price, or distill does not serve it."""
    return section.price is not None or section.serve is None


def paid(recipe: Recipe, stage: str) -> list[StageForecast]:
    """The forecasts of a stage for models that may cost money."""
    plans = [plan for plan in _plans(recipe, None) if plan.stage.partition(" ")[0] == stage]
    return [plan for plan in plans if any(map(is_paid, plan.models))]


def cost(plans: Sequence[StageForecast], recipe: Recipe, *, flows: int | None = None) -> str:
    """Requests and USD of forecasts, or of this many of their flows (a flow is a task, a row or a prompt)."""
    whole = sum(plan.requests for plan in plans)
    each = getattr(recipe.collect.options, "asks", Asks()).requests if recipe.collect is not None else 1
    requests = whole if flows is None else flows * (each if any(plan.stage == "collect" for plan in plans) else 1)
    count = f"about {requests:,} request{'s' * (requests != 1)}"
    if not plans or any(model.price is None for plan in plans for model in plan.models):
        return f"{count}, no price in the recipe"
    if any(plan.answer_tokens is None for plan in plans):
        return f"{count}, no bound on USD"
    usd = sum(plan._usd(plan.requests, plan._most() or 0) for plan in plans) * min(1.0, requests / whole)
    return f"{count}, up to about {money(usd)}"


def _caps(recipe: Recipe) -> list[str]:
    collect = recipe.collect.budget_usd if recipe.collect is not None else None
    caps = {"budget_usd": recipe.budget_usd, "collect.budget_usd": collect}
    lines_on_caps = [f"{name} stops it at {money(cap)}" for name, cap in caps.items() if cap is not None]
    unpriced = [one.display_name for one in (*recipe.teachers, *recipe.roles.values()) if one.price is None]
    unbound = [teacher.display_name for teacher in recipe.teachers if most_tokens(teacher) is None]
    if lines_on_caps and unpriced:
        lines_on_caps.append(
            f"warning: a budget needs a price, and {', '.join(unpriced)} has none: the run will refuse"
        )
    if lines_on_caps and unbound:
        lines_on_caps.append(
            f"warning: a budget needs sampling.max_tokens, and {', '.join(unbound)} has none: the run will refuse"
        )
    return lines_on_caps


def most_tokens(teacher: Teacher) -> int | None:
    """The most tokens of an answer; `None` where it is not bounded."""
    return _longest([teacher.sampling.sampling()])


def _times(plans: Sequence[StageForecast], recipe: Recipe) -> list[str]:
    """The teacher's time, by the embedded model's speed or the recipe's limits, else at an assumed latency."""
    teacher = recipe.teachers[0]
    if not any(plan.requests for plan in plans):
        return []
    if recipe.collect is not None and recipe.collect.mode == "batch":
        return ["teacher time: a batch is answered within 24 hours"]
    if teacher.serve is not None and teacher.model in EMBEDDED:
        slow, fast = TOKENS_PER_SECOND
        most = sum(plan.requests * (plan.answer_tokens or 0) for plan in plans)
        fewest = sum(plan.fewest_tokens or plan.requests * (plan.answer_tokens or 0) for plan in plans)
        return [f"teacher time: about {fewest / fast / 60:.1f} to {most / slow / 60:.1f} min on two CPU cores"]
    requests = sum(plan.requests for plan in plans)
    tokens = sum(plan.requests * (plan.prompt_tokens + (plan.answer_tokens or 0)) for plan in plans)
    bounds = [(requests / teacher.requests_per_minute, "requests_per_minute")] if teacher.requests_per_minute else []
    bounds += [(tokens / teacher.tokens_per_minute, "tokens_per_minute")] if teacher.tokens_per_minute else []
    in_flight = teacher.concurrency or (recipe.collect or Collect()).concurrency
    turns = sum(plan.requests / min(in_flight, plan.at_once or in_flight) for plan in plans)
    bounds.append((turns * EXAMPLE_SECONDS / 60, f"{EXAMPLE_SECONDS:.0f} s an answer and up to {in_flight} in flight"))
    minutes, by = max(bounds)
    return [f"teacher time: about {minutes:.1f} min at {by}; the run updates this forecast after {PILOT} answers"]
