from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from distill.report import report
from tests.browser.chromium import Tab, executable, tab
from tests.run_folder import HOSTILE, poison, write_run

OPEN_ALL = "for (const card of document.querySelectorAll('details')) card.open = true"
POINT_AT_ALL = "for (const one of document.querySelectorAll('*')) one.dispatchEvent(new Event('mouseover'))"
WIDTH = "document.documentElement.scrollWidth"


@pytest.fixture(autouse=True)
def _browser() -> None:
    if executable() is None:
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail("REQUIRE_BROWSER=1 but no chromium is installed; install the package chromium")
        pytest.skip("no chromium is installed: the report was not looked at in a browser; install the package chromium")


def visit(look: Callable[[Tab], Awaitable[Any]]) -> tuple[Any, list[str]]:
    """What `look` finds in a fresh browser, and all that the browser complained of or asked for meanwhile."""

    async def run() -> tuple[Any, list[str]]:
        async with tab() as page:
            return await look(page), page.complaints

    return asyncio.run(run())


def written(folder: Path) -> Path:
    report(folder)
    return folder / "report.html"


def test_hostile_text_does_nothing_in_a_browser(tmp_path: Path) -> None:
    file = written(poison(write_run(tmp_path), "".join(HOSTILE)))

    async def look(page: Tab) -> Any:
        await page.open(file, width=1280)
        await page.evaluate(OPEN_ALL)
        await page.evaluate(
            "for (const one of document.querySelectorAll('*')) one.dispatchEvent(new Event('mouseover'))"
        )
        return await page.evaluate(
            "[window.stolen ?? null, document.title.startsWith('quickstart'), document.scripts.length,"
            " document.querySelectorAll('img, iframe, base, svg[onload], [style], [onmouseover]').length]"
        )

    assert visit(look) == ([None, True, 1, 0], [])


def test_what_slips_through_the_escaping_is_stopped_by_the_policy(tmp_path: Path) -> None:
    file = written(write_run(tmp_path))
    smuggled = HOSTILE[0] + "<img src=http://127.0.0.1:9/x.png onerror='window.stolen = true'><p style='color: red'>"
    file.write_text(file.read_text().replace("<main>", f"<main>{smuggled}"))

    async def look(page: Tab) -> Any:
        await page.open(file, width=1280)
        return await page.evaluate("[window.stolen ?? null, document.title]")

    found, complaints = visit(look)
    assert found == [None, "quickstart – distill report"]
    assert sum("Content Security Policy" in complaint for complaint in complaints) >= 3


def test_no_page_scrolls_sideways_in_light_or_dark(tmp_path: Path) -> None:
    plain = written(write_run(tmp_path / "plain"))
    wide = written(poison(write_run(tmp_path / "wide"), "w" * 3_000 + " \u202e" + "漢" * 500))
    views = [
        (file, width, dark) for file in (plain, wide) for width in (1280, 1030, 850, 400) for dark in (False, True)
    ]

    async def look(page: Tab) -> Any:
        found = []
        for file, width, dark in views:
            await page.open(file, width=width, dark=dark)
            await page.evaluate(OPEN_ALL)
            found.append(await page.evaluate(f"[{WIDTH}, getComputedStyle(document.body).color]"))
        return found

    found, complaints = visit(look)
    assert complaints == []
    assert [width for width, _ in found] == [width for _, width, _ in views]
    assert len({colour for _, colour in found}) == 2


def test_headline_and_gap_are_on_the_first_screen(tmp_path: Path) -> None:
    file = written(write_run(tmp_path))

    async def look(page: Tab) -> Any:
        bottoms = []
        for width in (1280, 400):
            await page.open(file, width=width)
            bottoms.append(await page.evaluate("document.querySelector('.gap').getBoundingClientRect().bottom"))
        return bottoms

    bottoms, _ = visit(look)
    assert all(bottom < 900 for bottom in bottoms)


SORT = """(by) => {
  const select = document.getElementById("sort");
  select.value = by;
  select.dispatchEvent(new Event("change"));
  const cards = [...document.getElementById("cards").children];
  return cards.map((card) => [Number(card.dataset.order), Number(card.dataset.rouge), card.open]);
}"""
FIND = """(words) => {
  const find = document.getElementById("find");
  find.value = words;
  find.dispatchEvent(new Event("input"));
  const shown = [...document.getElementById("cards").children].filter((card) => card.checkVisibility());
  return [shown.map((card) => card.querySelector(".prompt").innerText.trim()), document.getElementById("count").value];
}"""


def test_cards_can_be_sorted_by_likeness_to_the_teacher(tmp_path: Path) -> None:
    file = written(write_run(tmp_path))

    async def look(page: Tab) -> Any:
        await page.open(file, width=1280)
        return [await page.evaluate(f"({SORT})('{by}')") for by in ("worst", "best", "order")]

    (worst, best, order), complaints = visit(look)
    assert complaints == []
    scores = [score for _, score, _ in worst]
    assert scores == sorted(scores)
    assert [score for _, score, _ in best] == sorted(scores, reverse=True)
    assert [number for number, _, _ in order] == list(range(1, 33))
    assert [opened for _, _, opened in worst] == [True] * 4 + [False] * 28


def test_cards_can_be_searched(tmp_path: Path) -> None:
    file = written(write_run(tmp_path))

    async def look(page: Tab) -> Any:
        await page.open(file, width=1280)
        await page.evaluate("document.getElementById('toggle').click()")
        return [await page.evaluate(f"({FIND})('{words}')") for words in ("RAINBOW eight", "nowhere", "")]

    (some, none, everything), _ = visit(look)
    assert some[0]
    assert all("rainbow" in prompt and "eight" in prompt for prompt in some[0])
    assert some[1] == f"{len(some[0])} of 32"
    assert none == [[], "0 of 32"]
    assert len(everything[0]) == 32


def test_the_page_reads_well_without_a_script(tmp_path: Path) -> None:
    file = written(write_run(tmp_path))
    file.write_text(file.read_text().replace("<script>", "<script>/* changed: the policy refuses it */"))

    async def look(page: Tab) -> Any:
        await page.open(file, width=1280)
        return await page.evaluate(
            "[document.querySelectorAll('#cards > [open]').length, document.getElementById('tools').checkVisibility()]"
        )

    found, _ = visit(look)
    assert found == [4, False]
