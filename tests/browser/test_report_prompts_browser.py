"""The list of prompts in a browser: search, filters, keys, deep links, blind votes, two thousand prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.browser.chromium import Tab
from tests.support.report_page import COUNT, SETTLE, choose, press, visit, written
from tests.support.run_folder import change, write_run

LISTED = "[...document.querySelectorAll('#cards > details')].map((card) => card.dataset.id)"


FOCUSED = "document.activeElement.closest('#cards > details')?.dataset.id ?? null"


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
