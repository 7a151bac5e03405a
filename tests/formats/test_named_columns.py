"""Plain tables whose columns the user names, by command and by recipe."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.core.jsonl import read_jsonl, read_sessions
from distill.errors import RecipeError, SeedsError
from distill.formats.export import export
from distill.formats.import_file import import_command
from distill.formats.importers import load_tasks
from distill.formats.named_columns import NamedColumns
from distill.pipeline.parts import load_recipe
from distill.pipeline.runner import run_recipe

ROWS: list[dict[str, Any]] = [
    {
        "id": "a",
        "Question": "Name a river.",
        "reply": "Rhine.",
        "persona": "Be short.",
        "image": "a.png",
        "label": True,
    },
    {"id": "b", "Question": "Name a lake.", "reply": "Baikal.", "persona": "", "image": "b", "label": False},
]
NAMED = {"prompt": "question", "answer": "reply", "system": "persona"}


def table(path: Path) -> Path:
    """`ROWS` in a file of the kind that its name says."""
    if path.suffix == ".parquet":
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(ROWS), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ROWS[0])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        lines = [json.dumps(row) for row in ROWS]
        path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]")
    return path


def imported(path: Path, out: Path, columns: NamedColumns | None, **options: Any) -> list[str]:
    settings = dict.fromkeys(("format", "kind", "take", "tokenizer", "max_tokens", "split", "revision", "licence"))
    return import_command(str(path), out, **{**settings, "seed": 7, "columns": columns, **options})


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
def test_named_columns_become_sessions_in_every_container(tmp_path, suffix):
    path = table(tmp_path / f"rows.{suffix}")
    told = imported(path, tmp_path / "new" / "out.jsonl", NamedColumns(**NAMED))
    texts = [
        (one.id, *(message.content for message in one.messages)) for one in read_sessions(tmp_path / "new/out.jsonl")
    ]
    assert texts == [("a", "Be short.", "Name a river.", "Rhine."), ("b", "Name a lake.", "Baikal.")]
    assert told[1] == "columns_ignored: image 2, label 2"


def test_a_label_is_an_answer_where_the_user_says_so(tmp_path):
    imported(table(tmp_path / "rows.jsonl"), tmp_path / "out.jsonl", NamedColumns("Question", "label"))
    assert [row["messages"][-1]["content"] for row in read_jsonl(tmp_path / "out.jsonl")] == ["true", "false"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (NamedColumns("qestion"), 'no column "qestion"; did you mean "Question"? its columns are id, '),
        (NamedColumns("question", "zzz"), 'no column "zzz"; its columns are id, '),
    ],
)
def test_a_wrong_column_is_one_line_and_writes_nothing(tmp_path, suffix, columns, line):
    path = table(tmp_path / f"rows.{suffix}")
    for format in (None, "parquet" if suffix == "parquet" else "json"):
        with pytest.raises(RecipeError) as raised:
            imported(path, tmp_path / "out.jsonl", columns, format=format)
        assert line in str(raised.value)
        assert "reply, persona, image, label" in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("source", [{**NAMED}, {**NAMED, "from": "csv"}])
def test_a_recipe_names_columns_and_records_the_format(tmp_path, source):
    table(tmp_path / "rows.csv")
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"name": "r", "sources": [{"path": "rows.csv", **source}]}))
    run = run_recipe(file, run_dir=tmp_path / "run", stages=["collect"])
    assert [one.messages[-2].content for one in read_sessions(run / "sessions.jsonl")] == [
        "Name a river.",
        "Name a lake.",
    ]
    assert load_recipe(run).sources[0].format == "csv"
    with pytest.raises(RecipeError, match='no column "answr"'):
        load_recipe(file, overrides={f"sources.{source.get('from', 'rows')}.answer": "answr"})


def test_a_reference_goes_from_a_column_to_the_held_out_rows_and_through_every_export(tmp_path):
    lines = [f"Message {n}?,{('yes', 'no')[n % 2]},{('yes', 'no')[n % 3 % 2]}" for n in range(24)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,reply,label", *lines]))
    source = {"path": "rows.csv", "prompt": "text", "answer": "reply", "reference": "label"}
    curate = [{"filter": "verified", "labels": ["yes", "no"]}]
    file = tmp_path / "recipe.yaml"
    file.write_text(
        yaml.safe_dump({"name": "r", "sources": [source], "curate": curate, "test": {"count": 4, "near": 1}})
    )
    run = run_recipe(file, run_dir=tmp_path / "run", stages=["collect", "curate"])
    kept, test = read_sessions(run / "kept.jsonl"), read_sessions(run / "test.jsonl")
    assert {one.messages[-1].content == one.meta["reference"] for one in kept} == {True}
    assert {one.messages[-1].content == one.meta["reference"] for one in test} == {True, False}  # of all prompts
    dropped = [
        (one["reason"], one["threshold"]) for row in read_jsonl(run / "dropped.jsonl") for one in row["verdicts"]
    ]
    assert set(dropped) == {("wrong", "yes"), ("wrong", "no")}
    for to, name in (("alpaca", "a.jsonl"), ("sharegpt", "s.jsonl"), ("parquet", "p.parquet")):
        export(run, to=to, out=tmp_path / name)
        imported(tmp_path / name, tmp_path / f"{name}.again", None)
        again = read_sessions(tmp_path / f"{name}.again")
        assert [one.meta["reference"] for one in again] == [one.meta["reference"] for one in kept]


def test_a_reference_is_named_for_rows_of_a_known_format_and_for_tasks(tmp_path):
    path = tmp_path / "rows.jsonl"
    for column, value in (("answer", "3 and 4 are 7\n#### 7"), ("label", False)):
        row = {"question": "3 + 4?", "answer": "7", column: value}
        path.write_text(json.dumps(row))
        imported(path, tmp_path / "out.jsonl", NamedColumns(reference=column), kind="tasks")
        assert load_tasks(tmp_path / "out.jsonl")[0].meta["reference"] == value
    path.write_text('{"instruction": "3 + 4?", "reference": 7, "checks": [{"kind": "numeric", "tolerance": 0.5}]}\n')
    assert load_tasks(path)[0].meta == {"reference": 7, "checks": [{"kind": "numeric", "tolerance": 0.5}]}
    path.write_text('{"instruction": "3 + 4?", "reference": 7, "checks": [{"kind": "numeric", "tolerance": -1}]}\n')
    with pytest.raises(SeedsError, match=r"rows.jsonl:1: checks: tolerance -1; expected a number of 0 or more"):
        load_tasks(path)


def test_rows_of_other_names_say_how_to_name_their_columns(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("frage,antwort\nWer?,Ich.\n")
    with pytest.raises(RecipeError, match=r"unknown format .* such as --prompt frage --answer antwort"):
        imported(path, tmp_path / "out.jsonl", None)
