"""Audits a judge: win rates with position bias, length bias and self-consistency; withholds unreliable verdicts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distill.compare.results import JUDGED, ComparisonResults
from distill.compare.stats import (
    MIN_PROMPTS,
    Interval,
    by_category,
    clustered_interval,
    length_controlled,
    mean_interval,
    paired_difference,
    power_entry,
    sign_flip_p,
)
from distill.types import Model

WORTH = {"win": 1.0, "tie": 0.5, "loss": 0.0}
MAX_UNPARSED = 0.2
"""Share of unreadable replies above which no verdict is given."""
BY_LENGTH = 0.9
"""Share of decisions for the longer answer above which the verdict warns that the judge may judge length."""
FAMILIES = (
    "gpt", "claude", "llama", "vicuna", "alpaca", "qwen", "mistral", "mixtral", "gemma", "gemini", "phi", "smollm",
    "deepseek", "command", "yi", "falcon", "olmo", "granite", "grok", "nemotron", "zephyr", "glm", "kimi",
)  # fmt: skip
ALIKE = {"vicuna": "llama", "alpaca": "llama", "mixtral": "mistral", "zephyr": "mistral", "gemma": "gemini"}
"""Families that count as another one: of the same vendor, or trained from the same base."""
MAIN = "student:teacher"


def conclude(
    results: ComparisonResults,
    entries: Mapping[int, Mapping[str, Any]],
    judge: Mapping[str, str],
    names: Mapping[Model, str],
    *,
    seed: int,
    usd: float | None,
) -> dict[str, Any]:
    """The `judge` entry of scores.json: win rates, grades, audit, and a verdict or why it is withheld.

    `entries` are what `distill.compare.judge.judge` returned, `judge` is the judge's model and mode, `names` are the
    names of the compared models.
    """
    pair_names = dict.fromkeys(pair for one in entries.values() for pair in one.get("pairs", {}))
    pairs = {name: _pair(results, _games(entries, name), name, seed) for name in pair_names}
    audit = _audit(results, entries, _same_family(judge["model"], names), seed) if pairs else None
    main, base = pairs.get(MAIN), pairs.get("base:teacher")
    withheld = _withheld(main, list(_games(entries, MAIN).values())) if main is not None else None
    return {
        **judge,
        "pairs": pairs,
        "student_minus_base": _against_base(entries, seed),
        "single": _single(entries, seed),
        "audit": audit,
        "withheld": withheld,
        "verdict": _verdict(main, base, judge["model"], audit or {}) if main is not None and withheld is None else None,
        "power": _power(_games(entries, MAIN), len(results.shared), usd) if main is not None else None,
    }


def judged_outcomes(entries: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """The student's `outcome` per prompt; the margin is the share of games won minus the share lost, −1 to 1."""
    outcomes = {}
    for index, pair in _games(entries, MAIN).items():
        verdicts = [game["verdict"] for game in pair["games"]]
        margin = (verdicts.count("student") - verdicts.count("teacher")) / max(1, len(verdicts))
        outcomes[index] = {"by": "judge", "against": "teacher", "value": pair["outcome"], "margin": margin}
    return outcomes


def _games(entries: Mapping[int, Mapping[str, Any]], pair: str) -> dict[int, Mapping[str, Any]]:
    return {index: one["pairs"][pair] for index, one in entries.items() if pair in one.get("pairs", {})}


# Win rates


def _pair(results: ComparisonResults, games: Mapping[int, Mapping[str, Any]], name: str, seed: int) -> dict[str, Any]:
    """Counts, and the win rate of the first of the pair: ties count half, unreadable replies are left out."""
    worth = {index: WORTH[one["outcome"]] for index, one in games.items() if one["outcome"] in WORTH}
    counts = {kind: sum(one["outcome"] == kind for one in games.values()) for kind in (*WORTH, "unparsed")}
    rate, why = _length_controlled(results, worth, name, seed)
    return {
        "n": len(worth),
        "wins": counts["win"],
        "ties": counts["tie"],
        "losses": counts["loss"],
        "unparsed": counts["unparsed"],
        **_rates(list(worth.values()), seed),
        "categories": by_category(
            {index: results.prompts[index].category for index in worth},
            lambda indices: _rates([worth[index] for index in indices], seed),
        ),
        "length_controlled": rate,
        "length_note": why,
    }


