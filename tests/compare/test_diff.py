"""Two runs held against each other: paired, adjusted, and refused where nothing is common."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.compare import diff as held
from distill.core.files import write_json
from distill.core.jsonl import write_rows
from distill.errors import RunFolderError

WORDS = ("river", "mountain", "harbour", "engine", "garden", "window", "library", "market", "bridge", "candle")
METRICS = {
    "rouge_l": {"title": "ROUGE-L", "better": "higher"},
    "length_ratio": {"title": "Length", "better": "near 1"},
    "repetition": {"title": "Repetition", "better": "lower"},
}


def write_run(
    folder: Path, rouge, *, count: int = 20, trained: int | None = 1000, length=lambda n: 1.0, **scores
) -> Path:
    folder.mkdir(parents=True)
    rows = [
        {
            "id": f"task-{n}",
            "messages": [{"role": "user", "content": f"Describe {WORDS[n % 10]} {n}."}],
            "category": ("a", "b")[n % 2],
            "answers": {"student": {"text": f"answer {rouge(n):.2f}", "finish": "stop"}},
            "scores": {
                "student": {"rouge_l": rouge(n), "length_ratio": length(n), "repetition": 0.1},
                "base": {"rouge_l": 0.1, "length_ratio": 3.0, "repetition": 0.5},
            },
        }
        for n in range(count)
    ]
    write_rows(folder / "answers.jsonl", rows)
    told = {"lead": "rouge_l", "metrics": METRICS, "method": "m; all models drew with temperature 0.7", **scores}
    write_json(folder / "scores.json", told)
    counts = {"trained_tokens": trained} if trained is not None else {}
    write_json(folder / "run.json", {"name": folder.name, "stages": {"train": {"counts": counts}}})
    return folder


def told(one: Path, other: Path):
    return held.diff(held.read(one), held.read(other))


def change(found, measure: str):
    return next(each for each in found["changes"] if each["measure"] == measure)


def test_a_steady_gain_is_better_and_more_than_noise(tmp_path):
    found = told(write_run(tmp_path / "a", lambda n: 0.2 + n / 100), write_run(tmp_path / "b", lambda n: 0.3 + n / 100))
    rouge = change(found, "rouge_l")
    assert rouge["difference"]["mean"] == pytest.approx(0.1)
    assert rouge["verdict"] == "better"
    assert rouge["p"] < 0.001
    assert rouge["p_holm"] == pytest.approx(3 * rouge["p"])
    assert change(found, "repetition")["verdict"] == "no clear difference"


def test_noise_is_no_difference(tmp_path):
    found = told(
        write_run(tmp_path / "a", lambda n: 0.2 + (n % 3) / 10), write_run(tmp_path / "b", lambda n: 0.2 + (n % 4) / 13)
    )
    assert change(found, "rouge_l")["verdict"] == "no clear difference"


def test_lengths_are_better_nearer_to_one_from_either_side(tmp_path):
    long = write_run(tmp_path / "a", lambda n: 0.2, length=lambda n: 1.9 + n / 100)
    short = write_run(tmp_path / "b", lambda n: 0.2, length=lambda n: 0.8 - n / 100)
    assert change(told(long, short), "length_ratio")["verdict"] == "better"
    assert change(told(short, long), "length_ratio")["verdict"] == "worse"


def test_categories_are_told_apart_and_adjusted(tmp_path):
    found = told(
        write_run(tmp_path / "a", lambda n: 0.2), write_run(tmp_path / "b", lambda n: 0.2 + (0.3 + n / 99) * (n % 2))
    )
    parts = change(found, "rouge_l")["categories"]
    assert parts["a"]["difference"]["mean"] == 0.0
    assert parts["b"]["difference"]["mean"] > 0.3
    assert parts["b"]["p_holm"] == pytest.approx(2 * parts["b"]["p"])


def test_prompts_pair_by_what_they_ask_and_only_common_ones_count(tmp_path):
    found = told(write_run(tmp_path / "a", lambda n: 0.2), write_run(tmp_path / "b", lambda n: 0.3, count=12))
    assert (found["prompts"], found["prompts_first"], found["prompts_second"]) == (12, 20, 12)


def test_the_largest_changes_come_with_both_answers(tmp_path):
    found = told(write_run(tmp_path / "a", lambda n: 0.2), write_run(tmp_path / "b", lambda n: 0.2 + n / 100))
    first = found["largest"][0]
    assert (first["id"], first["first"]["text"], first["second"]["text"]) == ("task-19", "answer 0.20", "answer 0.39")
    assert len(found["largest"]) == held.CHANGES


def test_what_makes_the_runs_unlike_is_a_warning(tmp_path):
    one = write_run(tmp_path / "a", lambda n: 0.2, models={"teacher": {"model": "x"}})
    other = write_run(
        tmp_path / "b",
        lambda n: 0.2,
        models={"teacher": {"model": "y"}},
        method="m; all models drew with temperature 0",
    )
    warnings = told(one, other)["warnings"]
    assert any("drawn in other ways: temperature 0.7, against temperature 0" in each for each in warnings)
    assert "the teacher is another: x, against y" in warnings


def test_runs_without_a_common_prompt_are_refused(tmp_path):
    one, other = write_run(tmp_path / "a", lambda n: 0.2), write_run(tmp_path / "b", lambda n: 0.2)
    rows = [json.loads(line) for line in (other / "answers.jsonl").read_text().splitlines()]
    write_rows(
        other / "answers.jsonl",
        [{**row, "messages": [{"role": "user", "content": f"Else {n}"}]} for n, row in enumerate(rows)],
    )
    with pytest.raises(RunFolderError, match="have no prompt in common"):
        told(one, other)


def test_a_run_that_was_not_compared_is_refused(tmp_path):
    run = write_run(tmp_path / "a", lambda n: 0.2)
    (run / "scores.json").unlink()
    with pytest.raises(RunFolderError, match="was not compared yet; type: distill compare"):
        held.read(run)
    (run / "recipe.yaml").write_text("name: x\ncollect: {}\n")
    with pytest.raises(RunFolderError, match="was not compared yet; its recipe has no section `compare`"):
        held.read(run)


def test_a_curve_starts_at_the_base_and_goes_by_tokens(tmp_path):
    runs = [
        write_run(tmp_path / name, lambda n, value=value: value, trained=tokens)
        for name, value, tokens in (("large", 0.5, 9000), ("small", 0.3, 1000), ("middle", 0.4, 3000))
    ]
    found = held.curve([held.read(run) for run in runs])
    assert [point["trained_tokens"] for point in found["points"]] == [0, 1000, 3000, 9000]
    assert [round(point["rouge_l"], 2) for point in found["points"]] == [0.1, 0.3, 0.4, 0.5]
    table = list(held.curve_lines(found))
    assert "untrained base" in table[2]
    assert "9,000" in table[-1]


def test_a_run_that_does_not_say_how_much_it_trained_on_has_no_point(tmp_path):
    runs = [write_run(tmp_path / "a", lambda n: 0.2), write_run(tmp_path / "b", lambda n: 0.2, trained=None)]
    with pytest.raises(RunFolderError, match="does not say how much it was trained on"):
        held.curve([held.read(run) for run in runs])


def test_hidden_characters_of_answers_are_shown(tmp_path):
    one, other = write_run(tmp_path / "a", lambda n: 0.2), write_run(tmp_path / "b", lambda n: 0.3)
    text = (other / "answers.jsonl").read_text().replace("answer 0.30", "answer \\u202e\\u001b[31m")
    (other / "answers.jsonl").write_text(text)
    shown = "\n".join(held.lines(told(one, other)))
    assert "\u202e" not in shown
    assert "\x1b" not in shown
    assert "⟦U+202E⟧" in shown


def write_tasks(run: Path, values: list[float], **setting) -> Path:
    """What its student said to a task of the lm-evaluation-harness, beside an older row that counts no more."""
    documents = [{"id": n, "hash": f"h{n}", "values": {"acc,none": value}} for n, value in enumerate(values)]
    row = {"key": "now", "task": "order", "version": "1.0", "higher": {"acc": True}, "documents": documents}
    (run / "lm_eval").mkdir()
    write_rows(run / "lm_eval" / "student.jsonl", [{**row, "key": "before", "documents": []}, row])
    scores = json.loads((run / "scores.json").read_text())
    write_json(run / "scores.json", {**scores, "lm_eval": {"said": ["now"], "shots": None, "chat": False, **setting}})
    return run


def test_tasks_of_the_harness_pair_by_document(tmp_path):
    first = write_tasks(write_run(tmp_path / "a", lambda n: 0.2), [1.0] * 30)
    second = write_tasks(write_run(tmp_path / "b", lambda n: 0.2), [0.0] * 25)
    found = told(first, second)
    task = change(found, "order acc,none")
    assert (task["title"], task["verdict"], task["difference"]["n"]) == ("order: acc (25 documents)", "worse", 25)
    assert (
        "  order: acc (25 documents): 1.000 → 0.000  -1.000 (95% CI -1.000 to -1.000, p < 0.001 adjusted)  worse"
        in (list(held.lines(found)))
    )
    assert found["warnings"] == []


def test_tasks_that_were_done_in_other_ways_are_warned_of(tmp_path):
    first = write_tasks(write_run(tmp_path / "a", lambda n: 0.2), [1.0] * 8)
    second = write_tasks(write_run(tmp_path / "b", lambda n: 0.2), [1.0] * 8, chat=True)
    assert any("the tasks of lm-eval were done in other ways" in warning for warning in told(first, second)["warnings"])
