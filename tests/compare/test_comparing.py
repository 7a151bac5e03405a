"""Prompts from anywhere, recorded answers, categories, leaks: compared with no model at hand."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from distill.compare.metrics import ModelAnswer
from distill.compare.metrics.instructions import Instructions
from distill.compare.metrics.likelihood import Likelihood
from distill.compare.metrics.overlap import Overlap
from distill.compare.metrics.style import Style
from distill.compare.prompts import of_file, same_questions, take_recorded
from distill.compare.results import ComparisonResults
from distill.compare.stage import Sides, compare
from distill.core import assets
from distill.core.jsonl import write_rows
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.providers.scripted import Scripted
from distill.errors import RecipeError
from distill.pipeline.forecast import lines
from distill.pipeline.parts import load_recipe
from distill.pipeline.runner import run_recipe
from distill.types import Message, Sampling, Session

WORDS = ("river", "mountain", "harbour", "engine", "garden", "window", "library", "market", "bridge", "candle")


def questions(count: int = 10) -> list[dict]:
    """Half of them in each of two categories."""
    return [
        {"question_id": number, "category": ("writing", "maths")[number % 2], "turns": [f"Describe the {word} in May."]}
        for number, word in enumerate(WORDS[:count])
    ]


def answers(text: str, count: int = 10) -> list[dict]:
    return [{"question_id": number, "text": text.format(word=word)} for number, word in enumerate(WORDS[:count])]


TEXTS = {
    "base": "I do not know.",
    "student": "The {word} is bright in May and people like it.",
    "teacher": "The {word} is bright in May, and many people come to see it.",
    "teacher_again": "The {word} is bright in May, so that many people come to see it.",
}


def write(folder: Path, name: str, rows: list) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


def recorded(folder: Path, **texts: str) -> dict[str, Path]:
    return {model: write(folder, f"{model}.jsonl", answers(text)) for model, text in {**TEXTS, **texts}.items()}


METRICS = (Likelihood(), Overlap(), Style())


def compared(folder: Path, *, prompts=None, metrics=METRICS, **sides):
    """The scores and the answers of a comparison."""
    with Journal.open(folder / "journal.sqlite") as journal:

        def engine(providers, *, progress, local):
            return Engine(journal, providers, progress=progress, stage="compare", first_wait_seconds=0.01, attempts=2)

        compare(
            folder,
            engine=engine,
            journal=journal,
            metrics=metrics,
            sampling=Sampling(temperature=0.0, max_tokens=32),
            seed=7,
            sides=Sides(**sides),
            prompts=prompts or write(folder, "questions.jsonl", questions()),
        )

    def refuse(name: str):
        raise AssertionError(f"{name} in scores.json")

    scores = json.loads((folder / "scores.json").read_text(), parse_constant=refuse)
    return scores, [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


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


def test_without_training_rows_nothing_is_said_of_leaks(triple):
    scores, rows = triple
    assert scores["leaks"] is None
    assert "leak" not in rows[0]


# Bad input


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
    found = ComparisonResults(of_file(write(tmp_path, "q.jsonl", questions())))
    with pytest.raises(RecipeError, match=r"compare\.answers\.student: no answer in .* belongs to a prompt"):
        take_recorded(found, {"student": write(tmp_path, "s.jsonl", [{"id": "other", "text": "Hi."}])})


def test_prompts_that_ask_the_same_take_recorded_answers_in_turn(tmp_path):
    found = ComparisonResults(
        of_file(write(tmp_path, "q.jsonl", [{"prompt": "Name a tree."}, {"prompt": "Name a tree."}]))
    )
    rows = [{"instruction": "Name a tree.", "output": said} for said in ("Oak.", "Elm.")]
    take_recorded(found, {"student": write(tmp_path, "s.jsonl", rows)})
    assert [one.text for one in found.answers["student"].values()] == ["Oak.", "Elm."]


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
    found = ComparisonResults(of_file(write(tmp_path, "q.jsonl", questions())))
    with pytest.raises(RecipeError, match="line 2: a second answer to prompt 0"):
        take_recorded(found, {"student": write(tmp_path, "s.jsonl", [answers("x")[0], answers("y")[0]])})


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
    found = ComparisonResults(of_file(write(tmp_path, "q.jsonl", [{"id": "p", "prompt": "Name a tree."}])))
    take_recorded(found, {"student": write(tmp_path, "s.jsonl", [row])})
    assert found.answers["student"] == {0: ModelAnswer("Said.", "unknown")}


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


def test_other_shipped_instructions_have_compare_run_again(tmp_path, monkeypatch):
    write(tmp_path, "questions.jsonl", questions())
    recorded(tmp_path)
    text = RECIPE.replace("[overlap, style]", "[overlap, instructions]")
    (tmp_path / "recorded.yaml").write_text(text, encoding="utf-8")
    folder = run_recipe(tmp_path / "recorded.yaml", run_dir=tmp_path / "run")
    before = (folder / "scores.json").stat().st_mtime_ns
    run_recipe(tmp_path / "recorded.yaml", run_dir=tmp_path / "run")
    assert (folder / "scores.json").stat().st_mtime_ns == before
    shutil.copytree(assets.root() / "prompts", tmp_path / "shipped" / "prompts")
    shutil.copytree(assets.root() / "recipes", tmp_path / "shipped" / "recipes")
    asked = tmp_path / "shipped" / "prompts" / "instructions.jsonl"
    asked.write_text("\n".join(asked.read_text(encoding="utf-8").splitlines()[:-1]), encoding="utf-8")
    monkeypatch.setattr(assets, "root", lambda: tmp_path / "shipped")
    run_recipe(tmp_path / "recorded.yaml", run_dir=tmp_path / "run")
    assert (folder / "scores.json").stat().st_mtime_ns > before


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
        assert any(line.startswith(f"compare: about {requests} requests") for line in told), told


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
