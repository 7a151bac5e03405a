"""Answers scraped as HTML become markdown with their code whole."""

from __future__ import annotations

import pytest

from distill.formats.chat_html import cleaned
from tests.support.importing import reason, sharegpt

PAGE = (
    '<div class="markdown prose"><p>Use <code>a_b</code> &amp; *this*:</p><pre><div class="bg-black"><div>'
    '<span>python</span><button>Copy code</button></div><div><code class="hljs language-python"><span>if</span> x:\n'
    "    y_z()\n</code></div></div></pre><ol><li>One</li><li>Two</li></ol><script>alert(1)</script></div>"
)


def test_a_scraped_answer_becomes_markdown_with_its_code_whole():
    text, repairs = cleaned("2 / 3" + PAGE, answer=True)
    assert text == "Use `a_b` & *this*:\n\n```python\nif x:\n    y_z()\n```\n\n1. One\n2. Two"
    assert repairs == ["html_to_markdown"]


def test_leftovers_of_the_copy_button_are_taken_out():
    assert cleaned("Try:\n```\npythonCopy codeprint(1)\n```", answer=True)[0] == "Try:\n```python\nprint(1)\n```"
    assert cleaned("Yes.Copy12 chars / 3 words", answer=True)[0] == "Yes."


def test_a_code_block_of_the_page_in_markdown_is_converted_alone():
    block = PAGE[PAGE.index("<pre>") : PAGE.index("</pre>") + 6]
    text, _ = cleaned(f"Say *a_b*:\n\n{block}\n\nDone, <you>.", answer=True)
    assert text == "Say *a_b*:\n\n```python\nif x:\n    y_z()\n```\n\nDone, <you>."


def test_blank_lines_of_code_are_kept():
    code = "def a(): ...\n\n\ndef b(): ..."
    text, _ = cleaned(f"<p>x</p><pre><code>{code}</code></pre>", answer=True)
    assert text == f"x\n\n```\n{code}\n```"


def test_a_table_keeps_its_first_row_as_its_head():
    rows = "<table><tr><td>a</td><td>b</td></tr><tr><td>1</td><td>2</td></tr></table>"
    assert cleaned(rows, answer=True)[0] == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize(
    "text",
    [
        "Is a < b and c > d?",
        "Write <p> for a paragraph.",
        "```html\n<div class='red'></div>\n```",
        "<p>Say</p> in a page:\n```html\n<p></p>\n```",
        "1 / 2 cup of milk",
        "snake_case and *stars*",
        "<b>Bold</b> is not strong",
    ],
)
def test_text_that_is_no_page_stays_as_it_is(text):
    assert cleaned(text, answer=True) == (text, [])


def test_a_question_about_html_keeps_its_tags():
    question = "<div><p>Why is this red?</p></div>"
    assert cleaned(question, answer=False) == (question, [])


def test_html_that_is_too_deep_rejects_its_row():
    deep = "<div>" * 5_000 + "x" + "</div>" * 5_000
    assert reason("sharegpt", sharegpt(("human", "x"), ("gpt", deep))) == "bad_html"
