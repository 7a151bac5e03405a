from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from distill.errors import RunFolderError
from distill.report.answer_rows import data, in_script
from distill.report.stage import report, shape
from distill.run.scores import Comparison
from tests.support.parsed_page import Parsed, first_answer, page, viewed
from tests.support.run_folder import change, write_run


def test_a_finished_run_leaves_no_section_out(tmp_path: Path) -> None:
    counts = report(write_run(tmp_path))
    assert (counts["prompts"], counts["dropped"], counts["left_out"]) == (32, 10, 0)
    headings = Parsed((tmp_path / "report.html").read_text()).under("h2")
    assert headings == [
        "Where it does worst",
        "Metrics", "From seeds to training rows", "Time and tokens", "Loss", "Every answer, side by side",
        "Dropped rows", "Provenance",
    ]  # fmt: skip


def test_the_headline_is_the_first_thing_on_the_page(tmp_path: Path) -> None:
    found = page(write_run(tmp_path))
    assert found.under("h1") == [json.loads((tmp_path / "scores.json").read_text())["headline"]]
    html = (tmp_path / "report.html").read_text()
    assert html.index("<h1") < html.index("<svg")


def test_a_student_that_continued_another_has_that_one_beside_it_and_others_have_no_such_column(tmp_path: Path) -> None:
    heads = page(write_run(tmp_path)).under("th")
    assert heads[:3] == ["Metric", "Base", "Student"]
    scores = json.loads((tmp_path / "scores.json").read_text())
    rouge = scores["metrics"]["rouge_l"]
    rouge["by"]["previous"] = {"mean": 0.123, "low": 0.1, "high": 0.2, "n": 32}
    rouge["student_minus_previous"] = {"mean": 0.045, "low": 0.01, "high": 0.08, "n": 32}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    answers = {"previous": {"text": "What it said before.", "finish": "stop", "tokens": 5}}
    change(tmp_path / "answers.jsonl", lambda row: {**row, "answers": {**row["answers"], **answers}})
    found = page(tmp_path)
    assert found.under("th")[:4] == ["Metric", "Base", "Previous", "Student"]
    html = (tmp_path / "report.html").read_text()
    assert "student − previous: " in html
    assert "+0.045" in html
    assert html.partition('id="metrics"')[0].count("What it said before.") == 5  # of the worst prompts


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    report(write_run(tmp_path))
    first = (tmp_path / "report.html").read_bytes()
    report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first


def test_the_title_is_the_name_of_the_run_unless_another_is_given(tmp_path: Path) -> None:
    assert page(write_run(tmp_path)).under("title")[0] == "quickstart – distill report"
    assert page(tmp_path, title="Second try").under("title")[0] == "Second try"


@pytest.mark.parametrize(
    ("options", "missing"),
    [({"compare": False}, ["scores.json", "answers.jsonl"]), ({"compare": False, "train": False}, ["train_log.jsonl"])],
)
def test_what_has_not_run_is_left_out_and_named(tmp_path: Path, options: dict[str, bool], missing: list[str]) -> None:
    found = page(write_run(tmp_path, **options))
    (notice,) = found.under("notice")
    assert all(file in notice for file in missing)
    assert "Metrics" not in found.under("h2")


def test_a_run_in_which_nothing_has_happened_gives_a_page(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"name": "empty", "stages": {}}')
    assert page(tmp_path).under("h1") == ["Nothing has been collected yet."]


def test_entries_that_say_next_to_nothing_give_a_page(tmp_path: Path) -> None:
    write_run(tmp_path)
    change(tmp_path / "run.json", lambda record: {"stages": {name: {} for name in record["stages"]}})
    change(tmp_path / "scores.json", lambda scores: {"metrics": {name: {} for name in scores["metrics"]}})
    for name in ("answers.jsonl", "dropped.jsonl", "student/base.json"):
        change(tmp_path / name, lambda row: {})
    change(tmp_path / "student/train_log.jsonl", lambda row: {"step": row["step"], "loss": 1})
    assert page(tmp_path).elements["section"] == 7


def test_without_a_script_the_worst_are_open_and_the_tools_hidden(tmp_path: Path) -> None:
    html = (report(write_run(tmp_path)), (tmp_path / "report.html").read_text())[1]
    worst = html[html.index('<section id="worst">') : html.index('<section id="metrics">')]
    assert worst.count('<details class="card" open>') == 5
    assert '<div id="tools" class="tools" role="search" hidden>' in html


def test_a_missing_answer_and_an_empty_one_are_told_apart(tmp_path: Path) -> None:
    first_answer(write_run(tmp_path, prompts=1), "student", "")
    change(tmp_path / "answers.jsonl", lambda row: {**row, "answers": {**row["answers"], "teacher": None}})
    assert page(tmp_path).under("rest") == ["an empty answer", "no answer"]


