"""What each curation rule costs: the counts, what `show --funnel` says of them, and a whole run with a judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.cli.show import funnel_lines
from distill.engine.mock_server import MockServer
from distill.run.funnel import read, short, tally
from distill.types import Verdict
from tests.pipeline.test_runs import PRICE, distill, record, teacher, write
from tests.support.run_folder import HOSTILE, poison, write_run

RULES = ("length", "refusal", "judge", "pii")


def verdicts(**kept: bool) -> list[Verdict]:
    return [Verdict(rule=rule, keep=keep, reason="ok" if keep else "bad") for rule, keep in kept.items()]


ROWS = [
    ("a", verdicts(length=True, refusal=True)),
    ("b", verdicts(length=False, refusal=True)),
    ("c", verdicts(length=False, refusal=False)),
    ("d", verdicts(length=True, refusal=False, judge=False)),
    ("e", verdicts(length=False, refusal=False)),
]


def test_rows_are_counted_by_the_first_verdict_against_them_and_by_all():
    counts = tally(ROWS)
    assert counts["by_rule"] == {"length/bad": 3, "refusal/bad": 1}
    assert counts["against"] == {"length/bad": 3, "refusal/bad": 3, "judge/bad": 1}
    assert counts["measured"] == {"length": 5, "refusal": 5, "judge": 1}
    assert counts["overlaps"] == {"length": {"refusal": 2}, "refusal": {"judge": 1}}


def test_a_few_rows_are_named_for_each_rule():
    assert tally(ROWS)["examples"] == {"length/bad": ["b", "c"], "refusal/bad": ["d"]}


SOME_ROWS = st.lists(st.lists(st.booleans(), min_size=0, max_size=4), max_size=30)


@given(SOME_ROWS)
def test_first_verdicts_add_up_to_the_dropped_rows_and_pairs_never_exceed_either(keeps):
    rows = [(str(n), verdicts(**dict(zip(RULES, each, strict=False)))) for n, each in enumerate(keeps)]
    counts = tally(rows)
    assert sum(counts["by_rule"].values()) == sum(not all(each) for each in keeps)
    against = {rule: sum(not each[place] for each in keeps if len(each) > place) for place, rule in enumerate(RULES)}
    assert counts["against"] == {f"{rule}/bad": rows for rule, rows in against.items() if rows} | {}
    for one, others in counts["overlaps"].items():
        for other, rows_of_both in others.items():
            assert 0 < rows_of_both <= min(against[one], against[other])


def test_the_same_rule_twice_counts_a_row_once():
    row = [Verdict(rule="length", keep=False, reason="bad")] * 2
    assert tally([("a", row)])["against"] == {"length/bad": 1}
    assert tally([("a", row)])["overlaps"] == {}


# --- shown


def test_the_funnel_of_a_run_says_what_each_rule_took_and_shares(tmp_path: Path) -> None:
    shown = "\n".join(funnel_lines(write_run(tmp_path)))
    assert shown.startswith("curate: 158 sessions, 103 kept, 32 held out, 23 dropped")
    assert [" ".join(line.split()) for line in shown.split("\n")[1:5]] == [
        "dropped because first against would also drop",
        "length: too_short 12 0",
        "d0: What would change in a town of 10,000 people without a tax … → Yes, sure. (measured 2, limit 3)",
        "d1: Give me a table of facts about photosynthesis. → Yes, sure. (measured 2, limit 3)",
    ]
    assert "refusal: refusal 0 4" in [" ".join(line.split()) for line in shown.split("\n")]
    assert "(measured 0.814, limit 0.7, beside t0031)" in shown
    assert "  length       12        4" in shown
    assert "  refusal       4        4" in shown
    assert shown.endswith("labels: truncated 9\nmended: pii 2")


def test_the_matrix_is_the_same_both_ways_round(tmp_path: Path) -> None:
    found = read(write_run(tmp_path))
    assert found is not None
    assert found.overlaps == {"length": {"length": 12, "refusal": 4}, "refusal": {"length": 4, "refusal": 4}}


def test_a_run_that_has_not_been_curated_says_so(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"name": "new", "stages": {}}')
    assert funnel_lines(tmp_path) == ["curate has not run yet, so there is no funnel"]


def test_a_run_of_an_earlier_version_shows_what_it_counted(tmp_path: Path) -> None:
    counts = {"rows": 9, "kept": 5, "dropped": 4, "test": 0, "by_rule": {"length/too_short": 4}}
    (tmp_path / "run.json").write_text(json.dumps({"name": "old", "stages": {"curate": {"counts": counts}}}))
    assert funnel_lines(tmp_path)[2].split() == ["length:", "too_short", "4", "0"]


@pytest.mark.parametrize("payload", HOSTILE)
def test_hostile_rows_write_nothing_that_a_terminal_obeys(tmp_path: Path, payload: str) -> None:
    shown = funnel_lines(poison(write_run(tmp_path), payload))
    assert len(shown) > 10
    assert [line for line in shown if not line.isprintable()] == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0.8137254", "0.814"), ("2", "2"), (2.0, "2"), ("bad", "bad"), (None, "None"), ("nan", "nan")],
)
def test_numbers_in_a_verdict_are_shortened_and_texts_left_alone(value: Any, expected: str) -> None:
    assert short(value) == expected


# --- a whole run, through the command line


def grading(body: Any) -> str:
    """Answers, or, asked to grade, a grade that depends on the answer."""
    asked = body["messages"][-1]["content"]
    if "You grade" not in asked:
        return f"The answer to: {asked}"
    return "Dull.\nScore: 2" if any(f"Question {number}." in asked for number in (1, 2, 3)) else "Good.\nScore: 9"


@pytest.mark.slow
def test_a_judge_of_its_own_is_asked_paid_and_accounted_for_once(tmp_path: Path) -> None:
    with MockServer(answer=grading) as server, MockServer(answer=grading) as other:
        rules = [{"filter": "length", "min_words": 2}, {"filter": "judge", "min_score": 5, "max_tokens": 99}]
        boss = teacher(other.url, "boss", price=PRICE)
        write(tmp_path, teacher(server.url, price=PRICE), judge=boss, curate=rules, collect={"test": 4})
        checked = distill(tmp_path, "check", "one.yaml").stdout
        assert "curate: at most 20 requests" in checked
        assert "1,980 answer tokens, up to about USD 1.99" in checked
        first = distill(tmp_path, "run", "one.yaml")
        assert first.returncode == 0, first.stderr
        assert (server.count, other.count) == (20, 20)
        assert {(body["model"], body["max_tokens"], body["temperature"]) for body in other.bodies} == {
            ("boss", 99, 0.0)
        }
        stage = record(tmp_path)["stages"]["curate"]
        assert stage["requests"]["asked"] == 20
        assert [(cost["teacher"], cost["sends"]) for cost in stage["costs"]] == [("judge", 20)]
        assert stage["usd"] > 0
        assert stage["counts"]["by_rule"]["judge/low_score"] == 3
        shown = distill(tmp_path, "show", "runs/one", "--funnel").stdout
        assert "judge: low_score" in shown
        assert "(measured 2, limit 5, Dull.)" in shown
        again = distill(tmp_path, "run", "one.yaml", "--set", "curate.judge.min_score=1")
        assert again.returncode == 0, again.stderr
        assert record(tmp_path)["stages"]["curate"]["requests"] == {
            "asked": 0,
            "replayed": 20,
            "failed": 0,
            "retried": 0,
        }
        assert "judge/low_score" not in record(tmp_path)["stages"]["curate"]["counts"]["by_rule"]
        assert (server.count, other.count) == (20, 20)
    report = (tmp_path / "runs" / "one" / "report.html").read_text()
    assert "From seeds to training rows" in report


@pytest.mark.slow
def test_without_a_judge_the_teacher_grades_and_the_budget_stops_it(tmp_path: Path) -> None:
    with MockServer(answer=grading) as server:
        rules = [{"filter": "judge", "min_score": 5, "max_tokens": 50}]
        path = write(tmp_path, teacher(server.url, price=PRICE), curate=rules, budget_usd=0.16)
        stopped = distill(tmp_path, "run", str(path))
        assert stopped.returncode == 3, stopped.stderr
        assert "budget" in stopped.stderr
        stage = record(tmp_path)["stages"]["curate"]
        assert (stage["status"], 20 < server.count < 40) == ("partial", True)
        rows = [json.loads(line) for line in (tmp_path / "runs/one/kept.jsonl").read_text().splitlines()]
        reasons = [row["verdicts"][0]["reason"] for row in rows]
        assert "not_measured" in reasons
        assert "labels: not_measured" in distill(tmp_path, "show", "runs/one", "--funnel").stdout
        assert "ok" in reasons
        bought = server.count
        assert distill(tmp_path, "run", str(path), "--set", "budget_usd=9").returncode == 0
        assert server.count == 40 > bought


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ({"filter": "ifd"}, "curate.ifd: needs a `student`, whose model it asks"),
        ({"filter": "perplexity", "max": 9}, "curate.perplexity: needs a `student`, whose model it asks"),
        ({"filter": "judge", "min_score": 11}, "min_score 11 is outside of 0 to 10"),
    ],
)
def test_a_rule_that_cannot_ask_is_refused_by_check(tmp_path: Path, rule: dict[str, Any], line: str) -> None:
    write(tmp_path, teacher("http://127.0.0.1:1/v1"), curate=[rule])
    finished = distill(tmp_path, "check", "one.yaml")
    assert finished.returncode == 2
    assert line in finished.stderr
