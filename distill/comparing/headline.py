"""One sentence on how far the student came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.stats import Interval


def headline(prompts: int, metrics: Mapping[str, Mapping[str, Any]], lead: str | None, *, own: bool = True) -> str:
    """One sentence on how far the student came, from the entries of scores.json; `lead` names the one to start with.

    `own`: the prompts were held out of training by this run.
    """
    if not prompts:
        return "There are no held-out prompts, so nothing was compared; set collect.test to 32 or more."
    likeness = _likeness(metrics.get("rouge_l")) if lead != "rouge_l" or metrics[lead]["gap_closed"] is not None else ""
    pieces = [
        _lead(prompts, metrics.get(lead or ""), "held-out prompt" if own else "prompt"),
        likeness,
        _manner(metrics),
    ]
    return "; ".join(piece for piece in pieces if piece) + "."


def _lead(prompts: int, entry: Mapping[str, Any] | None, what: str) -> str:
    """The share of the gap, else the difference."""
    if entry is None:
        return (
            f"The student was compared on {_prompts_of(prompts, prompts, what)}, but no measure has a value for both "
            "it and its base"
        )
    if (gap := entry["gap_closed"]) is not None:
        end = "the teacher" if entry["gap_target"] == "teacher" else "the teacher's own second answers"
        interval = f"95% CI {_percent(gap.low)} to {_percent(gap.high)}"
        return (
            f"The student closes {_percent(gap.share)} ({interval}) of the gap in {entry['title']} between the "
            f"untrained base and {end} on {_prompts_of(gap.n, prompts, what)}"
        )
    return f"On {_prompts_of(entry['student_minus_base'].n, prompts, what)}: {_against_base(entry)}"


def _prompts_of(some: int, all_: int, what: str) -> str:
    plural = "" if all_ == 1 else "s"
    return f"{all_} {what}{plural}" if some == all_ else f"{some} of {all_} {what}s"


def _against_base(entry: Mapping[str, Any], more: str = "") -> str:
    by, difference = entry["by"], entry["student_minus_base"]
    doubt = "" if difference.excludes_zero else ", so it may be none"
    interval = f"95% CI {_number(difference.low)} to {_number(difference.high)}"
    return (
        f"{entry['title']} {_number(by['student'].mean)} against the base's {_number(by['base'].mean)} "
        f"(difference {_number(difference.mean, sign='+')}, {interval}{doubt}{more})"
    )


def _likeness(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["student_minus_base"] is None:
        return ""
    again: Interval | None = entry["by"].get("teacher_again")
    return _against_base(entry, f"; the teacher's own second answer: {_number(again.mean)}" if again else "")


def _manner(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether it stops, and whether it goes round in circles."""
    said = []
    for name, words, written in (("stopped", "it stops by itself in", _percent), ("repetition", "repetition", _number)):
        by = metrics[name]["by"] if name in metrics else {}
        if "student" in by:
            of = " of answers" if name == "stopped" else ""
            teacher = f" (teacher {written(by['teacher'].mean)})" if "teacher" in by else ""
            said.append(f"{words} {written(by['student'].mean)}{of}{teacher}")
    return ", ".join(said)


def _number(value: float, *, sign: str = "") -> str:
    return f"{value:{sign}z.2f}".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:z.0f}%".replace("-", "−")
