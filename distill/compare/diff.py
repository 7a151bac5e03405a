"""Compares runs on their common prompts: differences, with tests of significance.

Two runs are paired prompt by prompt; of several, the measures are shown over how much each was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from distill.compare.lm_eval import TaskMeasure, said_by_student
from distill.compare.stats import Difference, holm, paired_difference, sign_flip_p
from distill.core.jsonl import read_jsonl
from distill.errors import RunFolderError, one_line
from distill.run import students
from distill.run.record import read_record
from distill.run.remarks import stale
from distill.text.tokens import normalise, visible

SEED = 7
CHANGES = 10
"""Prompts shown whose answers changed most."""
SHOWN = 240
"""Characters shown of an answer."""
WIN_RATE = "win_rate"
WORTH = {"win": 1.0, "tie": 0.5, "loss": 0.0}

Row = Mapping[str, Any]
K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run's results for its student."""

    folder: Path
    rows: Mapping[str, Row]
    """Lines of answers.jsonl by prompt."""
    scores: Row
    record: Row
    tasks: Mapping[str, TaskMeasure] = field(default_factory=dict)
    """What its student said to tasks of the lm-evaluation-harness."""

    @property
    def trained_on(self) -> int | None:
        """Tokens that bore on the loss, of the kept rows once; None where training left no count."""
        made = students.training(self.folder, self.record) or self.record
        counts = (made.get("stages", {}).get("train") or {}).get("counts") or {}
        tokens = counts.get("trained_tokens")
        return tokens if isinstance(tokens, int) else None

    def value(self, prompt: str, measure: str, model: str = "student") -> float | None:
        """A model's number on a prompt, where it has one; the judge's verdict on the student as a number too."""
        row = self.rows[prompt]
        if measure == WIN_RATE:
            pair = row.get("judge", {}).get("pairs", {}).get(f"{model}:teacher", {})
            return WORTH.get(pair.get("outcome", ""))
        value = row.get("scores", {}).get(model, {}).get(measure)
        return float(value) if isinstance(value, (int, float)) else None


