"""Values that JSON lacks: one rule for those of tables, of Python and of lenient JSON, and no `NaN` in any file."""

from __future__ import annotations

import datetime
import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from distill.core.files import json_text, write_json
from distill.core.json_values import storable
from distill.core.jsonl import append, read_sessions, write_rows
from distill.formats.exporters import ExportJob
from distill.formats.exporters.json_files import openai
from distill.formats.json_rows import decoder
from distill.types import Message, Session

NAN, NOON = float("nan"), datetime.datetime(2026, 1, 2, 12, 0, 0, 5, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (NAN, None),
        (float("-inf"), None),
        (np.float32("nan"), None),
        (np.datetime64("NaT"), None),
        (NOON, "2026-01-02T12:00:00.000005+00:00"),
        (NOON.date(), "2026-01-02"),
        (NOON.time(), "12:00:00.000005"),
        (np.datetime64("2026-01-02"), "2026-01-02"),
        (datetime.timedelta(minutes=1.5), 90.0),
        (Decimal("3"), 3),
        (Decimal("0.10"), 0.1),
        (Decimal("0.12345678901234567890"), "0.12345678901234567890"),
        (Decimal("1E+400"), "1E+400"),
        (Decimal("NaN"), None),
        ("é".encode(), "é"),
        (b"\xff\x00", "/wA="),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        ("\ud83d!", "\ufffd!"),
        (np.array([1.0, NAN]), [1.0, None]),
        (np.int8(3), 3),
        ((1, {2}), [1, [2]]),
        ({1: NAN, None: "x"}, {"1": None, "None": "x"}),
        (True, True),
        (2**70, 2**70),
    ],
)
def test_a_cell_becomes_text_a_number_or_null(value, stored):
    found = storable(value)
    assert (type(found), found) == (type(stored), stored)
    assert json.loads(json_text({"cell": value}), parse_constant=pytest.fail) == {"cell": stored}


def test_a_missing_time_of_pandas_is_null():
    pandas = pytest.importorskip("pandas")
    assert [storable(value) for value in (pandas.NaT, pandas.Timestamp("2026-01-02"))] == [None, "2026-01-02T00:00:00"]


LEAVES = {
    "float": st.floats(),
    "decimal": st.decimals(),
    "time": st.datetimes() | st.dates() | st.times() | st.timedeltas(),
    "bytes": st.binary(max_size=6),
    "text": st.text(st.characters(exclude_categories=()), max_size=6),
    "plain": st.none() | st.booleans() | st.integers() | st.uuids(),
}


@settings(deadline=None)
@given(st.data())
def test_any_value_is_written_as_json_by_the_standard_and_stays(data):
    def leaf(kind: str) -> st.SearchStrategy[Any]:
        return LEAVES[kind].map(lambda value: (event(kind), value)[1])

    leaves = st.sampled_from(sorted(LEAVES)).flatmap(leaf)
    value = data.draw(
        st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)
    )
    stored = storable(value)
    assert storable(stored) == stored
    text = json_text(value).encode("utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == stored


def test_lenient_json_is_read_by_the_same_rule():
    assert decoder.decode('{"a": NaN, "b": [-Infinity, 1e999, -1E400, 1.5]}') == {
        "a": None,
        "b": [None, None, None, 1.5],
    }


def test_no_file_of_ours_ever_holds_nan(tmp_path: Path):
    meta = {"score": NAN, "when": NOON, "at": {"x": [float("inf")]}}
    session = Session("a", (Message("user", "Hi?"), Message("assistant", "Hello.")), meta)
    write_rows(tmp_path / "kept.jsonl", [session])
    append(tmp_path / "kept.jsonl", [session])
    write_json(tmp_path / "scores.json", {"loss": NAN, "rows": [session]})
    assert read_sessions(tmp_path / "kept.jsonl")[1].meta == {
        "score": None,
        "when": NOON.isoformat(),
        "at": {"x": [None]},
    }
    old = (tmp_path / "kept.jsonl").read_text().replace('"score": null', '"score": NaN')
    (tmp_path / "kept.jsonl").write_text(old)
    openai().export(ExportJob(run=tmp_path, out=tmp_path / "out.jsonl"))
    for file in ("scores.json", "out.jsonl"):
        for text in (
            (tmp_path / file).read_text().splitlines() if file == "out.jsonl" else [(tmp_path / file).read_text()]
        ):
            json.loads(text, parse_constant=pytest.fail)
