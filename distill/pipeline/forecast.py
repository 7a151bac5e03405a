"""Forecasts requests, tokens, cost and memory of a recipe (`check`) by formula, without a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from distill.compare.judge import REPLY_TOKENS
from distill.compare.metrics.instructions import Instructions
from distill.compare.prompts import of_file, of_metrics
from distill.core.embedded import EMBEDDED
from distill.core.model_files import local_folder
from distill.curate.filters.judge import Judge
from distill.engine.budget import BOUNDS
from distill.engine.progress import PILOT
from distill.errors import RecipeError
from distill.expand.pool import ProposalCost
from distill.expand.seeds import load_seeds
from distill.formats.importers import load_tasks
from distill.models.gguf.support import obstacle
from distill.pipeline.requirements import known_faults, warnings
from distill.recipe import Asks, Compare, Judging, Recipe, Student, Teacher
from distill.run.layout import stages_of
from distill.train.memory import SMOLLM2, Shape, estimate, shape_in, usual_pass
from distill.train.trackers import require_trackers

RECORDED_TOKENS = 300
"""Approximate tokens in a pre-recorded answer."""
JUDGING = "compare (judge)"
GRADING_TOKENS = 320
"""Approximate prompt tokens of a request to a judge, without the session."""
PROMPT_TOKENS = 60
"""Approximate prompt tokens of one task with its system message."""
TEACHER_TOKENS_PER_SECOND = 90.0
"""Generation speed of the embedded teacher on two CPU cores."""
BYTES_A_TOKEN, MESSAGE_TOKENS = 4, 10
"""Approximate bytes per token of English; tokens that a chat template adds to a message."""
EXAMPLE_SECONDS = 5.0
"""Assumed latency of an answer, where none was measured."""
DEVICES: tuple[Literal["cpu", "cuda"], ...] = ("cuda", "cpu")


def lines(recipe: Recipe, *, probed: bool = True) -> list[str]:
    """The lines that `check` prints; with `probed`, also what an earlier probe of the teacher's endpoint found."""
    texts = [f"{recipe.name}: valid; stages {', '.join(stages_of(recipe))}"]
    texts += _spending(recipe)
    texts += _training(recipe)
    return texts + warnings(recipe) + (known_faults(recipe) if probed else [])


@dataclass(frozen=True, slots=True)
class StageForecast:
    """Approximate requests and tokens of a stage."""

    stage: str
    requests: int
    prompt_tokens: int
    completion_tokens: int | None
    """Upper bound; `None` where the length of answers is not bounded."""


def _spending(recipe: Recipe) -> list[str]:
    """Requests, tokens, USD and time of every stage that asks a teacher."""
    plans = _plans(recipe)
    texts = [_planned_line(plan, recipe) for plan in plans]
    if recipe.main_teacher is None:
        return texts
    texts += _caps(recipe)
    return texts + _times([plan for plan in plans if recipe.teachers[0] in _teachers_of(plan, recipe)], recipe)


