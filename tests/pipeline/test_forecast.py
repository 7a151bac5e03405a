"""What `check` says of requests, tokens and USD holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.core.jsonl import write_rows
from distill.errors import RecipeError
from distill.pipeline.forecast import lines
from distill.pipeline.parts import load_recipe
from distill.types import Task

TEACHER = {"model": "m", "base_url": "http://127.0.0.1:9/v1", "terms": "ours", "sampling": {"max_tokens": 96}}
PRICE = {"input": 0.15, "output": 0.6}
STUDENT = {"student": {"model": "smollm2"}, "train": {}}


def forecast(folder: Path, run: Path | None = None, **sections: Any) -> list[str]:
    """The lines of `check` for a recipe with a teacher, 12 seeds and 10 tasks beside it."""
    (folder / "seeds.txt").write_text("".join(f"Say how to mend part {one} of a bike.\n" for one in range(12)))
    (folder / "tasks.txt").write_text("".join(f"Mend part {one}.\n" for one in range(10)))
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "Mend it.", "answer": "Done."}))
    document = {"name": "told", "teacher": {**TEACHER, "price": PRICE}, **sections}
    path = folder / "told.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in document.items() if value is not None}))
    return lines(load_recipe(path), probed=False, run=run)[1:]


EXPAND = {"strategy": "self_instruct", "seeds": "seeds.txt", "tasks": 30}


def test_an_expansion_has_a_range_that_holds_51_requests_and_6087_tokens_with_twelve_seeds(tmp_path: Path) -> None:
    line, time = forecast(tmp_path, expand=EXPAND)
    assert line == (
        "expand: 5 to 66 requests, 1,100 to 14,520 prompt tokens, 300 to 13,200 answer tokens, USD 0.0003 to 0.0101; "
        "the most if 90% of the candidates are refused; more are possible (budget_usd is the cap)"
    )
    assert time.startswith("teacher time: about 0.6 min at 5 s an answer and up to 32 in flight")


def test_answers_that_journals_hold_are_said_not_to_be_in_the_figures(tmp_path: Path) -> None:
    told = "not in these figures: answers that {} has to the same requests are not asked for again"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "journal.sqlite").touch()
    assert told.format(tmp_path / "a") in forecast(tmp_path, tmp_path, expand=EXPAND, reuse=["a"])
    (tmp_path / "journal.sqlite").touch()
    assert told.format(tmp_path) in forecast(tmp_path, tmp_path, expand=EXPAND)
    assert "not in these figures" not in "".join(forecast(tmp_path, expand=EXPAND))


@pytest.mark.parametrize(
    ("brought", "told"),
    [((2, 0, 1, 3), "14 to 45 requests"), ((0,), "5 to 66 requests"), ((6, 6, 6, 5), "5 to 10 requests")],
)
def test_what_a_run_has_brought_narrows_the_range(tmp_path: Path, brought: tuple[int, ...], told: str) -> None:
    meta = [{"strategy": "self_instruct", "request": number} for number in range(24)]
    admitted = [
        Task(f"{n}.{m}", "Mend.", meta=one) for n, one in enumerate(meta) for m in range(brought[n % len(brought)])
    ]
    write_rows(tmp_path / "tasks.jsonl", admitted)
    write_rows(tmp_path / "refused.jsonl", [Task(f"{n}.9", "", meta=one) for n, one in enumerate(meta)])
    assert told in forecast(tmp_path, tmp_path, expand=EXPAND)[0]


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"strategy": "answer"}, "at most 10 requests, about 130 prompt tokens, at most 960 answer tokens"),
        ({"strategy": "best_of", "samples": 2}, "at most 40 requests, about 8,240 prompt tokens, at most 10,240 "),
        ({"strategy": "instances"}, "at most 20 requests, about 16,260 prompt tokens, at most 7,000 answer tokens"),
        (
            {"strategy": "user_simulator", "max_rounds": 3, "user_sampling": {}},
            "no bound on answer tokens, no bound on",
        ),
    ],
)
def test_the_longest_answer_of_any_request_bounds_them_all(
    tmp_path: Path, sections: Mapping[str, Any], told: str
) -> None:
    assert told in forecast(tmp_path, collect={"tasks": "tasks.txt", "test": 0, **sections})[0]


def test_compare_is_bounded_by_its_own_sampling_and_counts_every_endpoint(tmp_path: Path) -> None:
    compare = {"sampling": {"max_tokens": 400}, "base": {**TEACHER, "price": PRICE}}
    told = forecast(tmp_path, collect={"tasks": "tasks.txt", "test": 4}, compare=compare, **STUDENT)
    assert told[1].startswith("compare: at most 4 requests, about 52 prompt tokens, at most 1,600 answer tokens")
    assert told[2].startswith("compare (base): at most 4 requests, about 52 prompt tokens, at most 1,600 answer tokens")


def test_without_a_teacher_nothing_is_asked_and_nothing_paid(tmp_path: Path) -> None:
    rows = [{"path": "rows.jsonl", "from": "prompt_response"}]
    told = forecast(tmp_path, teacher=None, sources=rows, curate=[], test=2, compare={}, **STUDENT)
    assert told[0] == "no teacher, judge or endpoint is asked: nothing is paid"
    assert "USD" not in "".join(told)


LABELS = ["yes", "no"]
PARTS = {
    "collect": {"strategy": "best_of", "pick": "check", "labels": LABELS, "test": 4},
    "curate": [{"filter": "verified", "labels": LABELS}],
    "compare": {"metrics": [{"metric": "accuracy", "labels": LABELS}]},
}


@pytest.mark.parametrize(
    ("references", "part", "told"),
    [
        (["yes", None], "collect", "collect: 1 of 2 rows cannot be checked, the first line-00002: it has no reference"),
        (
            ["yse", "no"],
            "curate",
            'curate.verified: 1 of 2 rows cannot be checked, the first line-00001: the reference "yse"',
        ),
        ([None, None], "collect", "collect: 2 of 2 rows cannot be checked"),
        (
            [3, 4],
            "compare",
            "compare.metrics.accuracy: 2 of 2 rows cannot be checked, the first line-00001: the reference 3",
        ),
    ],
)
def test_references_that_no_check_can_take_are_said_before_a_model_is_asked(tmp_path, references, part, told):
    rows = [{"instruction": f"Is {n} even?", **({"reference": one} if one else {})} for n, one in enumerate(references)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = {"collect": {"strategy": "answer"}, part: PARTS[part]}
    sections["collect"] = {**sections["collect"], "tasks": "tasks.jsonl"}
    if "2 of 2" in told:
        with pytest.raises(RecipeError) as raised:
            forecast(tmp_path, **STUDENT, **sections)
        assert told in str(raised.value)
    else:
        assert [line for line in forecast(tmp_path, **STUDENT, **sections) if told in line]


def test_the_samples_that_a_metric_needs_are_counted(tmp_path):
    metric = {"metric": "accuracy", "samples": 4, "k": [1, 4]}
    sections = {"collect": {"tasks": "tasks.txt", "test": 5}, **STUDENT, "compare": {"metrics": [metric]}}
    told = [line for line in forecast(tmp_path, **sections) if line.startswith("compare")]
    assert told[0].startswith("compare: at most 25 requests")  # again 5, samples 20
    with pytest.raises(RecipeError, match=r"samples: at temperature 0 all samples are the same; set compare.sampling"):
        forecast(tmp_path, **{**sections, "compare": {"metrics": [metric], "sampling": {"temperature": 0}}})
