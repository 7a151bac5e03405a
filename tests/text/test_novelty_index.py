"""The novelty index decides as rouge_score does, and finds the nearest text."""

from __future__ import annotations

import random
from unicodedata import normalize

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

from distill.text.rouge_index import AT_FIRST, FIRST_CAPACITY, NoveltyIndex
from distill.text.tokens import rouge_l, rouge_tokens
from distill.text.words import comparable, word_count

SCORER = RougeScorer(["rougeL"], use_stemmer=False)
WORDS = ["write", "a", "short", "poem", "about", "the", "sea", "and", "why", "it", "is", "blue"]


def reference(left: str, right: str) -> float:
    return SCORER.score(left, right)["rougeL"].fmeasure


def is_near(first: str, second: str, threshold: float = 0.7) -> bool:
    index = NoveltyIndex(threshold)
    index.add("first", first)
    return index.near(second) is not None


def texts(common: int, left: int, right: int) -> tuple[str, str]:
    """Two texts of so many words each, that share a subsequence of `common`."""
    shared = [f"s{number}" for number in range(common)]
    return (
        " ".join(shared + [f"l{number}" for number in range(left - common)]),
        " ".join(shared + [f"r{number}" for number in range(right - common)]),
    )


def sentences(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 14))) for _ in range(count)]


@given(st.one_of(st.text(), st.text(st.characters(max_codepoint=127))))
@example("K\u212a \u0130stanbul A_b-C 1\x1f2")
def test_tokens_are_those_of_rouge_score(text):
    assert rouge_tokens(text) == tokenize(text, None)


def test_decisions_on_random_pairs_equal_those_of_rouge_score():
    pairs = list(zip(sentences(600, 1), sentences(600, 2), strict=True))
    expected = [reference(left, right) > 0.4 for left, right in pairs]
    assert 50 < sum(expected) < 550
    assert [is_near(left, right, 0.4) for left, right in pairs] == expected


def test_decisions_at_exactly_the_threshold_equal_those_of_rouge_score():
    triples = [
        (common, left, right)
        for left in range(1, 41)
        for right in range(1, 41)
        for common in range(1, min(left, right) + 1)
        if 20 * common == 7 * (left + right)
    ]
    expected = [reference(*texts(*triple)) > 0.7 for triple in triples]
    assert {True, False} == set(expected)
    assert [is_near(*texts(*triple)) for triple in triples] == expected


def test_seven_of_eight_and_twelve_words_are_near():
    assert is_near(*texts(7, 8, 12))


def test_of_two_texts_at_the_threshold_the_one_that_rounds_above_it_decides():
    query = [f"q{number}" for number in range(21)]
    at, above = query[:14] + [f"x{number}" for number in range(5)], query + [f"x{number}" for number in range(18)]
    assert [reference(" ".join(query), " ".join(text)) > 0.7 for text in (at, above)] == [False, True]
    index = NoveltyIndex(0.7)
    index.add("at", " ".join(at))
    index.add("above", " ".join(above))
    assert index.near(" ".join(query)).id == "above"


@pytest.mark.slow
def test_a_stream_is_decided_as_by_comparing_with_every_text_before():
    index, kept, nearest = NoveltyIndex(0.7), [], []
    for number, text in enumerate(sentences(250, 3)):
        best = max((reference(before, text) for before in kept), default=0.0)
        found = index.nearest(text)
        nearest.append((found.rouge_l if found else 0.0, best))
        assert (index.near(text) is not None) == (best > 0.7)
        if best <= 0.7:
            index.add(str(number), text)
            kept.append(text)
    assert [found for found, _ in nearest] == pytest.approx([best for _, best in nearest], abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("longest", [14, 90])
def test_a_stream_that_outgrows_its_room_is_decided_as_before(longest):
    rng, index, kept = random.Random(longest), NoveltyIndex(0.7), []
    words = [f"w{number}" for number in range(60)]
    for _ in range(3 * FIRST_CAPACITY):
        text = rng.choices(words, weights=range(1, 61), k=rng.randint(1, longest))
        if kept and rng.random() < 0.5:
            text = [word for word in rng.choice(kept) if rng.random() < 0.8] + rng.choices(words, k=rng.randint(0, 2))
        scores = [rouge_l(text, before) for before in kept]
        best = max(scores, default=0.0)
        found, near = index.nearest(" ".join(text)), index.near(" ".join(text))
        assert (found and (int(found.id), found.rouge_l)) == ((scores.index(best), best) if best else None)
        assert near == (found if best > 0.7 else None)
        if best <= 0.7:
            index.add(str(len(kept)), " ".join(text))
            kept.append(text)
    assert 2 * FIRST_CAPACITY > len(kept) > FIRST_CAPACITY


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=9), max_size=9), st.lists(st.sampled_from("abcdefg")))
def test_the_nearest_of_any_texts_is_the_most_similar_of_them(before, query):
    index = NoveltyIndex()
    for number, tokens in enumerate(before):
        index.add(str(number), " ".join(tokens))
    found = index.nearest(" ".join(query))
    best = max((reference(" ".join(tokens), " ".join(query)) for tokens in before), default=0.0)
    assert (found.rouge_l if found else 0.0) == pytest.approx(best, abs=1e-12)