def _rates(worth: Sequence[float], seed: int) -> dict[str, Any]:
    return {
        "win_rate": mean_interval(worth, seed=seed),
        "win_or_tie": mean_interval([float(one > 0) for one in worth], seed=seed),
        "p": sign_flip_p(worth, [0.5] * len(worth), seed=seed),
    }


def _length_controlled(
    results: ComparisonResults, worth: Mapping[int, float], pair: str, seed: int
) -> tuple[Interval | None, str | None]:
    """The win rate at equal length by the judge's verdicts, or why there is none."""
    one, other = pair.split(":")
    lengths = [_longer_by(results, index, one, other) for index in worth]
    result = length_controlled(list(worth.values()), lengths, seed=seed)
    return (None, result.reason) if not isinstance(result, Interval) else (result, None)


def _longer_by(results: ComparisonResults, index: int, one: str, other: str) -> float:
    """Characters by which the answer of the first model is longer."""
    lengths = {str(model): len(by[index].text) for model, by in results.answers.items() if index in by}
    return float(lengths[one] - lengths[other])


def _against_base(entries: Mapping[int, Mapping[str, Any]], seed: int) -> Any:
    """The student's win rate against the teacher minus the base's, paired by prompt."""
    student, base = (_games(entries, f"{model}:teacher") for model in ("student", "base"))
    common = [
        index for index in student
        if index in base and student[index]["outcome"] in WORTH and base[index]["outcome"] in WORTH
    ]  # fmt: skip
    return paired_difference(
        [WORTH[student[index]["outcome"]] for index in common],
        [WORTH[base[index]["outcome"]] for index in common],
        seed=seed,
    )


