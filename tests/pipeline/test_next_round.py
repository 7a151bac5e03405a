"""The next round: seeds from what lies near the losses, none from what is held out, and a recipe that stands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from distill.core.files import write_json
from distill.core.jsonl import write_rows
from distill.engine.journal.store import Journal
from distill.errors import RecipeError, RunFolderError
from distill.expand.seeds import load_seeds
from distill.pipeline import next_round
from distill.pipeline.forecast import lines
from distill.pipeline.parts import load_recipe
from distill.types import Message, Session

RECIPE = """
name: first
teacher: {model: smollm2, serve: transformers, terms: "Apache-2.0"}
expand: {strategy: self_instruct, seeds: seeds/general.jsonl, tasks: 40}
collect: {strategy: answer, test: 8}
curate: [{filter: empty}]
student: {model: smollm2, template: chatml}
train: {epochs: 1}
compare: {metrics: [overlap]}
"""
TREES, SUMS = ("oak", "elm", "ash", "fir", "yew"), ("two", "six", "ten")


def kept() -> list[Session]:
    asked = [f"Describe the bark of an old {tree} tree." for tree in TREES] + [f"Add {one} and nine." for one in SUMS]
    return [Session(f"row-{n}", (Message("user", text), Message("assistant", "So."))) for n, text in enumerate(asked)]


def lost(id: str, text: str, near: list[int], *, margin: float, verdict: str = "taught and failed") -> dict:
    nearest = [{"id": f"row-{n}", "similarity": 0.9 - place / 10, "prompt": "p"} for place, n in enumerate(near)]
    return {
        "id": id,
        "messages": [{"role": "user", "content": text}],
        "category": "all",
        "answers": {},
        "scores": {},
        "outcome": {"by": "judge", "value": "loss", "margin": margin},
        "coverage": {"nearest": nearest, "similarity": 0.9, "verdict": verdict},
    }


ROWS = [
    lost("a", "Describe the leaves of a young beech tree.", [0, 1, 2], margin=-1.0),
    lost("b", "Describe the roots of a young beech tree.", [1, 3, 4], margin=-0.8),
    lost("c", "Add seven and eleven.", [5, 6], margin=-0.5, verdict="not taught"),
    {**lost("d", "Sing.", [7], margin=1.0), "coverage": {"nearest": [], "similarity": 0.0, "verdict": "fine"}},
]


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "first"
    folder.mkdir()
    (tmp_path / "first.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "recipe.yaml").write_text(load_recipe(tmp_path / "first.yaml").to_yaml(), encoding="utf-8")
    write_json(folder / "run.json", {"name": "first", "stages": {}})
    write_rows(folder / "kept.jsonl", kept())
    write_rows(
        folder / "test.jsonl",
        [
            Session(row["id"], (Message("user", row["messages"][0]["content"]), Message("assistant", "x")))
            for row in ROWS
        ],
    )
    write_rows(folder / "answers.jsonl", ROWS)
    Journal.open(folder / "journal.sqlite").__exit__(None, None, None)
    return folder


def seeds(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "first-next-seeds.jsonl").read_text().splitlines()]


def test_seeds_are_the_training_rows_nearest_to_each_cluster(run, tmp_path):
    said = next_round.plan(run, tmp_path)
    made = [seed for seed in seeds(tmp_path) if seed["id"].startswith("next-")]
    assert [seed["instruction"].split()[-2] for seed in made[:5]] == ["oak", "elm", "fir", "ash", "yew"]
    assert any("2 lost, 0 of them with nothing near in training" in line for line in said)
    assert any("1 lost, 1 of them with nothing near in training" in line for line in said)


def test_too_few_seeds_are_filled_up_with_the_runs_own(run, tmp_path):
    next_round.plan(run, tmp_path)
    assert len(seeds(tmp_path)) == 8
    assert load_seeds(tmp_path / "first-next-seeds.jsonl")[-1].id == "writing-01"


def test_no_held_out_prompt_and_none_near_one_becomes_a_seed(run, tmp_path):
    copy = Session(
        "row-0", (Message("user", "Describe the leaves of one young beech tree."), Message("assistant", "So."))
    )
    write_rows(run / "kept.jsonl", [copy, *kept()[1:]])
    next_round.plan(run, tmp_path)
    asked = {row["messages"][0]["content"] for row in ROWS}
    assert copy.messages[0].content not in {seed["instruction"] for seed in seeds(tmp_path)}
    assert not asked & {seed["instruction"] for seed in seeds(tmp_path)}


def test_the_recipe_stands_and_keeps_what_was_bought_taught_and_held_out(run, tmp_path):
    next_round.plan(run, tmp_path, tasks=60)
    loaded = load_recipe(tmp_path / "first-next.yaml")
    assert lines(loaded)[0].startswith("first-next: valid; stages expand, collect, curate, train, compare, report")
    written = yaml.safe_load((tmp_path / "first-next.yaml").read_text())
    assert (written["expand"]["tasks"], written["collect"]["test"]) == (60, 0)
    assert written["reuse"] == [str(run)]
    assert written["sources"] == [{"name": "earlier", "from": "distill", "path": str(run / "kept.jsonl")}]
    assert written["compare"]["prompts"] == str(run / "test.jsonl")
    assert written["curate"][-1] == {"filter": "contamination", "files": [str(run / "test.jsonl")], "on": "prompt"}


def test_the_file_that_a_run_was_compared_on_stays_the_file_and_its_own_guard_stays(run, tmp_path):
    bench, questions = tmp_path / "bench.txt", tmp_path / "questions.txt"
    bench.write_text("Name every river that crosses the old town.\n", encoding="utf-8")
    questions.write_text("Describe the leaves of a young beech tree.\n", encoding="utf-8")
    recipe = RECIPE.replace("{filter: empty}", f"{{filter: contamination, files: [{bench}]}}")
    recipe = recipe.replace("compare: {", f"compare: {{prompts: {questions}, ")
    (tmp_path / "first.yaml").write_text(recipe, encoding="utf-8")
    (run / "recipe.yaml").write_text(load_recipe(tmp_path / "first.yaml").to_yaml(), encoding="utf-8")
    next_round.plan(run, tmp_path)
    written = yaml.safe_load((tmp_path / "first-next.yaml").read_text())
    assert written["compare"]["prompts"] == str(questions)
    (guard,) = written["curate"]
    assert (guard["filter"], guard["on"]) == ("contamination", "both")
    assert guard["files"] == [str(bench), str(run / "test.jsonl"), str(questions)]
    load_recipe(tmp_path / "first-next.yaml")


def test_what_is_there_is_not_overwritten(run, tmp_path):
    next_round.plan(run, tmp_path)
    with pytest.raises(RunFolderError, match=r"first-next\.yaml is there already"):
        next_round.plan(run, tmp_path)


def measured(student: float, base: float, teacher: float, value: str = "win") -> dict:
    """What is added to a row on which nothing is lost: its scores, and the outcome."""
    scores = {"student": {"m": student}, "base": {"m": base}, "teacher": {"m": teacher}}
    return {"outcome": {"by": "m", "value": value, "margin": 0.0}, "scores": scores}


def fine(run: Path, *extras: dict, **lead: float) -> None:
    """Give the run rows on which nothing is lost, and the measure m, of which less is better."""
    rows = [
        {**row, "coverage": {**row["coverage"], "verdict": "fine"}, **one}
        for row, one in zip(ROWS, extras, strict=False)
    ]
    write_rows(run / "answers.jsonl", rows)
    entry = {"better": "lower", **({"gap_closed": lead} if lead else {})}
    write_json(run / "scores.json", {"lead": "m", "metrics": {"m": entry}})


def test_a_student_that_loses_nothing_is_taught_more_where_it_is_farthest_from_its_teacher(run, tmp_path):
    fine(run, measured(0.5, 0.9, 0.4), measured(0.5, 0.9, 0.4), measured(0.9, 1.2, 0.3), share=0.6, high=0.7)
    said = next_round.plan(run, tmp_path)
    far = "1 of those on which the student is farthest from the reference answers"
    assert said[0] == f'like "Add seven and eleven.": {far}'
    assert [seed["instruction"] for seed in seeds(tmp_path)[:2]] == ["Add two and nine.", "Add six and nine."]
    assert "farthest\n# from the reference answers" in (tmp_path / "first-next.yaml").read_text()


def test_without_scores_of_a_teacher_the_prompts_below_the_students_best_are_far(run, tmp_path):
    fine(run, *({**measured(score, 2.0, 0.0), "scores": {"student": {"m": score}}} for score in (0.5, 0.5, 0.9)))
    assert next_round.plan(run, tmp_path)[0].startswith('like "Add seven and eleven.": 1 of those on which')


def test_where_no_verdict_can_be_read_the_leading_measure_says_what_is_lost(run, tmp_path):
    fine(run, measured(0.5, 0.9, 0.4, "unparsed"), measured(0.9, 0.6, 0.4, "unparsed"))
    assert next_round.plan(run, tmp_path)[0].endswith(": 1 lost, 0 of them with nothing near in training")


@pytest.mark.parametrize("share", [{}, {"share": 1.0, "high": 1.1}])
def test_where_nothing_is_behind_more_of_the_same_is_planned_with_its_price(run, tmp_path, share):
    fine(run, *([measured(0.3, 0.9, 0.3)] * 3), **share)
    spent = [{"outcome": "kept", "completion_tokens": 3_000, "usd": 0.5}]
    stages = {"expand": {"costs": spent}, "collect": {"costs": spent, "counts": {"tasks": 40}}}
    write_json(run / "run.json", {"name": "first", "stages": stages})
    assert next_round.plan(run, tmp_path, tasks=20) == [
        "nothing says where the student is behind: 20 more tasks of the same",
        "20 more tasks: about 3,000 answer tokens, USD 0.50, as in this run",
        f"next: distill run {tmp_path / 'first-next.yaml'}",
    ]
    loaded = load_recipe(tmp_path / "first-next.yaml")
    assert (loaded.expand.tasks, loaded.sources, loaded.reuse) == (60, [], [str(run)])
    assert loaded.collect.test.count == 0
    assert not (tmp_path / "first-next-seeds.jsonl").exists()


def test_a_run_that_was_not_compared_has_no_next_round(run, tmp_path):
    (run / "answers.jsonl").unlink()
    with pytest.raises(RunFolderError, match="was not trained and compared yet; type: distill run"):
        next_round.plan(run, tmp_path)
    lacking = re.sub("(?m)^compare:.*\n(  .*\n)+", "", (run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(lacking)
    with pytest.raises(RunFolderError, match="compared yet; its recipe has no `compare`"):
        next_round.plan(run, tmp_path)


def test_without_a_teacher_the_recipe_says_in_its_head_how_to_add_one(run, tmp_path):
    write_rows(tmp_path / "q.jsonl", [{"id": "a", "prompt": "Hi."}])
    for model in ("base", "student", "teacher"):
        write_rows(tmp_path / f"{model}.jsonl", [{"id": "a", "text": "Ho."}])
    (run / "recipe.yaml").write_text(
        f"name: first\ncompare:\n  prompts: {tmp_path}/q.jsonl\n"
        "  answers:\n"
        + "".join(f"    {model}: {tmp_path}/{model}.jsonl\n" for model in ("base", "student", "teacher")),
        encoding="utf-8",
    )
    *_, lack, _ = next_round.plan(run, tmp_path)
    assert lack == f"{tmp_path}/first-next.yaml lacks a `teacher` to write them: fill in the one that its head shows"
    file = tmp_path / "first-next.yaml"
    with pytest.raises(RecipeError, match="`expand` needs a `teacher` section"):
        load_recipe(file)
    head = next_round.TEACHER.partition("\n")[2]
    file.write_text(file.read_text().replace(head, re.sub("(?m)^# ", "", head)))
    assert load_recipe(file).main_teacher.api_key_env == "VARIABLE"
