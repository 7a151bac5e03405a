"""The page of `distill ui` in a browser: it follows a run, searches, shows hostile rows as text, asks nobody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import Tab, tab
from tests.support.run_folder import HOSTILE, change, poison, write_run
from tests.ui.page_server import Served, serving

pytestmark = pytest.mark.slow

STEP = {"step": 73, "steps": 80, "loss": 0.4321, "learning_rate": 1e-4, "seconds": 500, "tokens": 1}


def visit(root: Path, look: Callable[[Tab, Served], Awaitable[Any]]) -> tuple[Any, list[str]]:
    """What `look` finds on the page, and all that the browser complains of, or asks of another address."""

    async def run(page: Served) -> tuple[Any, list[str]]:
        async with tab() as one:
            await resize(one, 1280)
            for domain in ("Page", "Runtime", "Log", "Network"):
                await one.send(f"{domain}.enable")
            await one.send("Page.navigate", url=page.url)
            await shows(one, "document.querySelector('.run') !== null")
            found = await look(one, page)
            ours = f"asked for http://127.0.0.1:{page.port}/"
            return found, [line for line in one.complaints if not line.startswith(ours)]

    with serving(root) as page:
        return asyncio.run(run(page))


async def resize(page: Tab, width: int, *, dark: bool = False) -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    await page.send("Emulation.setDeviceMetricsOverride", **screen)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    await page.send("Emulation.setEmulatedMedia", features=[scheme])


async def shows(page: Tab, condition: str) -> None:
    """Wait until the page meets a condition."""
    async with asyncio.timeout(30):
        while await page.evaluate(condition) is not True:
            await asyncio.sleep(0.05)


async def go(page: Tab, place: str, until: str) -> None:
    await page.evaluate(f"location.hash = {json.dumps(place)}")
    await shows(page, f"document.querySelector({json.dumps(until)}) !== null")


def text(selector: str) -> str:
    return f"(document.querySelector({json.dumps(selector)})?.textContent ?? '')"


def test_a_run_is_followed_while_its_files_grow(tmp_path: Path) -> None:
    run = write_run(tmp_path / "quick start", compare=False)
    log = run / "student" / "train_log.jsonl"

    async def look(page: Tab, _: Served) -> None:
        await go(page, "#/quick%20start", "#loss")
        assert "Step 72 of 72" in await page.evaluate(text("#loss"))
        with log.open("a") as file:
            file.write(json.dumps(STEP) + "\n" + json.dumps(STEP)[:20])
        (run / "run.log").write_text("2026-11-30T10:00:00+00:00 collect: 41/160, 9 s, 3 in flight, last fault: 503\n")
        change(run / "run.json", collecting)
        await shows(page, f"{text('#loss')}.startsWith('Step 73 of 80: 0.432')")
        await shows(page, f"{text('h1 .pill')} === 'running'")
        await shows(page, f"{text('.stage.running .figure')} === '41 of 160'")
        assert await page.evaluate("document.querySelector('.stage.running progress').value.toFixed(2)") == "0.26"
        assert "503" in await page.evaluate(text(".fault"))

    def collecting(record: dict[str, Any]) -> dict[str, Any]:
        record["stages"]["collect"]["status"] = "running"
        return record

    assert visit(tmp_path, look) == (None, [])


def test_rows_are_searched_filtered_and_opened_by_keyboard_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", prompts=2)
    rows = [
        {
            "id": f"r{n}",
            "messages": [{"role": "user", "content": f"row {n} {'even' if n % 2 == 0 else 'odd'}"}],
            "meta": {},
        }
        for n in range(120)
    ]
    (run / "kept.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"id": "half')

    async def look(page: Tab, _: Served) -> Any:
        await go(page, "#/a/rows?file=kept.jsonl", ".row")
        found = [await page.evaluate(text("#count"))]
        await page.evaluate("document.querySelector('.pages a:last-of-type').click()")
        await shows(page, f"{text('#count')}.startsWith('Rows 51–100')")
        await go(page, "#/a/rows?file=kept.jsonl&first=100", ".damaged")
        found.append(await page.evaluate(text(".damaged .answered")))
        await page.evaluate("document.getElementById('find').focus()")
        await page.send("Input.insertText", text="even")
        await shows(page, f"{text('#count')}.includes('so far')")
        await page.evaluate("document.querySelector('.pages button').click()")
        await shows(page, f"{text('#count')}.startsWith('60 rows fit')")
        await go(page, "#/a/rows?file=dropped.jsonl&verdict=length%2Ftoo_short", ".row")
        await shows(page, f"{text('#count')}.startsWith('12 rows fit')")
        found.append(await page.evaluate("document.getElementById('verdict').value"))
        await page.evaluate("document.querySelector('.row').focus()")
        for key in ("j", "Enter"):
            for kind in ("keyDown", "keyUp"):
                letter = {"j": "j", "Enter": "\r"}[key] if kind == "keyDown" else ""
                await page.send("Input.dispatchKeyEvent", type=kind, key=key, text=letter)
        await shows(page, f"{text('.detail h2')} === 'd1'")
        found.append(await page.evaluate(text(".drops td")))
        for kind in ("keyDown", "keyUp"):
            await page.send("Input.dispatchKeyEvent", type=kind, key="Escape")
        await shows(page, "document.querySelector('.detail').hidden")
        found.append(await page.evaluate("document.activeElement.dataset.at !== undefined"))
        return found

    assert visit(tmp_path, look) == (
        ["Rows 1–50 of 121", "not shown: still being written", "length/too_short", "drop: too_short", True],
        [],
    )


def test_hostile_runs_are_text_and_no_view_scrolls_sideways(tmp_path: Path) -> None:
    run = poison(write_run(tmp_path / "<img src=x onerror=alert(1)>", prompts=3), "".join(HOSTILE) + "w" * 800)
    (run / "run.log").write_text("".join(f"2026-11-30T10:00:00+00:00 warning: {line}\n" for line in HOSTILE))
    (run / "report.html").write_text("<script>parent.document.title = 'stolen'; document.title = 'own'</script>")
    name = "%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E"
    views = {
        "#/": ".run",
        f"#/{name}": ".stage",
        f"#/{name}/rows?file=dropped.jsonl&row=0": ".detail h2",
        f"#/{name}/rows?file=answers.jsonl&row=0": ".detail .columns",
        f"#/{name}/chat": ".chat > *",
    }

    async def look(page: Tab, _: Served) -> Any:
        widths = []
        for width, dark in ((1280, False), (400, True)):
            await resize(page, width, dark=dark)
            for place, until in views.items():
                await go(page, place, until)
                await page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
                widths.append(await page.evaluate("document.documentElement.scrollWidth"))
        inert = await page.evaluate(
            "[window.stolen ?? null, document.title.includes('stolen'), document.scripts.length,"
            " document.querySelectorAll('main img, main iframe, base, [onload], [onerror], [style]').length]"
        )
        await go(page, f"#/{name}/report", "iframe")
        await asyncio.sleep(0.3)
        outside = await page.evaluate("document.querySelector('iframe').contentDocument === null")
        return widths, inert, outside, await page.evaluate("document.title.includes('stolen')")

    found, complaints = visit(tmp_path, look)
    assert complaints == []
    assert found == ([1280] * len(views) + [400] * len(views), [None, False, 1, 0], True, False)


def test_the_token_lets_in_one_browser_and_every_control_has_a_name(tmp_path: Path) -> None:
    (write_run(tmp_path / "a", prompts=2) / "report.html").write_text("the report")
    unnamed = """[...document.querySelectorAll('input, select, textarea, button, a, progress')].filter((one) =>
        ![one.labels?.[0]?.textContent, one.ariaLabel, one.textContent].some((name) => name?.trim())).length"""

    async def look(page: Tab, served: Served) -> Any:
        found = []
        for place, until in {"#/": ".run", "#/a": ".stage", "#/a/rows": ".row", "#/a/report": "iframe"}.items():
            await go(page, place, until)
            found.append(await page.evaluate(unnamed))
        status, _ = served.ask(f"/?token={served.token}")
        return found, status, await page.evaluate("[location.search, document.cookie]")

    assert visit(tmp_path, look)[0] == ([0, 0, 0, 0], 403, ["", ""])
