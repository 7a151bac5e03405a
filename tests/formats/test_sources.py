"""Import by command and by recipe: samples, weights, splitting, and files that are written whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from distill.core.jsonl import read_jsonl, read_sessions, write_rows
from distill.engine.mock_server import MockServer
from distill.errors import ModelError, RecipeError, RunFolderError, SeedsError
from distill.formats import sources as sources_module
from distill.formats.import_file import import_command, import_file
from distill.formats.importers import Address, load_tasks
from distill.formats.named_columns import NamedColumns
from distill.formats.sources import TURN_TOKENS, Dataset, SourceCounts, Splitter, ingest, sessions, split, splitter
from distill.formats.text_files import from_windows
from distill.pipeline.parts import load_recipe
from distill.pipeline.runner import run_recipe
from distill.types import Message, Session
from tests.support.cli import distill


def alpaca(count: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"a{n}", "instruction": f"What is {n} plus {n}?", "output": f"It is {n + n}.", **more}
        for n in range(count)
    ]


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def source(path: Path, format: str = "alpaca", **options: Any) -> Dataset:
    return Dataset(format=format, address=Address(str(path)), **options)


def ids(found: Dataset, seed: int = 7) -> list[str]:
    return [one.id for one in sessions(found, SourceCounts(), seed)]


# Files


def test_an_import_says_where_each_session_is_from(tmp_path):
    path = written(tmp_path / "data.jsonl", [*alpaca(1), {"instruction": "x"}, {"oops": 1}])
    count, tally = import_file(source(path, licence="MIT"), tmp_path / "out.jsonl")
    [found] = read_sessions(tmp_path / "out.jsonl")
    assert (count, tally.rows) == (1, 3)
    assert found.meta == {
        "source": "data.jsonl", "importer": "alpaca", "licence": "MIT", "line": 1, "original_id": "a0",
    }  # fmt: skip
    assert [(row["line"], row["reason"]) for row in read_jsonl(tmp_path / "out.rejected.jsonl")] == [
        (2, "no_answer"),
        (3, "not_text"),
    ]


def test_our_own_sessions_come_back_as_they_were(tmp_path):
    session = Session("a", (Message("user", " x "), Message("assistant", "")), {"teacher": "t", "source": "old.json"})
    write_rows(tmp_path / "kept.jsonl", [session])
    [found] = sessions(source(tmp_path / "kept.jsonl", "distill"), SourceCounts(), 7)
    assert (found.id, found.messages) == (session.id, session.messages)
    assert {**found.meta, **session.meta} == found.meta


@pytest.mark.parametrize("text", ["", "\n", '{"oops": 1}\n', '[{"instruction": "x", "output": "y"}, {"instr'])
def test_nothing_is_written_where_nothing_can_be_read(tmp_path, text):
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"data\.json"):
        import_file(source(path), tmp_path / "out.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["data.json"]


def test_an_import_never_overwrites_what_it_reads(tmp_path):
    path = written(tmp_path / "data.jsonl", alpaca(3))
    with pytest.raises(RunFolderError, match="is the file to read"):
        import_file(source(path), tmp_path / ".." / tmp_path.name / "data.jsonl")


# Samples and weights


def test_a_sample_is_the_same_each_time_in_file_order_and_part_of_a_larger_one(tmp_path):
    path = written(tmp_path / "data.jsonl", alpaca(300))
    every, small, large = (ids(source(path, take=take)) for take in (None, 20, 60))
    assert small == ids(source(path, take=20))
    assert len(small) == 20
    assert set(small) < set(large)
    assert small == [id for id in every if id in set(small)]
    assert set(small) != set(ids(source(path, take=20), seed=8))


def test_a_sample_does_not_depend_on_the_order_of_the_file(tmp_path):
    rows = alpaca(200)
    straight = ids(source(written(tmp_path / "a.jsonl", rows), take=30))
    turned = ids(source(written(tmp_path / "b.jsonl", rows[::-1]), take=30))
    assert straight == turned[::-1]


@pytest.mark.parametrize(
    ("weight", "least", "most"), [(0.5, 430, 570), (1.0, 1000, 1000), (2.0, 2000, 2000), (1.5, 1430, 1570)]
)
def test_a_weight_says_how_often_a_session_counts(tmp_path, weight, least, most):
    path = written(tmp_path / "data.jsonl", alpaca(1000))
    found, counts = sources_module.ingest(tmp_path, sources=[source(path, name="a", weight=weight)], seed=7)
    assert least <= len(found) == counts["imported"] <= most
    assert len({one.id for one in found}) == len(found)


# Splitting


def conversation(lengths: list[tuple[int, int]], system: int = 0) -> Session:
    turns = [Message("system", "s" * system)] if system else []
    for number, (asked, answered) in enumerate(lengths):
        letter = chr(ord("a") + number % 26)
        turns += [Message("user", letter * asked), Message("assistant", letter.upper() * answered)]
    return Session("x", tuple(turns))


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=12),
    st.sampled_from([0, 5]),
    st.integers(16, 200),
)
def test_splitting_loses_no_turn_and_cuts_only_before_questions(lengths, system, most):
    whole = conversation(lengths, system)
    parts = split(whole, Splitter(count=len, max_tokens=most))
    front = list(whole.messages[:1]) if system else []
    assert [message for part in parts for message in part.messages[len(front) :]] == list(whole.messages[len(front) :])
    for part in parts:
        assert list(part.messages[: len(front)]) == front
        assert part.messages[len(front)].role == "user"
        tokens = sum(len(message.content) + TURN_TOKENS for message in part.messages)
        assert part.meta.get("over_long", most) == max(tokens, most) if tokens > most else "over_long" not in part.meta
        assert tokens <= most or len(part.messages) == len(front) + 2
    assert len({part.id for part in parts}) == len(parts)


def test_only_the_last_part_of_a_truncated_conversation_is_truncated():
    whole = replace(conversation([(30, 30)] * 3), meta={"truncated": True})
    parts = split(whole, Splitter(count=len, max_tokens=80))
    assert [part.meta["truncated"] for part in parts] == [False, False, True]


def test_a_part_never_takes_the_id_of_another_row(tmp_path):
    turns = [{"role": role, "content": "word " * 20} for role in ("user", "assistant")]
    rows = [{"id": id, "messages": turns * count} for id, count in (("a.1", 1), ("a", 3), ("a.2", 1))]
    path = written(tmp_path / "data.jsonl", rows)
    found = ids(source(path, "openai", splitter=Splitter(count=lambda text: len(text.split()), max_tokens=60)))
    assert found == ["a.1", "a.1~2", "a.2", "a.3", "a.2~2"]


def test_without_a_tokenizer_nothing_is_split(tmp_path):
    path = written(tmp_path / "data.jsonl", [{"instruction": "x " * 9_000, "output": "y " * 9_000}])
    assert len(ids(source(path))) == 1


def test_tokens_are_counted_by_a_tokenizer_json(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_truncation(max_length=2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert splitter(str(tmp_path), 64).count("one two three four") == 4
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        splitter(str(tmp_path), 64)


# Tasks for collect


@pytest.mark.parametrize(
    ("name", "text", "instructions"),
    [
        ("a.txt", "Name a river.\nName a lake.\n", ["Name a river.", "Name a lake."]),
        ("a.json", json.dumps([{"instruction": "A?", "input": "", "output": "a"}]), ["A?"]),
        ("a.json", json.dumps([{"conversations": [{"from": "human", "value": "A?"}]}]), ["A?"]),
        ("a.jsonl", json.dumps({"messages": [{"role": "user", "content": "A?"}]}), ["A?"]),
        ("a.jsonl", json.dumps({"question_id": 1, "category": "c", "turns": ["A?", "B?"]}), ["A?"]),
        ("a.jsonl", json.dumps({"id": "s", "instruction": "A?", "instances": [{"input": "", "output": "a"}]}), ["A?"]),
        ("a.jsonl", json.dumps({"prompt": "A?"}), ["A?"]),
    ],
)  # fmt: skip
def test_collect_takes_tasks_from_any_format(tmp_path, name, text, instructions):
    (tmp_path / name).write_text(text)
    assert [task.instruction for task in load_tasks(tmp_path / name)] == instructions


def test_a_table_of_other_names_says_how_tasks_are_made_of_it(tmp_path):
    (tmp_path / "a.csv").write_text("Was?,Wer\nRad?,Ich\n")
    with pytest.raises(SeedsError) as raised:
        load_tasks(tmp_path / "a.csv")
    assert f"type: distill import {tmp_path}/a.csv --prompt 'Was?' --as tasks --out tasks.jsonl" in str(raised.value)
    out, options = tmp_path / "tasks.jsonl", dict.fromkeys(LEFT_OUT)
    options |= {"format": None, "kind": "tasks", "take": None, "seed": 7}
    import_command(str(tmp_path / "a.csv"), out, columns=NamedColumns("Was?"), **options)
    assert [task.instruction for task in load_tasks(out)] == ["Rad?"]


def test_rows_that_are_no_task_are_left_out_with_a_warning(tmp_path, capsys):
    rows = [{"question_id": 1, "turns": ["A?"]}, {"question_id": 2, "turns": []}]
    assert len(load_tasks(written(tmp_path / "q.jsonl", rows))) == 1
    assert "1 of 2 rows are no task; the first, in line 2" in capsys.readouterr().err


# The command


def test_the_command_guesses_says_so_and_counts(tmp_path):
    chat = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]
    written(tmp_path / "chats.jsonl", [{"id": "x", "conversations": chat}, {"id": "y", "conversations": []}])
    finished = distill("import", "chats.jsonl", "--out", "out.jsonl", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "read as sharegpt (by the keys id, conversations)" in finished.stderr
    assert finished.stdout.splitlines() == [
        "out.jsonl: 1 sessions of 2 rows",
        "repaired: trailing_question_dropped 1",
        "rejected: no_turns 1",
        "see out.rejected.jsonl",
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["none.json"], "no file none.json"),
        (["data.jsonl", "--from", "alpacca"], 'did you mean "alpaca"'),
        (["data.jsonl", "--as", "task"], 'did you mean "tasks"'),
        (["data.jsonl", "--max-tokens", "100"], "--tokenizer and --max-tokens belong together"),
        (["data.jsonl", "--split", "train"], "has no split"),
    ],
)
def test_a_bad_import_is_one_line_and_writes_nothing(tmp_path, monkeypatch, arguments, line):
    written(tmp_path / "data.jsonl", alpaca(2))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as raised:
        run_import(arguments)
    assert line in str(raised.value)
    assert not (tmp_path / "out.jsonl").exists()


def run_import(arguments: list[str]) -> None:
    options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    import_command(
        arguments[0], Path("out.jsonl"), format=options.get("--from"), kind=options.get("--as", "sessions"),
        take=None, seed=7, tokenizer=None, max_tokens=100 if "--max-tokens" in options else None,
        split=options.get("--split"), revision=None, licence=None,
    )  # fmt: skip


# Sources of a recipe


def recipe(folder: Path, **sections: Any) -> Path:
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "one", **sections}))
    return folder / "recipe.yaml"


def test_a_run_of_sources_alone_needs_no_teacher_and_holds_out_its_test(tmp_path):
    written(tmp_path / "a.jsonl", alpaca(60))
    path = recipe(
        tmp_path, sources=[{"from": "alpaca", "path": "a.jsonl", "take": 50}], test=8, curate=[{"filter": "empty"}]
    )
    run = run_recipe(path, run_dir=tmp_path / "run", stages=["collect", "curate"])
    kept, test = (read_sessions(run / f"{name}.jsonl") for name in ("kept", "test"))
    assert len(read_sessions(run / "sessions.jsonl")) == 50
    assert len(test) == 8
    assert all(one.id.startswith("a/a") for one in (*kept, *test))


def test_sources_stand_before_what_is_collected_and_change_no_bought_answer(tmp_path):
    written(tmp_path / "a.jsonl", alpaca(5))
    (tmp_path / "tasks.txt").write_text("Name a river.\nName a lake.\n")
    with MockServer() as server:
        teacher = {"model": "m", "base_url": server.url, "terms": "ours"}
        collect = {"tasks": "tasks.txt", "test": 0}
        alone = recipe(tmp_path, teacher=teacher, collect=collect)
        run = run_recipe(alone, run_dir=tmp_path / "run", stages=["collect"])
        collected = read_sessions(run / "sessions.jsonl")
        both = recipe(tmp_path, teacher=teacher, collect=collect, sources=[{"from": "alpaca", "path": "a.jsonl"}])
        run_recipe(both, run_dir=run, stages=["collect"])
        record = json.loads((run / "run.json").read_text())["stages"]["collect"]
    found = read_sessions(run / "sessions.jsonl")
    assert [one.id for one in found[:5]] == [f"a/a{n}" for n in range(5)]
    assert found[5:] == collected
    assert (record["requests"]["asked"], record["requests"]["replayed"]) == (0, 2)
    assert (record["counts"]["imported"], record["counts"]["sessions"]) == (5, 7)


def test_what_the_teacher_answered_is_held_out_and_not_what_was_imported(tmp_path):
    written(tmp_path / "a.jsonl", alpaca(20))
    (tmp_path / "tasks.txt").write_text("".join(f"Name river number {n} of {n * n}.\n" for n in range(20)))
    with MockServer() as server:
        teacher = {"model": "m", "base_url": server.url, "terms": "ours"}
        sources = [{"from": "alpaca", "path": "a.jsonl"}]
        path = recipe(tmp_path, teacher=teacher, collect={"tasks": "tasks.txt", "test": 1}, sources=sources, curate=[])
        run = run_recipe(path, run_dir=tmp_path / "run", stages=["collect", "curate"])
    assert [one.id.partition("-")[0] for one in read_sessions(run / "test.jsonl")] == ["line"]
    assert sum(one.meta.get("imported") == "a" for one in read_sessions(run / "kept.jsonl")) == 20


def test_a_table_of_windows_says_what_to_type(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_bytes("Frage;Antwort\nWer?;Ich.\nWie?;Schön.\n".encode("cp1252"))
    columns, options = NamedColumns("Frage", "antwort"), dict.fromkeys(LEFT_OUT)
    lines = import_command("a.csv", Path("out.jsonl"), format="csv", columns=columns, take=None, seed=7, **options)
    typed = "iconv -f cp1252 -t utf-8 a.csv > utf8.csv"
    assert lines[1:3] == ["rejected: not_utf8 1", f"a.csv is not UTF-8; {from_windows('a.csv')}"]
    assert typed in lines[2]
    ingest(tmp_path, sources=[source(Path("a.csv"), "csv", columns=columns, name="a")], seed=7)
    assert "a: 1 of 2 rows cannot be read (not_utf8 1), the first in line 3: byte 0xf6" in capsys.readouterr().err


LEFT_OUT = ("kind", "tokenizer", "max_tokens", "split", "revision", "licence")


def test_what_a_source_rejects_stands_in_the_run(tmp_path):
    written(tmp_path / "a.jsonl", [*alpaca(2), {"instruction": "x"}])
    run = run_recipe(
        recipe(tmp_path, sources=[{"from": "alpaca", "path": "a.jsonl"}]), run_dir=tmp_path / "run", stages=["collect"]
    )
    [row] = read_jsonl(run / "rejected.jsonl")
    assert (row["source"], row["line"], row["reason"]) == ("a", 3, "no_answer")


def test_a_resolved_recipe_of_sources_is_read_back_as_the_same(tmp_path):
    written(tmp_path / "a.jsonl", alpaca(2))
    sources = [{"from": "alpaca", "path": "a.jsonl", "weight": 2.0}, {"hub": "owner/name", "revision": "v1", "take": 3}]
    first = load_recipe(recipe(tmp_path, sources=sources))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(first.to_yaml())
    assert load_recipe(tmp_path / "run").document() == first.document()
    assert [one.display_name for one in first.sources] == ["a", "owner-name"]


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"sources": [{"path": "a.jsonl", "answer": "output"}]}, "name it as well: prompt"),
        ({"sources": [{"path": "a.jsonl", "prompt": "instrction"}]}, 'no column "instrction"; did you mean "instr'),
        ({"sources": [{"from": "alpaca"}]}, "give either `path`"),
        ({"sources": [{"from": "alpacca", "path": "a.jsonl"}]}, 'did you mean "alpaca"'),
        ({"sources": [{"from": "alpaca", "path": "b.jsonl"}]}, "no file or folder b.jsonl"),
        ({"sources": [{"from": "alpaca", "path": "a.jsonl", "tke": 3}]}, 'did you mean "take"'),
        ({"sources": [{"from": "alpaca", "path": "a.jsonl"}] * 2}, 'two are called "a"'),
        ({"sources": [{"from": "alpaca", "path": "a.jsonl", "max_tokens": 99}]}, "needs a `tokenizer`"),
        ({"sources": [{"hub": "no hub id"}]}, "sources.0.hub"),
        ({"sources": [{"from": "alpaca", "path": "a.jsonl"}], "collect": {}, "test": 3}, "test: is for"),
        (
            {"sources": [{"from": "alpaca", "path": "a.jsonl", "weight": 2}], "curate": [{"filter": "near_duplicate"}]},
            "repeats sessions",
        ),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_meant_is_refused(tmp_path, sections, line):
    written(tmp_path / "a.jsonl", alpaca(2))
    if "collect" in sections:
        (tmp_path / "t.txt").write_text("Name a river.\n")
        sections = {**sections, "collect": {"tasks": "t.txt"}}
        sections["teacher"] = {"model": "m", "base_url": "http://127.0.0.1:9/v1", "terms": "ours"}
    with pytest.raises(RecipeError) as raised:
        load_recipe(recipe(tmp_path, **sections))
    assert line in str(raised.value)


def test_a_changed_source_runs_again_and_an_unchanged_one_does_not(tmp_path):
    written(tmp_path / "a.jsonl", alpaca(3))
    path = recipe(tmp_path, sources=[{"from": "alpaca", "path": "a.jsonl"}])
    run = run_recipe(path, run_dir=tmp_path / "run", stages=["collect"])
    before = (run / "sessions.jsonl").stat().st_mtime_ns
    run_recipe(path, run_dir=run, stages=["collect"])
    assert (run / "sessions.jsonl").stat().st_mtime_ns == before
    written(tmp_path / "a.jsonl", alpaca(4))
    run_recipe(path, run_dir=run, stages=["collect"])
    assert len(read_sessions(run / "sessions.jsonl")) == 4