def _single(entries: Mapping[int, Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """The mean grade of each model; unreadable grades are left out and counted."""
    grades_by_model: dict[str, Any] = {}
    for model in JUDGED:
        grades = [one["single"][model]["score"] for one in entries.values() if model in one.get("single", {})]
        readable = [grade for grade in grades if grade is not None]
        if grades:
            unparsed = len(grades) - len(readable)
            grades_by_model[model] = {"grade": mean_interval(readable, seed=seed), "unparsed": unparsed}
    return grades_by_model


# Audit


def _audit(
    results: ComparisonResults, entries: Mapping[int, Mapping[str, Any]], same_family: Sequence[Model], seed: int
) -> dict[str, Any]:
    """The judge's consistency over all pairs, and other explanations of its verdicts: position, length, family."""
    all_pairs = [(index, name, pair) for index, one in entries.items() for name, pair in one.get("pairs", {}).items()]
    pairs = [pair for _, _, pair in all_pairs]
    decisions = [
        (index, name, game)
        for index, name, pair in all_pairs
        for game in pair["games"]
        if game["verdict"] not in ("tie", "unparsed")
    ]
    return {
        "games": sum(len(pair["games"]) for pair in pairs),
        "unparsed": _unparsed_share(pairs),
        "cut": _cut_share(pairs),
        "order_consistency": _same_in_both_orders(pairs),
        "first_place": clustered_interval(
            [float(game["verdict"] == game["first"]) for _, _, game in decisions],
            [index for index, _, _ in decisions],
            seed=seed,
        ),
        "longer_wins": _share(decisions, lambda one: _picks_longer(results, *one)),
        "longer_would_say": _longer_would_say(results, entries, seed),
        "test_retest": _same_again(pairs),
        "same_family": same_family,
    }


def _unparsed_share(pairs: Sequence[Mapping[str, Any]]) -> float | None:
    return _share([game for pair in pairs for game in pair["games"]], lambda game: game["verdict"] == "unparsed")


def _cut_share(pairs: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of the games without a verdict because the reply was cut at its token limit."""
    return _share([game for pair in pairs for game in pair["games"]], lambda game: game.get("cut", False))


def _same_in_both_orders(pairs: Sequence[Mapping[str, Any]]) -> float | None:
    both = [pair["games"] for pair in pairs if len(pair["games"]) == 2 and pair["outcome"] != "unparsed"]
    return _share(both, lambda one: one[0]["verdict"] == one[1]["verdict"])


def _same_again(pairs: Sequence[Mapping[str, Any]]) -> float | None:
    games = [game for pair in pairs for game in pair["games"] if "again" in game]
    readable = [game for game in games if "unparsed" not in (game["verdict"], game["again"])]
    return _share(readable, lambda game: game["verdict"] == game["again"])


def _share(items: Sequence[Any], is_so: Callable[[Any], bool]) -> float | None:
    return sum(is_so(item) for item in items) / len(items) if items else None


def _picks_longer(results: ComparisonResults, index: int, pair: str, game: Mapping[str, Any]) -> bool:
    one, other = pair.split(":")
    gain = _longer_by(results, index, one, other)
    return gain > 0 if game["verdict"] == one else gain < 0


def _longer_would_say(results: ComparisonResults, entries: Mapping[int, Any], seed: int) -> Interval | None:
    """The student's win rate against the teacher if the judge always took the longer answer."""
    gains = [_longer_by(results, index, "student", "teacher") for index in _games(entries, MAIN)]
    return mean_interval([1.0 if gain > 0 else 0.0 if gain < 0 else 0.5 for gain in gains], seed=seed)


def family(model: str) -> str | None:
    """The family of a model, by its name; None where the name matches none."""
    name = model.lower()
    name_part = next((one for one in FAMILIES if re.search(rf"(?<![a-z]){one}", name)), None)
    return ALIKE.get(name_part, name_part) if name_part is not None else None


def _same_family(judge: str, names: Mapping[Model, str]) -> list[Model]:
    """Which of student and teacher seem to be of the judge's family: judges favour their own."""
    own = family(judge)
    candidates: tuple[Model, ...] = ("student", "teacher")
    return [model for model in candidates if own is not None and family(names.get(model, "")) == own]


def _withheld(main: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]]) -> str | None:
    """Why no verdict is given: the judge's noise on these pairs exceeds the distance of its win rate from one half.

    A prompt on which it contradicts itself counts as a tie; if all of those fell on one side, the win rate would move
    by half their share. The same holds for repeated questions that get another verdict.
    """
    rate: Interval | None = main["win_rate"]
    unparsed_share = _unparsed_share(pairs)
    if unparsed_share is None:
        return "no two answers differ, so the judge was asked nothing"
    if unparsed_share > MAX_UNPARSED:
        cut = _cut_share(pairs) or 0.0
        why = f" ({cut:.0%} are cut before their verdict; raise compare.judge.max_tokens)" if cut else ""
        return f"{unparsed_share:.0%} of the judge's replies cannot be read{why}"
    if rate is None or rate.n < MIN_PROMPTS:
        return f"the judge decided {0 if rate is None else rate.n} prompts; at least {MIN_PROMPTS} are needed"
    doubts = {
        "when the answers change places": _same_in_both_orders(pairs),
        "when asked again": _same_again(pairs),
    }
    for when, same in doubts.items():
        if same is not None and abs(rate.mean - 0.5) < (1 - same) / 2:
            return (
                f"the judge says something else {when} for {1 - same:.0%} of prompts, which could turn a win rate of "
                f"{rate.mean:.0%}"
            )
    if main["wins"] + main["losses"] == 0:
        return f"the judge calls all {rate.n} prompts a tie, so it tells nothing apart"
    return None


def _verdict(main: Mapping[str, Any], base: Mapping[str, Any] | None, judge: str, audit: Mapping[str, Any]) -> str:
    """A sentence on the share of prompts on which student and base win or tie against the teacher."""
    rate: Interval = main["win_or_tie"]
    other = base["win_or_tie"] if base is not None else None
    against = f"; the base does on {other.mean:.0%}" if other is not None else ""
    length = audit.get("longer_wins") or 0.0
    doubt = (
        f"; the judge took the longer one {length:.0%} of the time, so it may judge length"
        if length >= BY_LENGTH
        else ""
    )
    return (
        f"The student wins or ties on {rate.mean:.0%} of {rate.n} prompts against the teacher ({main['wins']} won, "
        f"{main['ties']} tied, 95% CI {rate.low:.0%} to {rate.high:.0%}), as {judge} judges in both orders{against}"
        f"{doubt}"
    )


def _power(games: Mapping[int, Mapping[str, Any]], prompts: int, usd: float | None) -> dict[str, Any] | None:
    worth = [WORTH[one["outcome"]] for one in games.values() if one["outcome"] in WORTH]
    explanation = (
        "prompts that would show a difference of 5 points in the win rate four times of five, from the spread over "
        f"these {len(worth)}"
    )
    entry = power_entry("win_rate", [one - 0.5 for one in worth], 0.05, usd / prompts if usd else None, explanation)
    return entry if entry["prompts"] is not None else None