def outcomes(folder: Path, *told: dict[str, Any]) -> None:
    rows = iter(told)
    change(folder / "answers.jsonl", lambda row: {**row, **next(rows, {"outcome": {"value": "win", "margin": 1}})})


def test_losses_come_first_and_the_largest_of_them_before_the_others(tmp_path: Path) -> None:
    write_run(tmp_path, prompts=4)
    outcomes(
        tmp_path,
        {"outcome": {"by": "judge", "value": "tie", "margin": 0.0}},
        {"outcome": {"by": "judge", "value": "loss", "margin": -0.5}},
        {"outcome": {"by": "judge", "value": "win", "margin": 1.0}},
        {"outcome": {"by": "judge", "against": "teacher", "value": "loss", "margin": -1.0}},
    )
    report(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert [prompt["id"] for prompt in viewed(html)] == ["t0003", "t0001", "t0000", "t0002"]
    assert "worse than the teacher by the judge (−1.00)" in html


CATEGORIES = {
    name: {
        "n": 8,
        "by": {"base": {"mean": 0.1}, "student": {"mean": 0.1 + gain}},
        "student_minus_base": {"mean": gain, "low": gain - 0.1, "high": gain + 0.1, "excludes_zero": abs(gain) > 0.1},
        "p_holm": p,
    }
    for name, gain, p in (("maths", -0.2, 0.01), ("writing", 0.3, 0.01), ("code", 0.02, 0.9), ("trivia", 0.05, 0.4))
}


def test_best_and_worst_kinds_are_coloured_only_where_they_are_more_than_noise(tmp_path: Path) -> None:
    write_run(tmp_path)

    def edit(scores: dict[str, Any]) -> dict[str, Any]:
        scores["metrics"]["rouge_l"]["categories"] = CATEGORIES
        return {**scores, "lead": "rouge_l"}

    change(tmp_path / "scores.json", edit)
    report(tmp_path)
    html = (tmp_path / "report.html").read_text()
    worst, best = re.findall(r'<h2 class="small">[^<]*</h2>\n<ul>(.*?)</ul>', html, re.DOTALL)
    assert re.findall(r"<bdi>(\w+)</bdi></a> <span class=\"(\w+)\">", worst) == [
        ("maths", "worse"),
        ("code", "unclear"),
    ]
    assert re.findall(r"<bdi>(\w+)</bdi></a> <span class=\"(\w+)\">", best) == [
        ("writing", "better"),
        ("trivia", "unclear"),
    ]
    assert html.count('<tr class="part" hidden>') == 4


def test_the_judges_audit_stands_beside_its_verdict(tmp_path: Path) -> None:
    audit = {
        "order_consistency": 0.69, "test_retest": 0.9, "first_place": {"mean": 0.55, "low": 0.5, "high": 0.6},
        "longer_wins": 0.7, "longer_would_say": {"mean": 0.8}, "unparsed": 0.02, "same_family": ["teacher"],
    }  # fmt: skip
    judge = {"model": "gpt-x", "mode": "pairwise", "audit": audit, "withheld": "the judge is of two minds"}
    change(write_run(tmp_path) / "scores.json", lambda scores: {**scores, "judge": judge})
    said = " | ".join(page(tmp_path).under("dd"))
    assert "gpt-x, pairwise; of one family with the teacher, and judges favour their own" in said
    assert "the same in both orders 69%, the same when asked again 90%, takes the first shown 55%" in said
    assert "a judge of length alone would give the student 80%" in said
    assert "the judge is of two minds" in said


def test_the_rate_at_equal_length_stands_beside_the_raw_one_or_why_there_is_none(tmp_path: Path) -> None:
    pair = {"wins": 59, "ties": 0, "losses": 21, "unparsed": 2, "p": 0.0004, "win_rate": {"mean": 0.7375},
            "length_controlled": {"mean": 0.63, "low": 0.34, "high": 0.85}, "length_note": None}  # fmt: skip
    alone = {**pair, "length_controlled": None, "length_note": "the answers of one are hardly ever longer <b>"}
    judge = {
        "model": "j", "pairs": {"student:teacher": pair, "base:teacher": alone}, "withheld": "it is of two minds",
        "student_minus_base": {"mean": 0.6, "low": 0.46, "high": 0.725},
        "single": {"student": {"grade": {"mean": 6.25, "low": 6.0, "high": 6.5}, "unparsed": 3}},
    }  # fmt: skip
    change(write_run(tmp_path) / "scores.json", lambda scores: {**scores, "judge": judge})
    report(tmp_path)
    section = (tmp_path / "report.html").read_text().partition('<section id="judge">')[2].partition("</section>")[0]
    said = " ".join(re.sub(r"<[^>]+>", " ", section).split())
    assert "No verdict: it is of two minds." in said
    assert "less the base’s: +60 points (+46 to +72)" in said
    assert "student against teacher 59, 0, 21 2 74% &lt; 0.001 63% 34% to 85%" in said
    assert "hardly ever longer &lt;b&gt;" in said
    assert "Grades, 0 to 10: student 6.2 6.0 to 6.5 (3 unreadable)." in said


def test_a_run_without_a_judge_has_no_table_of_verdicts(tmp_path: Path) -> None:
    assert shape(write_run(tmp_path))["judge"] is None


def test_a_mask_shows_what_is_trained(tmp_path: Path) -> None:
    session = {
        "id": "a",
        "ids": [1, 2, 3, 4],
        "texts": ["Hi ", "you", " <b>", "end"],
        "trained": [False, False, True, True],
    }
    masks = {"template": "chatml", "checked": 80, "sessions": [session]}
    (write_run(tmp_path) / "student" / "masks.json").write_text(json.dumps(masks))
    found = page(tmp_path)
    assert [text for text in found.under("mark") if text] == [" <b>end"]
    assert any("2 of 4 tokens; 80 rows passed the check" in text for text in found.under("summary"))


def test_a_judges_reasons_to_500_prompts_fit_into_three_megabytes_too() -> None:
    games = [{"first": first, "verdict": "tie", "reason": "why " * 100} for first in ("student", "teacher")]
    pairs = {pair: {"games": games, "outcome": "tie"} for pair in ("student:teacher", "base:teacher")}
    answers = {
        model: {"text": "word " * 800, "finish": "stop", "tokens": 9} for model in ("base", "student", "teacher")
    }
    rows = [
        {
            "id": f"q{number}",
            "messages": [{"role": "user", "content": "Say it."}],
            "answers": answers,
            "scores": {},
            "judge": {"pairs": pairs},
            "turns": ["And then? " * 300],
        }
        for number in range(500)
    ]
    assert len(in_script(data(rows, Comparison(), "run")).encode()) < 2_700_000
    few = data(rows[:3], Comparison(), "run")["prompts"][0]["judge"]["pairs"]["student:teacher"]["games"]
    assert few[0]["reason"] == "why " * 100, "of few prompts nothing is cut"


def test_a_page_of_500_prompts_with_long_answers_stays_under_three_megabytes(tmp_path: Path) -> None:
    write_run(tmp_path, prompts=500)
    change(tmp_path / "answers.jsonl", lambda row: {
        **row, "answers": {model: {**answer, "text": answer["text"] * 5} for model, answer in row["answers"].items()}
    })  # fmt: skip
    assert (tmp_path / "answers.jsonl").stat().st_size > 3_000_000
    assert report(tmp_path)["bytes"] < 3_000_000


def test_a_page_says_what_nobody_looked_at(tmp_path: Path) -> None:
    facts = dict(shape(write_run(tmp_path / "plain"))["trust"])
    assert facts["Right or wrong"].startswith("not measured: no judge, no checked instructions")
    judged = write_run(tmp_path / "judged")
    change(judged / "scores.json", lambda scores: {**scores, "held_out": False, "leaks": None, "judge": {"model": "j"}})
    facts = dict(shape(judged)["trust"])
    assert "Right or wrong" not in facts
    assert facts["Prompts"] == "32; it is not known whether they were trained on"


def test_a_stage_that_did_not_finish_is_warned_of(tmp_path: Path) -> None:
    def fail(record: dict[str, Any]) -> dict[str, Any]:
        record["stages"]["collect"] |= {"status": "partial", "detail": "9 of 160 tasks have no answer"}
        return record

    change(write_run(tmp_path) / "run.json", fail)
    assert page(tmp_path).under("notice alert") == ["collect is partial: 9 of 160 tasks have no answer"]


def test_dropped_rows_are_shown_of_each_reason_in_turn(tmp_path: Path) -> None:
    found = page(write_run(tmp_path))
    reasons = [text.split(": ")[1].split(",")[0] for text in found.under("li") if ", measured" in text]
    assert reasons[:4] == ["too_short", "near_duplicate", "held_out", "too_short"]
    assert len(reasons) == 10


def test_a_damaged_file_is_one_line_that_names_it(tmp_path: Path) -> None:
    (write_run(tmp_path) / "scores.json").write_text('{"prompts": 3')
    with pytest.raises(RunFolderError, match=r"^[^\n]*scores\.json is not JSON[^\n]*run its stage again$"):
        report(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError):
        report(tmp_path)
    assert list(tmp_path.iterdir()) == []
