"""Stage curate: who is kept, who is held out, who is dropped and why; and the whole way there from seeds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import assets
from distill.collect import Chosen, collect
from distill.curate import curate, held_out
from distill.engine.drive import Engine
from distill.errors import StageIncomplete
from distill.expand import expand
from distill.filters.empty import Empty
from distill.filters.exact_duplicate import ExactDuplicate
from distill.filters.length import Length
from distill.filters.near_duplicate import NearDuplicate
from distill.filters.refusal import Refusal
from distill.journal import Journal
from distill.providers.scripted import Scripted
from distill.rows import read_jsonl, read_sessions, read_tasks, write_rows
from distill.strategies.answer import Answer
from distill.strategies.pool import load_seeds
from distill.strategies.self_instruct import SelfInstruct
from distill.text import rouge_l, rouge_tokens
from distill.types import Message, Request, Session

VERBS = ("Explain", "Describe", "Compare", "Praise", "Recall", "Name", "Sketch", "Defend", "Rank", "Invent")
THINGS = ("rivers", "kites", "soups", "clocks", "owls", "poems", "coins", "songs", "hats", "tides", "bees", "tents")


def session(number: int, prompt: str, answer: str = "A plain and honest answer.", **meta) -> Session:
    return Session(f"s{number:03}", (Message("user", prompt), Message("assistant", answer)), meta)


def varied(count: int, seed: int = 0) -> list[Session]:
    rng = random.Random(seed)
    return [session(number, f"{rng.choice(VERBS)} {' '.join(rng.sample(THINGS, 5))}.") for number in range(count)]


def curated(folder: Path, sessions: list[Session], *filters, test: int = 0, seed: int = 7):
    write_rows(folder / "sessions.jsonl", sessions)
    return curate(folder, filters=filters, test=test, seed=seed)


def ids(folder: Path, name: str) -> list[str]:
    return [row["id"] for row in read_jsonl(folder / f"{name}.jsonl")]


def prompts(folder: Path, name: str) -> list[str]:
    return [each.messages[0].content for each in read_sessions(folder / f"{name}.jsonl")]


LENGTH = ("length", Length(Length.Options(min_words=3)))
EMPTY = ("empty", Empty(Empty.Options()))
REFUSAL = ("refusal", Refusal(Refusal.Options()))
EXACT = ("exact_duplicate", ExactDuplicate(ExactDuplicate.Options()))
NEAR = ("near_duplicate", NearDuplicate(NearDuplicate.Options()))


def test_every_session_is_kept_dropped_or_held_out_and_none_twice(tmp_path):
    sessions = [*varied(60), session(60, "Say hello.", "Hi"), session(61, "Say bye.", "")]
    counts = curated(tmp_path, sessions, LENGTH, EMPTY, NEAR, test=10)
    split = [*ids(tmp_path, "kept"), *ids(tmp_path, "dropped"), *ids(tmp_path, "test")]
    assert sorted(split) == [each.id for each in sessions]
    assert counts["rows"] == counts["kept"] + counts["dropped"] + counts["test"]
    assert (counts["test"], counts["dropped"]) == (10, sum(counts["by_rule"].values()))


def test_files_are_in_task_order(tmp_path):
    curated(tmp_path, varied(60), NEAR, test=10)
    for name in ("kept", "test", "dropped"):
        assert ids(tmp_path, name) == sorted(ids(tmp_path, name))


def test_a_row_is_written_as_it_came(tmp_path):
    sessions = [session(0, "Say  it\twith odd\u00a0spaces.", ' "Quoted" – answer\n\nhere. ', keys=["k"], labels=[])]
    curated(tmp_path, sessions, LENGTH)
    assert read_sessions(tmp_path / "kept.jsonl") == sessions


def test_every_row_rule_measures_a_dropped_row_too(tmp_path):
    curated(tmp_path, [session(0, "Say hello.", "?"), session(1, "Say good night.")], LENGTH, EMPTY)
    (row,) = read_jsonl(tmp_path / "dropped.jsonl")
    assert [(verdict["rule"], verdict["reason"]) for verdict in row["verdicts"]] == [
        ("length", "too_few_words"),
        ("empty", "empty"),
    ]


def test_the_verdicts_against_a_row_come_first(tmp_path):
    sessions = [session(0, "Say hello.", "Yes"), session(1, "Say good night.")]
    counts = curated(tmp_path, sessions, EMPTY, LENGTH)
    (row,) = read_jsonl(tmp_path / "dropped.jsonl")
    assert [verdict["rule"] for verdict in row["verdicts"]] == ["length", "empty"]
    assert counts["by_rule"] == {"length/too_few_words": 1}


def test_a_label_is_written_and_counted_and_drops_nothing(tmp_path):
    sessions = [session(0, "What do you eat?", "As an AI, I do not eat."), session(1, "Say good night.")]
    counts = curated(tmp_path, sessions, REFUSAL)
    assert [each.meta["labels"] for each in read_sessions(tmp_path / "kept.jsonl")] == [["refusal"], []]
    assert (counts["labelled"], counts["labels"], counts["dropped"]) == (1, {"refusal": 1}, 0)


def test_set_rules_see_only_what_is_still_kept_in_their_order(tmp_path):
    sessions = [
        session(0, "Name four kinds of clouds today.", "No"),
        session(1, "Name four kinds of clouds today."),
        session(2, "name four kinds of CLOUDS today."),
        session(3, "Name five kinds of clouds today."),
    ]
    curated(tmp_path, sessions, EXACT, NEAR, LENGTH)
    rows = {row["id"]: row["verdicts"][0] for row in read_jsonl(tmp_path / "dropped.jsonl")}
    assert ids(tmp_path, "kept") == ["s001"]
    assert [(id, rows[id]["rule"], rows[id]["neighbour"]) for id in sorted(rows)] == [
        ("s000", "length", ""),
        ("s002", "exact_duplicate", "s001"),
        ("s003", "near_duplicate", "s001"),
    ]


# --- the test split


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


# --- what cannot go on


def test_nothing_left_names_the_rule_that_dropped_most(tmp_path):
    sessions = [*(session(number, f"Say {number}.", "No") for number in range(5)), session(9, "Go.", "")]
    with pytest.raises(StageIncomplete, match=r"length/too_few_words dropped most \(5 of 6") as raised:
        curated(tmp_path, sessions, EMPTY, LENGTH)
    assert "\n" not in str(raised.value)
    assert len(ids(tmp_path, "dropped")) == 6


def test_no_sessions_at_all_is_an_error(tmp_path):
    with pytest.raises(StageIncomplete, match=r"sessions\.jsonl is empty"):
        curated(tmp_path, [], LENGTH)


def test_without_rules_everything_is_kept(tmp_path):
    assert curated(tmp_path, varied(9))["kept"] == 9


def test_running_again_writes_the_same(tmp_path):
    written = []
    for _ in range(2):
        curated(tmp_path, varied(60), LENGTH, NEAR, test=10)
        written.append([(tmp_path / f"{name}.jsonl").read_bytes() for name in ("kept", "test", "dropped")])
    assert written[0] == written[1]


# --- the whole way from seeds


def teacher_text(request: Request) -> str:
    """Tasks for a list to be continued; else an answer, now and then a refusal or nothing."""
    rng = random.Random(f"{request.replica}:{request.prompt}:{request.messages}")
    if request.prompt is not None:
        return "\n9. ".join(f"{rng.choice(VERBS)} {' '.join(rng.sample(THINGS, 5))}." for _ in range(5))
    return rng.choice(("I'm sorry, but I can't help with that.", "", *(f"It is about {each}." for each in THINGS)))


def test_seeds_become_sessions_to_train_on_with_one_journal(tmp_path):
    seeds = load_seeds(assets.find("prompts/seeds/general.jsonl"))
    with Journal.open(tmp_path / "journal.sqlite") as journal:
        engine = Engine(journal, {"teacher": Scripted(teacher_text)}, concurrency=8)
        growth = SelfInstruct(SelfInstruct.Options(), seeds=seeds, seed=7, target=80)
        grown = expand(tmp_path, growth=growth, target=80, engine=engine)
        status, collected = collect(
            tmp_path,
            tasks=read_tasks(tmp_path / "tasks.jsonl"),
            choose=lambda task: Chosen("teacher", "scripted", Answer(Answer.Options(system="Be brief."))),
            strategy_name="answer",
            seed=7,
            engine=engine,
            max_failed=0.0,
        )
    counts = curate(tmp_path, filters=[EMPTY, REFUSAL, EXACT, NEAR], test=16, seed=7)
    assert (grown["tasks"], status, collected["sessions"], counts["rows"], counts["test"]) == (80, "done", 80, 80, 16)
    assert counts["labels"]["refusal"] > 0
    assert set(counts["by_rule"]) <= {"empty/empty", "near_duplicate/near_duplicate", "test_split/held_out"}
    kept = read_sessions(tmp_path / "kept.jsonl")
    assert all([message.role for message in each.messages] == ["system", "user", "assistant"] for each in kept)
    assert all(len(each.meta["lineage"]) == 8 for each in kept)
