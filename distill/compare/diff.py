"""Compares runs on their common prompts: differences, with tests of significance.

Two runs are paired prompt by prompt; for more, the measures are shown over the number of trained tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from distill.compare.judge_audit import WORTH
from distill.compare.lm_eval import TaskMeasure, student_measures
from distill.compare.stats import by_category, paired_difference, sign_flip_p, with_holm
from distill.core.jsonl import read_jsonl
from distill.errors import RunFolderError, one_line
from distill.run import students
from distill.run.reading import validated
from distill.run.record import RunRecord, read_record
from distill.run.remarks import stale
from distill.run.scores import Comparison, require_scores
from distill.text.tokens import normalise, visible

SEED = 7
CHANGES = 10
"""Prompts shown whose answers changed most."""
SHOWN = 240
"""Characters shown of an answer."""
WIN_RATE = "win_rate"

Row = Mapping[str, Any]
K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run's results for its student."""

    folder: Path
    rows: Mapping[str, Row]
    """Lines of answers.jsonl by prompt."""
    scores: Comparison
    trained_on: int | None
    """Tokens that bore on the loss, of the kept rows once; None where training left no count."""
    tasks: Mapping[str, TaskMeasure] = field(default_factory=dict)
    """The student's numbers by tasks of the lm-evaluation-harness."""

    def value(self, prompt: str, measure: str, model: str = "student") -> float | None:
        """A model's number on a prompt, where it has one; the judge's verdict counts 1, ½ or 0."""
        row = self.rows[prompt]
        if measure == WIN_RATE:
            pair = row.get("judge", {}).get("pairs", {}).get(f"{model}:teacher", {})
            return WORTH.get(pair.get("outcome", ""))
        value = row.get("scores", {}).get(model, {}).get(measure)
        return float(value) if isinstance(value, (int, float)) else None


def read(folder: Path) -> ComparedRun:
    """A run's comparison. Raises `RunFolderError` where there is none of the current student."""
    document, scores = read_record(folder), require_scores(folder)
    if "compare" in stale(folder, document):
        raise RunFolderError(f"{folder} was compared before its student was trained; type: distill compare {folder}")
    training = validated(RunRecord, students.training(folder, document) or document, folder / "run.json")
    rows = {_key(row): row for row in read_jsonl(folder / "answers.jsonl")}
    tasks = scores.lm_eval
    student_tasks = student_measures(folder, tasks.said) if tasks is not None else {}
    return ComparedRun(folder, rows, scores, training.counts("train").get("trained_tokens"), student_tasks)


def _key(row: Row) -> str:
    """Key under which two runs have the same prompt: the user's turns, whatever the id."""
    turns = [message["content"] for message in row.get("messages", ()) if message.get("role") == "user"]
    return normalise("\n".join([*turns, *row.get("turns", ())]))


# Two runs


def diff(one: ComparedRun, other: ComparedRun) -> dict[str, Any]:
    """Changes from the first run's student to the second's, over the prompts that both have.

    Each of `changes` has the means of both, their difference (the second minus the first), its p and `p_holm`, adjusted
    for looking at several measures; the same by category, where there are several; and a `verdict`: `better`, `worse`,
    `changed` (where no direction is better), or `no clear difference`. Raises `RunFolderError` where they have no
    prompt, or no measure, in common.
    """
    common = [key for key in one.rows if key in other.rows]
    if not common:
        raise RunFolderError(
            f"{one.folder} and {other.folder} have no prompt in common; compare both on one file of prompts "
            "(compare.prompts)"
        )
    changes = _changes(one, other, common)
    if not changes:
        raise RunFolderError(
            f"{one.folder} and {other.folder} have no measure in common; compare them by the same metrics"
        )
    measures = [change["measure"] for change in changes]
    lead = next((name for name in measures if name == one.scores.lead), measures[0])
    return {
        "first": str(one.folder),
        "second": str(other.folder),
        "prompts": len(common),
        "prompts_first": len(one.rows),
        "prompts_second": len(other.rows),
        "warnings": list(_warnings(one, other)),
        "lead": lead,
        "changes": changes,
        "largest": _largest(one, other, common, lead),
    }


