"""Frames of prompts: which are found, which are not, and that they do not count as likeness."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.core import assets
from distill.core.jsonl import read_jsonl
from distill.text.prompt_frames import LEAST_PROMPTS, PromptFrames, PromptIndex
from tests.support.set_filters import SEEDS, WORDS

COUNT = 12
CHINESE = [
    f"{who}{when}{what}"
    for who in ("老师", "店员", "邻居", "司机")
    for when in ("买书", "画鱼", "洗车")
    for what in "了吗"
]
ENGLISH = [f"{WORDS[at]} {WORDS[at + 7]} {WORDS[at + 3]}" for at in range(COUNT)]
SEED_TASKS = [row["instruction"] for row in read_jsonl(assets.find("prompts/seeds/general.jsonl"))]
KOREAN = ["우산", "기차", "시장", "강물", "편지", "친구", "학교", "바다", "구름", "음악", "나무", "거리"]
FRAMES = {
    "a template before the content": ("Translate the sentence below into English:\n\n{}", CHINESE),
    "an instruction behind the content": ("{}\n\nGive me the names in this text as a JSON list.", ENGLISH),
    "content in the middle": ('Is the review "{}" positive or negative? Answer with one word.', ENGLISH),
    "a single word around all": ("Translate: {}", CHINESE),
    "a word before and two behind": ("Translate {} into French", ENGLISH),
    "examples": ("Text: good\nLabel: positive\n\nText: bad\nLabel: negative\n\nText: {}\nLabel:", ENGLISH),
    "Chinese": ("把下面的单词翻译成中文:{}", ENGLISH),
    "Japanese around": ("次の文を英語に翻訳してください。「{}」翻訳だけを答えてください。", CHINESE),
    "Korean with particles": ("{} 대해 한 문장으로 설명해 줘", [f"{word}에" for word in KOREAN]),
    "Arabic": ("ترجم الجملة التالية إلى الإنجليزية: {}", ENGLISH),
    "Hindi": ("निम्नलिखित शब्द का अर्थ बताइए: {}", ENGLISH),
    "Thai": ("แปลประโยคต่อไปนี้เป็นภาษาอังกฤษ {}", KOREAN),
    "Russian, then German": ("Переведи на немецкий: {}. Antworte nur mit der Übersetzung.", KOREAN),
    "signs as content": ("What does the emoji {} mean?", list("😀🚀🌊🔥🌙🍎🐟🎲🎻🚲🧊🪴")),
}


def left(prompts: list[str]) -> list[str]:
    frames = PromptFrames(prompts)
    return [frames.without(prompt).text for prompt in prompts]


def near(prompts: list[str], threshold: float = 0.7) -> list[tuple[str, float] | None]:
    """What each prompt is near of those before it."""
    frames, index, results = PromptFrames(prompts), PromptIndex(threshold), []
    for number, prompt in enumerate(prompts):
        results.append(index.near(frames.without(prompt)))
        index.add(str(number), frames.without(prompt))
    return [result and tuple(result) for result in results]


@pytest.mark.parametrize("frame", FRAMES)
def test_a_frame_is_taken_off_and_nothing_else(frame):
    template, contents = FRAMES[frame]
    assert left([template.format(content) for content in contents]) == contents


def test_each_of_several_frames_among_other_prompts_is_taken_off():
    others = SEED_TASKS[:100]
    short = ("a single word around all", "a word before and two behind", "signs as content")
    framed = [values for name, values in FRAMES.items() if name not in short]
    prompts = [template.format(content) for template, contents in framed for content in contents]
    assert left([*others, *prompts]) == [*others, *(content for _, contents in framed for content in contents)]


def copies(count: int, seed: int) -> list[str]:
    """One text of 20 words, each of them changed in a tenth of the copies."""
    rng = random.Random(seed)
    words = rng.choices(WORDS, k=20)
    return [" ".join(rng.choice(WORDS) if rng.random() < 0.1 else word for word in words) for _ in range(count)]


@pytest.mark.parametrize("count", [30, 90])
def test_copies_of_one_prompt_with_changed_words_share_no_frame(count):
    assert [seed for seed in range(20) if PromptFrames(copies(count, seed))] == []


@pytest.mark.parametrize(
    "prompts",
    [
        [f"Translate the sentence below into English: {text}" for text in CHINESE[: LEAST_PROMPTS - 1]] + ENGLISH,
        ["Name three rivers of Europe"] * 30 + ENGLISH,
        [f"Explain {text}" for text in ENGLISH] + [f"Name {text}" for text in ENGLISH],
        [f"{text}." for text in ENGLISH],
        [f"{text}吗?" for text in CHINESE[:6]] + ENGLISH,
        SEED_TASKS,
    ],
    ids=["nine prompts", "one prompt many times", "one word of half", "a full stop", "a letter of few", "the seeds"],
)
def test_what_few_share_or_one_word_is_no_frame(prompts):
    assert left(prompts) == prompts


def test_a_frame_never_cuts_into_a_word():
    prompts = [f"Translate into English {text}" for text in ENGLISH]
    assert left([*prompts, "Translate into Englishness this"])[-1] == "englishness this"


def test_a_prompt_that_is_nothing_but_the_frame_is_compared_whole():
    prompts = ["Translate into plain English:", *(f"Translate into plain English: {text}" for text in ENGLISH)]
    assert left(prompts) == [prompts[0], *ENGLISH]


def test_a_new_prompt_has_the_longest_frame_that_fits():
    frames = PromptFrames(
        template.format(text) for template in ("Say {} as you like", "Say {} in Greek as you like") for text in ENGLISH
    )
    rests = [
        frames.without(prompt).text for prompt in ("Say that in Greek as you like", "Say why as you like", "Say it!")
    ]
    assert rests == ["that", "why", "Say it!"]


# --- nearness


def variants(rng: random.Random, count: int) -> list[str]:
    """Prompts of which some are near others, in several kinds with starts or ends of their own."""
    texts: list[str] = []
    kinds = ["{}", "{} " + " ".join(rng.choices(WORDS, k=5)), " ".join(rng.choices(WORDS, k=6)) + " {}"]
    while len(dict.fromkeys(texts)) < count:
        words = rng.choice(texts).split() if texts and rng.random() < 0.4 else rng.choices(WORDS, k=rng.randint(1, 9))
        words[rng.randrange(len(words))] = rng.choice(WORDS)
        texts.append(rng.choice(kinds).format(" ".join(words)))
    return texts


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    count=st.integers(LEAST_PROMPTS, 40),
    start=st.sampled_from(
        ["", "Say: ", "Translate the text below: ", "把下面的单词翻译成中文:", "ترجم إلى ", f"{WORDS[0]} "]
    ),
    end=st.sampled_from(["", " please", " Answer with one word.", " 谢谢你的帮助"]),
)
def test_a_frame_around_all_prompts_changes_nothing_about_nearness(seed, count, start, end):
    prompts = variants(random.Random(seed), count)
    assert near([f"{start}{prompt}{end}" for prompt in prompts]) == near(prompts)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, count=st.integers(LEAST_PROMPTS, 60))
def test_frames_make_no_prompts_near_that_are_not_so_as_a_whole(seed, count):
    prompts = variants(random.Random(seed), count)
    frames = PromptFrames(prompts)
    for first in range(0, count, 3):
        index, whole = PromptIndex(0.7), PromptIndex(0.7)
        index.add("first", frames.without(prompts[first]))
        whole.add("first", PromptFrames().without(prompts[first]))
        for other in prompts:
            if whole.near(PromptFrames().without(other)) is None:
                assert index.near(frames.without(other)) is None


def test_different_contents_of_one_template_are_not_near_and_equal_ones_are():
    template, contents = FRAMES["content in the middle"]
    prompts = [template.format(text) for text in contents]
    assert near(prompts) == [None] * COUNT
    assert near([*prompts, prompts[4].upper()])[-1] == ("4", 1.0)


def test_one_text_in_two_templates_is_two_tasks():
    french = [f"Translate the sentence below into French: {text}" for text in ENGLISH]
    review = [f"Is the review below positive or negative? {text}" for text in ENGLISH]
    assert near([*french, *review]) == [None] * (2 * COUNT)


def test_templates_that_differ_in_a_word_are_alike_in_the_others():
    template = "Translate the sentence below into {} and answer with nothing but the translation: {}"
    prompts = [template.format(language, text) for text in ENGLISH for language in ("French", "Greek", "Welsh")]
    assert near(prompts, 0.8) == [None] * len(prompts)
