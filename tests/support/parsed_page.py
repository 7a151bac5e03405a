"""A report, parsed."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from distill.report.stage import report
from tests.support.run_folder import change

VOID = {"meta", "input"}


class Parsed(HTMLParser):
    """A page as a browser's parser sees it: its elements, their attributes, and the text under each class."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[tuple[str, str, list[str]]] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("class") or tag, []))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        opened, name, pieces = self._open.pop()
        assert opened == tag
        self.texts.append((name, "".join(pieces)))

    def handle_data(self, data: str) -> None:
        for _, _, pieces in self._open:
            pieces.append(data)

    def under(self, name: str) -> list[str]:
        return [text for where, text in self.texts if where == name]

    def values(self, attribute: str) -> list[str | None]:
        return [value for _, name, value in self.attributes if name == attribute]


def page(folder: Path, **options: Any) -> Parsed:
    report(folder, **options)
    return Parsed((folder / "report.html").read_text(encoding="utf-8"))


def first_answer(folder: Path, model: str, text: str) -> None:
    def edit(row: dict[str, Any]) -> dict[str, Any]:
        row["answers"][model]["text"] = text
        return row

    change(folder / "answers.jsonl", edit)


def viewed(html: str) -> list[dict[str, Any]]:
    """The prompts that the page's viewer reads."""
    prompts: list[dict[str, Any]] = json.loads(Parsed(html).under("script")[0])["prompts"]
    return prompts
