"""Rows that share a run of words with a benchmark."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.curate.filters.contamination import Contamination
from distill.errors import RecipeError
from tests.support.row_filters import session, verdict

LONG = "A train leaves Boston at noon and another leaves New York one hour later so when do they meet"


@pytest.fixture
def benchmark(tmp_path):
    rows = [
        {"id": 1, "turns": [LONG, "And which of the two arrives first in the end?"]},
        {"id": 2, "question": "Who wrote Hamlet?", "answer": "Shakespeare"},
        *(
            {"id": n, "question": f"Choose the one best answer to the question that is given below now: item {n}"}
            for n in range(3, 20)
        ),
    ]
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_a_shared_run_of_words_is_dropped_with_the_row_that_it_is_from(benchmark):
    rule = Contamination(Contamination.Options(files=[str(benchmark)]))
    found = verdict(rule, session(f"Here is one: “{LONG.upper()}!” Good luck."))
    assert (found.keep, found.reason, found.neighbour) == (False, "contaminated", "bench.jsonl:1")
    assert found.value == "a train leaves boston at noon and another leaves new york one hour"


@pytest.mark.parametrize(
    ("prompt", "row"),
    [
        ("So: and which of the two arrives first in the end? Tell me.", "bench.jsonl:1"),
        ("who wrote Hamlet", "bench.jsonl:2"),
        ("Tell me who wrote Hamlet, please", None),
        (" ".join(LONG.split()[:12]), None),
        ("Choose the one best answer to the question that is given below now: my own", None),
        ("Name a river in Europe that flows into the Black Sea after ten countries.", None),
    ],
)
def test_short_rows_match_whole_and_common_runs_do_not_count(benchmark, prompt, row):
    rule = Contamination(Contamination.Options(files=[str(benchmark)]))
    assert verdict(rule, session(prompt=prompt)).neighbour == row


def test_keys_name_what_is_compared(benchmark):
    rule = Contamination(Contamination.Options(files=[str(benchmark)], keys=["question"]))
    assert verdict(rule, session(LONG)).keep
    assert not verdict(rule, session(prompt="Who wrote Hamlet?")).keep


@pytest.mark.parametrize("name", ["bench.txt", "bench.json"])
def test_text_and_json_lists_are_read_too(tmp_path, name):
    path = tmp_path / name
    path.write_text(f"first line\n{LONG}\n" if name.endswith("txt") else json.dumps(["first line", LONG]))
    rule = Contamination(Contamination.Options(files=[str(path)]))
    assert verdict(rule, session(LONG)).neighbour == f"{name}:2"


def test_a_benchmark_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{")
    for name in ("bad.jsonl", "none.jsonl"):
        with pytest.raises(RecipeError, match=re.escape(name)) as raised:
            Contamination(Contamination.Options(files=[str(tmp_path / name)])).measure(session())
        assert "\n" not in str(raised.value)


WORDS = st.lists(st.sampled_from(["red", "green", "blue", "one", "two", "three"]), min_size=8, max_size=30)


@settings(max_examples=50, deadline=None)
@given(WORDS, WORDS, WORDS, st.integers(8, 14))
def test_a_copied_run_is_found_wherever_it_stands(tmp_path_factory, before, copied, after, words):
    path = tmp_path_factory.getbasetemp() / "copied.txt"
    path.write_text(" ".join(copied))
    rule = Contamination(Contamination.Options(files=[str(path)], words=words, common=1000))
    assert rule.measure(session(" ".join([*before, *copied, *after]))) is not None


@settings(max_examples=50, deadline=None)
@given(WORDS, WORDS)
def test_longer_runs_never_find_more(tmp_path_factory, row, text):
    path = tmp_path_factory.getbasetemp() / "row.txt"
    path.write_text(" ".join([*row, *("end" * n for n in range(1, 15))]))
    found = [
        Contamination(Contamination.Options(files=[str(path)], words=words)).measure(session(" ".join(text)))
        is not None
        for words in (8, 10, 13)
    ]
    assert found == sorted(found, reverse=True)
