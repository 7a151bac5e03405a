"""Stage curate: splits sessions into kept, held-out and dropped rows, each with its verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

from distill.core import console, registry, weights
from distill.core.jsonl import FIRST_META, read_sessions, write_rows
from distill.curate.filters import FILTERS, frames_of, prompt_of
from distill.curate.rows import MeasuredRow, sift
from distill.curate.test_split import NEAR, RULE, candidates, drop_near, held_out
from distill.engine import EngineStopped, Outcome
from distill.engine.engine import Engine
from distill.errors import RecipeError, StageIncomplete, shorten
from distill.recipe import Collect, Recipe, Rule
from distill.run import funnel
from distill.run.context import BASE, Context, account, bound, engine_for, judge_sampling, stop_teacher
from distill.run.decisive import flat, parts
from distill.run.record import ACCEPTABLE, StageRecord
from distill.text.prompt_frames import PromptFrames
from distill.text.words import word_count
from distill.types import AskingFilter, Failure, Flow, Pair, RowFilter, SetFilter, Verdict

REVISION = 2
"""Raise it with any change of the stage's output for the same inputs and options, shipped prompts included."""
Rules: TypeAlias = Sequence[tuple[str, RowFilter | AskingFilter | SetFilter]]
NOT_MEASURED = "not_measured"
"""Reason of a verdict that keeps a row because the rule's model gave no answer."""
UNPARSED, MANY_UNPARSED = "unparsed", 0.2
"""Reason of a verdict on an unreadable reply, and the share of such replies above which a warning is printed."""
MOST_NEAR = 0.2
"""Share of the rows above which a warning is printed if the test split drops them."""
FRAMES_SHOWN, FRAMES_RECORDED, FRAME_CHARACTERS = 3, 50, 120
"""Frames of prompts that are printed and recorded at most, and characters of each."""
LONG_FRAME = 20
"""Words of a frame from which a system turn is advised."""
Flows: TypeAlias = Sequence[tuple[str, Callable[[], Flow[Any]]]]
"""One flow per row; its id is the row's place, a colon and the session's id."""


Ask: TypeAlias = Callable[[Flows, str, str], Sequence[Outcome[Any]]]
"""Runs the flows of one filter, by its name, with the role that it asks; returns one outcome per flow, in their order.
Raises what `Engine.run` raises."""


@dataclass(slots=True)
class _Measurements:
    """Outcome of the filters that ask a model."""

    flows: int = 0
    failed: list[tuple[str, Sequence[Failure]]] = field(default_factory=list)
    """The rule and its failures, for each row that the rule could not measure."""
    stopped: EngineStopped | None = None


def curate(
    folder: Path,
    *,
    filters: Rules,
    test: int,
    seed: int,
    near: float = 0.7,
    key: str = "collect.test",
    ask: Ask | None = None,
    max_failed: float = 0.05,
    processes: int | None = None,
    report_counts: Callable[[Mapping[str, Any]], None] = lambda counts: None,
) -> Mapping[str, Any]:
    """Write kept.jsonl, test.jsonl and dropped.jsonl from sessions.jsonl; returns the stage's counts.

    Row rules measure every row in order, dropped or not, in `processes` (see `rows.sift`). Rules that ask a model
    follow, through `ask`, by default only about rows still kept. Then `test` rows are held out (`held_out`), set rules
    run in order over the other kept rows, and rows whose prompt is near (ROUGE-L above `near`) that of a held-out row
    are dropped. What many prompts share (`PromptFrames`) does not count as likeness. Every row is written with all its
    verdicts, those against it first. `key` is the recipe's key of `test` and `near`, for messages.

    `report_counts` is called with the counts as soon as all is written: those of `_write`, `frames`, `test_missing`,
    and if a model was asked `failed` (rows kept without a measurement) and `retryable` (those with a transient
    failure). Then raises what `ask` raised, or `StageIncomplete` when no row is left to train on or more than the share
    `max_failed` of the measurements failed.
    """
    rows = [MeasuredRow(session) for session in read_sessions(folder / "sessions.jsonl")]
    sift(rows, [(name, rule) for name, rule in filters if rule.scope == "row" and not _asks(rule)], processes=processes)
    measurements = _apply_asking_rules(rows, filters, ask)
    compares_prompts = test or any(getattr(rule, "takes_frames", False) for _, rule in filters)
    frames = frames_of(row.session for row in rows if row.is_kept and compares_prompts)
    test_ids = held_out(candidates(rows), test=test, seed=seed, near=near)
    test_rows = [row for row in rows if row.session.id in test_ids]
    training = [row for row in rows if row.session.id not in test_ids]
    _apply_set_rules(training, filters, frames)
    drop_near(training, test_rows, near, frames)
    counts = _write(folder, rows, training, test_rows)
    if frames:
        counts["frames"] = _report_frames(frames, rows)
    if measurements.flows:
        counts["failed"] = len(measurements.failed)
        counts["retryable"] = sum(any(one.transient for one in failures) for _, failures in measurements.failed)
    if len(test_rows) < test:
        counts["test_missing"] = test - len(test_rows)
    report_counts(counts)
    _require_few_failures(measurements, max_failed)
    _report_split(counts, near, key)
    _report_cuts([row for row in training if row.is_kept])
    _require_rows(counts)
    return counts