def _plans(recipe: Recipe) -> list[StageForecast]:
    most = max((teacher.sampling.max_tokens or 0 for teacher in recipe.teachers), default=RECORDED_TOKENS) or None
    tasks, prompt = (recipe.expand.tasks if recipe.expand else 0), PROMPT_TOKENS
    plans = []
    if recipe.expand is not None:
        load_seeds(Path(recipe.expand.seeds))  # raises what expand would raise
        plans.append(_expanding(getattr(recipe.expand.options, "cost", ProposalCost(1, PROMPT_TOKENS, 100)), tasks))
    if recipe.collect is not None and recipe.collect.tasks is not None:
        rows = load_tasks(Path(recipe.collect.tasks))
        tasks = len(rows)
        prompt = (
            max(1, sum(len(row.instruction + row.input) for row in rows) // BYTES_A_TOKEN // tasks) + MESSAGE_TOKENS
        )
    if recipe.collect is not None and tasks:
        plans.append(_collecting(getattr(recipe.collect.options, "asks", Asks()), tasks, prompt, most))
    graded_rows = (tasks if recipe.collect is not None else 0) + sum(source.take or 0 for source in recipe.sources)
    graders = [rule.options for rule in recipe.curate or () if isinstance(rule.options, Judge.Options)]
    plans += [_grading(options, recipe, graded_rows, prompt + (most or 0)) for options in graders if graded_rows]
    if recipe.compare is not None and (requests := _comparing(recipe.compare, recipe.held_out.count)):
        plans.append(StageForecast("compare", requests, requests * prompt, requests * most if most else None))
    if recipe.compare is not None and recipe.compare.judge is not None:
        plans.append(_judging(recipe.compare.judge, recipe, prompt + 2 * (most or 0)))
    return plans


def _judging(options: Judging, recipe: Recipe, tokens: int) -> StageForecast:
    """Both orders of each pair and the retests, and three single grades, for every prompt."""
    assert recipe.compare is not None
    path = recipe.compare.prompts
    prompts = len(of_file(Path(path))) if path is not None else recipe.held_out.count
    games = len(options.pairs) * (2 * prompts + min(options.retest, prompts)) if options.mode != "single" else 0
    times = games + (3 * prompts if options.mode != "pairwise" else 0)
    own = most_tokens(recipe.judge) if recipe.judge is not None else None
    bound = options.max_tokens or own or REPLY_TOKENS
    return StageForecast(JUDGING, times, times * (GRADING_TOKENS + tokens), times * bound)


def _comparing(compare: Compare, held_out: int) -> int:
    """Requests to the teacher: one per held-out prompt, two per other prompt, none where its answers are recorded.

    Other prompts are those of `compare.prompts` and of the metric `instructions`.
    """
    if "teacher" in compare.answers:
        return 0
    own = [Instructions(one.options) for one in compare.metrics if isinstance(one.options, Instructions.Options)]
    others = [*of_metrics(own), *(of_file(Path(compare.prompts)) if compare.prompts is not None else ())]
    times = 1 if "teacher_again" in compare.answers else 2
    before = held_out if compare.prompts is None else 0
    return before * (times - 1) + times * sum(1 + len(prompt.later) for prompt in others)


def _expanding(cost: ProposalCost, tasks: int) -> StageForecast:
    times = math.ceil(tasks / cost.tasks)
    return StageForecast("expand", times * cost.requests, times * cost.prompt_tokens, times * cost.completion_tokens)


def _collecting(asks: Asks, tasks: int, prompt: int, most: int | None) -> StageForecast:
    """Requests and tokens of a strategy for all tasks; answers of unbounded length do not count as later prompts."""
    prompt_tokens = asks.requests * prompt + asks.prompt_tokens + asks.answers_read * (most or 0)
    return StageForecast(
        "collect", asks.requests * tasks, tasks * prompt_tokens, asks.requests * tasks * most if most else None
    )


def _grading(options: Judge.Options, recipe: Recipe, rows: int, tokens: int) -> StageForecast:
    """Every row is graded once, unless a rule without requests drops it."""
    bound = most_tokens(recipe.judge) if recipe.judge is not None and options.max_tokens is None else None
    return StageForecast("curate", rows, rows * (GRADING_TOKENS + tokens), rows * (bound or Judge.most_tokens(options)))


def _teachers_of(plan: StageForecast, recipe: Recipe) -> tuple[Teacher, ...]:
    """The teachers of a stage: one judge, the main teacher alone, or all of them."""
    if plan.stage in ("curate", JUDGING) and recipe.judge is not None:
        return (recipe.judge,)
    return recipe.teachers[:1] if plan.stage in ("expand", "curate", JUDGING) else recipe.teachers


def _planned_line(plan: StageForecast, recipe: Recipe) -> str:
    completion = plan.completion_tokens
    upper = "no bound (teacher.sampling.max_tokens is not set)" if completion is None else f"at most {completion:,}"
    usd = "no price in the recipe"
    if all(teacher.price is not None for teacher in _teachers_of(plan, recipe)) and completion is not None:
        usd = f"at most USD {_usd(plan, recipe):.2f}"
    return (
        f"{plan.stage}: about {plan.requests:,} requests, {plan.prompt_tokens:,} prompt tokens, {upper} answer tokens,"
        f" {usd}"
    )


def _usd(plan: StageForecast, recipe: Recipe) -> float:
    """USD by each teacher's price and share."""
    teachers = _teachers_of(plan, recipe)
    weights = sum(teacher.weight for teacher in teachers)
    return sum(
        teacher.weight
        / weights
        * (plan.prompt_tokens * teacher.price.input + (plan.completion_tokens or 0) * teacher.price.output)
        / 1e6
        for teacher in teachers
        if teacher.price is not None
    )


def is_paid(section: Teacher) -> bool:
    """Whether asking a model may cost money: it has a price, or distill does not serve it."""
    return section.price is not None or section.serve is None


def paid(recipe: Recipe, stage: str) -> list[StageForecast]:
    """The forecasts of a stage for models that may cost money."""
    plans = [plan for plan in _plans(recipe) if plan.stage.partition(" ")[0] == stage]
    return [plan for plan in plans if any(map(is_paid, _teachers_of(plan, recipe)))]


def cost(plans: Sequence[StageForecast], recipe: Recipe, *, flows: int | None = None) -> str:
    """Requests and USD of forecasts, or of this many of their flows (a flow is a task, a row or a prompt)."""
    whole = sum(plan.requests for plan in plans)
    each = getattr(recipe.collect.options, "asks", Asks()).requests if recipe.collect is not None else 1
    requests = whole if flows is None else flows * (each if any(plan.stage == "collect" for plan in plans) else 1)
    priced = plans and all(teacher.price is not None for plan in plans for teacher in _teachers_of(plan, recipe))
    if not priced or any(plan.completion_tokens is None for plan in plans):
        return f"about {requests:,} request{'s' * (requests != 1)}, no price in the recipe"
    usd = sum(_usd(plan, recipe) for plan in plans) * min(1.0, requests / whole)
    return f"about {requests:,} request{'s' * (requests != 1)}, up to about USD {usd:.{2 if usd >= 1 else 4}f}"


def _caps(recipe: Recipe) -> list[str]:
    collect = recipe.collect.budget_usd if recipe.collect is not None else None
    caps = {"budget_usd": recipe.budget_usd, "collect.budget_usd": collect}
    lines_on_caps = [f"{name} stops it at USD {cap:g}" for name, cap in caps.items() if cap is not None]
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
    extra = teacher.sampling.extra_body
    return teacher.sampling.max_tokens or next((extra[name] for name in BOUNDS if extra.get(name)), None)


def _times(plans: Sequence[StageForecast], recipe: Recipe) -> list[str]:
    """The teacher's time, by the embedded model's speed or the recipe's limits, else at an assumed latency."""
    teacher = recipe.teachers[0]
    requests = sum(plan.requests for plan in plans)
    tokens = sum(plan.prompt_tokens + (plan.completion_tokens or 0) for plan in plans)
    if teacher.serve is not None and teacher.model in EMBEDDED:
        minutes = sum(plan.completion_tokens or 0 for plan in plans) / TEACHER_TOKENS_PER_SECOND / 60
        return [f"teacher time: at most {minutes:.1f} min on two CPU cores"]
    if recipe.collect is not None and recipe.collect.mode == "batch":
        return ["teacher time: a batch is answered within 24 hours"]
    bounds = [(requests / teacher.requests_per_minute, "requests_per_minute")] if teacher.requests_per_minute else []
    bounds += [(tokens / teacher.tokens_per_minute, "tokens_per_minute")] if teacher.tokens_per_minute else []
    in_flight = teacher.concurrency or (recipe.collect.concurrency if recipe.collect is not None else 1)
    bounds.append(
        (requests * EXAMPLE_SECONDS / in_flight / 60, f"{in_flight} in flight and {EXAMPLE_SECONDS:.0f} s an answer")
    )
    minutes, by = max(bounds)
    return [f"teacher time: about {minutes:.1f} min at {by}; the run updates this forecast after {PILOT} answers"]


def _training(recipe: Recipe) -> list[str]:
    if recipe.student is None or recipe.train is None:
        return []
    require_trackers(recipe.train.options.report_to)
    layers = recipe.student.prune.layers if recipe.student.prune is not None else None
    exports = [_exports(recipe.student, recipe.train.options.method)]
    shape = _shape(recipe.student.model, layers)
    if shape is None:
        is_here = (Path(recipe.student.model).expanduser() / "config.json").is_file()
        why = "does not say its sizes by names that are known here" if is_here else "is not on this machine"
        return [f"train: memory unknown, the student's config.json {why}", *exports]
    _require_layers(recipe.student.model, layers)
    options = recipe.train.options
    gpu, cpu = (usual_pass(options, device, shape.layers) for device in DEVICES)
    return [
        f"train: {options.method} at a learning rate of {options.learning_rate:g} takes about "
        f"{estimate(shape, options, gpu).total / 1e9:.1f} GB on a GPU (passes of {gpu.tokens:,} tokens), "
        f"{estimate(shape, options, cpu).total / 1e9:.1f} GB on a CPU (of {cpu.tokens:,}); "
        "`distill train --plan` measures it",
        *_experts(shape, options.method),
        *exports,
    ]


def _require_layers(model: str, layers: int | None) -> None:
    """Raise `RecipeError` where more layers are to be kept than the model's config.json has."""
    whole = _shape(model, None)
    if layers is not None and whole is not None and layers > whole.layers:
        raise RecipeError(f"student.prune.layers: {layers} cannot be kept, {model} has {whole.layers}")


def _experts(shape: Shape, method: str) -> list[str]:
    if not shape.experts or method == "full":
        return []
    share = shape.expert_weights() / (shape.expert_weights() + shape.linear_weights() + shape.other_weights())
    return [
        f"train: {shape.experts} experts a layer hold {share:.0%} of the weights; they stay in 16 bits (32 on a CPU), "
        "and adapters do not reach them"
    ]


def _exports(student: Student, method: str) -> str:
    """The forms in which `distill export` can write the student."""
    whole = "merged" if method == "full" else "adapter, merged"
    is_embedded = student.model in EMBEDDED
    folder = None if is_embedded else local_folder(student.model)
    if folder is None and not is_embedded:
        return f"exports: {whole}; gguf and ollama depend on the student's model, which is no folder on this machine"
    reason = obstacle(folder) if folder is not None else None
    if reason is not None:
        return f"exports: {whole}; {reason}"
    ollama = "ollama (if its own template puts fixed texts around messages)" if student.template == "own" else "ollama"
    return f"exports: {whole}, gguf, {ollama}"


def _shape(model: str, layers: int | None) -> Shape | None:
    if model in EMBEDDED:
        return replace(SMOLLM2, layers=layers or SMOLLM2.layers)
    return shape_in(Path(model).expanduser(), layers=layers)
