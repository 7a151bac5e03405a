"""Each event of the stress harness once, against real processes: nothing that must hold is broken."""

from __future__ import annotations

import pytest

from tests.benchmarks import stress

pytestmark = pytest.mark.slow


def test_no_event_breaks_what_must_hold_and_every_kind_is_drawn(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DISTILL_BENCH", str(tmp_path))
    findings = stress.run(quick=True)
    assert [check.what for check in findings.checks if not check.good] == [], "\n".join(findings.notes)
    assert {row["times"] > 0 for row in findings.rows} == {True}
