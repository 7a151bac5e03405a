"""Hostile text in a report: no element, attribute or address of it, and nothing hidden or reordered."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.report.answer_rows import MAX_TEXT
from distill.report.stage import report
from distill.text.tokens import visible
from tests.support.parsed_page import first_answer, page, viewed
from tests.support.run_folder import HOSTILE, poison, write_run

ATTRIBUTES = """
aria-controls aria-expanded aria-hidden aria-label aria-pressed
autocomplete charset class content cx cy d data-label data-open data-order data-rouge
dir dy height hidden href http-equiv id lang name open overflow placeholder points preserveaspectratio r role
rx scope spellcheck text-anchor title type value viewbox width x x1 x2 y y1 y2
"""


def test_the_page_may_load_nothing_and_run_only_its_own_scripts(tmp_path: Path) -> None:
    found = page(write_run(tmp_path))
    policy = next(value for value in found.values("content") if "default-src" in (value or ""))
    data, *scripts = found.under("script")
    assert json.loads(data)["prompts"]
    assert policy == (
        f"default-src 'none'; style-src '{digest(found.under('style')[0])}'; "
        f"script-src {' '.join(repr(digest(script)) for script in scripts)}; base-uri 'none'; form-action 'none'"
    )
    assert (found.elements["style"], found.elements["script"]) == (1, 4)


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_no_element_carries_style_handlers_or_addresses(tmp_path: Path) -> None:
    found = page(write_run(tmp_path))
    assert {name for _, name, _ in found.attributes} <= set(ATTRIBUTES.split())
    assert all(str(address).startswith("#") for address in found.values("href"))
    assert {address[1:] for address in found.values("href") if address} <= set(found.values("id"))


@pytest.mark.parametrize("payload", HOSTILE)
def test_hostile_text_in_every_file_adds_no_element_and_no_attribute(tmp_path: Path, payload: str) -> None:
    clean = page(write_run(tmp_path / "clean", prompts=4))
    poisoned = page(poison(write_run(tmp_path / "poisoned", prompts=4), payload))
    assert poisoned.elements.keys() <= clean.elements.keys()
    assert {pair[:2] for pair in poisoned.attributes} <= {pair[:2] for pair in clean.attributes}
    assert poisoned.elements["script"] == clean.elements["script"]
    assert poisoned.under("script")[1:] == clean.under("script")[1:]
    assert visible(payload) in str(json.loads(poisoned.under("script")[0])["prompts"][0]["answers"]["student"]["text"])
    assert poisoned.values("href") == clean.values("href")
    assert any(visible(payload) in text for text in poisoned.under("text"))


def test_an_answer_is_shown_letter_by_letter(tmp_path: Path) -> None:
    answer = "\n  if a < b && c > \"d\": 'e' </div>\n\n\tوداعا $x ${y} {{ z }} {% raw %} &amp; 👩‍🚀"
    first_answer(write_run(tmp_path, prompts=1), "teacher", answer)
    assert answer in page(tmp_path).under("text")


def test_characters_that_hide_or_reorder_text_are_shown(tmp_path: Path) -> None:
    hidden = [*map(chr, range(32)), *"\x7f\x85\u202e\u2066\u200b\ufeff\ud800\U000e0041"]
    first_answer(write_run(tmp_path, prompts=1), "student", "a" + "".join(hidden) + "b")
    report(tmp_path)
    html = (tmp_path / "report.html").read_bytes().decode()
    own = html[: html.index('<script type="application/json"')]
    assert [character for character in hidden if character in own] == ["\t", "\n"]
    assert viewed(html)[0]["answers"]["student"]["text"].startswith("a⟦U+0000⟧")
    assert "⟦U+0000⟧⟦U+0001⟧" in html
    assert "⟦U+202E⟧" in html
    assert "⟦U+D800⟧" in html


@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=50))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_every_shown_text_keeps_its_own_direction(tmp_path: Path) -> None:
    html = (report(write_run(tmp_path)), (tmp_path / "report.html").read_text())[1]
    assert html.count('<div class="text"') == html.count('<div class="text" dir="auto">') >= 20


def test_huge_answers_are_cut_and_the_page_stays_under_a_megabyte(tmp_path: Path) -> None:
    write_run(tmp_path)
    for model in ("base", "student", "teacher", "teacher_again"):
        first_answer(tmp_path, model, "w" * 100_000)
    assert report(tmp_path)["bytes"] < 1_000_000
    assert f"{100_000 - MAX_TEXT:,} more characters" in (tmp_path / "report.html").read_text()
