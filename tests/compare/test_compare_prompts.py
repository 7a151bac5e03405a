"""Prompts and recorded answers from anywhere: every published form, and what is refused in one line."""

from __future__ import annotations

import pytest

from distill.compare.metrics import ModelAnswer
from distill.compare.metrics.instructions import Instructions
from distill.compare.prompts import of_file, recorded_answers, same_questions
from distill.core.jsonl import write_rows
from distill.errors import RecipeError
from tests.support.comparing import METRICS, TEXTS, answers, compared, questions, recorded, write


def test_prompts_without_an_answer_are_counted_and_noted(tmp_path):
    files = recorded(tmp_path)
    write(tmp_path, "student.jsonl", answers(TEXTS["student"], 7))
    scores, rows = compared(tmp_path, recorded=files)
    assert "student" not in rows[8]["answers"]
    assert any("the student has no recorded answer to 3 of 10 prompts" in note for note in scores["notes"])
    assert scores["metrics"]["rouge_l"]["student_minus_base"]["n"] == 7


def test_identical_answers_close_no_gap_and_show_no_difference(tmp_path):
    same = dict.fromkeys(TEXTS, "The {word} is the same.")
    scores, rows = compared(tmp_path, recorded=recorded(tmp_path, **same))
    entry = scores["metrics"]["rouge_l"]
    assert (entry["student_minus_base"]["mean"], entry["p"], entry["gap_closed"]) == (0.0, 1.0, None)
    assert "no gap to close" in entry["note"]
    assert {row["outcome"]["value"] for row in rows} == {"tie"}
    assert "the base and the student gave the same answer to 10 of 10 prompts" in scores["notes"]


def test_empty_answers_are_answers(tmp_path):
    scores, _ = compared(tmp_path, recorded=recorded(tmp_path, student="", base=""))
    assert scores["metrics"]["rouge_l"]["by"]["student"]["mean"] == 0.0
    assert "the student gave an empty answer to 10 of 10 prompts" in scores["notes"]
    assert not any("gave the same answer" in note for note in scores["notes"])


def test_a_measure_without_a_value_is_named(tmp_path):
    scores, _ = compared(tmp_path, recorded=recorded(tmp_path))
    assert (
        "no answer has a value by: Stops by itself; what they look at is not known of these answers" in scores["notes"]
    )


def test_one_prompt_has_figures_and_no_certainty(tmp_path):
    prompts = write(tmp_path, "one.jsonl", questions(1))
    files = {model: write(tmp_path, f"{model}.jsonl", answers(text, 1)) for model, text in TEXTS.items()}
    scores, _ = compared(tmp_path, prompts=prompts, recorded=files)
    entry = scores["metrics"]["rouge_l"]
    assert (entry["p"], entry["gap_closed"], entry["student_minus_base"]["excludes_zero"]) == (None, None, False)
    assert scores["power"]["prompts"] is None


