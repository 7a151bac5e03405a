"""A report, opened in a browser: what to evaluate in the page, and how to visit it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from distill.report.stage import report
from tests.browser.chromium import Tab, tab


def visit(look: Callable[[Tab], Awaitable[Any]]) -> tuple[Any, list[str]]:
    """What `look` finds in a fresh browser, and all that the browser complained of or asked for meanwhile."""

    async def run() -> tuple[Any, list[str]]:
        async with tab() as page:
            return await look(page), page.complaints

    return asyncio.run(run())


def written(folder: Path) -> Path:
    report(folder)
    return folder / "report.html"


COUNT = "document.getElementById('count').value"


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