def _warnings(one: ComparedRun, other: ComparedRun) -> Iterator[str]:
    scores = (one.scores, other.scores)
    first, second = ((run.method or "").partition("all models drew with ")[2] for run in scores)
    if first != second:
        yield f"the answers were drawn in other ways: {first or 'unknown'}, against {second or 'unknown'}"
    roles = {role: [run.models.get(role, {}).get("model") for run in scores] for role in ("teacher", "base")}
    if one.tasks and other.tasks:
        ways = [{key: getattr(run.lm_eval, key) for key in ("package", "shots", "chat")} for run in scores]
        if ways[0] != ways[1]:
            yield f"the tasks of lm-eval were done in other ways: {ways[0]}, against {ways[1]}"
    for role, names in {**roles, "judge": [run.judge.model if run.judge else None for run in scores]}.items():
        if names[0] != names[1]:
            yield f"the {role} is another: {names[0] or 'none'}, against {names[1] or 'none'}"


def _changes(one: ComparedRun, other: ComparedRun, common: Sequence[str]) -> list[dict[str, Any]]:
    changes = {}
    for name, title, better in _measures(one, other):
        if pairs := _pairs(one, other, common, name):
            categories = {key: str(one.rows[key].get("category", "all")) for key in pairs}
            changes[name] = _change(name, title, better, pairs, categories)
    for name, task in one.tasks.items():
        other_values = other.tasks[name].values if name in other.tasks else {}
        if both := {at: (value, other_values[at]) for at, value in task.values.items() if at in other_values}:
            changes[name] = _change(name, f"{task.title} ({len(both)} documents)", task.better, both, {})
    return [
        change if _is_clear(change) else {**change, "verdict": "no clear difference"}
        for change in with_holm(changes).values()
    ]


def _measures(one: ComparedRun, other: ComparedRun) -> Iterator[tuple[str, str, str]]:
    """Name, title and direction of the measures of both runs, the judge's verdict first."""
    if one.scores.judge and other.scores.judge:
        yield WIN_RATE, "Win rate against the teacher", "higher"
    for name, measure in one.scores.metrics.items():
        if name in other.scores.metrics:
            yield name, measure.title or name, measure.better


def _pairs(one: ComparedRun, other: ComparedRun, common: Sequence[str], measure: str) -> dict[str, tuple[float, float]]:
    """Both students' numbers on the prompts where both have one."""
    values = {key: (one.value(key, measure), other.value(key, measure)) for key in common}
    return {key: (a, b) for key, (a, b) in values.items() if a is not None and b is not None}


def _change(
    measure: str, title: str, better: str, pairs: Mapping[K, tuple[float, float]], categories: Mapping[K, str]
) -> dict[str, Any]:
    first, second = zip(*pairs.values(), strict=True)
    return {
        "measure": measure,
        "title": title,
        "first": fmean(first),
        "second": fmean(second),
        **_figures(list(pairs.values())),
        "verdict": _direction(better, first, second),
        "categories": by_category(categories, lambda keys: _figures([pairs[key] for key in keys])),
    }


def _direction(better: str, first: Sequence[float], second: Sequence[float]) -> str:
    """`better`, `worse` or `changed`; where 1 is best, by the distances from it if they clearly differ."""
    if better == "near 1":
        nearer = paired_difference([abs(one - 1) for one in first], [abs(one - 1) for one in second], seed=SEED)
        gain = nearer.mean if nearer is not None and nearer.excludes_zero else None
    else:
        gain = {"higher": fmean(second) - fmean(first), "lower": fmean(first) - fmean(second)}.get(better)
    return "changed" if gain is None else "better" if gain > 0 else "worse"


def _is_clear(change: Mapping[str, Any]) -> bool:
    p_holm = change["p_holm"]
    return change["difference"]["excludes_zero"] and p_holm is not None and p_holm < 0.05


