from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.browser.chromium import Tab
from tests.support.report_page import press, visit, written
from tests.support.run_folder import HOSTILE, change, poison, write_run

OPEN_ALL = "for (const card of document.querySelectorAll('details')) card.open = true"


POINT_AT_ALL = "for (const one of document.querySelectorAll('*')) one.dispatchEvent(new Event('mouseover'))"


WIDTH = "document.documentElement.scrollWidth"


def test_hostile_text_does_nothing_in_a_browser(tmp_path: Path) -> None:
    file = written(poison(write_run(tmp_path), "".join(HOSTILE)))

    async def look(page: Tab) -> Any:
        await page.open(file, width=1280)
        await page.evaluate(OPEN_ALL)
        await page.evaluate(
            "for (const one of document.querySelectorAll('*')) one.dispatchEvent(new Event('mouseover'))"
        )
        return await page.evaluate(
            "[window.stolen ?? null, document.title.startsWith('quickstart'), document.scripts.length - 3,"
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


def test_no_figure_of_a_table_is_broken_over_lines(tmp_path: Path) -> None:
    def edit(scores: dict[str, Any]) -> dict[str, Any]:
        for entry in scores["metrics"].values():
            entry |= {"p": 0.031, "explanation": "How far an answer lies from that of the teacher to the same. " * 6}
        return scores

    change(write_run(tmp_path) / "scores.json", edit)
    file = written(tmp_path)
    lines = """[...document.querySelectorAll('#metrics td.p, #metrics td .mean')].map((cell) => {
      const range = document.createRange();
      range.selectNodeContents(cell);
      return new Set([...range.getClientRects()].map((one) => Math.round(one.top))).size;
    })"""

    async def look(page: Tab) -> Any:
        await page.open(file, width=1100)
        return await page.evaluate(lines)

    assert set(visit(look)[0]) == {1}


def test_differences_are_marked_word_by_word(tmp_path: Path) -> None:
    write_run(tmp_path, prompts=1)
    texts = {"student": "The sea is wide and blue.", "teacher": "The sea is old and blue."}

    def edit(row: dict[str, Any]) -> dict[str, Any]:
        for model, text in texts.items():
            row["answers"][model]["text"] = text
        return row

    change(tmp_path / "answers.jsonl", edit)
    file = written(tmp_path)

    async def look(page: Tab) -> Any:
        await page.open(file, width=1280)
        for key in "dje":
            await press(page, key)
        return await page.evaluate(
            "[...document.querySelectorAll('#cards mark')].map((mark) => [mark.className, mark.textContent])"
        )

    assert visit(look)[0] == [["student", "wide"], ["teacher", "old"]]


MARKDOWN = """# Title

- **bold** and `code`
- [good](https://example.org) [bad](javascript:alert(1)) ![picture](http://127.0.0.1:9/x.png)

<img src=http://127.0.0.1:9/y.png onerror=alert(1)><script>window.stolen = true</script>

| a | b |
|---|---|
| 1 | 2 |
"""


def test_markdown_is_shown_as_elements_and_nothing_else(tmp_path: Path) -> None:
    def edit(row: dict[str, Any]) -> dict[str, Any]:
        row["answers"]["student"]["text"] = MARKDOWN
        return row

    change(write_run(tmp_path, prompts=1) / "answers.jsonl", edit)
    file = written(tmp_path)

    async def look(page: Tab) -> Any:
        await page.open(file, width=1280)
        for key in "je":
            await press(page, key)
        return await page.evaluate(
            """(() => { const text = document.querySelector('#cards .student .markdown');
            const count = (what) => text.querySelectorAll(what).length;
            return [count('li'), count('strong'), count('code'), count('table td'), count('img, script, [onerror]'),
            [...text.querySelectorAll('a')].map((link) => [link.href, link.rel]), text.textContent,
            window.stolen ?? null]; })()"""
        )

    (items, strong, code, cells, dangerous, links, text, stolen), complaints = visit(look)
    assert complaints == []
    assert (items, strong, code, cells, dangerous, stolen) == (2, 1, 1, 2, 0, None)
    assert links == [["https://example.org/", "noreferrer noopener nofollow"]]
    assert "<img src=http://127.0.0.1:9/y.png onerror=alert(1)>" in text
    assert "[image: picture]" in text


def test_dark_and_light_can_be_chosen(tmp_path: Path) -> None:
    file = written(write_run(tmp_path, prompts=1))
    colour = "getComputedStyle(document.body).backgroundColor"

    async def look(page: Tab) -> Any:
        found = []
        for dark in (False, True):
            await page.open(file, width=1280, dark=dark)
            before = await page.evaluate(colour)
            await press(page, "t")
            found.append((before, await page.evaluate(colour), await page.evaluate("theme.textContent")))
        return found

    (light, dark), _ = visit(look)
    assert light[:2] == dark[1::-1]
    assert light[0] != light[1]
    assert (light[2], dark[2]) == ("Light", "Dark")


def test_the_page_reads_well_without_a_script(tmp_path: Path) -> None:
    file = written(write_run(tmp_path))
    file.write_text(file.read_text().replace("<script>", "<script>/* changed: the policy refuses it */"))

    async def look(page: Tab) -> Any:
        await page.open(file, width=1280)
        return await page.evaluate(
            "[document.querySelectorAll('#worst > [open]').length, document.getElementById('tools').checkVisibility()]"
        )

    found, _ = visit(look)
    assert found == [5, False]
