"""The test split: exactly so many rows, none near a training prompt, the same in any order."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from distill.core.jsonl import read_jsonl, read_sessions
from distill.curate import stage
from distill.curate.test_split import held_out
from distill.text.tokens import rouge_l, rouge_tokens
from distill.types import Session
from tests.support.curating import LENGTH, curated, ids, session, varied


def prompts(folder: Path, name: str) -> list[str]:
    return [each.messages[0].content for each in read_sessions(folder / f"{name}.jsonl")]


def test_exactly_so_many_rows_are_held_out_where_possible(tmp_path):
    assert curated(tmp_path, varied(80), test=16)["test"] == 16


def test_no_training_prompt_is_near_a_held_out_one(tmp_path):
    sessions = [*varied(60), *varied(60)]
    sessions = [Session(f"s{number:03}", each.messages) for number, each in enumerate(sessions)]
    counts = curated(tmp_path, sessions, test=16)
    assert counts["by_rule"]["test_split/held_out"] >= 16
    pairs = [
        rouge_l(rouge_tokens(kept), rouge_tokens(test))
        for kept in prompts(tmp_path, "kept")
        for test in prompts(tmp_path, "test")
    ]
    assert max(pairs) <= 0.7


def test_a_row_dropped_for_a_held_out_one_names_it(tmp_path):
    sessions = [Session(f"s{number:03}", each.messages) for number, each in enumerate([*varied(30), *varied(30)])]
    curated(tmp_path, sessions, test=8)
    rows = [row["verdicts"][0] for row in read_jsonl(tmp_path / "dropped.jsonl")]
    assert {verdict["reason"] for verdict in rows} == {"held_out"}
    assert {verdict["neighbour"] for verdict in rows} <= set(ids(tmp_path, "test"))


def test_held_out_prompts_are_not_near_each_other(tmp_path):
    sessions = [Session(f"s{number:03}", each.messages) for number, each in enumerate([*varied(30), *varied(30)])]
    curated(tmp_path, sessions, test=12)
    held = prompts(tmp_path, "test")
    pairs = [rouge_l(rouge_tokens(a), rouge_tokens(b)) for i, a in enumerate(held) for b in held[:i]]
    assert max(pairs) <= 0.7


def test_a_dropped_row_is_never_held_out(tmp_path):
    sessions = [session(number, each.messages[0].content, "No") for number, each in enumerate(varied(40))]
    curated(tmp_path, [*sessions, *(session(99 + n, f"Say {n}.") for n in range(9))], LENGTH, test=20)
    assert not {each.id for each in sessions} & set(ids(tmp_path, "test"))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(0, 60), st.integers(0, 24))
def test_more_sessions_move_no_row_across(seed, fewer, more, test):
    sessions = varied(fewer + more, seed)
    before = held_out(sessions[:fewer], test=test, seed=seed, near=0.7)
    after = held_out(sessions, test=test, seed=seed, near=0.7)
    assert before == {id for id in after if int(id[1:]) < fewer}


def test_another_seed_holds_out_other_rows():
    sessions = varied(80)
    splits = [held_out(sessions, test=16, seed=seed, near=0.7) for seed in (1, 2)]
    assert splits[0] != splits[1]


def test_the_split_does_not_depend_on_case_or_white_space():
    sessions = varied(60)
    shouting = [session(n, each.messages[0].content.upper().replace(" ", "  ")) for n, each in enumerate(sessions)]
    assert held_out(sessions, test=16, seed=7, near=0.7) == held_out(shouting, test=16, seed=7, near=0.7)


def test_too_few_rows_to_hold_out_are_counted_and_said(tmp_path, capsys):
    counts = curated(tmp_path, varied(20), test=32)
    assert counts["test"] + counts["test_missing"] == 32
    assert 0 < counts["test"] < 20
    assert counts["kept"] > 0
    assert f"{counts['test']} of 32 prompts could be held out" in capsys.readouterr().err


# --- prompts of one template

TEMPLATES = ("Translate the sentence below into Greek: {}.", "{}. Is this positive or negative? Answer with one word.")


def templated(count: int, seed: int = 0) -> list[Session]:
    """Ordinary prompts, and prompts of two templates, in any order."""
    rng = random.Random(seed)
    texts = [each.messages[0].content.rstrip(".") for each in varied(count, seed)]
    return [session(number, rng.choice((*TEMPLATES, "{}")).format(text)) for number, text in enumerate(texts)]


def test_a_job_with_a_template_keeps_its_rows_and_has_its_test_rows(tmp_path, capsys):
    sessions = [
        session(number, TEMPLATES[0].format(each.messages[0].content)) for number, each in enumerate(varied(60))
    ]
    counts = curated(tmp_path, sessions, test=8)
    assert (counts["test"], counts["kept"] >= 48) == (8, True)
    assert counts["frames"] == [{"frame": "translate the sentence below into greek: …", "rows": 60}]
    assert capsys.readouterr().err.count("60 prompts share") == 1


class Frames:
    """Three frames, of which two differ behind what is shown."""

    def counts(self, prompts):
        assert list(prompts) == []
        return [(f"{'help desk ' * 12}one …", 30), ("what is …", 20), (f"{'help desk ' * 12}two …", 12)]


def test_frames_that_look_alike_are_one_line(capsys):
    assert [one["rows"] for one in stage._report_frames(Frames(), [])] == [42, 20]
    said = capsys.readouterr().err
    assert said.startswith('curate: 42 prompts share "help desk ')
    assert ', 20 prompts share "what is …"; prompts are compared without it\n' in said


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(0, 60), st.integers(0, 24))
def test_more_sessions_of_a_template_move_no_row_across(seed, fewer, more, test):
    sessions = templated(fewer + more, seed)
    before = held_out(sessions[:fewer], test=test, seed=seed, near=0.7)
    after = held_out(sessions, test=test, seed=seed, near=0.7)
    assert before == {id for id in after if int(id[1:]) < fewer}


def test_a_frame_of_a_few_prompts_leaves_the_other_prompts_their_side():
    sessions = varied(80)
    more = [session(100 + number, TEMPLATES[1].format(number)) for number in range(20)]
    alone = held_out(sessions, test=80, seed=7, near=0.7)
    assert alone == {id for id in held_out([*more, *sessions], test=100, seed=7, near=0.7) if int(id[1:]) < 100}


def test_a_set_of_one_prompt_is_not_emptied_and_the_key_is_named(tmp_path, capsys):
    counts = curated(tmp_path, [session(number, "Name a city.", f"The {number}th.") for number in range(40)], test=8)
    assert (counts["test"], counts["kept"], counts["labels"]) == (1, 39, {"near_held_out": 39})
    assert "--set collect.test.near=0.85" in capsys.readouterr().err


def test_many_rows_near_the_held_out_ones_are_dropped_and_the_key_is_named(tmp_path, capsys):
    sessions = [Session(f"s{number:03}", each.messages) for number, each in enumerate(varied(9) * 4)]
    counts = curated(tmp_path, sessions, test=8, seed=3)
    dropped = counts["by_rule"]["test_split/held_out"]
    assert dropped > 36 / 5
    assert f"test_split: {dropped} of 36 rows are dropped" in capsys.readouterr().err