def _figures(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    first, second = zip(*pairs, strict=True)
    difference = paired_difference(second, first, seed=SEED)
    assert difference is not None
    return {"difference": asdict(difference), "p": sign_flip_p(second, first, seed=SEED)}


def _largest(one: ComparedRun, other: ComparedRun, common: Sequence[str], measure: str) -> list[dict[str, Any]]:
    """The prompts whose number changed most, with both answers."""
    pairs = _pairs(one, other, common, measure)
    order = sorted(pairs, key=lambda key: -abs(pairs[key][1] - pairs[key][0]))
    return [
        {
            "id": one.rows[key].get("id"),
            "prompt": _last_question(one.rows[key]),
            "first": {"value": pairs[key][0], "text": _answer(one.rows[key])},
            "second": {"value": pairs[key][1], "text": _answer(other.rows[key])},
        }
        for key in order[:CHANGES]
        if pairs[key][0] != pairs[key][1]
    ]


def _last_question(row: Row) -> str:
    return str(row["messages"][-1]["content"]) if row.get("messages") else ""


def _answer(row: Row) -> str:
    return str(row.get("answers", {}).get("student", {}).get("text", ""))


# Several runs


def curve(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """Each measure over the number of trained tokens, on the prompts that all runs have; the base is at 0.

    Raises `RunFolderError` where they have no prompt in common, or a run has no count of trained tokens.
    """
    common = [key for key in runs[0].rows if all(key in run.rows for run in runs)]
    if not common:
        raise RunFolderError("the runs have no prompt in common; compare all on one file of prompts (compare.prompts)")
    if (silent := next((run for run in runs if run.trained_on is None), None)) is not None:
        raise RunFolderError(f"{silent.folder} does not say how much it was trained on; train it with this version")
    by_size = sorted(runs, key=lambda run: run.trained_on or 0)
    metrics = by_size[0].scores.metrics
    measures = [name for name in metrics if all(name in run.scores.metrics for run in by_size)]
    return {
        "prompts": len(common),
        "points": [
            {"run": "untrained base", "trained_tokens": 0, **_means(by_size[0], common, measures, "base")},
            *(
                {"run": str(run.folder), "trained_tokens": run.trained_on, **_means(run, common, measures, "student")}
                for run in by_size
            ),
        ],
        "titles": {name: metrics[name].title or name for name in measures},
    }


def _means(run: ComparedRun, common: Sequence[str], measures: Sequence[str], model: str) -> dict[str, Any]:
    means = {}
    for name in measures:
        values = [value for key in common if (value := run.value(key, name, model)) is not None]
        means[name] = fmean(values) if values else None
    return means


# For the terminal


def lines(result: Row) -> Iterator[str]:
    """The difference of two runs as `distill diff` prints it."""
    yield (
        f"{result['first']} → {result['second']}: {result['prompts']} common prompts of {result['prompts_first']} and "
        f"{result['prompts_second']}"
    )
    yield from (f"warning: {warning}" for warning in result["warnings"])
    for change in result["changes"]:
        yield _change_line(change)
        for name, one in change["categories"].items() if change["measure"] == result["lead"] else ():
            yield f"    {name} ({one['n']}): {_numbers(one['difference'], one['p_holm'])}"
    if result["largest"]:
        yield f"largest changes in {result['lead']}:"
    for row in result["largest"]:
        yield f"  {row['id']}: {row['first']['value']:.2f} → {row['second']['value']:.2f}  {_short(row['prompt'])}"
        yield f"    was: {_short(row['first']['text'])}"
        yield f"    is:  {_short(row['second']['text'])}"


def _change_line(change: Row) -> str:
    return (
        f"  {change['title']}: {change['first']:.3f} → {change['second']:.3f}  "
        f"{_numbers(change['difference'], change['p_holm'])}  {change['verdict']}"
    )


def _numbers(interval: Mapping[str, float], p_holm: float | None) -> str:
    p = "" if p_holm is None else f", p {p_holm:.3f} adjusted" if p_holm >= 0.001 else ", p < 0.001 adjusted"
    return f"{interval['mean']:+.3f} (95% CI {interval['low']:+.3f} to {interval['high']:+.3f}{p})"


def _short(text: str) -> str:
    return one_line(visible(text), SHOWN)


def curve_lines(table: Row) -> Iterator[str]:
    """The curve as a table, one line per run."""
    yield f"{table['prompts']} prompts that all runs have"
    names = list(table["titles"])
    yield "  ".join(["trained tokens".rjust(14), *(name.rjust(max(8, len(name))) for name in names), "run"])
    for point in table["points"]:
        cells = [("–" if point[name] is None else f"{point[name]:.3f}").rjust(max(8, len(name))) for name in names]
        yield "  ".join([f"{point['trained_tokens']:,}".rjust(14), *cells, point["run"]])
