"""Answers of a megabyte, made to exhaust a rule: each rule ends soon, with its verdict on less of the same."""

from __future__ import annotations

import time

import pytest

from distill.core import assets
from distill.core.registry import part
from distill.curate.filters import FILTERS
from distill.curate.filters.keywords import MOST_BACKTRACKED
from distill.curate.rows import MeasuredRow
from distill.curate.test_split import candidates, held_out
from distill.types import Message, Session

pytestmark = pytest.mark.slow

MEGABYTE = 1_000_000
UNITS = {
    "a letter": "a",
    "white space": " ",
    "thoughts": "<think>",
    "fences": "```\n",
    "a word": "antidisestablishmentarianism",
    "Chinese": "汉字测试",
    "numbers": "4111 1111 1111 1111 ",
}
ROW_RULES = {
    "empty": {},
    "format": {},
    "length": {"min_words": 3},
    "refusal": {},
    "truncated": {},
    "pii": {"action": "mask"},
    "repetition": {},
    "language": {"on": "answer"},
    "contamination": {"files": [str(assets.find("prompts/seeds/general.jsonl"))]},
    "keyword": {"words": ["graph", "a b"], "patterns": [r"a+b", r"\w+\d{1,20}x", r"(?=b)a*c"]},
}


def of(text: str, id: str = "one") -> Session:
    return Session(id, (Message("user", f"Say it, {id}."), Message("assistant", text)))


def rule(name: str, **options: object):
    filter = part(FILTERS, name, kind="filter")
    return filter(filter.Options(**options))


@pytest.mark.parametrize("name", ROW_RULES)
def test_a_megabyte_gets_the_verdict_of_less_of_the_same(name):
    filter = rule(name, **ROW_RULES[name])
    filter.measure(of("a first one, which loads what the rule needs"))
    for unit in UNITS.values():
        verdicts = []
        for size in (MOST_BACKTRACKED // 10, MEGABYTE):
            start = time.monotonic()
            verdict = filter.decide(filter.measure(of((unit * size)[:size])))
            assert time.monotonic() - start < 10
            verdicts.append((verdict.keep, verdict.reason))
        assert verdicts[0] == verdicts[1]


def test_a_word_or_pattern_in_the_middle_of_a_megabyte_is_found():
    middle = " a graph Aaab " + "x" * 100 + "7x "
    for options in ({"words": ["graph"]}, {"patterns": [r"\baa+b\b"]}, {"patterns": [r"x{50}\d{1,20}x"]}):
        filter = rule("keyword", **options)
        assert filter.measure(of("a. " * 200_000 + middle + "a. " * 200_000)) is not None
        assert filter.measure(of("a. " * 400_000)) is None


def test_ten_thousand_words_are_looked_for_at_once():
    filter = rule("keyword", words=[f"word{number}s" for number in range(10_000)])
    start = time.monotonic()
    assert filter.measure(of(" " * MEGABYTE)) is None
    assert filter.measure(of("a " * (MEGABYTE // 2) + "Word9999s")) == "Word9999s"
    assert time.monotonic() - start < 5


def test_every_mask_of_a_megabyte_is_put_in():
    filter = rule("pii", action="mask")
    session = of("Pay to DE89370400440532013000 now. " * 30_000)
    start = time.monotonic()
    masked = filter.mend(session, filter.measure(session))
    assert time.monotonic() - start < 10
    assert masked.messages[1].content == "Pay to [IBAN] now. " * 30_000


def test_a_loop_at_the_end_of_a_megabyte_is_found():
    text = " ".join(f"word{number}" for number in range(90_000)) + " and so on" * 200
    assert rule("repetition").decide(rule("repetition").measure(of(text))).reason == "loop"


def test_many_repeated_pairs_do_not_make_a_text_slow():
    text = " ".join(f"w{number} w{number} w{number}" for number in range(20_000))
    start = time.monotonic()
    shares = rule("repetition").measure(of(text))[0]
    assert time.monotonic() - start < 5
    assert shares["top_2_gram"] == 0


@pytest.mark.parametrize("name", ["near_duplicate", "minhash", "selection", "exact_duplicate"])
@pytest.mark.parametrize("unit", ["汉字测试", "word{} "])
def test_six_answers_of_a_megabyte_are_compared_at_once(name, unit):
    text = "".join(unit.format(number) for number in range(MEGABYTE // len(unit)))[:MEGABYTE]
    texts = [f"{text}{number}" for number in range(5)]
    sessions = [of(text, str(number)) for number, text in enumerate([*texts, "Something else entirely. " * 40_000])]
    start = time.monotonic()
    verdicts = rule(name, on="answer", **({"count": 2} if name == "selection" else {})).decide_all(sessions)
    assert time.monotonic() - start < 15
    kept = [verdict.keep for verdict in verdicts]
    if name == "selection":
        assert kept.count(True) == 2
        assert kept[5]
    else:
        assert kept == ([True] * 6 if name == "exact_duplicate" else [True, *[False] * 4, True])


def test_prompts_of_a_megabyte_are_held_out_at_once():
    rows = [MeasuredRow(Session(str(n), (Message("user", f"{n} " + "汉字测试" * 250_000),))) for n in range(6)]
    start = time.monotonic()
    assert len(held_out(candidates(rows), test=6, seed=7, near=0.7)) == 1
    assert time.monotonic() - start < 10
