"""Converts scraped chat pages to text: HTML to markdown, without the page's own controls.

After FastChat's `fastchat/data/clean_sharegpt.py`. Unlike there, only turns copied from a page are converted (a
question *about* HTML keeps its tags), nothing is escaped, and code blocks are recognised by their elements.
"""

from __future__ import annotations

import re
from typing import Any

_PAGE = re.compile(r"""class=["'][^"'>]{0,200}\b(markdown|whitespace-pre-wrap)\b""")
"""Classes that mark a turn on ChatGPT's page."""
_FRAGMENT = re.compile(r"\s*<(p|div|ol|ul|pre|h[1-6]|table|blockquote)\b[^>]*>", re.I)
_VARIANT = re.compile(r"\A\d{1,3} / \d{1,3}(?=<|\n|\Z|[A-Z])")
"""The page's counter of regenerated answers, such as `2 / 3`; FastChat also cuts `1 / 2 cup of milk`."""
_BLOCK = '<pre><div class="bg-black'
"""Start of a code block of the page; some browser extensions convert everything else to markdown."""
_EMPTY_BLOCK = re.compile(r"```\s*[\w+#.-]{0,30}?(?:Copy code)+\s*```")
_COPY_CODE = re.compile(r"```\s*([\w+#.-]{0,30}?)(?:Copy code)+[ \t]*\n?")
_COPY_COUNT = re.compile(r"Copy\d{1,9} chars / \d{1,9} words")
_BLANKS = re.compile(r"\n{3,}")
_LANGUAGE = re.compile(r"(?:language|lang)-([\w+#.-]{1,30})\Z")
MAX_HTML_CHARS = 500_000


def cleaned(text: str, *, answer: bool) -> tuple[str, list[str]]:
    """The stripped text of a scraped turn, and the names of the repairs.

    `answer`: written by the model; a user's text is converted only where it has classes of the page. Raises
    `ValueError` for HTML that cannot be parsed.
    """
    repairs = []
    page = _VARIANT.sub("", text)
    if _is_page(page, answer):
        page = _markdown(page)
        repairs.append("html_to_markdown")
    elif answer and _BLOCK in page:
        page = _with_blocks(page)
        repairs.append("html_to_markdown")
    if "Copy" in page:
        page = _COPY_COUNT.sub("", _COPY_CODE.sub(r"```\1\n", _EMPTY_BLOCK.sub("", page)))
    page = page.strip()
    if not repairs and page != text.strip():
        repairs.append("page_words_removed")
    return page, repairs


def _is_page(text: str, answer: bool) -> bool:
    if _PAGE.search(text):
        return True
    return answer and bool(_FRAGMENT.match(text)) and text.rstrip().endswith(">") and "```" not in text


def _with_blocks(text: str) -> str:
    """The text with only the page's code blocks converted to markdown."""
    pieces, at = [], 0
    while (start := text.find(_BLOCK, at)) >= 0 and (end := text.find("</pre>", start)) >= 0:
        pieces += [text[at:start].rstrip(), f"\n\n{_markdown(text[start : end + 6]).strip()}\n\n"]
        at = end + 6
        while text[at : at + 1] == "\n":
            at += 1
    return "".join([*pieces, text[at:]])


def _markdown(html: str) -> str:
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup
    from markdownify import MarkdownConverter

    if len(html) > MAX_HTML_CHARS:
        raise ValueError(f"{len(html):,} characters of HTML, at most {MAX_HTML_CHARS:,} are converted")
    converter = MarkdownConverter(
        heading_style="ATX", bullets="-", escape_asterisks=False, escape_underscores=False, escape_misc=False,
        code_language_callback=_language, table_infer_header=True,
    )  # fmt: skip
    try:
        soup = BeautifulSoup(html, "html.parser")
        for element in soup(["script", "style", "button"]):
            element.decompose()
        for block in soup("pre"):
            _only_code(block)
        pieces = str(converter.convert_soup(soup)).split("```")
    except (ParserRejectedMarkup, AssertionError, RecursionError) as error:
        raise ValueError(f"HTML that cannot be parsed ({type(error).__name__})") from error
    return "```".join(piece if index % 2 else _BLANKS.sub("\n\n", piece) for index, piece in enumerate(pieces))


def _only_code(block: Any) -> None:
    """Keep only the code of a code block, without the page's title bar with the language."""
    code = block.find("code")
    if code is not None:
        block["class"] = code.get("class") or []
        block.string = code.get_text().rstrip("\n")


def _language(block: Any) -> str:
    """The language that a code block's class names; empty where there is none."""
    matches = (_LANGUAGE.search(name) for name in block.get("class") or [])
    return next((match[1] for match in matches if match), "")