def _asks(rule: RowFilter | AskingFilter) -> TypeGuard[AskingFilter]:
    return hasattr(rule, "role")


def _apply_asking_rules(rows: Sequence[MeasuredRow], filters: Rules, ask: Ask | None) -> _Measurements:
    """Measure rows by the rules that ask a model, until the engine stops; rows without a measurement are kept."""
    measurements = _Measurements()
    for name, rule in filters:
        if rule.scope != "row" or not _asks(rule):
            continue
        subjects = [row for row in rows if row.is_kept or rule.every_row]
        measurements.flows += len(subjects)
        for row, outcome in zip(subjects, _outcomes(subjects, name, rule, ask, measurements), strict=True):
            if outcome is not None and outcome.value is not None:
                row.take(name, rule, outcome.value)
                continue
            failures = outcome.failures if outcome is not None else ()
            measurements.failed.append((name, failures))
            note = f"{failures[-1].reason}: {failures[-1].detail}" if failures else None
            row.add(Verdict(rule=name, keep=True, reason=NOT_MEASURED, note=note))
        unparsed = sum(1 for row in subjects if row.verdicts[-1].reason == UNPARSED)
        if unparsed > MANY_UNPARSED * len(subjects):
            console.warn(
                f"{name}: {unparsed} of {len(subjects)} replies cannot be read; see the notes in kept.jsonl, and use a"
                " stronger model or a greater max_tokens"
            )
    return measurements


def _outcomes(
    rows: Sequence[MeasuredRow], name: str, rule: AskingFilter, ask: Ask | None, measurements: _Measurements
) -> Sequence[Outcome[Any] | None]:
    """The outcome of the rule's flow for each row; `None` where the engine stopped before it."""
    if ask is None:
        raise TypeError(f"the filter {name} asks the {rule.role}, and curate was called without `ask`")
    if measurements.stopped is not None:
        return [None] * len(rows)
    flows = [(f"{place}:{row.session.id}", partial(rule.measure, row.session)) for place, row in enumerate(rows)]
    try:
        return ask(flows, name, rule.role)
    except EngineStopped as stop:
        measurements.stopped = stop
        outcomes = {outcome.id: outcome for outcome in stop.outcomes}
        return [outcomes.get(id) for id, _ in flows]


def _require_few_failures(measurements: _Measurements, max_failed: float) -> None:
    """Raise the exception that stopped the engine, or `StageIncomplete` when too many measurements failed."""
    if measurements.stopped is not None:
        raise measurements.stopped
    if len(measurements.failed) <= max_failed * measurements.flows:
        return
    name, failures = measurements.failed[-1]
    why = f" (such as {failures[-1].reason}: {failures[-1].detail})" if failures else ""
    again = any(failure.transient for _, each in measurements.failed for failure in each)
    advice = "run again to ask once more" if again else "mend that; --retry-failed asks them once more"
    raise StageIncomplete(
        f"{name}: {len(measurements.failed)} of {measurements.flows} rows could not be measured{why}, more than"
        f" collect.max_failed ({max_failed:.0%}) allows; {advice}"
    )


def _apply_set_rules(rows: Sequence[MeasuredRow], filters: Rules, frames: PromptFrames) -> None:
    rules = [(name, rule) for name, rule in filters if rule.scope == "set"]
    if not rules:
        return
    with console.progress("curate: rules on all rows", len(rules)) as bar:
        for done, (name, rule) in enumerate(rules):
            bar.update(done, note=name)
            kept = [row for row in rows if row.is_kept]
            more = (frames,) if getattr(rule, "takes_frames", False) else ()
            decide: Callable[..., list[Verdict]] = rule.decide_all
            for row, verdict in zip(kept, decide([row.session for row in kept], *more), strict=True):
                row.add(verdict if verdict.rule == name else replace(verdict, rule=name))


