"""Each event of the stress harness once, against real processes: nothing that must hold is broken."""

from __future__ import annotations

import time

import pytest

from tests.benchmarks import stress
from tests.benchmarks.stress.endpoint import noises
from tests.benchmarks.stress.harm import EVENTS, can_fill_disks

pytestmark = pytest.mark.slow

MOST_SECONDS = 60


def test_no_event_breaks_what_must_hold_and_every_kind_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_BENCH", str(tmp_path))
    started = time.monotonic()
    findings = stress.run(quick=True)
    times = {row["event"]: row["times"] for row in findings.rows}
    kinds = {*EVENTS, *noises(stress.Random(0), "key")} - (set() if can_fill_disks() else {"full disk"})
    assert [check.what for check in findings.checks if not check.good] == [], "\n".join(findings.notes)
    assert times.keys() == kinds
    assert min(times.values()) >= 1
    assert time.monotonic() - started < MOST_SECONDS
