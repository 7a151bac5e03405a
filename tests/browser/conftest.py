"""Tests of the page need a real browser, and say loudly where there is none."""

from __future__ import annotations

import os

import pytest

from tests.browser.chromium import executable


@pytest.fixture(autouse=True)
def _browser() -> None:
    if executable() is None:
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail("REQUIRE_BROWSER=1 but no chromium is installed; install the package chromium")
        pytest.skip("no chromium is installed: nothing was tried in a browser; install the package chromium")
