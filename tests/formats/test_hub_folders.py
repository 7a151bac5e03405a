"""Folders laid out as on the Hub: parts by name, bad rows, columns that differ, and cells that Python lacks."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.core.jsonl import read_jsonl, read_sessions
from distill.errors import RecipeError
from distill.formats import importers
from distill.formats.json_rows import RejectedRow
from distill.pipeline.runner import run_recipe
from tests.support.cli import here
from tests.support.importing import read, said

datasets = pytest.importorskip("datasets")

NOON = datetime.datetime(2026, 1, 2, 12)


def card(folder: Path, *configs: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': list(configs)})}---\n# Rows\n")
    return folder


def line(question: str, **more: Any) -> str:
    return json.dumps({"prompt": question, "response": "Yes.", **more}) + "\n"


@pytest.fixture
def languages(tmp_path) -> Path:
    names = ("en", "de")
    folder = card(tmp_path / "hub", *({"config_name": name, "data_files": f"{name}.jsonl"} for name in names))
    for name in names:
        (folder / f"{name}.jsonl").write_text(line(f"In {name}?"))
    return folder


def test_a_config_is_named_by_the_option_and_in_a_recipe(languages, tmp_path):
    finished = here(tmp_path, "import", "hub", "--config", "de", "--out", "out.jsonl")
    assert finished.returncode == 0, finished.stderr
    assert read_sessions(tmp_path / "out.jsonl")[0].messages[0].content == "In de?"
    source = {"from": "hub", "path": "hub", "config": "en"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "one", "sources": [source]}))
    run = run_recipe(tmp_path / "recipe.yaml", run_dir=tmp_path / "run", stages=["collect"])
    assert [one.messages[0].content for one in read_sessions(run / "sessions.jsonl")] == ["In en?"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([], "it has several configs; give --config (in a recipe `config:`): en, de"),
        (["--config", "fr"], 'no config "fr"; give --config (in a recipe `config:`): en, de'),
        (["--config", "en", "--split", "test"], 'no split "test"; give --split (in a recipe `split:`): train'),
    ],
)
def test_a_missing_name_is_one_line_with_the_choices(languages, tmp_path, options, line):
    finished = here(tmp_path, "import", "hub", *options, "--out", "out.jsonl")
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1] == f"error: hub: {line}"
    assert len(finished.stderr.splitlines()) == 2  # the other says how the folder is read


def test_formats_without_configs_refuse_one(tmp_path):
    with pytest.raises(RecipeError, match="the format alpaca has no config"):
        read("alpaca", str(tmp_path / "a.jsonl"), config="en")


def test_a_bad_line_or_another_column_loses_its_row_and_nothing_is_logged(tmp_path, capfd):
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "README.md").write_text("# no configs\n")
    (folder / "a.jsonl").write_text(line("One?") + '{"prompt": "cut\n' + line("Two?", score=1))
    (folder / "b.jsonl").write_text(line("Three?", score="high", tags=["x"]) + line("Four?", tags={"y": 1}))
    finished = here(tmp_path, "import", "hub", "--out", "out.jsonl")
    assert finished.returncode == 0, finished.stderr
    [row] = read_jsonl(tmp_path / "out.rejected.jsonl")
    assert (row["line"], row["reason"]) == (2, "not_json")
    assert row["detail"].startswith("a.jsonl, line 2: ")
    asked = [one.messages[0].content for one in read_sessions(tmp_path / "out.jsonl")]
    assert asked == ["One?", "Two?", "Three?", "Four?"]
    assert "Repo card" not in finished.stderr + "".join(capfd.readouterr())


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl.gz", ".parquet"])
def test_a_folder_of_any_data_files_is_read(tmp_path, suffix):
    import gzip

    import pyarrow
    from pyarrow.parquet import write_table

    folder = tmp_path / "hub"
    folder.mkdir()
    write = {
        ".csv": lambda path: path.write_text("prompt,response\nOne?,Yes.\n"),
        ".json": lambda path: path.write_text(f'{{"data": [{line("One?")}]}}'),
        ".jsonl.gz": lambda path: path.write_bytes(gzip.compress(line("One?").encode())),
        ".parquet": lambda path: write_table(pyarrow.table({"prompt": ["One?"], "response": ["Yes."]}), path),
    }
    write[suffix](folder / f"train{suffix}")
    [found] = read("hub", str(folder))
    assert said(found) == ["u: One?", "a: Yes."]
    assert importers.guess(str(folder))[0] == ("parquet" if suffix == ".parquet" else "hub")


def test_a_cell_that_python_lacks_is_text_and_a_broken_one_costs_its_row(tmp_path):
    import pyarrow
    from pyarrow.parquet import write_table

    far = pyarrow.array([2**55, 0, 1], pyarrow.timestamp("us"))
    texts = pyarrow.Array.from_buffers(
        pyarrow.string(),
        3,
        [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"a\xffc")],
    )
    table = pyarrow.table({"turns": [["A?"], ["B?"], ["C?"]], "category": far, "reference": texts})
    write_table(table, tmp_path / "a.parquet")
    first, second, third = read("parquet", str(tmp_path / "a.parquet"))
    assert isinstance(second, RejectedRow)
    assert (second.line, second.reason, second.detail[:12]) == (2, "bad_cell", "`reference`:")
    assert first.meta["category"].startswith("3111-")
    assert third.meta["category"] == "1970-01-01T00:00:00.000001"
    saved = datasets.Dataset.from_dict({"turns": [["A?"]], "category": [NOON]})
    saved.save_to_disk(str(tmp_path / "saved"))
    [found] = read("datasets", str(tmp_path / "saved"))
    assert found.meta["category"] == "2026-01-02T12:00:00"
