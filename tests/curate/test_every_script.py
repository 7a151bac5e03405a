"""Every rule that compares texts sees every script: rows of one English frame differ where their sentences differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from distill.compare.results import Prompt
from distill.compare.training_overlap import leaks
from distill.core.jsonl import write_rows
from distill.curate.filters.contamination import Contamination
from distill.curate.filters.minhash import MinHash
from distill.curate.filters.near_duplicate import NearDuplicate
from distill.curate.filters.repetition import Repetition
from distill.curate.test_split import held_out
from distill.expand.pool import PoolGrowth, PoolOptions
from distill.text.tfidf import nearest
from distill.types import Message, Task
from tests.support.set_filters import kept, session, sessions

FRAME = "Translate into plain modern English:"
SENTENCES = (
    *(
        "我今天在河边看见一只白鹭。",
        "请把窗户关上,外面太冷了。",
        "昨日、駅前で古い友達に会いました。",
        "ฉันลืมร่มไว้ที่บ้านเมื่อวาน",
    ),
    *(
        "ذهبت إلى السوق صباحا مع أخي",
        "שכחתי את המטרייה שלי בבית אתמול",
        "Я забыл зонт дома у старой двери.",
        "Ξέχασα την ομπρέλα μου στο σπίτι",
    ),
    *(
        "मैं कल अपना छाता घर पर भूल गया।",
        "আমি কাল বাড়িতে ছাতা ফেলে এসেছি",
        "어제 집에 우산을 두고 나왔어요",
        "Tôi để quên cái ô ở nhà hôm qua",
    ),
    *("🚀🌍😀🎂🐟🌧", "∀x ∈ ℝ: x² ≥ 0 ∧ √x ≤ x ÷ 2", "Կատուն քնած է պատուհանի մոտ", "ልጁ ዛሬ ወደ ትምህርት ቤት ሄደ"),
)
NEAR, MIN = NearDuplicate(NearDuplicate.Options()), MinHash(MinHash.Options())
SCRIPTS = {
    "Chinese": (0x4E00, ""),
    "Thai": (0x0E01, ""),
    "Japanese": (0x3041, ""),
    "Cyrillic": (0x0430, " "),
    "Arabic": (0x0628, " "),
    "Hindi": (0x0915, " "),
    "Georgian": (0x10D0, " "),
    "Korean": (0xAC00, " "),
    "emoji": (0x1F600, ""),
}


@st.composite
def sentences(draw: st.DrawFn) -> tuple[str, str]:
    """Two sentences of one script without a common word, or letter where it writes no spaces."""
    script = draw(st.sampled_from(sorted(SCRIPTS)))
    first, space = SCRIPTS[script]
    letters = [chr(first + number) for number in range(16)]
    size = draw(st.integers(8, 12))
    one, other = (
        space.join(draw(st.lists(st.sampled_from(some), min_size=size, max_size=size)))
        for some in (letters[:8], letters[8:])
    )
    event(script)
    return one, other


@settings(deadline=None)
@given(st.lists(st.sampled_from(["please", "translate", "this", "to", "English"]), max_size=5), sentences())
def test_two_sentences_within_one_frame_are_no_duplicates_and_one_twice_is(frame, pair):
    one, other = (f"{' '.join(frame)}: {text}" for text in pair)
    event(f"{len(frame)} words of the frame")
    for rule in (NEAR, MIN):
        assert kept(rule, sessions(one, other, one)) == ["s0", "s1"]


def test_sentences_of_one_frame_are_all_kept_held_out_and_novel():
    prompts = [f"{FRAME} {text}" for text in SENTENCES]
    rows = sessions(*prompts)
    assert kept(NEAR, rows) == kept(MIN, rows) == [row.id for row in rows]
    assert len(held_out(rows, test=99, seed=7, near=0.7) | held_out(rows, test=99, seed=8, near=0.7)) > len(rows) / 2
    growth = PoolGrowth(PoolOptions())
    assert len(growth.admit(0, [Task(str(number), prompt) for number, prompt in enumerate(prompts)])) == len(prompts)
    assert growth.admit(1, [Task("again", prompts[3])]) == []


def test_the_nearest_training_prompt_is_the_one_with_the_same_sentence():
    rows = [(str(number), f"{FRAME} {text}") for number, text in enumerate(SENTENCES)]
    near = nearest([f"Put it in other words: {text}" for text in SENTENCES], rows, count=1)
    assert [one[0].id for one in near] == [id for id, _ in rows]


@pytest.fixture
def benchmark(tmp_path) -> Path:
    rows = [{"q": f"{FRAME} 春天的风吹过田野，吹过安静的村庄。"}, {"q": "What is 12 + 7?"}, {"q": "Who wrote Faust?"}]
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_a_benchmark_row_of_the_same_frame_contaminates_only_its_own_sentence(benchmark):
    rule = Contamination(Contamination.Options(files=[str(benchmark)]))
    others = [f"{FRAME} {text}" for text in SENTENCES]
    assert [rule.measure(session("s", prompt)) for prompt in others] == [None] * len(others)
    assert rule.measure(session("s", f"Now: {FRAME.upper()} 春天的风吹过田野，吹过安静的村庄！")) is not None


@pytest.mark.parametrize(
    ("prompt", "row"),
    [
        ("what is 12 + 7", "bench.jsonl:2"),
        ("What is 12 - 7?", None),
        ("What is 12 × 7?", None),
        ("What is 12 / 7?", None),
        ("'Who wrote \"Faust\"?'", "bench.jsonl:3"),
    ],
)
def test_a_short_benchmark_row_is_found_with_its_signs_only(benchmark, tmp_path, prompt, row):
    rule = Contamination(Contamination.Options(files=[str(benchmark)]))
    assert rule.decide(rule.measure(session("s", prompt))).neighbour == row
    write_rows(tmp_path / "kept.jsonl", [session("trained", "What is 12 + 7?"), session("too", "Who wrote Faust?")])
    question = Prompt("p", (Message("user", prompt),))
    assert leaks([question], tmp_path / "kept.jsonl")[0]["leaked"] == (row is not None)


@pytest.mark.parametrize(
    ("one", "other"),
    [("What is 12 + 7?", "What is 12 - 7?"), ("Explain ^a+$", "Explain ^a*$"), ("f(x) + 1", "f[x] + 1")],
)
def test_rows_that_differ_in_signs_are_not_called_identical(one, other):
    rows = sessions(one, other)
    for rule in (NEAR, MIN):
        verdict = rule.decide_all(rows)[1]
        assert verdict.keep or verdict.value < 1
    assert kept(NEAR, sessions("C++", "C#", "c++ ")) == kept(MIN, sessions("C++", "C#", "c++ ")) == ["s0", "s1"]


@pytest.mark.parametrize("unit", ["😂", "哈哈哈", "ха ", "හා "])
def test_a_loop_in_any_script_is_found_beside_latin_letters(unit):
    answer = "That is the funniest thing that I have heard all week, my friend: " + unit * 60
    rule = Repetition(Repetition.Options())
    assert rule.decide(rule.measure(session("s", "Tell a joke.", answer))).reason == "loop"


@pytest.mark.parametrize(
    ("text", "forbidden"),
    [
        ("请画一张图片给我看看，再写一个说明", True),
        ("이미지를 설명해 주는 글을 써 주세요", True),
        ("ช่วยวาดรูปภาพทะเลให้ฉันหน่อย", True),
        ("今日のvideoについて三行で話して", True),
        ("请给我看看三首关于大海的短诗", False),
        ("Explain a classic novel in three lines", False),
    ],
)
def test_forbidden_words_are_found_in_tasks_of_every_script(text, forbidden):
    growth = PoolGrowth(PoolOptions(forbidden=("图片", "이미지", "รูปภาพ", "class")), rules=("forbidden_word",))
    assert (growth.admit(0, [Task("0", text)]) == []) == forbidden
    assert growth.rejected == ({"forbidden_word": 1} if forbidden else {})
