"""One tokenisation for every script: ASCII as rouge_score has it, the rest wherever it stands, signs as written."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, event, example, given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

from distill.text.rouge_index import NoveltyIndex
from distill.text.words import ALMOST, comparable, likeness_as_written, phrase_pattern, whole

ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126))
SCORER = RougeScorer(["rougeL"], use_stemmer=False)
ALPHABETS = {
    "Latin": "aéñøðầſI",
    "Greek": "αβΣςώ",
    "Cyrillic": "яжЁї",
    "Hebrew": "אבגד",
    "Arabic": "صورةًّ",
    "Hindi": "कमीन्ज़",
    "Bengali": "ছবিটি",
    "Tamil": "படம்",
    "Thai": "รูปภาพ",
    "Chinese": "图片白鹭",
    "Japanese": "画像のイ",
    "Korean": "이미지를",
    "emoji": "😀🚀👍🏽❤\ufe0f\u200d",
    "signs": "×÷≤€→°",
    "typographic": "\u201c\u2019\u2014\u2026\u2033",
}
ANY_SCRIPT = st.sampled_from(sorted(ALPHABETS)).flatmap(lambda name: st.text(ALPHABETS[name] + " 7a", max_size=12))


def similarity(one: str, other: str) -> float:
    index = NoveltyIndex()
    index.add("one", one)
    near = index.nearest(other)
    return 0.0 if near is None else near.rouge_l


# --- tokens


@settings(deadline=None)
@given(ASCII, ASCII)
@example("What is 12 + 7?", "What is 12 - 7?")
def test_ascii_texts_are_compared_as_by_rouge_score_unless_they_differ_in_signs_alone(one, other):
    assert comparable(one) == tokenize(one, None)
    same_tokens = comparable(one) == comparable(other)
    event(f"same tokens: {same_tokens}")
    if not same_tokens:
        assert similarity(one, other) == pytest.approx(SCORER.score(one, other)["rougeL"].fmeasure, abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.one_of(ANY_SCRIPT, ASCII), min_size=2, max_size=4))
def test_tokens_of_a_text_are_those_of_its_parts_whatever_stands_beside_them(parts):
    event(f"ASCII parts: {sum(map(str.isascii, parts))} of {len(parts)}")
    assert comparable("\n".join(parts)) == [token for part in parts for token in comparable(part)]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Translate into English: 我在河边", ["translate", "into", "english", "我", "在", "河", "边"]),
        ("今日のimageについて", ["今", "日", "の", "image", "に", "つ", "い", "て"]),
        ("Python으로 3월에", ["python", "으로", "3", "월에"]),
        ("Où est le café?", ["où", "est", "le", "café"]),
        ("What is 12 × 7 €?", ["what", "is", "12", "×", "7", "€"]),
        ("Send 🚀👍🏽 now", ["send", "🚀", "👍", "🏽", "now"]),
        ("Wi-Fi_модем", ["wi", "fi", "модем"]),
        ("שלום world", ["שלום", "world"]),
        ("ⅷ ½ ℃ ＡＢ", ["viii", "1", "⁄", "2", "°", "c", "ab"]),
    ],
)
def test_words_of_every_script_and_symbols_are_tokens(text, tokens):
    assert comparable(text) == tokens


FRAME = "Please translate the following sentence into fluent English and keep its tone: "
SENTENCES = (
    "我今天在河边看见一只白鹭。",
    "请把窗户关上",
    "Я забыл зонт дома.",
    "اين مفتاح البيت؟",
    "मैं घर जा रहा हूँ।",
    "우산을 집에 두고 왔어요.",
)


@pytest.mark.parametrize("other", SENTENCES[1:])
def test_sentences_within_one_english_frame_differ(other):
    assert similarity(FRAME + SENTENCES[0], FRAME + other) < 0.9
    assert similarity(FRAME + other, FRAME + other) == 1.0


# --- as written


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 12 + 7?", "What is 12 - 7?"),
        ("C++", "C#"),
        ("Explain ^a+$", "Explain ^a*$"),
        ("Is 3 < 4?", "Is 3 > 4?"),
        ("x[0]", "x(0)"),
        ("a->b", "a.b"),
        ("Say 👨\u200d👩\u200d👧", "Say 👨👩👧"),
        ("10\u00b2", "102"),
        ("Was it 3:05", "Was it 3.05"),
    ],
)
def test_texts_that_differ_in_signs_alone_are_similar_but_not_identical(one, other):
    assert comparable(one) == comparable(other)
    assert similarity(one, other) <= ALMOST


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Who wrote Faust?", "who wrote  FAUST"),
        ("写一首诗。", "写 一首诗"),
        ("Напиши ещё!", "напиши ещё"),
        ("12 + 7", "12+7."),
        ("क्या है।", "क्या है"),
    ],
)
def test_case_white_space_and_the_end_of_a_sentence_are_no_difference(one, other):
    assert similarity(one, other) == 1.0


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "B2", "写", "да"]), min_size=1, max_size=6), st.data())
def test_texts_with_the_same_words_are_identical_only_as_written(words, data):
    signs = st.sampled_from([" ", "  ", " + ", "-", " < ", "#", "'", ", "])
    one, other = ("".join(f"{word}{data.draw(signs)}" for word in words) for _ in range(2))
    assume(comparable(one) == comparable(other))
    same = re.sub(r"\s", "", one) == re.sub(r"\s", "", other)
    event(f"same as written: {same}")
    assert (likeness_as_written(one, other) == 1.0) == (similarity(one, other) == 1.0) == same


def test_a_nearer_text_is_found_behind_one_with_the_same_tokens():
    index = NoveltyIndex()
    for text in ("C#", "c ~~ '' ~~ ++", "C++!"):
        index.add(text, text)
    assert index.nearest("c++") == ("C++!", 1.0)


def test_a_short_text_is_the_same_only_with_its_signs():
    assert whole("Who wrote 'Hamlet'?") == whole("who wrote Hamlet")
    assert len({whole(text) for text in ("12 + 7", "12 - 7", "12 / 7", "12 × 7", "12 * 7")}) == 5


# --- phrases


@pytest.mark.parametrize(
    ("word", "text"),
    [
        *(("图片", text) for text in ("请画一张图片给我看看。", "图片", "一张jpg图片2")),
        *(("画像", text) for text in ("この画像を説明", "画像")),
        *(("รูปภาพ", text) for text in ("วาดรูปภาพให้ฉันหน่อย", "รูปภาพ2")),
        *(("이미지", text) for text in ("이미지를 설명해", "이 이미지에서는", "이미지들까지", "jpg이미지입니다")),
        *(
            ("image", text)
            for text in ("今日のimageについて", "image를 그려", "ดูimageนี้", "Моя image-карта", "an image.")
        ),
        *(("صورة", text) for text in ("ارسم الصورة", "وبالصورة", "صورة")),
        *(("ছবি", text) for text in ("ছবিটি দেখাও", "ছবির মতো")),
        *(("תמונה", text) for text in ("צייר את התמונה", "בתמונה")),
        *(("c++", text) for text in ("in C++ now", "C++을 배워", "用C++写")),
        ("go to", "please go\n to it"),
        ("चित्र", "एक चित्र बनाओ"),
    ],
)
def test_words_are_found_in_every_script(word, text):
    assert phrase_pattern([word, "absent", "不在"]).search(text)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("class", "classic"),
        ("class", "subclass and my_class"),
        ("사과", "사과하다"),
        ("배", "배우다"),
        ("कम", "कमी"),
        ("ला", "कीला"),
        ("صورة", "مصورة"),
        ("กา", "กา่"),
        ("本日", "日本の本"),
        ("кот", "который"),
        ("cafe", "cafe\u0301"),
        ("image", "images画"),
        ("", "any"),
        (" ", "any text"),
    ],
)
def test_parts_of_words_are_not_found(word, text):
    assert phrase_pattern([word]).search(text) is None


@settings(deadline=None)
@given(st.lists(st.text("aB1+ _-", min_size=1, max_size=4), min_size=1, max_size=4), st.text("aAbB1+_- .", max_size=20))
def test_ascii_words_are_bounded_as_by_letters_digits_and_underscores(words, text):
    phrases = [" ".join(word.split()) for word in words if word.strip()]
    expected = any(
        re.search(rf"(?<!\w){re.escape(phrase).replace(chr(92) + ' ', chr(92) + 's+')}(?!\w)", text, re.IGNORECASE)
        for phrase in phrases
    )
    event(f"found: {expected}")
    assert (phrase_pattern(words).search(text) is not None) == expected
