"""The worst pairs in a terminal: in order, with what differs marked, and nothing that steers the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.cli import show
from distill.compare.results import ComparisonResults
from distill.compare.stage import Sides, descriptions
from distill.errors import RunFolderError
from distill.report.stage import shape
from distill.run.scores import read_scores
from tests.support.run_folder import change, write_run


def marked(text: str, what: str) -> str:
    return {"added": f"<{text}>", "removed": f"({text})"}.get(what, text)


def test_words_that_only_one_has_are_marked_in_both():
    assert show.mark_differences("The sea is wide and blue.", "The sea is old and blue.", marked) == (
        "The sea is <wide> and blue.", "The sea is (old) and blue."
    )  # fmt: skip
    assert show.mark_differences("", "All of it.", marked) == ("", "(All of it.)")
    assert show.mark_differences("Same\n\nwords.", "Same\n\nwords.", marked) == ("Same\n\nwords.", "Same\n\nwords.")


def test_the_worst_come_first_and_no_more_than_asked(tmp_path: Path):
    margins = iter([0.5, -0.9, 0.1, -0.2])

    def edit(row):
        margin = next(margins)
        return {
            **row,
            "outcome": {
                "by": "judge",
                "against": "teacher",
                "value": "loss" if margin < 0 else "win",
                "margin": margin,
            },
        }

    change(write_run(tmp_path, prompts=4) / "answers.jsonl", edit)
    heads = [line for line in show.worst_lines(tmp_path, 2, marked) if " of 4 · " in line]
    assert heads == [
        "1 of 4 · t0001 · worse than the teacher by the judge (−0.90)",
        "2 of 4 · t0003 · worse than the teacher by the judge (−0.20)",
    ]


def test_answers_of_the_data_are_called_the_reference_and_no_teachers(tmp_path: Path):
    write_run(tmp_path, prompts=1)
    results = ComparisonResults(prompts=[], answers={"teacher": {0: None}})
    described = descriptions(tmp_path, results, Sides())
    change(tmp_path / "scores.json", lambda scores: {**scores, "models": {**scores["models"], **described}})
    scores = read_scores(tmp_path)
    assert "teacher" not in scores.headline + "".join(f"{one.title} {one.unit}" for one in scores.metrics.values())
    assert shape(tmp_path)["models"]["teacher"] == "Reference"
    starts = [line.partition(":")[0] for line in show.worst_lines(tmp_path, 1, marked)]
    assert ("reference" in starts, "teacher" in starts) == (True, False)


def test_control_characters_are_shown_and_do_nothing(tmp_path: Path):
    def edit(row):
        row["answers"]["student"]["text"] = "a\x1b[2Jb\u202ec"
        return row

    change(write_run(tmp_path, prompts=1) / "answers.jsonl", edit)
    shown = "\n".join(show.worst_lines(tmp_path, 1, marked))
    assert "\x1b" not in shown
    assert "⟦U+001B⟧[2Jb⟦U+202E⟧c" in shown


def test_a_run_that_was_not_compared_says_so(tmp_path: Path):
    with pytest.raises(RunFolderError, match="was not compared yet"):
        list(show.worst_lines(write_run(tmp_path, compare=False), 3, marked))
