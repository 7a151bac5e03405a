"""A comparison in the formats of others: every field that they stop without, and nothing that JSON does not have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.core.files import write_json
from distill.core.jsonl import write_rows
from distill.errors import RunFolderError
from distill.formats.export import export


def row(number: int, **more) -> dict:
    return {
        "id": f"task-{number}",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {number}?"}],
        "category": "maths",
        "answers": {model: {"text": f"{model} {number}", "finish": "stop"} for model in ("base", "student", "teacher")},
        "scores": {model: {"rouge_l": 0.1 * number} for model in ("base", "student")},
        **more,
    }


GAMES = [
    {"first": "student", "verdict": "teacher", "reason": "It errs."},
    {"first": "teacher", "verdict": "teacher", "reason": "It is right."},
]
JUDGED = {"pairs": {"student:teacher": {"games": GAMES, "outcome": "loss"}}}


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / "run.json", {"name": "run", "stages": {}})
    models = {model: {"model": f"m-{model}"} for model in ("base", "student", "teacher")}
    metrics = {"rouge_l": {"title": "ROUGE-L", "by": {"student": {"mean": 0.1, "low": 0.0, "high": 0.2, "n": 3}}}}
    write_json(folder / "scores.json", {"models": models, "metrics": metrics})
    write_rows(folder / "answers.jsonl", [row(0), row(1, judge=JUDGED), row(2, turns=["And then?"])])
    return folder


def read(path: Path):
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def test_alpaca_eval_has_a_file_a_model_joined_by_the_instruction(run, tmp_path):
    assert export(run, to="alpaca_eval", out=tmp_path / "out") == [f"{tmp_path}/out: 3 prompts as alpaca_eval"]
    student, teacher = read(tmp_path / "out" / "student.json"), read(tmp_path / "out" / "teacher.json")
    assert student[1] == {
        "instruction": "Be brief.\n\nQuestion 1?",
        "output": "student 1",
        "generator": "student (m-student)",
        "dataset": "distill",
    }
    assert [one["instruction"] for one in student] == [one["instruction"] for one in teacher]
    assert student[2]["instruction"].endswith("Question 2?\n\nAnd then?")
    assert "alpaca_eval --model_outputs student.json" in (tmp_path / "out" / "command.txt").read_text()


def test_prompts_that_alpaca_eval_would_drop_or_double_are_counted(run, tmp_path):
    lacking = {**row(3), "answers": {"student": {"text": "x", "finish": "stop"}}}
    write_rows(run / "answers.jsonl", [row(0), {**row(0), "id": "again"}, lacking])
    said = export(run, to="alpaca_eval", out=tmp_path / "out")
    assert said[1] == "2 rows left out, which alpaca_eval cannot hold: same_prompt 1, a_model_has_no_answer 1"
    assert len(read(tmp_path / "out" / "student.json")) == 1


def test_llm_comparator_has_three_pairs_and_every_field_its_page_needs(run, tmp_path):
    export(run, to="llm_comparator", out=tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "base-teacher.json", "student-base.json", "student-teacher.json"
    ]  # fmt: skip
    for file in (tmp_path / "out").iterdir():
        told = read(file)
        fields = {entry["name"] for entry in told["metadata"]["custom_fields_schema"]}
        assert set(told) == {"metadata", "models", "examples"}
        for example in told["examples"]:
            assert set(example) == {
                "input_text", "tags", "output_text_a", "output_text_b", "score", "individual_rater_scores",
                "custom_fields",
            }  # fmt: skip
            assert set(example["custom_fields"]) == fields
            assert isinstance(example["score"], float)
    judged = read(tmp_path / "out" / "student-teacher.json")["examples"][1]
    assert judged["score"] == -1.0
    assert [(one["score"], one["is_flipped"]) for one in judged["individual_rater_scores"]] == [(-1, False), (-1, True)]
    assert judged["custom_fields"]["base"] == "base 1"


def test_a_measure_that_one_side_lacks_is_no_field(run, tmp_path):
    export(run, to="llm_comparator", out=tmp_path / "out")
    schema = read(tmp_path / "out" / "student-base.json")["metadata"]["custom_fields_schema"]
    assert [entry["name"] for entry in schema] == ["teacher", "ROUGE-L"]
    lacking = read(tmp_path / "out" / "student-teacher.json")["metadata"]["custom_fields_schema"]
    assert [entry["name"] for entry in lacking] == ["base"]


def test_inspects_log_is_read_back_by_inspect_itself(run, tmp_path):
    log = pytest.importorskip("inspect_ai.log", reason="inspect-ai is not installed; it is tried by hand")
    export(run, to="inspect", out=tmp_path / "run.json")
    found = log.read_eval_log(str(tmp_path / "run.json"))
    assert [sample.id for sample in found.samples] == ["task-0", "task-1", "task-2"]


@pytest.mark.parametrize("to", ["alpaca_eval", "llm_comparator"])
def test_a_run_that_was_not_compared_has_nothing_to_write(run, tmp_path, to):
    (run / "answers.jsonl").unlink()
    with pytest.raises(RunFolderError, match="was not compared yet"):
        export(run, to=to, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_overwritten(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(RunFolderError, match="is there already"):
        export(run, to="alpaca_eval", out=tmp_path / "out")
