"""Shading of tokens by their likelihood in a browser: hover, legend, hostile tokens, keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.browser.chromium import Tab
from tests.support.report_page import SETTLE, choose, press, visit, written
from tests.support.run_folder import HOSTILE, change, write_run

WORDS = ("The", " sea", " is", "\n", HOSTILE[1], " 𝄞")
NATS = {"student": (0.0, 1.0, 4.0, 0.1, 9.0, 12.5), "base": (2.0, 2.0, 2.0, 2.0, 2.0, 2.0)}
TOKENS = "[...document.querySelectorAll('#cards .heat span')].map((one) => [one.className, one.textContent])"
READOUT = "document.querySelector('#cards output').value"


def surprised_run(folder: Path) -> Path:
    """One prompt with figures for its teacher's six tokens, and one without."""
    known = iter((True, False))

    def edit(row: dict[str, Any]) -> dict[str, Any]:
        row["answers"]["teacher"]["text"] = "".join(WORDS)
        told = {"widths": [len(word) for word in WORDS], "nats": {name: list(nats) for name, nats in NATS.items()}}
        return {**row, "surprise": told} if next(known) else row

    change(write_run(folder, prompts=2) / "answers.jsonl", edit)
    return written(folder)


async def opened(page: Tab, file: Path, *, width: int = 1280) -> None:
    await page.open(file, width=width)
    await page.evaluate("for (const card of document.querySelectorAll('#cards > details')) card.open = true")
    await page.evaluate(SETTLE)


def test_each_token_is_shaded_by_the_model_that_is_chosen(tmp_path: Path) -> None:
    file = surprised_run(tmp_path)

    async def look(page: Tab) -> Any:
        await opened(page, file)
        found = [await page.evaluate(TOKENS)]
        for _ in range(3):
            await press(page, "s")
            found.append(await page.evaluate(TOKENS))
        titles = "[...document.querySelectorAll('#cards .heat span')].map((one) => one.title)"
        await page.evaluate(choose("surprise", "student"))
        return [*found, await page.evaluate(titles), await page.evaluate("window.stolen ?? null")]

    (before, student, base, after, titles, stolen), complaints = visit(look)
    assert (complaints, stolen, before, after) == ([], None, [], [])
    assert student == [[f"heat-{level}", word] for level, word in zip((0, 2, 4, 0, 6, 7), WORDS, strict=True)]
    assert [shade for shade, _ in base] == ["heat-2"] * 6
    assert titles[1:3] == [
        "1.0 nats for the student, 2.0 nats for the base",
        "4.0 nats for the student, 2.0 nats for the base",
    ]


def test_arrow_keys_go_from_token_to_token_and_tell_each(tmp_path: Path) -> None:
    file = surprised_run(tmp_path)

    async def look(page: Tab) -> Any:
        await opened(page, file)
        await page.evaluate(choose("surprise", "student"))
        await page.evaluate("document.querySelector('#cards .heat span').focus()")
        told = []
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "Home"):
            await press(page, key)
            told.append(await page.evaluate(READOUT))
        stops = "[...document.querySelectorAll('#cards .heat span')].filter((one) => one.tabIndex === 0).length"
        return [told, await page.evaluate(stops)]

    (told, stops), complaints = visit(look)
    assert (complaints, stops) == ([], 1)
    places = [line.partition(", token ")[2].partition(" ")[0] for line in told]
    assert places == ["2", "3", "2", "6", "6", "1"]
    assert told[0] == "“sea”, token 2 of 6: 1.0 nats for the student, 2.0 nats for the base"


def test_who_cannot_see_the_shades_reads_the_figures(tmp_path: Path) -> None:
    file = surprised_run(tmp_path)

    async def look(page: Tab) -> Any:
        await opened(page, file)
        await page.evaluate(choose("surprise", "base"))
        label = await page.evaluate("document.querySelector('#cards .heat').getAttribute('aria-label')")
        return [label, await page.evaluate("document.querySelector('#cards .heat ~ p').textContent")]

    label, told = visit(look)[0]
    assert label.startswith("The teacher’s answer by how surprising each token is to the base; the arrow keys")
    assert told.startswith(
        "Nats a token, on average: 4.4 for the student, 2.0 for the base. Most surprising to the base: “The” 2.0"
    )


def test_shades_keep_the_text_readable_in_light_and_dark_and_the_page_narrow(tmp_path: Path) -> None:
    file = surprised_run(tmp_path)
    contrast = """[...document.querySelectorAll('#cards .heat span, #cards .legend span')].map((one) => {
      const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
      const over = (color, below) => {
        canvas.fillStyle = below;
        canvas.fillRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
      };
      const light = (rgb) => rgb.map((c) => c / 255)
        .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
      const style = getComputedStyle(one);
      const sheet = getComputedStyle(one.closest('article')).backgroundColor;
      const [text, back] = [light(over(style.color, sheet)), light(over(style.backgroundColor, sheet))];
      return (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
    })"""

    async def look(page: Tab) -> Any:
        await opened(page, file, width=360)
        await page.evaluate(choose("surprise", "student"))
        found = [await page.evaluate(contrast), await page.evaluate("document.documentElement.scrollWidth")]
        await press(page, "t")
        return [*found, await page.evaluate(contrast)]

    (light, wide, dark), complaints = visit(look)
    assert complaints == []
    assert len(light) == len(dark) == 14
    assert (min(light) >= 4.5, min(dark) >= 4.5, wide) == (True, True, 360)


def test_without_figures_nothing_offers_them(tmp_path: Path) -> None:
    file = written(write_run(tmp_path, prompts=1))

    async def look(page: Tab) -> Any:
        await opened(page, file)
        await press(page, "s")
        shown = await page.evaluate("document.getElementById('surprise').parentElement.checkVisibility()")
        return [shown, await page.evaluate("document.querySelectorAll('#cards .heat').length")]

    assert visit(look) == ([False, 0], [])