def _write(
    folder: Path, rows: Sequence[MeasuredRow], training: Sequence[MeasuredRow], test_rows: Sequence[MeasuredRow]
) -> dict[str, Any]:
    """Write the rows; returns counts of rows, verdicts by rule (`funnel.tally`), labels and changed rows."""
    kept = [row for row in training if row.is_kept]
    dropped = [row for row in rows if not row.is_kept]
    for name, part in (("kept", kept), ("test", test_rows), ("dropped", dropped)):
        write_rows(folder / f"{name}.jsonl", _lines(part))
    labels = Counter(label for row in (*kept, *test_rows) for label in row.labels)
    mended = Counter(rule for row in (*kept, *test_rows) for rule in row.mended)
    return {
        "rows": len(rows),
        "kept": len(kept),
        "dropped": len(dropped),
        "test": len(test_rows),
        "labelled": sum(1 for row in (*kept, *test_rows) if row.labels),
        **funnel.tally([(row.session.id, row.verdicts) for row in rows]),
        "labels": dict(labels.most_common()),
        "mended": dict(mended.most_common()),
    }


def _lines(rows: Iterable[MeasuredRow]) -> Iterator[dict[str, Any]]:
    """The rows of a file: each session with all its verdicts, those against it first."""
    for place, row in enumerate(rows):
        earlier = [label for label in row.session.meta.get("labels", []) if label not in row.labels]
        meta = {**row.session.meta, "labels": [*earlier, *row.labels], **(FIRST_META if place == 0 else {})}
        verdicts = [_text(one) for one in sorted(row.verdicts, key=lambda one: one.keep and not row.is_kept)]
        rejected = {"rejected": row.session.rejected} if isinstance(row.session, Pair) else {}
        yield {"id": row.session.id, "messages": row.session.messages, **rejected, "meta": meta, "verdicts": verdicts}


def _text(verdict: Verdict) -> dict[str, Any]:
    """A verdict whose values are all texts, empty for `None`.

    Arrow infers a column's type from a file's first 10 MB: after nulls or whole numbers there, `datasets` could not
    read a later text or fraction.
    """
    return {
        "rule": verdict.rule,
        "keep": verdict.keep,
        "reason": verdict.reason,
        "value": "" if verdict.value is None else str(verdict.value),
        "threshold": "" if verdict.threshold is None else str(verdict.threshold),
        "neighbour": verdict.neighbour or "",
        "note": verdict.note or "",
    }


def _report_frames(frames: PromptFrames, rows: Iterable[MeasuredRow]) -> list[dict[str, Any]]:
    """Print the most frequent frames; returns them with the number of their rows."""
    counts = frames.counts(prompt_of(row.session) for row in rows)
    shown: Counter[str] = Counter()
    for frame, count in counts:  # frames that differ behind what is shown count as one
        shown[shorten(frame, FRAME_CHARACTERS)] += count
    found = [{"frame": frame, "rows": count} for frame, count in shown.most_common()]
    if found:
        others = len(found) - FRAMES_SHOWN
        more = f", and {others} other texts are shared (see run.json)" if others > 0 else ""
        texts = ", ".join(f'{one["rows"]} prompts share "{one["frame"]}"' for one in found[:FRAMES_SHOWN])
        console.say(f"curate: {texts}{more}; prompts are compared without it")
    if long := sum(count for frame, count in counts if word_count(frame) >= LONG_FRAME):
        console.say(
            f"curate: {long} prompts say at least {LONG_FRAME} words alike: move these to the system turn"
            " (collect.system, or a system message in the rows), so that a prompt holds what varies"
        )
    return found[:FRAMES_RECORDED]


def _report_split(counts: Mapping[str, Any], near: float, key: str) -> None:
    """Warn if test rows are missing, or if many rows are near the held-out ones."""
    if missing := counts.get("test_missing"):
        test = counts["test"]
        console.warn(f"{test} of {test + missing} prompts could be held out; add sessions, or lower `{key}`")
    loosen = f"above ROUGE-L {near:g}; to loosen it, --set {key}.near={(1 + near) / 2:g}"
    if stay := counts["labels"].get(NEAR):
        console.warn(f"{RULE}: all {stay} rows to train on are near a held-out prompt, and stay ({loosen})")
    dropped = counts["by_rule"].get(f"{RULE}/held_out", 0)
    if dropped > MOST_NEAR * counts["rows"]:
        console.warn(f"{RULE}: {dropped} of {counts['rows']} rows are dropped, near a held-out prompt ({loosen})")


