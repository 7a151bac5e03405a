"""The mapping of a teacher's token probabilities to a student's tokens, beside brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st


def cut(text: str, widths) -> list[bytes]:
    """A text in pieces of these widths, over and over."""
    pieces, place = [], 0
    for width in itertools.cycle(widths):
        if place >= len(text):
            return pieces
        pieces.append(text[place : place + width].encode())
        place += width
    return pieces


@given(st.lists(st.integers(1, 4), min_size=1), st.lists(st.integers(1, 4), min_size=1), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_probabilities_are_mapped_where_both_have_a_boundary(theirs, ours, seed):
    """Against brute force: every pair of prefixes of equal bytes, and every spelling that both have."""
    from distill.train.objectives import by_bytes

    draw, text = np.random.default_rng(seed), "abcabacbcacb"
    teacher, student = [*cut(text, theirs), by_bytes.END], [*cut(text, ours), by_bytes.END]
    spellings = sorted({"".join(one) for n in (1, 2, 3) for one in itertools.product("abc", repeat=n)})
    ids = {spelling.encode(): number for number, spelling in enumerate(spellings) if len(spelling) < 3} | {
        by_bytes.END: 99
    }
    tokens = []
    for piece in teacher:
        shares = draw.dirichlet(np.ones(len(spellings)))
        others = {spelling.encode(): share for spelling, share in zip(spellings, shares, strict=True)}
        best = sorted(others, key=lambda one: -others[one])[:4]
        tokens.append(by_bytes.TeacherToken(piece, [(one, float(np.log(others[one]))) for one in best]))
    target = by_bytes.mapped(tokens, student, ids, 4)
    joined = [b"".join(one for one in pieces if one) for pieces in (teacher, student)]
    assert joined[0] == joined[1] == text.encode()
    for place, piece in enumerate(student):
        before = b"".join(one for one in student[:place] if one)
        match = [at for at in range(len(teacher)) if b"".join(one for one in teacher[:at] if one) == before
                 and (teacher[at] is by_bytes.END) == (piece is by_bytes.END)]  # fmt: skip
        event("boundary shared" if match else "no boundary")
        if not match:
            assert np.isnan(target.tail[place])
            continue
        expected = {ids[one]: logprob for one, logprob in tokens[match[0]].entries if one in ids}
        if not expected:
            assert np.isnan(target.tail[place])
            continue
        pairs = zip(target.ids[place].tolist(), target.logprobs[place].tolist(), strict=True)
        assert {id_: value for id_, value in pairs if value > -6e4} == pytest.approx(expected, abs=0.01)
        assert np.exp(float(target.tail[place])) == pytest.approx(1 - sum(np.exp(list(expected.values()))), abs=2e-3)
    assert 0 <= target.spelt <= target.reported


@pytest.mark.parametrize(
    "entries",
    [[], [(b"a", 0.0), (b"b", 0.0)], [(b"a", -0.01), (b"b", -0.02)], [(b"a", -2.0), (b"b", -2.0), (b"c", -2.0)]],
    ids=["none", "mass of two", "mass above one", "all equal"],
)
def test_what_is_no_distribution_gives_no_target(entries):
    from distill.train.objectives import by_bytes

    token = by_bytes.TeacherToken(b"a", entries)
    target = by_bytes.mapped([token], [b"a"], {b"a": 0, b"b": 1, b"c": 2}, 3)
    assert np.isnan(target.tail).all()
    assert (target.reported, target.unsound) == (0, 1)


def test_an_answer_that_stands_twice_in_a_reply_gets_no_targets():
    """A thought before it may say the same in another context."""
    from distill.train.objectives import by_bytes

    tokens = [by_bytes.TeacherToken(piece, [(piece, -0.1)]) for piece in (b"yes", b"? ", b"yes")]
    once, twice = (by_bytes.mapped(tokens[start:], [b"yes"], {b"yes": 0}, 1).tail for start in (1, 0))
    assert (bool(np.isnan(twice).all()), bool(np.isnan(once).any())) == (True, False)


def test_a_reply_is_read_as_the_api_writes_it():
    from distill.train.objectives.by_bytes import TeacherToken, distribution, of_reply

    top = [{"token": "a", "logprob": -0.1, "bytes": [97]}, {"token": "b", "logprob": -9999.0, "bytes": None}]
    content = [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": top}]
    entries = [(b"a", -0.1), (b"a", -0.1), (b"b", -9999.0)]
    assert of_reply({"choices": [{"logprobs": {"content": content}}]}) == [TeacherToken(b"a", entries)]
    assert distribution(entries) == {b"a": -0.1}
    for broken in (
        {},
        {"choices": []},
        {"choices": [{"logprobs": None}]},
        {"choices": [{"logprobs": {"content": [{}]}}]},
    ):
        assert of_reply(broken) == []
