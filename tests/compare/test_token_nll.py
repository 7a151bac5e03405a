"""How surprising each token is: spans that spell the answer, nats that add up, and few bytes in the page."""

from __future__ import annotations

import json
import math

import pytest

from distill.compare.token_nll import by_prompt, spans
from distill.report.stage import report
from distill.report.token_shading import ALPHABET, MAX_BYTES, STEPS, pack, select
from distill.text.tokens import visible
from tests.support.run_folder import change, write_run


def raw(widths: list[int], nats: list[float]) -> dict:
    return {"widths": widths, "logprobs": [-one for one in nats]}


def row(text: str, widths: list[int], nats: list[float], name: str = "one", **more) -> dict:
    told = {"widths": widths, "nats": {"student": nats, "base": [0.0] * len(widths)} | more}
    return {"id": name, "answers": {"teacher": {"text": text}}, "surprise": told}


def unpacked(told: dict, text: str) -> list[tuple[str, float]]:
    """As the page's script reads it."""
    units, found, start, end = visible(text).encode("utf-16-le"), [], 0, 0
    for char in told["widths"]:
        end += ALPHABET.index(char)
        if ALPHABET.index(char) < len(ALPHABET) - 1:
            nats = (ALPHABET.index(told["student"][len(found)]) / STEPS) ** 2
            found.append((units[2 * start : 2 * end].decode("utf-16-le"), nats))
            start = end
    return found


# Found in a comparison


def test_each_token_keeps_its_nats():
    assert spans(raw([3, 4], [0.5, 2.0]), "The sea") == ([3, 4], [0.5, 2.0])


def test_tokens_that_share_a_character_are_taken_together():
    assert spans(raw([0, 0, 1, 2, 0], [1, 2, 3, 4, 5]), "湖ab") == ([1, 2], [6, 9])


@pytest.mark.parametrize(("widths", "expected"), [([1, 3], ([3], [5.0])), ([4, 3], ([3, 3], [2.0, 3.0]))])
def test_a_space_that_a_tokenizer_puts_before_a_text_is_not_part_of_it(widths, expected):
    assert spans(raw(widths, [2.0, 3.0]), "x" * (sum(widths) - 1)) == expected


@pytest.mark.parametrize("told", [{}, raw([3], [1.0]), raw([9], [1.0]), raw([2, 2], [1.0]), raw([], [])])
def test_tokens_that_do_not_spell_the_answer_say_nothing(told):
    assert spans(told, "four") is None


def test_two_models_share_their_widths_or_one_is_left_out():
    found = by_prompt({"base": {0: ([2, 2], [1.004, 2.0])}, "student": {0: ([4], [3.0])}})
    assert found[0] == {"widths": [2, 2], "nats": {"base": [1.0, 2.0]}}


# Packed for the page


def test_what_is_packed_is_read_back_within_its_steps():
    nats = [0.0, 0.1, 1.0, 4.4, 9.2, 20.0]
    words = ["A", " 𝄞", "\u202e", " lake", "x" * 130, "y" * 63]
    found = unpacked(pack(row("".join(words), [len(word) for word in words], nats), 4_000), "".join(words))
    assert [text for text, _ in found] == [visible(word) for word in words]
    assert [value for _, value in found] == pytest.approx(nats, abs=math.sqrt(20) / STEPS)


def test_an_answer_that_is_cut_keeps_the_tokens_that_are_shown():
    told = pack(row("abcdef", [2, 2, 2], [1.0, 1.0, 1.0]), 3)
    assert [text for text, _ in unpacked(told, "abc")] == ["ab", "c"]


@pytest.mark.parametrize(
    "damaged",
    [
        row("abc", [1, 1], [1.0, 1.0]),
        row("abc", [3, 0], [1.0, 1.0]),
        row("abc", ["3"], [1.0]),
        row("abc", [3], [math.nan], base=None),
        row("abc", [3], ["<b>"], base=None),
        row("a\r\nb", [2, 2], [1.0, 1.0]),
        {"id": "one", "answers": {"teacher": None}, "surprise": {"widths": [1], "nats": {}}},
        {"id": "one", "answers": {}, "surprise": [1]},
    ],
)
def test_figures_that_do_not_fit_the_answer_are_not_shown(damaged):
    assert pack(damaged, 4_000) is None


def test_where_all_are_too_much_the_worst_and_the_best_are_shown():
    rows = [row("a" * 2_000, [1] * 2_000, [1.0] * 2_000, str(number)) for number in range(101)]
    found, known = select(rows, 4_000)
    assert (len(found), known) == (MAX_BYTES // 6_000, 101)
    assert sorted(map(int, found)) == [*range(17), *range(85, 101)]


@pytest.mark.slow
def test_a_page_of_500_prompts_with_tokens_of_long_answers_stays_under_three_megabytes(tmp_path):
    run = write_run(tmp_path, prompts=500)

    def long(one: dict) -> dict:
        for answer in one["answers"].values():
            answer["text"] = "A long answer, word by word. " * 60
        told = row(one["answers"]["teacher"]["text"], [3] * 580, [2.5] * 580)
        return {**one, "surprise": told["surprise"]}

    change(run / "answers.jsonl", long)
    assert report(run)["bytes"] < 3_000_000
    page = (run / "report.html").read_text()
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    shown = [one for one in data["prompts"] if "surprise" in one]
    assert data["surprise"] | {"alphabet": ""} == {"alphabet": "", "steps": 14, "shown": len(shown), "known": 500}
    assert 0 < len(shown) < 500
