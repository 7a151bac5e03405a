from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from distill.report.stage import report
from tests.browser.chromium import Tab, tab
from tests.support.run_folder import HOSTILE, change, poison, write_run

OPEN_ALL = "for (const card of document.querySelectorAll('details')) card.open = true"
POINT_AT_ALL = "for (const one of document.querySelectorAll('*')) one.dispatchEvent(new Event('mouseover'))"
WIDTH = "document.documentElement.scrollWidth"


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


LISTED = "[...document.querySelectorAll('#cards > details')].map((card) => card.dataset.id)"
COUNT = "document.getElementById('count').value"
FOCUSED = "document.activeElement.closest('#cards > details')?.dataset.id ?? null"
SETTLE = "new Promise((done) => setTimeout(done, 120))"


def choose(id: str, value: str) -> str:
    return (
        f"(() => {{ const field = document.getElementById('{id}'); field.value = {value!r}; "
        f"field.dispatchEvent(new Event('{'input' if id == 'find' else 'change'}')); return {COUNT}; }})()"
    )


async def press(page: Tab, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        await page.send(
            "Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" and len(key) == 1 else ""
        )
    await page.evaluate(SETTLE)


def judged_run(folder: Path, prompts: int = 12) -> Path:
    """Prompts of two kinds; the judge finds the first a loss, the second a win, and so on."""
    places = iter(range(prompts))

    def edit(row: dict[str, Any]) -> dict[str, Any]:
        place = next(places)
        value, margin = (("loss", -1.0), ("win", 1.0))[place % 2]
        games = [{"first": "student", "verdict": "teacher", "reason": "So."}] * 2
        return {
            **row,
            "category": ("maths", "writing")[place % 3 == 0],
            "outcome": {"by": "judge", "against": "teacher", "value": value, "margin": margin},
            "judge": {"pairs": {"student:teacher": {"games": games, "outcome": value}}},
            "leak": {"overlap": 0.9 if place == 5 else 0.0, "leaked": place == 5, "row": "r1"},
            "coverage": {"verdict": "not taught" if place == 2 else "fine", "similarity": 0.1, "nearest": []},
        }

    change(write_run(folder, prompts=prompts) / "answers.jsonl", edit)
    return written(folder)


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


def test_search_and_filters_combine_and_count(tmp_path: Path) -> None:
    file = judged_run(tmp_path)

    async def look(page: Tab) -> Any:
        await page.open(file, width=1280)
        found = [await page.evaluate(COUNT), await page.evaluate(choose("outcome", "loss"))]
        found.append(await page.evaluate(choose("category", "writing")))
        found.append(await page.evaluate(LISTED))
        found.append(await page.evaluate(choose("find", "RAINBOW eight")))
        found.append(await page.evaluate("location.hash"))
        return found

    (whole, losses, both, ids, none, address), complaints = visit(look)
    assert complaints == []
    assert (whole, losses, both) == ("12 prompts", "6 of 12 prompts", "2 of 12 prompts")
    assert sorted(ids) == ["t0000", "t0006"]
    assert none == "1 of 12 prompts"
    assert address == "#pair?find=RAINBOW+eight&category=writing&outcome=loss"


def test_flags_tell_leaked_prompts_and_those_that_were_not_taught(tmp_path: Path) -> None:
    file = judged_run(tmp_path)

    async def look(page: Tab) -> Any:
        await page.open(file, width=1280)
        found = []
        for flag in ("leaked", "not taught"):
            await page.evaluate(choose("flag", flag))
            found.append(await page.evaluate(LISTED))
        return found

    assert visit(look)[0] == [["t0005"], ["t0002"]]


def test_the_order_can_be_turned_round(tmp_path: Path) -> None:
    file = judged_run(tmp_path)

    async def look(page: Tab) -> Any:
        await page.open(file, width=1280)
        worst = await page.evaluate(LISTED)
        await page.evaluate(choose("sort", "best"))
        best = await page.evaluate(LISTED)
        await page.evaluate(choose("sort", "order"))
        return [worst, best, await page.evaluate(LISTED)]

    (worst, best, order), _ = visit(look)
    assert best == worst[::-1]
    assert order == sorted(worst)
    assert {int(id[1:]) % 2 for id in worst[:6]} == {0}


def test_a_deep_link_opens_its_prompt_and_sets_its_filters(tmp_path: Path) -> None:
    file = judged_run(tmp_path)

    async def look(page: Tab) -> Any:
        await page.open(file, width=1280)
        await page.evaluate("location.hash = '#pair?outcome=win&prompt=t0007'")
        await page.evaluate(SETTLE)
        return await page.evaluate(
            f"[{COUNT}, {FOCUSED}, [...document.querySelectorAll('#cards > [open]')].map((card) => card.dataset.id),"
            " document.getElementById('outcome').value]"
        )

    found, complaints = visit(look)
    assert complaints == []
    assert found == ["6 of 12 prompts", "t0007", ["t0007"], "win"]


def test_keys_go_from_prompt_to_prompt_and_open_them(tmp_path: Path) -> None:
    file = judged_run(tmp_path)

    async def look(page: Tab) -> Any:
        await page.open(file, width=1280)
        places = []
        for key in "jjk":
            await press(page, key)
            places.append(await page.evaluate(FOCUSED))
        await press(page, "e")
        opened = await page.evaluate("document.querySelectorAll('#cards > [open]').length")
        await press(page, "e")
        closed = await page.evaluate("document.querySelectorAll('#cards > [open]').length")
        await press(page, "/")
        field = await page.evaluate("document.activeElement.id")
        return [places, opened, closed, field, await page.evaluate(LISTED)]

    (places, opened, closed, field, ids), complaints = visit(look)
    assert complaints == []
    assert places == [ids[0], ids[1], ids[0]]
    assert (opened, closed, field) == (1, 0, "find")


def test_a_blind_vote_hides_names_then_counts_and_is_kept(tmp_path: Path) -> None:
    file = judged_run(tmp_path)

    async def look(page: Tab) -> Any:
        await page.open(file, width=1280)
        await press(page, "b")
        await press(page, "j")
        await press(page, "e")
        hidden = await page.evaluate(
            "[...document.querySelectorAll('#cards > [open] h3')].map((title) => title.textContent)"
        )
        shown = await page.evaluate("document.querySelectorAll('#cards .badge.alert, #cards [open] .badges').length")
        await press(page, "3")
        told = await page.evaluate("document.getElementById('tally').value")
        named = await page.evaluate(
            "[...document.querySelectorAll('#cards > [open] h3')].map((title) => title.textContent)"
        )
        stored = await page.evaluate("Object.values(localStorage)")
        return [hidden, shown, told, named, stored, (await page.evaluate(LISTED))[0]]

    (hidden, shown, told, named, stored, first), complaints = visit(look)
    assert complaints == []
    assert hidden == ["Left", "Right"]
    assert shown == 0
    assert told == "1 votes: student 0, teacher 0, tie 1, both bad 0; the judge agrees on 0 of 1."
    assert named == ["Base", "Student", "Teacher"]
    assert stored == [f'{{"{first}":"tie"}}']


def test_votes_are_saved_as_rows(tmp_path: Path) -> None:
    file = judged_run(tmp_path)

    async def look(page: Tab) -> Any:
        await page.open(file, width=1280)
        await page.evaluate("URL.createObjectURL = (blob) => { window.saved = blob.text(); return 'blob:null/x'; }")
        for key in "bje1":
            await press(page, key)
        await page.evaluate("HTMLAnchorElement.prototype.click = () => {}")
        await page.evaluate("document.getElementById('save').click()")
        return [await page.evaluate("window.saved"), (await page.evaluate(LISTED))[0]]

    (saved, first), _ = visit(look)
    row = json.loads(saved)
    assert row["id"] == first
    assert row["vote"] == row["sides"][0]


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


def test_of_two_thousand_prompts_only_those_in_sight_are_built(tmp_path: Path) -> None:
    file = written(write_run(tmp_path, prompts=2_000))

    async def look(page: Tab) -> Any:
        await page.open(file, width=1280)
        cards = await page.evaluate("document.querySelectorAll('#cards > details').length")
        await page.evaluate(choose("find", "rainbow"))
        await page.evaluate(choose("find", ""))
        await page.evaluate("location.hash = '#pair?prompt=t1999'")
        await page.evaluate(SETTLE)
        return [cards, await page.evaluate(FOCUSED)]

    (cards, focused), complaints = visit(look)
    assert complaints == []
    assert cards < 200
    assert focused == "t1999"


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
