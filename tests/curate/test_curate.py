"""Stage curate: who is kept, who is held out, who is dropped and why; and the whole way there from seeds."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.collect.stage import TeacherChoice, collect
from distill.collect.strategies.answer import Answer
from distill.core import assets
from distill.core.jsonl import read_jsonl, read_sessions
from distill.curate.filters.empty import Empty
from distill.curate.filters.exact_duplicate import ExactDuplicate
from distill.curate.filters.near_duplicate import NearDuplicate
from distill.curate.filters.refusal import Refusal
from distill.curate.stage import curate
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.providers.scripted import Scripted
from distill.errors import StageIncomplete
from distill.expand.seeds import load_seeds
from distill.expand.stage import expand
from distill.expand.strategies.self_instruct import SelfInstruct
from distill.types import Request
from tests.support.curating import LENGTH, THINGS, VERBS, curated, ids, session, varied
from tests.support.engine.engines import bound
from tests.support.tasks import read_tasks

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


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.randoms())
def test_the_order_of_sessions_changes_no_verdict_of_a_rule_on_a_row(tmp_path_factory, rng):
    folder = tmp_path_factory.mktemp("order")
    sessions = [*varied(20), session(20, "Say hello.", "Hi"), session(21, "Say bye.", "I cannot help.")]
    found = []
    for _ in range(2):
        curated(folder, sessions, LENGTH, EMPTY, REFUSAL)
        rows = [row for name in ("kept", "dropped") for row in read_jsonl(folder / f"{name}.jsonl")]
        found.append({row["id"]: row["verdicts"] for row in rows})
        rng.shuffle(sessions)
    assert found[0] == found[1]


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


# --- what others read


def test_every_row_of_every_file_has_every_verdict_in_texts_alone(tmp_path):
    sessions = [*varied(40), session(40, "Say hello.", "Hi"), session(41, "Say hello now.", "Hi")]
    curated(tmp_path, sessions, LENGTH, EMPTY, REFUSAL, NEAR, test=5)
    for name, rules in (("kept", 4), ("test", 3), ("dropped", 3)):
        rows = list(read_jsonl(tmp_path / f"{name}.jsonl"))
        assert rows
        for row in rows:
            assert len(row["verdicts"]) >= rules
            for verdict in row["verdicts"]:
                assert {key: type(value) for key, value in verdict.items()} == {
                    "rule": str, "keep": bool, "reason": str, "value": str, "threshold": str, "neighbour": str,
                    "note": str,
                }  # fmt: skip


def test_sessions_are_read_back_past_their_verdicts(tmp_path):
    sessions = varied(20)
    curated(tmp_path, sessions, LENGTH, EXACT)
    assert [each.id for each in read_sessions(tmp_path / "kept.jsonl")] == ids(tmp_path, "kept")


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
        engine = Engine(journal, bound(teacher=Scripted(teacher_text)), concurrency=8)
        growth = SelfInstruct(SelfInstruct.Options(), seeds=seeds, seed=7, target=80)
        grown = expand(tmp_path, growth=growth, target=80, engine=engine)
        status, collected = collect(
            tmp_path,
            tasks=read_tasks(tmp_path / "tasks.jsonl"),
            choose=lambda task: TeacherChoice("teacher", "scripted", Answer(Answer.Options(system="Be brief."))),
            strategy_name="answer",
            seed=7,
            engine=engine,
            max_failed=0.05,
        )
    counts = curate(tmp_path, filters=[EMPTY, REFUSAL, EXACT, NEAR], test=16, seed=7)
    assert (grown["tasks"], status, counts["rows"], counts["test"]) == (80, "done", 76, 16)
    assert (collected["sessions"], collected["failed"]) == (76, 4)  # the teacher says nothing to four
    assert counts["labels"]["refusal"] > 0
    assert set(counts["by_rule"]) <= {"empty/empty", "near_duplicate/near_duplicate", "test_split/held_out"}
    kept = read_sessions(tmp_path / "kept.jsonl")
    assert all([message.role for message in each.messages] == ["system", "user", "assistant"] for each in kept)
    assert all(len(each.meta["lineage"]) == 8 for each in kept)
