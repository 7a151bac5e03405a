"""Preference pairs of a teacher and a weaker model: whose answer is chosen, and what is no pair."""

from __future__ import annotations

import re

import pytest

from distill.collect.strategies.pairs import Pairs
from distill.types import Failure, Pair, Request, Sampling, Task
from tests.support.flowing import cut, lost, play

TASK = Task("t", "Name a river.")
GOOD, POOR = "The Danube.", "Water flows."


def run(*, teacher=GOOD, weaker=POOR, judge=None, **options):
    """What the strategy returns, and the roles that it asked; `judge` is a function from the two shown answers."""
    replies = {"teacher": teacher, "weaker": weaker}

    def answer(request: Request):
        if request.role != "judge":
            return replies[request.role]
        question = request.messages[-1].content
        return judge(*(re.search(rf"<{side}-(\w+)>\n(.*?)\n</{side}-\1>", question, re.S)[2] for side in "AB"))

    strategy = Pairs(Pairs.Options(prefer="judge" if judge else "teacher", **options), sampling=Sampling(max_tokens=9))
    found, asked = play(strategy, TASK, answer)
    return found, [one.role for one in asked]


def liking(text):
    return lambda first, second: f"Because.\nVerdict: {'A' if first == text else 'B'}"


def test_the_teachers_answer_is_preferred_and_both_are_paid_for_by_their_keys():
    pair, asked = run(weaker=cut(POOR))
    assert isinstance(pair, Pair)
    assert (pair.messages[-1].content, pair.rejected.content, asked) == (GOOD, POOR, ["teacher", "weaker"])
    assert (pair.meta["keys"], pair.meta["truncated"]) == (["k1", "cut"], False)
    assert pair.meta["rejected"] == {"role": "weaker", "key": "cut", "truncated": True}


@pytest.mark.parametrize(("best", "role"), [(GOOD, "weaker"), (POOR, "teacher")])
def test_a_judge_that_says_the_same_in_both_orders_decides(best, role):
    pair, asked = run(judge=liking(best))
    assert (pair.messages[-1].content, pair.meta["rejected"]["role"]) == (best, role)
    assert asked == ["teacher", "weaker", "judge", "judge"]
    assert sorted(pair.meta["keys"]) == ["k1", "k2", "k3", "k4"]


@pytest.mark.parametrize(
    ("judge", "reason"),
    [
        (lambda first, second: "Verdict: A", "contradiction"),
        (lambda first, second: "Verdict: tie", "tie"),
        (lambda first, second: "Verdict: A" if first == GOOD else "Verdict: tie", "contradiction"),
        (lambda first, second: "Verdict: A" if first == GOOD else "I cannot say.", "unparsed"),
        (lambda first, second: lost(transient=False), "unparsed"),
    ],
)
def test_what_the_judge_does_not_decide_is_no_pair_and_says_why(judge, reason):
    found, _ = run(judge=judge)
    assert not isinstance(found, Pair)
    assert (found.messages[-1].content, found.meta["undecided"], len(found.meta["keys"]) >= 2) == (GOOD, reason, True)


def test_answers_that_differ_in_white_space_alone_are_not_judged():
    pair, asked = run(weaker=f" {GOOD}\n", judge=liking(GOOD))
    assert (isinstance(pair, Pair), asked) == (True, ["teacher", "weaker"])


@pytest.mark.parametrize(
    "missing", [{"teacher": ""}, {"weaker": lost(transient=True)}, {"judge": lambda a, b: lost(transient=True)}]
)
def test_a_missing_answer_fails_the_task(missing):
    assert isinstance(run(**missing)[0], Failure)
