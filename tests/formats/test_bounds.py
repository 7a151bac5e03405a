"""Files of a few kilobytes that stand for gigabytes, endless rows, and values that JSON cannot hold."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distill.core.jsonl import read_jsonl
from distill.errors import RecipeError
from distill.formats.containers import rows
from distill.formats.import_file import import_file
from distill.formats.importers import Address
from distill.formats.json_rows import MAX_ROW_CHARS, RejectedRow
from distill.formats.sources import MOST_REJECTED, Dataset
from tests.support.cli import spend
from tests.support.importing import read, written

MOST_SECONDS, MOST_MEGABYTES = 5, 500
IMPORT_SECONDS = 5
"""Of `datasets`, under load."""


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    import pyarrow
    from pyarrow.parquet import write_table

    path.parent.mkdir(exist_ok=True)
    write_table(pyarrow.table(columns), path, compression="zstd")
    return path


def repeated(text: str, times: int) -> Any:
    """The text so many times, stored once."""
    import pyarrow

    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * times, pyarrow.int32()), pyarrow.array([text]))


def nested(text: str, times: int) -> Any:
    import pyarrow

    return pyarrow.ListArray.from_arrays([0, times], repeated(text, times))


@pytest.mark.parametrize(
    "kind", ["long values", "one row", "many rows", pytest.param("a folder of the Hub", marks=pytest.mark.slow)]
)
def test_a_small_table_of_gigabytes_ends_in_one_line(tmp_path, kind):
    columns = {
        "long values": lambda: {"instruction": repeated("x" * 10_000_000, 520)},
        "one row": lambda: {"turns": nested("x" * 1_000_000, 5_200)},
        "many rows": lambda: {"instruction": repeated("x" * 100_000, 50_000)},
        "a folder of the Hub": lambda: {"instruction": repeated("x" * 10_000_000, 520)},
    }
    file = parquet(tmp_path / "data" / "train.parquet", columns[kind]())
    assert file.stat().st_size < 100_000
    arguments = ["data", "--from", "hub"] if kind == "a folder of the Hub" else [str(file)]
    spent = spend("import", *arguments, "--out", "out.jsonl", cwd=tmp_path)
    assert spent.code == 2
    assert re.findall(r"(?m)^(?!import |.*: read as parquet)\w+", spent.output) == ["error"], spent.output
    assert spent.cpu_seconds < MOST_SECONDS + IMPORT_SECONDS * (kind == "a folder of the Hub")
    assert spent.megabytes < MOST_MEGABYTES
    assert not (tmp_path / "out.jsonl").exists()


def test_a_table_with_long_texts_is_read(tmp_path):
    texts = [os.urandom(100_000).hex() for _ in range(40)]
    file = parquet(tmp_path / "a.parquet", {"instruction": texts, "output": ["x"] * len(texts)})
    assert [row.instruction for row in read("parquet", str(file))] == texts


def test_a_huge_line_is_rejected_and_the_rest_is_read(tmp_path):
    row = json.dumps({"instruction": "Hi?", "output": "Hello."})
    with (tmp_path / "a.jsonl").open("w") as file:
        file.write(row + "\n")
        for _ in range(20):
            file.write("x" * MAX_ROW_CHARS)
        file.write(f"\n{row}\n")
    spent = spend("import", "a.jsonl", "--from", "alpaca", "--out", "out.jsonl", cwd=tmp_path)
    assert "rejected: too_long 1" in spent.output
    assert spent.megabytes < MOST_MEGABYTES
    assert [row["meta"]["line"] for row in read_jsonl(tmp_path / "out.jsonl")] == [1, 3]


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_line_of_the_largest_size_is_read(tmp_path, end):
    row = json.dumps({"instruction": "Hi?", "output": ""})
    row = row.replace('""', json.dumps("y" * (MAX_ROW_CHARS - len(row) - len(end) - 1)))
    (tmp_path / "a.jsonl").write_text(row + " " * (MAX_ROW_CHARS - len(row) - len(end)) + end + row)
    assert [isinstance(found, RejectedRow) for found in rows(tmp_path / "a.jsonl")] == [False, False]


def test_a_huge_element_of_an_array_ends_in_one_line(tmp_path):
    (tmp_path / "a.json").write_text('[{"instruction": "Hi?", "output": [' + "[]," * 5_000_000 + "0]}]")
    spent = spend("import", "a.json", "--from", "alpaca", "--out", "out.jsonl", cwd=tmp_path)
    assert spent.code == 2
    assert len(spent.output.splitlines()) == 1
    assert spent.cpu_seconds < MOST_SECONDS
    assert spent.megabytes < MOST_MEGABYTES


def test_rows_come_from_a_pipe_as_from_a_file(tmp_path):
    command = [sys.executable, "-P", "-m", "distill", "import", "/dev/stdin", "--from", "alpaca", "--out", "out.jsonl"]
    row = json.dumps({"instruction": "Hi?", "output": "Hello."})
    piped = subprocess.run(command, cwd=tmp_path, input=row, capture_output=True, text=True, check=True)
    (tmp_path / "a.jsonl").write_text(row)
    with (tmp_path / "a.jsonl").open() as file:
        redirected = subprocess.run(command, cwd=tmp_path, stdin=file, capture_output=True, text=True, check=True)
    assert "1 sessions of 1 rows" in redirected.stdout
    assert piped.stdout == redirected.stdout


def strict(path: Path) -> list[Any]:
    """The rows of a file of JSON as the standard has it."""
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_numbers_that_json_cannot_hold_become_null(tmp_path):
    meta = '{"a": 1e400, "b": [-1e999, NaN, 0.5], "c": {"d": Infinity}}'
    turns = json.dumps([{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}])
    rows = [f'{{"messages": {turns}, "meta": {meta}}}', f'{{"messages": {turns}, "meta": {json.dumps(meta)}}}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    import_file(Dataset(format="distill", address=Address(str(tmp_path / "a.jsonl"))), tmp_path / "out.jsonl")
    for row in strict(tmp_path / "out.jsonl"):
        assert {key: row["meta"][key] for key in "abc"} == {"a": None, "b": [None, None, 0.5], "c": {"d": None}}


def test_values_of_a_table_that_json_cannot_hold_are_written_as_text_or_null(tmp_path):
    when = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    columns = {"turns": [["Hi?"]], "category": [float("inf")], "reference": [[when]]}
    file = parquet(tmp_path / "a.parquet", columns)
    import_file(Dataset(format="parquet", address=Address(str(file))), tmp_path / "out.jsonl", kind="tasks")
    [row] = strict(tmp_path / "out.jsonl")
    assert (row["meta"]["category"], row["meta"]["reference"]) == (None, ["2026-01-02T00:00:00+00:00"])


def test_messages_that_are_in_no_tree_are_counted(tmp_path):
    def message(id: str, parent: str | None) -> dict[str, Any]:
        role = "prompter" if parent is None else "assistant"
        return {"message_id": id, "parent_id": parent, "role": role, "text": id, "message_tree_id": "t"}

    rows = [("a", "b"), ("b", "a"), ("self", "self"), ("lost", "nowhere"), ("below", "lost")]
    rows += [("root", None), ("best", "root"), ("other", "root"), ("best", "root")]
    found = read("oasst", written(tmp_path / "a.jsonl", [message(*row) for row in rows]))
    assert {(row.line, row.reason) for row in found if isinstance(row, RejectedRow)} == {
        (1, "no_root"), (2, "no_root"), (3, "no_root"), (4, "no_parent"), (5, "no_root"), (9, "same_id"),
    }  # fmt: skip
    assert len(found) == 7


def test_a_table_that_is_no_file_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("alpaca", "lines", "oasst"):
        with pytest.raises(RecipeError, match="it is no file"):
            read(name, str(tmp_path / "pipe"))


def test_rejected_rows_beyond_the_first_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text("1\n" * (MOST_REJECTED + 2) + '{"instruction": "Hi?", "output": "Hello."}\n')
    spent = spend("import", "a.jsonl", "--from", "alpaca", "--out", "out.jsonl", cwd=tmp_path)
    assert "rejected: no_object 100,002\nsee out.rejected.jsonl (the first 100,000)" in spent.output
    assert len((tmp_path / "out.rejected.jsonl").read_text().splitlines()) == MOST_REJECTED