def test_the_same_question_twice_is_said(tmp_path):
    twice = [*questions(9), {"question_id": 9, "turns": ["describe  the river in May."]}]
    scores, _ = compared(tmp_path, prompts=write(tmp_path, "twice.jsonl", twice), recorded=recorded(tmp_path))
    assert any("1 of 10 prompts ask what another one asks" in note for note in scores["notes"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no prompts"),
        ([{"text": "no question here"}], "line 1: no prompt"),
        ([{"id": "a", "prompt": "One."}, {"id": "a", "prompt": "Two."}], 'the id "a" comes twice'),
        ([{"turns": ["Hi.", 3]}], "line 1: no prompt"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused_in_one_line(tmp_path, rows, message):
    with pytest.raises(RecipeError, match=message) as caught:
        of_file(write(tmp_path, "bad.jsonl", rows))
    assert "\n" not in str(caught.value)


def test_answers_that_belong_to_no_prompt_are_refused(tmp_path):
    prompts = of_file(write(tmp_path, "q.jsonl", questions()))
    with pytest.raises(RecipeError, match=r"compare\.answers\.student: no answer in .* belongs to a prompt"):
        recorded_answers(prompts, {"student": write(tmp_path, "s.jsonl", [{"id": "other", "text": "Hi."}])})


def test_prompts_that_ask_the_same_take_recorded_answers_in_turn(tmp_path):
    prompts = of_file(write(tmp_path, "q.jsonl", [{"prompt": "Name a tree."}, {"prompt": "Name a tree."}]))
    rows = [{"instruction": "Name a tree.", "output": said} for said in ("Oak.", "Elm.")]
    (replies,) = recorded_answers(prompts, {"student": write(tmp_path, "s.jsonl", rows)})
    assert [one.text for one in replies.answers.values()] == ["Oak.", "Elm."]


def test_a_prompt_whose_check_cannot_be_decided_is_refused_before_anybody_is_asked(tmp_path):
    for check in ("lowercase", {"kind": "rhymes"}, {"kind": "bullets"}):
        path = write(tmp_path, "q.jsonl", [{"prompt": "Name a tree.", "checks": [check]}])
        with pytest.raises(RecipeError, match=r"q\.jsonl, line 1: checks: "):
            of_file(path)


def test_prompts_that_a_metric_asks_for_itself_are_not_counted_as_missing(tmp_path):
    scores, _ = compared(tmp_path, metrics=(*METRICS, Instructions()), recorded=recorded(tmp_path))
    assert scores["notes"] == [note for note in scores["notes"] if "no recorded answer" not in note]
    write_rows(tmp_path / "kept.jsonl", [])
    scores, _ = compared(tmp_path, metrics=(*METRICS, Instructions()), recorded=recorded(tmp_path))
    assert scores["leaks"]["prompts"] == scores["prompts"] == 10


def test_two_answers_to_one_prompt_are_refused(tmp_path):
    prompts = of_file(write(tmp_path, "q.jsonl", questions()))
    with pytest.raises(RecipeError, match="line 2: a second answer to prompt 0"):
        recorded_answers(prompts, {"student": write(tmp_path, "s.jsonl", [answers("x")[0], answers("y")[0]])})


@pytest.mark.parametrize(
    "row",
    [
        {"id": "p", "text": "Said."},
        {"instruction": "name  a TREE.", "output": "Said.", "generator": "m"},
        {"question_id": "p", "choices": [{"index": 0, "turns": ["Said."]}]},
        {"id": "p", "turns": ["Said."]},
    ],
)
def test_an_answer_is_found_in_every_published_form(tmp_path, row):
    prompts = of_file(write(tmp_path, "q.jsonl", [{"id": "p", "prompt": "Name a tree."}]))
    (replies,) = recorded_answers(prompts, {"student": write(tmp_path, "s.jsonl", [row])})
    assert replies.answers == {0: ModelAnswer("Said.", "unknown")}


def test_plain_lines_alpaca_rows_and_messages_are_prompts(tmp_path):
    (tmp_path / "lines.txt").write_text("Name a tree.\n\nName a bird.\n", encoding="utf-8")
    assert [one.messages[0].content for one in of_file(tmp_path / "lines.txt")] == ["Name a tree.", "Name a bird."]
    rows = [
        {"instruction": "Shorten.", "input": "A long text."},
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi."},
                      {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "And?"}]},
    ]  # fmt: skip
    alpaca, chat = of_file(write(tmp_path, "rows.jsonl", rows), system="Be brief.")
    assert [message.content for message in alpaca.messages] == ["Be brief.", "Shorten.\n\nA long text."]
    assert [message.content for message in chat.messages] == ["Be kind.", "Hi."]
    assert chat.later == ("And?",)


def test_prompts_that_differ_in_a_later_turn_are_two(tmp_path):
    rows = [
        {"turns": ["Name a tree.", "And?"]},
        {"turns": ["Name a tree.", "Why?"]},
        {"turns": ["Name a TREE.", "why?"]},
    ]
    assert same_questions(of_file(write(tmp_path, "q.jsonl", rows))) == 1
