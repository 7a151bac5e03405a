"""Recorded answers, categories and leaks, compared with no model at hand."""

from __future__ import annotations

import json
import re

import pytest

from distill.compare.metrics.instructions import Instructions
from distill.compare.metrics.overlap import Overlap
from distill.core.jsonl import write_rows
from distill.engine.providers.scripted import Scripted
from distill.errors import RecipeError
from distill.pipeline.forecast import lines
from distill.pipeline.parts import load_recipe
from distill.pipeline.runner import run_recipe
from distill.types import Message, Session
from tests.support.comparing import TEXTS, WORDS, answers, compared, questions, recorded, write


@pytest.fixture(scope="module")
def triple(tmp_path_factory):
    folder = tmp_path_factory.mktemp("triple")
    return compared(folder, recorded=recorded(folder))


def test_recorded_answers_are_compared_without_any_model(triple):
    scores, rows = triple
    assert scores["prompts"] == len(rows) == 10
    assert list(rows[3]["answers"]) == ["base", "student", "teacher", "teacher_again"]
    assert rows[3]["answers"]["student"]["text"] == "The engine is bright in May and people like it."
    assert scores["lead"] == "rouge_l"
    assert 0.5 < scores["metrics"]["rouge_l"]["gap_closed"]["share"] < 1


def test_what_needs_a_model_is_absent_and_says_so(triple):
    scores, _ = triple
    assert scores["metrics"]["nll_per_byte"]["by"] == {}
    assert scores["metrics"]["nll_per_byte"]["note"].startswith("absent: ")
    assert scores["headline"].startswith("The student closes")
    assert "ROUGE-L" in scores["headline"].split(";")[0]


def test_how_a_recorded_answer_ended_is_not_guessed(triple):
    scores, rows = triple
    assert rows[0]["answers"]["base"]["finish"] == "unknown"
    assert scores["metrics"]["stopped"]["by"] == {}
    assert scores["cut_share"] == {}


def test_each_category_has_its_own_figures_with_adjusted_p(tmp_path):
    files = recorded(tmp_path)
    rows = [
        {"question_id": n, "category": ("writing", "maths")[n % 2], "turns": [f"Tell me of {n}."]} for n in range(20)
    ]
    for model, path in files.items():
        write(
            tmp_path,
            path.name,
            [{"question_id": n, "text": TEXTS[model].format(word=WORDS[n % 10])} for n in range(20)],
        )
    scores, _ = compared(tmp_path, prompts=write(tmp_path, "twenty.jsonl", rows), recorded=files)
    assert scores["categories"] == {"writing": 10, "maths": 10}
    by_category = scores["metrics"]["rouge_l"]["categories"]
    assert {name: entry["n"] for name, entry in by_category.items()} == {"maths": 10, "writing": 10}
    for entry in by_category.values():
        assert entry["p_holm"] == pytest.approx(2 * entry["p"])
        assert entry["p"] == pytest.approx(2 / 2**10)


def test_one_category_is_not_told_twice(tmp_path):
    prompts = write(tmp_path, "plain.jsonl", [{**row, "category": "one"} for row in questions()])
    scores, _ = compared(tmp_path, prompts=prompts, recorded=recorded(tmp_path))
    assert scores["metrics"]["rouge_l"]["categories"] == {}


def test_a_prompt_says_how_it_came_out_by_the_leading_measure(triple):
    _, rows = triple
    assert {row["outcome"]["value"] for row in rows} == {"win"}
    assert rows[0]["outcome"]["by"] == "rouge_l"
    expected = rows[0]["scores"]["student"]["rouge_l"] - rows[0]["scores"]["base"]["rouge_l"]
    assert rows[0]["outcome"]["margin"] == pytest.approx(expected)


def test_how_many_prompts_would_settle_five_points_is_told(tmp_path, triple):
    files = recorded(tmp_path)
    rows = [{**row, "text": row["text"] + " Indeed." * number} for number, row in enumerate(answers(TEXTS["student"]))]
    scores, _ = compared(tmp_path, recorded={**files, "student": write(tmp_path, "longer.jsonl", rows)})
    power = scores["power"]
    assert power["measure"] == "rouge_l"
    assert power["prompts"] >= 6
    assert power["usd"] is None
    assert triple[0]["power"]["prompts"] is None, "all differ by the same, so there is no spread to go by"


def test_the_teacher_is_asked_what_was_not_recorded_once_and_again(tmp_path):
    files = {model: path for model, path in recorded(tmp_path).items() if model in ("base", "student")}
    teacher = Scripted(lambda request: f"{request.messages[-1].content} Answer {request.replica}.")
    _, rows = compared(tmp_path, recorded=files, teachers={"teacher": teacher})
    said = rows[0]["answers"]
    assert said["teacher"]["text"] == "Describe the river in May. Answer 0."
    assert said["teacher_again"]["text"] == "Describe the river in May. Answer 1."