def read(folder: Path) -> ComparedRun:
    """What a run's comparison left. Raises `RunFolderError` where there is none."""
    record = read_record(folder)
    answers, scores = folder / "answers.jsonl", folder / "scores.json"
    if not (answers.is_file() and scores.is_file()):
        raise RunFolderError(f"{folder} was not compared yet; type: distill compare {folder}")
    if "compare" in stale(folder, record):
        raise RunFolderError(f"{folder} was compared before its student was trained; type: distill compare {folder}")
    try:
        info = json.loads(scores.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{scores} is not JSON ({error}); type: distill compare {folder}") from error
    rows = {_key(row): row for row in read_jsonl(answers)}
    return ComparedRun(folder, rows, info, record, said_by_student(folder, info))


def _key(row: Row) -> str:
    """What makes a prompt the same in two runs: what is asked, whatever its id."""
    asked = [message["content"] for message in row.get("messages", ()) if message.get("role") == "user"]
    return normalise("\n".join([*asked, *row.get("turns", ())]))


# Two runs


@dataclass(frozen=True, slots=True)
class MeasureChange:
    """Difference in one measure between the students of two runs: the second minus the first."""

    measure: str
    title: str
    first: float
    second: float
    difference: Difference
    p: float | None
    p_holm: float | None
    """Adjusted for looking at several measures (Holm, 1979)."""
    verdict: str
    """`better`, `worse`, `changed` (where no direction is better), or `no clear difference`."""
    categories: Mapping[str, Any]
    """The same by category, where there are several: difference, p and p adjusted for looking at all."""


def diff(one: ComparedRun, other: ComparedRun) -> dict[str, Any]:
    """What changed from the first run's student to the second's, over the prompts that both have.

    Raises `RunFolderError` where they have no prompt, or no measure, in common.
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
    lead = next((change for change in changes if change.measure == one.scores.get("lead")), changes[0])
    return {
        "first": str(one.folder),
        "second": str(other.folder),
        "prompts": len(common),
        "prompts_first": len(one.rows),
        "prompts_second": len(other.rows),
        "warnings": list(_warnings(one, other)),
        "lead": lead.measure,
        "changes": [asdict(change) for change in changes],
        "largest": _largest(one, other, common, lead.measure),
    }


def _warnings(one: ComparedRun, other: ComparedRun) -> Iterator[str]:
    drawn = [str(run.scores.get("method", "")).partition("all models drew with ")[2] for run in (one, other)]
    if drawn[0] != drawn[1]:
        yield f"the answers were drawn in other ways: {drawn[0] or 'unknown'}, against {drawn[1] or 'unknown'}"
    for role in ("teacher", "base"):
        names = [(run.scores.get("models") or {}).get(role, {}).get("model") for run in (one, other)]
        if names[0] != names[1]:
            yield f"the {role} is another: {names[0] or 'none'}, against {names[1] or 'none'}"
    ways = [
        {key: (run.scores.get("lm_eval") or {}).get(key) for key in ("package", "shots", "chat")}
        for run in (one, other)
    ]
    if one.tasks and other.tasks and ways[0] != ways[1]:
        yield f"the tasks of lm-eval were done in other ways: {ways[0]}, against {ways[1]}"
    judges = [(run.scores.get("judge") or {}).get("model") for run in (one, other)]
    if judges[0] != judges[1]:
        yield f"the judge is another: {judges[0] or 'none'}, against {judges[1] or 'none'}"


def _changes(one: ComparedRun, other: ComparedRun, common: Sequence[str]) -> list[MeasureChange]:
    found = []
    for measure, title, better in _measures(one, other):
        pairs = {key: pair for key in common if (pair := _pair(one, other, key, measure)) is not None}
        if pairs:
            kinds = {key: str(one.rows[key].get("category", "all")) for key in pairs}
            found.append(_change(measure, title, better, pairs, kinds))
    for name, reply in one.tasks.items():
        theirs = other.tasks[name].values if name in other.tasks else {}
        both = {at: (value, theirs[at]) for at, value in reply.values.items() if at in theirs}
        if both:
            found.append(_change(name, f"{reply.title} ({len(both)} documents)", reply.better, both, {}))
    tested = [change.p for change in found if change.p is not None]
    adjusted = iter(holm(tested))
    return [_judged(change, next(adjusted) if change.p is not None else None) for change in found]


def _measures(one: ComparedRun, other: ComparedRun) -> Iterator[tuple[str, str, str]]:
    """Name, title and direction of what both runs measured; the judge's verdict first."""
    if one.scores.get("judge") and other.scores.get("judge"):
        yield WIN_RATE, "Win rate against the teacher", "higher"
    theirs = other.scores.get("metrics") or {}
    for name, entry in (one.scores.get("metrics") or {}).items():
        if name in theirs:
            yield name, str(entry.get("title", name)), str(entry.get("better", ""))


def _pair(one: ComparedRun, other: ComparedRun, key: str, measure: str) -> tuple[float, float] | None:
    first, second = one.value(key, measure), other.value(key, measure)
    return None if first is None or second is None else (first, second)


def _change(
    measure: str, title: str, better: str, pairs: Mapping[K, tuple[float, float]], kinds: Mapping[K, str]
) -> MeasureChange:
    first, second = zip(*pairs.values(), strict=True)
    difference = paired_difference(second, first, seed=SEED)
    assert difference is not None
    word = _direction(better, first, second, difference)
    return MeasureChange(
        measure, title, fmean(first), fmean(second), difference, sign_flip_p(second, first, seed=SEED), None, word,
        _by_category(pairs, kinds),
    )  # fmt: skip


def _direction(better: str, first: Sequence[float], second: Sequence[float], difference: Difference) -> str:
    """Which way it went; where 1 is best, the distances from it decide, if they differ."""
    if better == "near 1":
        nearer = paired_difference([abs(one - 1) for one in first], [abs(one - 1) for one in second], seed=SEED)
        goodness = nearer.mean if nearer is not None and nearer.excludes_zero else None
    else:
        goodness = {"higher": difference.mean, "lower": -difference.mean}.get(better)
    return "changed" if goodness is None else "better" if goodness > 0 else "worse"


def _judged(change: MeasureChange, p_holm: float | None) -> MeasureChange:
    clear = change.difference.excludes_zero and p_holm is not None and p_holm < 0.05
    verdict = change.verdict if clear else "no clear difference"
    return MeasureChange(**{**_plain(change), "p_holm": p_holm, "verdict": verdict})


def _plain(change: MeasureChange) -> dict[str, Any]:
    return {name: getattr(change, name) for name in MeasureChange.__slots__}


def _by_category(pairs: Mapping[K, tuple[float, float]], kinds: Mapping[K, str]) -> dict[str, Any]:
    members: dict[str, list[tuple[float, float]]] = {}
    for key, pair in pairs.items():
        members.setdefault(kinds.get(key, "all"), []).append(pair)
    if len(members) < 2:
        return {}
    info: dict[str, Any] = {}
    for name, each in sorted(members.items()):
        first, second = zip(*each, strict=True)
        info[name] = {
            "n": len(each),
            "difference": paired_difference(second, first, seed=SEED),
            "p": sign_flip_p(second, first, seed=SEED),
        }
    tested = [name for name, one in info.items() if one["p"] is not None]
    adjusted = dict(zip(tested, holm([info[name]["p"] for name in tested]), strict=True))
    return {name: {**one, "p_holm": adjusted.get(name)} for name, one in info.items()}


def _largest(one: ComparedRun, other: ComparedRun, common: Sequence[str], measure: str) -> list[dict[str, Any]]:
    """The prompts whose number changed most, with both answers."""
    pairs = {key: pair for key in common if (pair := _pair(one, other, key, measure)) is not None}
    order = sorted(pairs, key=lambda key: -abs(pairs[key][1] - pairs[key][0]))
    return [
        {
            "id": one.rows[key].get("id"),
            "prompt": _last_asked(one.rows[key]),
            "first": {"value": pairs[key][0], "text": _answer(one.rows[key])},
            "second": {"value": pairs[key][1], "text": _answer(other.rows[key])},
        }
        for key in order[:CHANGES]
        if pairs[key][0] != pairs[key][1]
    ]


def _last_asked(row: Row) -> str:
    return str(row["messages"][-1]["content"]) if row.get("messages") else ""


def _answer(row: Row) -> str:
    return str(row.get("answers", {}).get("student", {}).get("text", ""))


# Several runs


def curve(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """Each measure over how much the students were trained on, on the prompts that all runs have; the base is at 0.

    Raises `RunFolderError` where they have no prompt in common, or a run does not say how much it trained on.
    """
    common = [key for key in runs[0].rows if all(key in run.rows for run in runs)]
    if not common:
        raise RunFolderError("the runs have no prompt in common; compare all on one file of prompts (compare.prompts)")
    if (silent := next((run for run in runs if run.trained_on is None), None)) is not None:
        raise RunFolderError(f"{silent.folder} does not say how much it was trained on; train it with this version")
    ordered = sorted(runs, key=lambda run: run.trained_on or 0)
    measures = [name for name in _names(ordered[0]) if all(name in _names(run) for run in ordered)]
    return {
        "prompts": len(common),
        "points": [
            {"run": "untrained base", "trained_tokens": 0, **_means(ordered[0], common, measures, "base")},
            *(
                {"run": str(run.folder), "trained_tokens": run.trained_on, **_means(run, common, measures, "student")}
                for run in ordered
            ),
        ],
        "titles": {name: ordered[0].scores["metrics"][name].get("title", name) for name in measures},
    }


def _names(run: ComparedRun) -> list[str]:
    return list(run.scores.get("metrics") or {})


def _means(run: ComparedRun, common: Sequence[str], measures: Sequence[str], model: str) -> dict[str, Any]:
    found = {}
    for name in measures:
        values = [value for key in common if (value := run.value(key, name, model)) is not None]
        found[name] = fmean(values) if values else None
    return found


# Saying


def lines(info: Row) -> Iterator[str]:
    """The difference of two runs as a reader wants it."""
    yield (
        f"{info['first']} → {info['second']}: {info['prompts']} common prompts of {info['prompts_first']} and "
        f"{info['prompts_second']}"
    )
    yield from (f"warning: {warning}" for warning in info["warnings"])
    for change in info["changes"]:
        yield _change_line(change)
        for name, one in change["categories"].items() if change["measure"] == info["lead"] else ():
            yield f"    {name} ({one['n']}): {_numbers(one['difference'], one['p_holm'])}"
    if info["largest"]:
        yield f"largest changes in {info['lead']}:"
    for row in info["largest"]:
        yield f"  {row['id']}: {row['first']['value']:.2f} → {row['second']['value']:.2f}  {_short(row['prompt'])}"
        yield f"    was: {_short(row['first']['text'])}"
        yield f"    is:  {_short(row['second']['text'])}"


def _change_line(change: Row) -> str:
    return (
        f"  {change['title']}: {change['first']:.3f} → {change['second']:.3f}  "
        f"{_numbers(change['difference'], change['p_holm'])}  {change['verdict']}"
    )


def _numbers(difference: Any, p_holm: float | None) -> str:
    info = asdict(difference) if isinstance(difference, Difference) else difference
    p = "" if p_holm is None else f", p {p_holm:.3f} adjusted" if p_holm >= 0.001 else ", p < 0.001 adjusted"
    return f"{info['mean']:+.3f} (95% CI {info['low']:+.3f} to {info['high']:+.3f}{p})"


def _short(text: str) -> str:
    return one_line(visible(text), SHOWN)


def curve_lines(info: Row) -> Iterator[str]:
    """The curve as a table, a line each run."""
    yield f"{info['prompts']} prompts that all runs have"
    names = list(info["titles"])
    yield "  ".join(["trained tokens".rjust(14), *(name.rjust(max(8, len(name))) for name in names), "run"])
    for point in info["points"]:
        cells = [("–" if point[name] is None else f"{point[name]:.3f}").rjust(max(8, len(name))) for name in names]
        yield "  ".join([f"{point['trained_tokens']:,}".rjust(14), *cells, point["run"]])