def test_the_earliest_of_equal_neighbours_is_named():
    index = NoveltyIndex()
    for id in ("first", "second"):
        index.add(id, "Name three rivers in Europe.")
    assert index.nearest("Name three rivers in Europe.") == ("first", 1.0)


def test_the_nearest_of_many_texts_that_share_as_many_words_is_the_earliest_in_the_same_order():
    words = [f"w{number}" for number in range(9)]
    index, rng = NoveltyIndex(), random.Random(2)
    for number in range(4 * AT_FIRST):
        index.add(f"shuffled {number}", " ".join(rng.sample(words, 9)))
    for number in range(2):
        index.add(f"ordered {number}", " ".join(words))
    assert index.nearest(" ".join(words)) == ("ordered 0", 1.0)


def test_an_empty_text_is_near_nothing():
    index = NoveltyIndex()
    index.add("empty", "?!")
    assert index.nearest("...") is None


def test_english_is_compared_by_the_tokens_of_rouge_score():
    assert comparable("Don't stop, it's 3.5 km!") == ["don", "t", "stop", "it", "s", "3", "5", "km"]


SCRIPTS = {
    "Russian": ("Напиши стихотворение о море", "Напиши стихотворение о горе", "Какая столица Франции?"),
    "Chinese": ("写一首关于大海的诗", "写一首关于大河的诗", "法国的首都是哪座城市？"),
    "Japanese": ("海についての詩を書いてください", "山についての詩を書いてください", "フランスの首都はどこですか"),
    "Arabic": ("اكتب قصيدة قصيرة عن البحر", "اكتب قصيدة قصيرة عن الجبل", "ما هي عاصمة فرنسا؟"),
    "Hindi": ("समुद्र के बारे में एक कविता लिखो", "पहाड़ के बारे में एक कविता लिखो", "फ्रांस की राजधानी क्या है?"),
    "Thai": ("เขียนบทกวีเกี่ยวกับทะเล", "เขียนบทกวีเกี่ยวกับภูเขา", "เมืองหลวงของฝรั่งเศสคือที่ไหน"),
    "Korean": ("바다에 관한 짧은 시를 써 주세요", "산에 관한 짧은 시를 써 주세요", "프랑스의 수도는 어디입니까?"),
}
"""A request, one that differs in a word, and another."""


@pytest.mark.parametrize("script", SCRIPTS)
def test_requests_of_any_script_are_near_when_they_differ_in_a_word_and_not_when_they_ask_something_else(script):
    one, alike, another = SCRIPTS[script]
    assert reference(one, one) == 0.0  # rouge_score sees nothing there
    assert (is_near(one, one), is_near(one, alike), is_near(one, another)) == (True, True, False)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Где, чёрт возьми?", ["где", "чёрт", "возьми"]),
        ("写 一首诗。", ["写", "一", "首", "诗"]),
        ("اُكتُبْ قَصِيدَةً!", ["اُكتُبْ", "قَصِيدَةً"]),
        ("हिन्दी में लिखो।", ["हिन्दी", "में", "लिखो"]),
        ("ที่ไหน", ["ที่", "ไ", "ห", "น"]),
        ("한국어로 써", ["한국어로", "써"]),
    ],
)
def test_words_and_letters_of_other_scripts_keep_their_vowel_signs(text, tokens):
    assert comparable(text) == [normalize("NFKC", token) for token in tokens]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Don't stop, it's 3.5 km!", 5),
        ("Où est-il ?", 3),
        ("हिन्दी में लिखो।", 3),
        ("写一首诗。", 4),
        ("ไหน?", 3),
        ("?!", 1),
        ("", 0),
    ],
)
def test_words_are_counted_at_white_space_and_by_letters_where_a_script_writes_none(text, count):
    assert word_count(text) == count


def test_composed_and_decomposed_letters_are_the_same():
    assert comparable(normalize("NFD", "Напиши ещё")) == comparable(normalize("NFC", "Напиши ещё"))
