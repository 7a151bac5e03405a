"""Stage curate: who is kept, who is held out, who is dropped and why; and the whole way there from seeds."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.collect.stage import TeacherChoice, collect
from distill.collect.strategies.answer import Answer
from distill.core import assets
from distill.core.jsonl import read_jsonl, read_sessions, read_tasks, write_rows
from distill.curate.filters.empty import Empty
from distill.curate.filters.exact_duplicate import ExactDuplicate
from distill.curate.filters.judge import Judge
from distill.curate.filters.length import Length
from distill.curate.filters.near_duplicate import NearDuplicate
from distill.curate.filters.refusal import Refusal
from distill.curate.stage import curate
from distill.curate.test_split import held_out
from distill.engine import StoppedByEndpoint
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.providers import ProviderError
from distill.engine.providers.scripted import Scripted
from distill.errors import StageIncomplete
from distill.expand.seeds import load_seeds
from distill.expand.stage import expand
from distill.expand.strategies.self_instruct import SelfInstruct
from distill.text.tokens import rouge_l, rouge_tokens
from distill.types import Message, Request, Session, Verdict

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


# --- rules that ask a model


def judged(folder: Path, sessions: list[Session], *filters, script, **options):
    """Curate with a judge that follows the script; returns the counts and the requests that reached it."""
    write_rows(folder / "sessions.jsonl", sessions)
    judge = Scripted(script)
    with Journal.open(folder / "journal.sqlite") as journal:

        def ask(flows, *, rule, role):
            assert role == "judge"
            return Engine(journal, {role: judge}, stage="curate", attempts=1, concurrency=4).run(flows)

        return curate(folder, filters=filters, test=0, seed=7, ask=ask, **options), judge.requests


def scores(request: Request) -> str:
    """A number out of the answer that is graded."""
    return f"It says so.\nScore: {re.findall(r'is worth ([0-9]+)', request.messages[0].content)[-1]}"


WORTHS = [session(number, f"Question {number}?", f"This one is worth {number}") for number in range(10)]


def judge(**options):
    return "judge", Judge(Judge.Options(**options))


def test_a_judges_grade_and_reason_are_on_every_row(tmp_path):
    counts, requests = judged(tmp_path, WORTHS, judge(min_score=4), script=scores)
    assert (len(requests), counts["kept"], counts["by_rule"]) == (10, 6, {"judge/low_score": 4})
    rows = [row for name in ("dropped", "kept") for row in read_jsonl(tmp_path / f"{name}.jsonl")]
    assert [float(row["verdicts"][0]["value"]) for row in rows] == list(range(10))
    assert {row["verdicts"][0]["note"] for row in rows} == {"It says so."}


def test_another_threshold_decides_anew_and_asks_nobody(tmp_path):
    for least, kept in ((4, 6), (8, 2), (0, 10)):
        counts, requests = judged(tmp_path, WORTHS, judge(min_score=least), script=scores)
        assert counts["kept"] == kept
        assert len(requests) == (10 if least == 4 else 0)


def test_nobody_pays_for_a_row_that_a_free_rule_drops_unless_told(tmp_path):
    sessions = [*WORTHS, session(10, "Say hello.", "is worth 1")]
    short = ("length", Length(Length.Options(min_words=4)))
    counts, requests = judged(tmp_path, sessions, judge(min_score=4), short, script=scores)
    assert (len(requests), counts["measured"]) == (10, {"length": 11, "judge": 10})
    counts, requests = judged(tmp_path, sessions, judge(min_score=4, every_row=True), short, script=scores)
    assert (len(requests), counts["measured"]) == (1, {"length": 11, "judge": 11})
    assert counts["overlaps"] == {"length": {"judge": 1}}


def test_equal_sessions_are_asked_about_once(tmp_path):
    sessions = [session(number, "Why?", "It is worth 5") for number in range(9)]
    assert len(judged(tmp_path, sessions, judge(), script=scores)[1]) == 1


def test_a_row_without_a_grade_is_kept_labelled_and_counted(tmp_path):
    def script(request: Request):
        return "I would rather not." if "worth 3" in request.messages[0].content else scores(request)

    counts, _ = judged(tmp_path, WORTHS, judge(min_score=9), script=script)
    assert counts["labels"] == {"unparsed": 1}
    assert ids(tmp_path, "kept") == ["s003", "s009"]


def test_a_judge_of_whom_nothing_can_be_read_is_warned_of_and_drops_nothing(tmp_path, capsys):
    counts, _ = judged(tmp_path, WORTHS, judge(min_score=9), script=lambda request: "What a nice question!")
    assert counts["kept"] == 10
    assert "judge: 10 of 10 replies cannot be read" in capsys.readouterr().err


def failing(transient: bool):
    def script(request: Request):
        return ProviderError("http_503" if transient else "http_400", "no luck", transient=transient)

    return script


def some_fail(request: Request):
    return failing(True)(request) if "worth 3" in request.messages[0].content else scores(request)


def test_rows_that_a_judge_failed_on_are_kept_and_asked_about_again(tmp_path):
    counts, _ = judged(tmp_path, WORTHS, judge(min_score=9), script=some_fail, max_failed=0.1)
    assert (counts["failed"], counts["retryable"], counts["labels"]) == (1, 1, {"not_measured": 1})
    (row,) = [row for row in read_jsonl(tmp_path / "kept.jsonl") if row["id"] == "s003"]
    assert "no luck" in row["verdicts"][0]["note"]
    counts, requests = judged(tmp_path, WORTHS, judge(min_score=9), script=scores)
    assert (len(requests), counts["failed"], ids(tmp_path, "kept")) == (1, 0, ["s009"])


@pytest.mark.parametrize(("transient", "advice"), [(True, "run again"), (False, "--retry-failed")])
def test_a_judge_that_fails_on_too_many_is_an_error_with_everything_written(tmp_path, transient, advice):
    with pytest.raises(StageIncomplete, match=rf"^judge: 10 of 10 rows could not be measured .*no luck.*{advice}"):
        judged(tmp_path, WORTHS, judge(min_score=9), script=failing(transient))
    assert len(ids(tmp_path, "kept")) == 10


def test_a_stopped_judge_leaves_what_it_said_and_the_rest_unmeasured(tmp_path):
    def script(request: Request):
        refused = ProviderError("http_401", "who are you?", fatal=True)
        return refused if "worth 8" in request.messages[0].content else scores(request)

    with pytest.raises(StoppedByEndpoint, match="who are you"):
        judged(tmp_path, WORTHS, judge(min_score=4), ("length", Length(Length.Options())), script=script)
    verdicts = {
        row["id"]: row["verdicts"] for name in ("kept", "dropped") for row in read_jsonl(tmp_path / f"{name}.jsonl")
    }
    assert len(verdicts) == 10
    assert {one["reason"] for each in verdicts.values() for one in each} == {"ok", "low_score", "not_measured"}


def test_a_rule_that_asks_needs_somebody_to_ask(tmp_path):
    with pytest.raises(TypeError, match="judge"):
        curated(tmp_path, varied(2), judge())


# --- rules that mend


class Masking:
    """Puts stars in the place of digits."""

    scope = "row"

    def measure(self, session: Session) -> int:
        return sum(character.isdigit() for message in session.messages for character in message.content)

    def decide(self, value: int) -> Verdict:
        return Verdict(rule="masking", keep=True, reason="masked" if value else "ok", value=value)

    def mend(self, session: Session, value: int) -> Session:
        masked = tuple(replace(each, content=re.sub(r"\d", "*", each.content)) for each in session.messages)
        return replace(session, messages=masked) if value else session


def test_a_mended_session_goes_on_in_the_others_place(tmp_path):
    sessions = [session(0, "Call whom?", "Call 555 123 now, please."), session(1, "Say good night.")]
    counts = curated(tmp_path, sessions, ("masking", Masking()), ("masking again", Masking()))
    kept = read_sessions(tmp_path / "kept.jsonl")
    assert kept[0].messages[1].content == "Call *** *** now, please."
    assert kept[1].messages == sessions[1].messages
    assert (counts["mended"], counts["labels"]) == ({"masking": 1}, {"masked": 1})
    verdicts = next(read_jsonl(tmp_path / "kept.jsonl"))["verdicts"]
    assert [(one["rule"], one["reason"], one["value"]) for one in verdicts] == [
        ("masking", "masked", "6"),
        ("masking again", "ok", "0"),
    ]


def test_a_judge_sees_what_is_mended(tmp_path):
    sessions = [session(0, "Call whom?", "Call 555 123 now.")]
    _, requests = judged(tmp_path, sessions, judge(), ("masking", Masking()), script=lambda request: "Score: 5")
    assert "Call *** *** now." in requests[0].messages[0].content


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
        engine = Engine(journal, {"teacher": Scripted(teacher_text)}, concurrency=8)
        growth = SelfInstruct(SelfInstruct.Options(), seeds=seeds, seed=7, target=80)
        grown = expand(tmp_path, growth=growth, target=80, engine=engine)
        status, collected = collect(
            tmp_path,
            tasks=read_tasks(tmp_path / "tasks.jsonl"),
            choose=lambda task: TeacherChoice("teacher", "scripted", Answer(Answer.Options(system="Be brief."))),
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