def test_an_endpoint_answers_as_the_student(tmp_path):
    files = {model: path for model, path in recorded(tmp_path).items() if model != "student"}
    served = Scripted(lambda request: "The served answer.")
    scores, rows = compared(tmp_path, recorded=files, endpoints={"student": served})
    assert rows[0]["answers"]["student"]["text"] == "The served answer."
    assert scores["models"]["student"]["description"] == "asked at its endpoint"


def test_a_second_turn_follows_the_models_own_first_answer(tmp_path):
    prompts = write(tmp_path, "two.jsonl", [{"question_id": 1, "turns": ["Name a tree.", "Name another."]}])
    asked: list[tuple[str, ...]] = []

    def script(request):
        asked.append(tuple(message.content for message in request.messages))
        return f"Tree {len(request.messages)}"

    files = {name: write(tmp_path, f"{name}.jsonl", [{"question_id": 1, "turns": ["Oak.", "Elm."]}])
             for name in ("base", "student", "teacher_again")}  # fmt: skip
    _, rows = compared(tmp_path, prompts=prompts, recorded=files, teachers={"teacher": Scripted(script)})
    assert asked[:2] == [("Name a tree.",), ("Name a tree.", "Tree 1", "Name another.")]
    assert rows[0]["answers"]["teacher"] == {"text": "Tree 3", "finish": "stop", "tokens": 2, "earlier": ["Tree 1"]}
    assert rows[0]["answers"]["student"]["earlier"] == ["Oak."]
    assert rows[0]["turns"] == ["Name another."]


def test_a_prompt_from_training_is_leaked_and_the_rest_is_told_apart(tmp_path):
    long = "Explain in your own words why the tide rises twice a day at most coasts of the world."
    prompts = write(tmp_path, "leaky.jsonl", [*questions(9), {"question_id": 9, "turns": [long]}])
    row = Session("row-1", (Message("user", long.upper()), Message("assistant", "Because of the moon.")))
    write_rows(tmp_path / "kept.jsonl", [Session("row-0", (Message("user", "Hi."), Message("assistant", "Ho."))), row])
    scores, rows = compared(tmp_path, prompts=prompts, recorded=recorded(tmp_path))
    assert [one["leak"]["leaked"] for one in rows] == [False] * 9 + [True]
    assert rows[9]["leak"] == {"overlap": 1.0, "leaked": True, "row": "row-1"}
    assert (scores["leaks"]["leaked"], scores["leaks"]["prompts"]) == (1, 10)
    assert scores["metrics"]["rouge_l"]["clean"]["by"]["student"]["n"] == 9
    assert scores["metrics"]["rouge_l"]["leaked"]["by"]["student"]["n"] == 1


def test_prompts_of_one_template_are_not_leaked_by_it(tmp_path):
    template = "Explain in your own words, for a child of ten who has never heard of it, what is meant by {}."
    turns = [template.format(word) for word in WORDS]
    prompts = write(tmp_path, "framed.jsonl", [{"question_id": at, "turns": [turn]} for at, turn in enumerate(turns)])
    taught = [Message("user", template.format(word)) for word in (*map("{}man".format, WORDS), WORDS[4])]
    answer = Message("assistant", "It is a word.")
    write_rows(tmp_path / "kept.jsonl", [Session(f"row-{at}", (turn, answer)) for at, turn in enumerate(taught)])
    _, rows = compared(tmp_path, prompts=prompts, recorded=recorded(tmp_path))
    assert [at for at, one in enumerate(rows) if one["leak"]["leaked"]] == [4]


def test_without_training_rows_nothing_is_said_of_leaks(triple):
    scores, rows = triple
    assert scores["leaks"] is None
    assert "leak" not in rows[0]


# As a recipe


RECIPE = """
name: recorded
compare:
  metrics: [overlap, style]
  prompts: questions.jsonl
  answers: {base: base.jsonl, student: student.jsonl, teacher: teacher.jsonl}
"""


def test_a_recipe_of_recorded_answers_needs_no_other_section(tmp_path):
    write(tmp_path, "questions.jsonl", questions())
    recorded(tmp_path)
    (tmp_path / "recorded.yaml").write_text(RECIPE, encoding="utf-8")
    folder = run_recipe(tmp_path / "recorded.yaml", run_dir=tmp_path / "run")
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["metrics"]["rouge_l"]["student_minus_base"]["excludes_zero"]
    assert "second answers are not there" in scores["metrics"]["rouge_l"]["note"]
    assert scores["headline"].startswith("On 10 prompts: ROUGE-L to the teacher")
    assert (folder / "report.html").is_file()
    assert not (folder / "student").exists()


