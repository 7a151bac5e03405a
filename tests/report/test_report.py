from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import RunFolderError
from distill.report.answer_rows import MAX_TEXT, data, in_script
from distill.report.comparison import metric_of
from distill.report.numbers import duration, fixed, percent, ticks
from distill.report.stage import report, shape
from distill.text.tokens import visible
from tests.support.run_folder import HOSTILE, change, poison, write_run

VOID = {"meta", "input"}
ATTRIBUTES = """
aria-controls aria-expanded aria-hidden aria-label aria-pressed
autocomplete charset class content cx cy d data-label data-open data-order data-rouge
dir dy height hidden href http-equiv id lang name open overflow placeholder points preserveaspectratio r role
rx scope spellcheck text-anchor title type value viewbox width x x1 x2 y y1 y2
"""


class Parsed(HTMLParser):
    """A page as a browser's parser sees it: its elements, their attributes, and the text under each class."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[tuple[str, str, list[str]]] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("class") or tag, []))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        opened, name, pieces = self._open.pop()
        assert opened == tag
        self.texts.append((name, "".join(pieces)))

    def handle_data(self, data: str) -> None:
        for _, _, pieces in self._open:
            pieces.append(data)

    def under(self, name: str) -> list[str]:
        return [text for where, text in self.texts if where == name]

    def values(self, attribute: str) -> list[str | None]:
        return [value for _, name, value in self.attributes if name == attribute]


def page(folder: Path, **options: Any) -> Parsed:
    report(folder, **options)
    return Parsed((folder / "report.html").read_text(encoding="utf-8"))


def first_answer(folder: Path, model: str, text: str) -> None:
    def edit(row: dict[str, Any]) -> dict[str, Any]:
        row["answers"][model]["text"] = text
        return row

    change(folder / "answers.jsonl", edit)


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


def test_the_page_may_load_nothing_and_run_only_its_own_scripts(tmp_path: Path) -> None:
    found = page(write_run(tmp_path))
    policy = next(value for value in found.values("content") if "default-src" in (value or ""))
    data, *scripts = found.under("script")
    assert json.loads(data)["prompts"]
    assert policy == (
        f"default-src 'none'; style-src '{digest(found.under('style')[0])}'; "
        f"script-src {' '.join(repr(digest(script)) for script in scripts)}; base-uri 'none'; form-action 'none'"
    )
    assert (found.elements["style"], found.elements["script"]) == (1, 4)


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def viewed(html: str) -> list[dict[str, Any]]:
    """The prompts that the page's viewer reads."""
    prompts: list[dict[str, Any]] = json.loads(Parsed(html).under("script")[0])["prompts"]
    return prompts


def test_no_element_carries_style_handlers_or_addresses(tmp_path: Path) -> None:
    found = page(write_run(tmp_path))
    assert {name for _, name, _ in found.attributes} <= set(ATTRIBUTES.split())
    assert all(str(address).startswith("#") for address in found.values("href"))
    assert {address[1:] for address in found.values("href") if address} <= set(found.values("id"))


@pytest.mark.parametrize("payload", HOSTILE)
def test_hostile_text_in_every_file_adds_no_element_and_no_attribute(tmp_path: Path, payload: str) -> None:
    clean = page(write_run(tmp_path / "clean", prompts=4))
    poisoned = page(poison(write_run(tmp_path / "poisoned", prompts=4), payload))
    assert poisoned.elements.keys() <= clean.elements.keys()
    assert {pair[:2] for pair in poisoned.attributes} <= {pair[:2] for pair in clean.attributes}
    assert poisoned.elements["script"] == clean.elements["script"]
    assert poisoned.under("script")[1:] == clean.under("script")[1:]
    assert visible(payload) in str(json.loads(poisoned.under("script")[0])["prompts"][0]["answers"]["student"]["text"])
    assert poisoned.values("href") == clean.values("href")
    assert any(visible(payload) in text for text in poisoned.under("text"))


def test_an_answer_is_shown_letter_by_letter(tmp_path: Path) -> None:
    answer = "\n  if a < b && c > \"d\": 'e' </div>\n\n\tوداعا $x ${y} {{ z }} {% raw %} &amp; 👩‍🚀"
    first_answer(write_run(tmp_path, prompts=1), "teacher", answer)
    assert answer in page(tmp_path).under("text")


def test_characters_that_hide_or_reorder_text_are_shown(tmp_path: Path) -> None:
    hidden = [*map(chr, range(32)), *"\x7f\x85\u202e\u2066\u200b\ufeff\ud800\U000e0041"]
    first_answer(write_run(tmp_path, prompts=1), "student", "a" + "".join(hidden) + "b")
    report(tmp_path)
    html = (tmp_path / "report.html").read_bytes().decode()
    own = html[: html.index('<script type="application/json"')]
    assert [character for character in hidden if character in own] == ["\t", "\n"]
    assert viewed(html)[0]["answers"]["student"]["text"].startswith("a⟦U+0000⟧")
    assert "⟦U+0000⟧⟦U+0001⟧" in html
    assert "⟦U+202E⟧" in html
    assert "⟦U+D800⟧" in html


@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=50))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_every_shown_text_keeps_its_own_direction(tmp_path: Path) -> None:
    html = (report(write_run(tmp_path)), (tmp_path / "report.html").read_text())[1]
    assert html.count('<div class="text"') == html.count('<div class="text" dir="auto">') >= 20


def test_huge_answers_are_cut_and_the_page_stays_under_a_megabyte(tmp_path: Path) -> None:
    write_run(tmp_path)
    for model in ("base", "student", "teacher", "teacher_again"):
        first_answer(tmp_path, model, "w" * 100_000)
    assert report(tmp_path)["bytes"] < 1_000_000
    assert f"{100_000 - MAX_TEXT:,} more characters" in (tmp_path / "report.html").read_text()


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
    assert len(in_script(data(rows, {}, "run")).encode()) < 2_700_000
    few = data(rows[:3], {}, "run")["prompts"][0]["judge"]["pairs"]["student:teacher"]["games"]
    assert few[0]["reason"] == "why " * 100, "of few prompts nothing is cut"


def test_a_share_that_rounds_to_nothing_has_no_sign() -> None:
    assert (percent(-0.001), fixed(-0.0001, 2), fixed(-0.0001, 2, signed=True)) == ("0%", "0.00", "+0.00")
    assert percent(-0.01) == "−1%"


def test_a_page_of_500_prompts_with_long_answers_stays_under_three_megabytes(tmp_path: Path) -> None:
    write_run(tmp_path, prompts=500)
    change(tmp_path / "answers.jsonl", lambda row: {
        **row, "answers": {model: {**answer, "text": answer["text"] * 5} for model, answer in row["answers"].items()}
    })  # fmt: skip
    assert (tmp_path / "answers.jsonl").stat().st_size > 3_000_000
    assert report(tmp_path)["bytes"] < 3_000_000


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
    assert metric_of("nll_per_byte", entry, {"better": "lower"}).judgement == expected


def test_a_page_says_what_nobody_looked_at(tmp_path: Path) -> None:
    facts = dict(shape(write_run(tmp_path / "plain"))["trust"])
    assert facts["Right or wrong"].startswith("not measured: no judge, no checked instructions")
    judged = write_run(tmp_path / "judged")
    change(judged / "scores.json", lambda scores: {**scores, "held_out": False, "leaks": None, "judge": {"model": "j"}})
    facts = dict(shape(judged)["trust"])
    assert "Right or wrong" not in facts
    assert facts["Prompts"] == "32; it is not known whether they were trained on"


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
