"""What files of others lie in: compression, encodings, wrappers, tables; and what holds no rows and is refused."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from distill.compare.prompts import of_file, recorded_answers
from distill.errors import RecipeError, SeedsError
from distill.expand.seeds import load_seeds
from distill.formats import importers
from distill.formats.containers import rows, text_lines
from distill.formats.importers import load_tasks
from distill.formats.json_rows import ForeignRow, RejectedRow

ROWS = [{"instruction": "Nenne einen Baum – schön!", "output": "Eine\nUlme 🌳."}, {"instruction": "B", "output": "b"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def zstd(data: bytes) -> bytes:
    import pyarrow

    return pyarrow.compress(data, codec="zstd", asbytes=True)  # type: ignore[no-any-return]


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstd,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")


def read(path: Path) -> list[Any]:
    """The rows of a file; a rejected one as its line and reason."""
    return [row.value if isinstance(row, ForeignRow) else (row.line, row.reason) for row in rows(path)]


def tabled(delimiter: str) -> str:
    out = io.StringIO()
    table = csv.DictWriter(out, ["instruction", "output"], delimiter=delimiter)
    table.writeheader()
    table.writerows(ROWS)
    return out.getvalue()


CONTAINERS = {
    "lines": LINES,
    "array": json.dumps(ROWS),
    "pretty array": json.dumps(ROWS, indent=2),
    "pretty objects": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "data": json.dumps({"version": "1", "data": ROWS}),
    "pretty wrapper": json.dumps({"info": {"by": "us"}, "examples": ROWS, "count": 2}, indent=1),
    "no line end between": LINES.replace("\n", ""),
    "a mark between": LINES.replace("\n", "\ufeff"),
    "comma": tabled(","),
    "semicolon": tabled(";"),
    "tab": tabled("\t"),
    "bar": tabled("|"),
}


@settings(deadline=None)
@given(
    st.sampled_from(sorted(CONTAINERS)),
    st.sampled_from(sorted(PACKED)),
    st.sampled_from(ENCODINGS),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_rows_are_the_same_in_every_container(tmp_path_factory, container, packed, encoding, end):
    for what in (container, packed or "plain", encoding, repr(end)):
        event(what)
    path = tmp_path_factory.getbasetemp() / f"same.txt{packed}"
    text = CONTAINERS[container].replace("\r\n", "\n").replace("\n", end)
    path.write_bytes(PACKED[packed](text.encode(encoding)))
    assert read(path) == ROWS


def test_a_file_of_joined_files_is_read_whatever_lies_between(tmp_path):
    for name, joined in {"bom": [b"\xef\xbb\xbf", b"\xef\xbb\xbf"], "gz": [b"", b""], "utf-16": [b"", b""]}.items():
        part = LINES.encode("utf-16" if name == "utf-16" else "utf-8")
        data = b"".join(mark + (gzip.compress(part) if name == "gz" else part) for mark in joined)
        (tmp_path / "a.jsonl").write_bytes(data)
        assert read(tmp_path / "a.jsonl") == [*ROWS, *ROWS], name


GOOD = '{"instruction":"Good.","output":"x"}'
BAD = {
    "comma": '{"instruction":"Bad.","output":"x",}',
    "quotes inside": '{"instruction":"Say "no".","output":"x"}',
    "one quote": '{"instruction":"6" wide","output":"x"}',
    "single quotes": "{'instruction':'Bad.'}",
    "no colon": '{"instruction"}',
    "no brace": '{"instruction":"Bad."',
    "name": '{"instruction":None}',
    "deep": '{"instruction":' + "[" * 20_000 + "}",
}


@settings(deadline=None)
@given(st.sampled_from(sorted(BAD)), st.integers(1, 3), st.booleans(), st.sampled_from([",", ",\n", ",\n    "]))
def test_a_bad_element_of_an_array_loses_itself_alone(tmp_path_factory, kind, place, is_wrapped, between):
    event(kind)
    event("wrapped" if is_wrapped else "bare")
    elements = [GOOD] * 4
    elements.insert(place, BAD[kind])
    array = f"[{between[1:]}{between.join(elements)}\n]"
    path = tmp_path_factory.getbasetemp() / "bad.json"
    path.write_text(f'{{"data":{array}}}' if is_wrapped else array)
    found = read(path)
    assert [row for row in found if isinstance(row, dict)] == [json.loads(GOOD)] * 4
    assert [row[1] for row in found if not isinstance(row, dict)] == ["not_json"]


@pytest.mark.parametrize("last", ['{"instruction":"x",}', "None", '{"instruction":"x"'])
def test_a_bad_last_element_is_told_from_a_file_that_is_cut_off(tmp_path, last):
    (tmp_path / "a.json").write_text(f"[{GOOD},\n{last}\n]")
    assert read(tmp_path / "a.json") == [json.loads(GOOD), (2, "not_json")]
    (tmp_path / "a.json").write_text(f"[{GOOD},\n{last}\n")
    with pytest.raises(RecipeError, match=r"a\.json:2: .*is the file cut off"):
        read(tmp_path / "a.json")


def test_bytes_of_another_encoding_cost_their_row(tmp_path):
    odd = '{"instruction":"Café?","output":"x"}'
    for name, between in (("a.jsonl", "\n"), ("a.json", ",\n")):
        text = between.join([GOOD, odd, GOOD])
        (tmp_path / name).write_bytes((f"[{text}]" if name == "a.json" else text).encode("latin-1"))
        assert read(tmp_path / name) == [json.loads(GOOD), (2, "not_utf8"), json.loads(GOOD)]
    (tmp_path / "a.jsonl").write_bytes(f"{odd}\n".encode("cp1252"))
    with pytest.raises(RecipeError, match=r"line 1: not_utf8, byte 0xe9 .*iconv"):
        importers.guess(str(tmp_path / "a.jsonl"))
    (tmp_path / "a.txt").write_bytes("Ça va ?\nBien.".encode("latin-1"))
    found = [line if isinstance(line, tuple) else line.reason for line in text_lines(tmp_path / "a.txt")]
    assert found == ["not_utf8", (2, "Bien.")]
    half = "\ud83d".encode("utf-16-le", "surrogatepass")
    (tmp_path / "a.txt").write_bytes("\ufeffGood.\nBad ".encode("utf-16-le") + half + "\nGood.".encode("utf-16-le"))
    assert [isinstance(line, RejectedRow) for line in text_lines(tmp_path / "a.txt")] == [False, True, False]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('q,a\n"x\n\ny","1"\n', [{"q": "x\n\ny", "a": "1"}]),
        ("Q ; A\nx;\n", [{"Q": "x", "A": None}]),
        ("q,a\nx,1\nq,a\ny,2\n", [{"q": "x", "a": "1"}, (3, "repeated_header"), {"q": "y", "a": "2"}]),
        ("q,a\nx,1,2\ny\nz,3,,\n", [(2, "bad_row"), {"q": "y", "a": None}, {"q": "z", "a": "3"}]),
        ('q,a\nx,"open\ny,2\n', [{"q": "x", "a": '"open'}, {"q": "y", "a": "2"}]),
        ('q,a\n"x"y,1\n"open\nz,3\n', [{"q": '"x"y', "a": "1"}, (3, "bad_row"), {"q": "z", "a": "3"}]),
        (",q,a\n0,x,1\n", [{"q": "x", "a": "1"}]),
        ('q\nx, y\n"z\nz"\n', [{"q": "x, y"}, {"q": "z\nz"}]),
        ("q\ta\n6\" x\t1\n", [{"q": '6" x', "a": "1"}]),
    ],
)  # fmt: skip
def test_a_bad_row_of_a_table_costs_itself_alone(tmp_path, text, found):
    (tmp_path / "a.csv").write_text(text)
    assert read(tmp_path / "a.csv") == found


def test_a_table_with_two_columns_of_one_name_is_one_line(tmp_path):
    (tmp_path / "a.csv").write_text("q,a,a\nx,1,2\n")
    with pytest.raises(RecipeError, match='two columns are called "a"'):
        read(tmp_path / "a.csv")


def test_a_wrapper_of_several_lists_names_them(tmp_path):
    document = {"train": ROWS, "test": ROWS}
    for indent in (None, 1):
        (tmp_path / "a.json").write_text(json.dumps(document, indent=indent))
        with pytest.raises(RecipeError, match=r"train.*test|another list of rows"):
            read(tmp_path / "a.json")


REFUSED = {
    "HTML": b"<!DOCTYPE html>\n<html><body>Name a tree.</body></html>",
    "error page": b"<html>\n<head><title>502 Bad Gateway</title></head>\n",
    "XML": b'<?xml version="1.0"?>\n<rows/>',
    "recipe": b"name: one\nteacher:\n  model: smollm2\n",
    "YAML comment": b"# A recipe\nname: one\ntrain:\n  epochs: 2\n",
    "flat YAML": b"name: one\nseed: 7\nteacher: {model: m}\n",
    "YAML rows": b"- instruction: Name a tree.\n  output: An elm.\n",
    "YAML list": b"tasks:\n- Name a tree.\n",
    "YAML document": b"---\n- Name a tree.\n",
    "unknown table": b"name,age,town\nBob,3,Rome\nAl,4,Oslo\n",
    "tabs": b"Name a tree.\tAn elm.\nName a fish.\tA carp.\n",
    "list of texts": b'["Name a tree.", "Name a fish."]\n',
    "broken rows": b'{"instruction": "Name\n{"instruction": "a tree\n',
    "repr": b"{'instruction': 'Name a tree.'}\n",
    "ZIP": b"PK\x03\x04\x14\x00",
    "PDF": b"%PDF-1.7\n1 0 obj\n",
    "picture": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "weights": b"\x58\x00\x00\x00\x00\x00\x00\x00" + b'{"w":{"dtype":"F32"}}',
    "database": b"SQLite format 3\x00\x10\x00",
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00",
    "LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_holds_no_prompts_is_never_asked_line_by_line(tmp_path, kind):
    for suffix, pack in ((".txt", PACKED[""]), (".txt.gz", gzip.compress), ("", PACKED[""])):
        path = tmp_path / f"tasks{suffix}"
        path.write_bytes(pack(REFUSED[kind]))
        for load in (load_tasks, load_seeds, lambda path: importers.guess(str(path))):
            with pytest.raises(RecipeError, match="tasks") as raised:
                load(path)
            assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "Name a tree, please.\nName a fish, please.\n",
        "Translate: Hallo\nTranslate: Welt\n",
        "Is <b>this</b> bold?\n",
        "- Name a tree.\n- Name a fish.\n",
        "[1] Name a tree.\n",
        "{name} is what?\n",
        "instruction\n",
        "Compare a | b.\nCompare c | d.\n",
        "Sort these: 3, 1\n",
    ],
)
def test_prompts_that_look_like_something_else_stay_prompts(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert [task.instruction for task in load_tasks(tmp_path / "a.txt")] == text.splitlines()


def test_tasks_seeds_prompts_and_answers_come_from_any_container(tmp_path):
    import pyarrow
    from pyarrow import ipc
    from pyarrow.parquet import write_table

    table = pyarrow.Table.from_pylist(ROWS)
    write_table(table, tmp_path / "a.parquet")
    with ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    with ipc.new_stream(tmp_path / "b.arrow", table.schema) as stream:
        stream.write_table(table)
    (tmp_path / "a.csv").write_text(tabled(","))
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(LINES.encode("utf-16")))
    asked = [row["instruction"] for row in ROWS]
    for path in sorted(tmp_path.iterdir()):
        assert [task.instruction for task in load_tasks(path)] == asked, path
        assert [seed.instruction for seed in load_seeds(path)] == asked, path
        prompts = of_file(path)
        assert [prompt.messages[-1].content for prompt in prompts] == asked, path
        [replies] = recorded_answers(prompts, {"teacher": path})
        assert [replies.answers[place].text for place in (0, 1)] == [row["output"] for row in ROWS], path


def test_seeds_of_other_formats_keep_their_answer_as_an_example(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"prompt": "A?", "response": "a"}, {"instruction": "B?"}]))
    first, second = load_seeds(tmp_path / "a.json")
    assert (first.instruction, [one.output for one in first.instances], first.id) == ("A?", ["a"], "seed-1")
    assert (second.instruction, second.instances, second.id) == ("B?", (), "seed-1~2")
    (tmp_path / "a.jsonl").write_text('{"instruction": "A?", "instances": [{"input": null, "output": ["x"]}]}')
    with pytest.raises(SeedsError, match=r"a\.jsonl:1: `instances\.0\.output`"):
        load_seeds(tmp_path / "a.jsonl")