def test_instructions_are_in_the_forecast_of_what_the_teacher_is_asked(tmp_path):
    row = {"turns": ["Write in capitals."], "checks": [{"kind": "uppercase"}]}
    mine = write(tmp_path, "mine.jsonl", [row] * 5)
    recipe = (
        "name: told\nteacher: {model: m, base_url: http://127.0.0.1:9/v1, terms: ours}\n"
        "compare:\n  prompts: questions.jsonl\n  answers: {base: base.jsonl, student: student.jsonl}\n  metrics: "
    )
    write(tmp_path, "questions.jsonl", questions())
    recorded(tmp_path)
    for metrics, requests in (("[overlap]", 20), (f"[{{metric: instructions, prompts: {mine}}}]", 30)):
        (tmp_path / "told.yaml").write_text(f"{recipe}{metrics}\n", encoding="utf-8")
        told = lines(load_recipe(tmp_path / "told.yaml"), probed=False)
        assert any(line.startswith(f"compare: at most {requests} requests") for line in told), told


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("base: base.jsonl, ", "`compare` has no base: add `student` and `train`, or compare.base"),
        ("teacher: teacher.jsonl", "`compare` has no teacher: add `teacher`, or compare.answers.teacher: FILE"),
        ("prompts: questions.jsonl", "`compare` has no prompts: add compare.prompts: FILE"),
        ("questions.jsonl", "compare.prompts: no file nowhere.jsonl"),
    ],
)  # fmt: skip
def test_a_comparison_without_a_side_is_refused_by_name(tmp_path, missing, message):
    write(tmp_path, "questions.jsonl", questions())
    recorded(tmp_path)
    text = RECIPE.replace(missing, "nowhere.jsonl" if missing == "questions.jsonl" else "")
    (tmp_path / "recorded.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=re.escape(message)):
        run_recipe(tmp_path / "recorded.yaml", run_dir=tmp_path / "run")


def test_a_metric_asks_its_own_prompts_which_no_other_metric_sees(tmp_path):
    mine = write(tmp_path, "mine.jsonl", [
        {"id": f"check-{n}", "turns": [f"Say {n} in lowercase."], "checks": [{"kind": "lowercase"}]} for n in range(8)
    ])  # fmt: skip
    metric = Instructions(Instructions.Options(prompts=str(mine)))
    sides = {
        "teachers": {"teacher": Scripted(lambda request: "all small")},
        "endpoints": {"student": Scripted(lambda request: "all small"), "base": Scripted(lambda request: "All Big")},
    }
    scores, rows = compared(tmp_path, metrics=(Overlap(), metric), **sides)
    assert (scores["prompts"], len(rows)) == (10, 18)
    told = scores["metrics"]["instructions"]
    assert {model: one["mean"] for model, one in told["by"].items()} == {
        "base": 0.0, "student": 1.0, "teacher": 1.0, "teacher_again": 1.0
    }  # fmt: skip
    assert told["gap_closed"]["share"] == 1.0
    assert scores["metrics"]["rouge_l"]["by"]["student"]["n"] == 10
    assert scores["categories"] == {"writing": 5, "maths": 5}


def test_a_lost_prompt_says_whether_anything_like_it_was_taught(tmp_path):
    taught = [Session(f"row-{n}", (Message("user", f"Describe the {word} in June."), Message("assistant", "So.")))
              for n, word in enumerate(WORDS)]  # fmt: skip
    write_rows(tmp_path / "kept.jsonl", taught)
    prompts = write(tmp_path, "mixed.jsonl", [*questions(8), {"question_id": 8, "turns": ["Solve x² = 2 quickly"]}])
    files = recorded(tmp_path)
    for model, path in files.items():
        text = {"student": "No.", "base": "The {word} is nice."}.get(model, TEXTS[model])
        write(tmp_path, path.name, answers(text, 9))
    scores, rows = compared(tmp_path, prompts=prompts, recorded=files)
    assert {row["outcome"]["value"] for row in rows} == {"loss"}
    assert [row["coverage"]["verdict"] for row in rows] == ["taught and failed"] * 8 + ["not taught"]
    assert rows[2]["coverage"]["nearest"][0]["id"] == "row-2"
    assert scores["coverage"]["categories"]["all"]["not_taught"] == 1


def test_without_training_rows_nothing_is_said_of_what_was_taught(triple):
    assert triple[0]["coverage"] is None
    assert "coverage" not in triple[1][0]
