"""Numbers and drawings of a report: colours, signs, bars, ticks, durations."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.report.comparison import metric_of
from distill.report.numbers import duration, fixed, percent, ticks
from distill.report.stage import report
from distill.run.reading import validated
from distill.run.scores import Measured
from tests.support.parsed_page import page
from tests.support.run_folder import change, write_run


def test_a_share_that_rounds_to_nothing_has_no_sign() -> None:
    assert (percent(-0.001), fixed(-0.0001, 2), fixed(-0.0001, 2, signed=True)) == ("0%", "0.00", "+0.00")
    assert percent(-0.01) == "−1%"


def judgements(folder: Path, better: str, base: float, student: float, excludes_zero: bool) -> list[str]:
    difference = {"mean": student - base, "low": 0, "high": 0, "excludes_zero": excludes_zero}
    by = {"base": {"mean": base}, "student": {"mean": student}}
    entry = {"better": better, "by": by, "student_minus_base": difference}
    change(folder / "scores.json", lambda scores: {**scores, "metrics": {"m": entry}})
    return page(folder).under("judgement")


@pytest.mark.parametrize(
    ("better", "base", "student", "expected"),
    [
        ("lower", 0.9, 0.5, "better than base"),
        ("lower", 0.5, 0.9, "worse than base"),
        ("higher", 0.1, 0.3, "better than base"),
        ("higher", 0.3, 0.1, "worse than base"),
        ("near 1", 1.7, 0.9, "better than base"),
        ("near 1", 0.9, 1.7, "worse than base"),
        ("near 1", 0.5, 1.5, "no clear difference"),
    ],
)
def test_a_difference_is_judged_by_the_direction_of_its_metric(
    tmp_path: Path, better: str, base: float, student: float, expected: str
) -> None:
    assert judgements(write_run(tmp_path), better, base, student, True) == [expected]


@pytest.mark.parametrize(("p_holm", "expected"), [(0.04, "better"), (0.06, "unclear"), (None, "better")])
def test_a_kind_of_prompt_is_coloured_only_where_its_adjusted_p_is_small(p_holm: float | None, expected: str) -> None:
    difference = {"mean": -0.4, "low": -0.5, "high": -0.3, "excludes_zero": True}
    entry = {
        "by": {"base": {"mean": 0.9}, "student": {"mean": 0.5}},
        "student_minus_base": difference,
        "p_holm": p_holm,
    }
    assert metric_of("nll_per_byte", validated(Measured, entry, "scores.json"), "lower").judgement == expected


def test_a_difference_whose_interval_holds_zero_is_not_coloured(tmp_path: Path) -> None:
    assert judgements(write_run(tmp_path), "lower", 0.9, 0.5, False) == ["no clear difference"]
    assert not {"better", "worse"} & {str(value) for value in page(tmp_path).values("class")}


def test_the_bar_puts_better_to_the_right_and_stays_inside(tmp_path: Path) -> None:
    report(write_run(tmp_path))
    html = (tmp_path / "report.html").read_text()
    places = {model: float(at) for model, at in re.findall(r'class="dot (\w+)" cx="([\d.]+)%"', html)}
    assert 0 < places["base"] < places["student"] < places["teacher"] < 100


def test_bars_of_the_funnel_stay_inside_their_drawing(tmp_path: Path) -> None:
    report(write_run(tmp_path))
    html = (tmp_path / "report.html").read_text()
    bars = re.findall(r'class="\w+" x="([\d.]+)%" y="1" height="12" width="([\d.]+)%"', html)
    assert len(bars) == 16
    assert all(float(start) >= 0 and float(start) + float(length) <= 100.1 for start, length in bars)


def test_losses_that_are_no_numbers_are_counted_not_drawn(tmp_path: Path) -> None:
    write_run(tmp_path)
    change(tmp_path / "student/train_log.jsonl", lambda row: {**row, "loss": float("nan")} if row["step"] == 5 else row)
    assert "1 logged steps have a loss that is no number; they are not drawn." in page(tmp_path).under("notice alert")
    assert "nan" not in " ".join(str(value) for value in page(tmp_path).values("points"))


def test_a_long_training_is_thinned_but_keeps_its_last_step(tmp_path: Path) -> None:
    write_run(tmp_path)
    rows = ({"step": step, "loss": 1 / step} for step in range(1, 5_002))
    (tmp_path / "student/train_log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    titles = [title for title in page(tmp_path).under("title") if title.startswith("step ")]
    assert len(titles) < 402
    assert titles[-1].startswith("step 5001\n")


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_enclose_what_they_measure(low: float, length: float) -> None:
    marks = ticks(low, low + length)
    assert 2 <= len(marks) <= 8
    assert marks == sorted(set(marks))
    slack = (marks[1] - marks[0]) * 1e-6
    assert marks[0] - slack <= low <= low + length <= marks[-1] + slack


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(None, None), (1.94, "1.9 s"), (59.4, "59 s"), (59.7, "1 min 00 s"), (412.7, "6 min 53 s"), (3_900, "1 h 05 min")],
)
def test_a_duration_reads_as_one_says_it(seconds: float | None, expected: str | None) -> None:
    assert duration(seconds) == expected
