"""Pages and a search of rows: the same as reading the whole file, and calm on what is no row."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from distill.ui import rows
from distill.ui.lines import BLOCK_BYTES, LineIndex, lines_from
from distill.ui.rows import Query


def session(id: str, prompt: str, answer: str, **meta: object) -> dict[str, object]:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"id": id, "messages": turns, "meta": meta}


def write(path: Path, *values: object) -> Path:
    path.write_text("".join(f"{json.dumps(value, ensure_ascii=False)}\n" for value in values), encoding="utf-8")
    return path


def every(path: Path, query: Query) -> list[str]:
    """The ids of all rows that a search gives, over all its steps."""
    at: int | None = 0
    ids = []
    while at is not None:
        step = rows.search(path, query, at)
        ids += [row["id"] for row in step["rows"]]
        at = step["next"]
    return ids


@pytest.mark.parametrize("longest", [40, 3 * BLOCK_BYTES])
def test_every_line_is_found_by_its_number(tmp_path: Path, longest: int):
    chance, path = random.Random(longest), tmp_path / "x.jsonl"
    sizes = [chance.randrange(longest) for _ in range(12)] + [BLOCK_BYTES - 1, 0, BLOCK_BYTES, 5]
    path.write_bytes(b"".join(b"x" * size + b"\n" for size in sizes))
    index = LineIndex(path)
    starts = [sum(size + 1 for size in sizes[:number]) for number in range(len(sizes))]
    assert [index.offset(number) for number in range(len(sizes))] == starts
    assert index.count(9) == (len(sizes), True)


def test_the_index_follows_a_file_that_grows_and_one_that_is_replaced(tmp_path: Path):
    path = write(tmp_path / "x.jsonl", {"id": 1})
    index = LineIndex(path)
    assert index.count(9) == (1, True)
    with path.open("a") as file:
        file.write('{"id": 2}\n{"id": ')
    assert index.count(9) == (3, True)
    with path.open("a") as file:
        file.write("3}\n")
    assert (index.count(9), index.offset(2)) == ((3, True), 20)
    os.replace(write(tmp_path / "new", {"id": "a longer one"}, {}, {}, {}), path)
    assert index.count(9) == (4, True)


def test_a_line_that_is_no_row_yet_or_at_all_is_told_and_the_rest_is_shown(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    good = json.dumps(session("a", "Why?", "So."))
    path.write_bytes(f"{good}\n[1]\nnonsense\n\n{'[' * 5000}\n{good}\n{good[:20]}".encode() + b"\xff")
    shown = rows.page(LineIndex(path), path, 0)
    assert shown["total"] == 7
    damage = [row.get("damage", "") for row in shown["rows"]]
    assert damage == ["", "list, expected an object", *["not JSON"] * 3, "", "still being written"]
    assert every(path, Query("so.")) == ["a", "a"]


KINDS = [
    session("plain", "What is a kite?", "A toy that flies.", labels=["refusal"]),
    session("umlaut", "Was ist GRÖẞE?", "Ausdehnung"),
    session("quoted", 'Say "no\\yes"', "two\nlines"),
    {"id": "dropped", "messages": [], "verdicts": [{"rule": "length", "keep": False, "reason": "too_short"}]},
    {"id": "kept", "messages": [], "verdicts": [{"rule": "length", "keep": True, "reason": "ok"}]},
    {"id": "refused", "instruction": "Fly a kite", "meta": {"refused": "too_similar"}},
    {"id": "odd", "messages": "kite", "meta": 3, "verdicts": {"rule": 1}, "answers": [1]},
]


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        (Query("KITE"), ["plain", "refused", "odd"]),
        (Query("größe"), ["umlaut"]),
        (Query("grösse"), ["umlaut"]),
        (Query('"no\\yes'), ["quoted"]),
        (Query("two\nlines"), ["quoted"]),
        (Query("content"), []),
        (Query(verdict="length/too_short"), ["dropped"]),
        (Query(verdict="refused/too_similar"), ["refused"]),
        (Query(label="refusal"), ["plain"]),
        (Query("kite", label="refusal", shortest=5, longest=40), ["plain"]),
        (Query(shortest=11), ["plain"]),
        (Query(longest=0), ["dropped", "kept", "odd"]),
    ],
)
def test_a_search_finds_what_fits_and_nothing_else(tmp_path: Path, query: Query, ids: list[str]):
    assert every(write(tmp_path / "x.jsonl", *KINDS), query) == ids
    escaped = tmp_path / "escaped.jsonl"
    escaped.write_text("".join(f"{json.dumps(row)}\n" for row in KINDS))
    assert every(escaped, query) == ids


def test_a_search_goes_on_where_a_full_page_ended(tmp_path: Path):
    path = write(tmp_path / "x.jsonl", *(session(str(n), "odd" if n % 2 else "even", "x") for n in range(300)))
    first = rows.search(path, Query("odd"), 0)
    assert ([row["id"] for row in first["rows"]], first["next"] is None) == ([str(n) for n in range(1, 100, 2)], False)
    assert every(path, Query("odd")) == [str(n) for n in range(1, 300, 2)]


def test_filters_offer_what_the_rows_have(tmp_path: Path):
    path = write(tmp_path / "dropped.jsonl", *KINDS)
    counts = {"against": {"near_duplicate/near_duplicate": 3}, "labels": {"truncated": 2}}
    assert rows.facets(path, counts) == {
        "verdicts": ["length/too_short", "near_duplicate/near_duplicate", "refused/too_similar"],
        "labels": ["refusal", "truncated"],
    }


@pytest.mark.slow
def test_a_million_rows_open_at_once_and_are_searched_in_bounded_steps(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    many = "".join(f"{json.dumps(session(f't{n:03}', 'What is this?', 'word ' * 40))}\n" for n in range(1000))
    with path.open("w") as file:
        for _ in range(1000):
            file.write(many)
        file.write(json.dumps(session("last", "needle", "x")) + "\n")
    index, begun = LineIndex(path), time.monotonic()
    assert len(rows.page(index, path, 0)["rows"]) == 50
    assert time.monotonic() - begun < 3
    while not index.count(1)[1]:
        pass
    assert index.count(1) == (1_000_001, True)
    with path.open("rb") as file:
        assert json.loads(next(lines_from(file, index.offset(1_000_000))).data)["id"] == "last"
    begun = time.monotonic()
    step = rows.search(path, Query("needle"), 0)
    assert time.monotonic() - begun < 3
    assert every(path, Query("needle")) == ["last"]
    assert step["share"] > 0
