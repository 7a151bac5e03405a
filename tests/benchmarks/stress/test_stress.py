"""Each event of the stress harness once, against real processes: nothing that must hold is broken."""

from __future__ import annotations

import resource
import time

import pytest

from tests.benchmarks import stress

pytestmark = pytest.mark.slow

MOST_SECONDS = 60
"""CPU time of all processes: what it takes on a busy machine says little."""


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + usage.ru_utime + usage.ru_stime


def test_no_event_breaks_what_must_hold_and_every_kind_is_drawn(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DISTILL_BENCH", str(tmp_path))
    started = _cpu_seconds()
    findings = stress.run(quick=True)
    assert [check.what for check in findings.checks if not check.good] == [], "\n".join(findings.notes)
    assert {row["times"] > 0 for row in findings.rows} == {True}
    assert _cpu_seconds() - started < MOST_SECONDS
