"""Preference pairs in curate: which are dropped and why, and pairs out of best_of's samples."""

from __future__ import annotations

import pytest

from distill.core.jsonl import read_jsonl, read_sessions, write_rows
from distill.curate.filters.pairs import Pairs
from distill.curate.filters.pii import PersonalData
from distill.curate.filters.truncated import Truncated
from distill.curate.rows import MeasuredRow, sift
from distill.curate.stage import curate
from distill.errors import StageIncomplete
from distill.types import Message, Pair
from tests.support.row_filters import session, verdict

LONG = "The Danube rises in the Black Forest and ends in the Black Sea."
OTHER = "Rivers are long and blue, as most of us know from maps."
SAMPLES = [{"key": f"k{score}", "text": f"Sample {score} of {LONG}", "score": score} for score in (3.0, 7.0, 9.0)]


def pair(rejected: str = OTHER, *, role: str = "assistant", score: float | None = None, loser: float | None = None):
    about = {} if loser is None else {"rejected": {"score": loser}}
    meta = {**({} if score is None else {"score": score}), **about}
    return Pair("p", session(LONG).messages, meta, rejected=Message(role, rejected))


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        (pair(), {}, "ok"),
        (pair(score=8), {"min_margin": 9}, "ok"),  # no score of the rejected answer
        (pair(score=8.0, loser=7.5), {"min_margin": 0.5}, "ok"),
        (pair(score=8.0, loser=7.5), {"min_margin": 1}, "small_margin"),
        (pair("No."), {}, "unlike_lengths"),
        (pair("No."), {"max_length_ratio": 1000}, "ok"),
        (pair(f"  {LONG} \n"), {"rouge_l": 1}, "same_answers"),
        (pair(LONG.replace("rises", "begins")), {}, "nearly_same"),
        (pair(LONG.replace("rises", "begins")), {"rouge_l": 1}, "ok"),
        (pair("What?", role="user"), {}, "different_roles"),
        (session(), {}, "no_pair"),
        (session(undecided="contradiction"), {}, "contradiction"),
        (session(score=3.0, others=SAMPLES), {}, "no_pair"),
    ],
)
def test_a_pair_that_teaches_nothing_is_dropped_with_its_reason(row, options, reason):
    found = verdict(Pairs(Pairs.Options(**options)), row)
    assert (found.keep, found.reason) == (reason == "ok", reason)


@pytest.mark.parametrize(("ours", "theirs"), [("-5", "5"), ("A", "B"), ("x + y", "x - y")])
def test_short_answers_that_differ_in_a_sign_are_not_the_same(ours, theirs):
    one = Pair("p", session(ours).messages, {}, rejected=Message("assistant", theirs))
    assert verdict(Pairs(Pairs.Options()), one).keep


@pytest.mark.parametrize("processes", [1, 2])
def test_best_of_becomes_the_pair_of_its_answer_and_its_worst_sample(processes):
    rows = [MeasuredRow(session(LONG, score=8.0, others=SAMPLES)), MeasuredRow(pair())]
    sift(rows, [("pairs", Pairs(Pairs.Options())), ("truncated", Truncated(Truncated.Options()))], processes=processes)
    assert [row.session.rejected.content for row in rows] == [SAMPLES[0]["text"], pair().rejected.content]
    assert rows[0].session.meta == {"score": 8.0, "rejected": {"key": "k3.0", "score": 3.0}}
    assert [row.mended for row in rows] == [["pairs"], []]


def test_pairs_go_through_the_stage_and_back(tmp_path):
    write_rows(tmp_path / "sessions.jsonl", [pair(), session(undecided="tie")])
    counts = curate(tmp_path, filters=[("pairs", Pairs(Pairs.Options()))], test=0, seed=7)
    assert (counts["kept"], counts["by_rule"]) == (1, {"pairs/tie": 1})
    [kept] = read_sessions(tmp_path / "kept.jsonl")
    assert (kept.messages, kept.rejected) == (pair().messages, pair().rejected)
    assert next(read_jsonl(tmp_path / "kept.jsonl")).keys() == {"id", "messages", "rejected", "meta", "verdicts"}
    write_rows(tmp_path / "sessions.jsonl", [session(undecided="tie")])
    with pytest.raises(StageIncomplete, match=r"nothing is left to train on: pairs/tie dropped most \(1 of 1"):
        curate(tmp_path, filters=[("pairs", Pairs(Pairs.Options()))], test=0, seed=7)


def test_the_rejected_answer_is_masked_too():
    one, rule = pair("Write to anna@mail.co.uk."), PersonalData(PersonalData.Options(action="mask"))
    found = rule.measure(one)
    masked = rule.mend(one, found)
    assert (found, masked.rejected.content, masked.messages) == ({"email": 1}, "Write to [EMAIL].", one.messages)