def _report_cuts(kept: Sequence[MeasuredRow]) -> None:
    """Warn of training rows that end in a cut answer."""
    if cut := sum(1 for row in kept if row.session.meta.get("truncated")):
        console.warn(
            f"curate: {cut} of {len(kept)} kept rows ({cut / len(kept):.0%}) end in an answer that was cut, which the"
            " student learns without an end; to drop them, add {filter: truncated, drop: true}"
        )


def _require_rows(counts: Mapping[str, Any]) -> None:
    """Raise `StageIncomplete` if there is no training row."""
    if counts["kept"]:
        return
    if not counts["rows"]:
        raise StageIncomplete("sessions.jsonl is empty: nothing to train on; see failures.jsonl, and collect again")
    worst = next(iter(counts["by_rule"].items()), None)
    why = (
        f"{worst[0]} dropped most ({worst[1]} of {counts['rows']}, see dropped.jsonl)" if worst else "all are held out"
    )
    raise StageIncomplete(f"nothing is left to train on: {why}; loosen that rule, or collect more tasks")


def options(context: Context) -> dict[str, Any]:
    """The recipe's values that determine the verdicts, by key, those of the models that rules ask included."""
    loaded = context.recipe
    rules = [(rule.filter, rule.options) for rule in loaded.curate or []]
    values = {"seed": loaded.seed, "test": loaded.held_out.count, **parts(rules, "curate", files=loaded.files)}
    values |= flat(loaded.held_out, "test", only=("near",))
    roles = roles_of_filters(loaded, context.options.allowed)
    if "judge" in roles and (judge := context.teachers.endpoints.get("judge")) is not None:
        values |= flat(judge.provider.endpoint, "judge")
        values |= flat(judge_sampling(loaded), "judge.sampling")
    if BASE in roles and loaded.student is not None:
        values |= flat(loaded.student, "student", only=("template",))
        values["student.model sha256"] = weights.fingerprint(loaded.student.model)
    return values


def run(context: Context, record: StageRecord) -> Mapping[str, Any]:
    """Run the stage curate: every rule's verdict on every session."""
    section = context.recipe.collect or Collect()
    engines: list[Engine] = []

    def ask(flows: Flows, rule: str, role: str) -> Sequence[Outcome[Any]]:
        with console.progress(f"curate: {rule}", len(flows)) as bar, provider_for(context, rule, role) as provider:
            engines.append(
                engine_for(context, "curate", bar, bound(context, {role: provider}), local=role == BASE, part=rule)
            )
            return engines[-1].run(flows)

    try:
        counts = curate(
            context.folder,
            filters=[(rule.filter, filter_of(context, rule)) for rule in context.recipe.curate or []],
            test=context.recipe.held_out.count,
            seed=context.recipe.seed,
            near=context.recipe.held_out.near,
            key="test" if context.recipe.collect is None else "collect.test",
            ask=ask,
            max_failed=section.max_failed,
            report_counts=record.counts.update,
        )
    finally:
        if engines:
            account(context, "curate", record, engines)
    record.detail = ACCEPTABLE if counts.get("retryable") else None
    return counts


def filter_of(context: Context, rule: Rule) -> Any:
    """The filter of one rule, constructed with the judge's sampling if it asks a judge."""
    part = registry.part(FILTERS, rule.filter, kind="filter", allowed=context.options.allowed)
    if getattr(part, "role", None) == "judge":
        return part(rule.options, sampling=judge_sampling(context.recipe))
    return part(rule.options)


def roles_of_filters(loaded: Recipe, allowed: Collection[str] = ()) -> set[str]:
    """Roles that the curation rules ask: `judge`, `base`."""
    parts = [registry.part(FILTERS, rule.filter, kind="filter", allowed=allowed) for rule in loaded.curate or ()]
    return {part.role for part in parts if hasattr(part, "role")}


@contextmanager
def provider_for(context: Context, rule: str, role: str) -> Iterator[Any]:
    """The provider for a rule's requests; weights in this process are freed at the end. Raises `RecipeError`."""
    if role != BASE:
        if (endpoint := context.teachers.endpoints.get(role)) is None:
            raise RecipeError(f"curate: the filter {rule} asks a {role}, and the recipe has no `teacher` to play it")
        yield endpoint.provider
        return
    from distill.models.in_process import local_model

    student = context.recipe.student
    if student is None:
        raise RecipeError(f"curate: the filter {rule} asks the student's model, and the recipe has no `student`")
    stop_teacher(context)
    provider = local_model(student.model, name=BASE, template=student.template)
    try:
        yield provider
    finally:
        provider.release()
