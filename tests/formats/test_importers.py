"""Data of others: what of each format comes through, what is repaired, and what is rejected and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import RecipeError
from distill.formats import importers, schemas
from distill.formats.containers import rows as rows_of
from distill.formats.importers import IMPORTERS
from distill.formats.json_rows import ForeignRow, RejectedRow
from distill.formats.parsed_row import ParsedRow
from distill.formats.turns import MalformedRow, irregularity, regular
from distill.types import Message
from tests.support.importing import read, reason, said, sharegpt, written

CHAT = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]


MESSAGES = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]


def parsed(name: str, row: Any) -> ParsedRow:
    [found] = schemas.parse(iter([ForeignRow(1, row)]), schemas.SHAPES[name])
    assert isinstance(found, ParsedRow), found
    return found


# Files


def test_an_array_is_read_like_lines(tmp_path):
    rows = [{"instruction": f"Count to {n}.", "output": "ü" * n} for n in range(1, 50)]
    lines = read("alpaca", written(tmp_path / "a.jsonl", rows))
    array = read("alpaca", written(tmp_path / "a.json", rows, array=True))
    assert [found.messages for found in array] == [found.messages for found in lines]


def test_a_row_knows_its_line(tmp_path):
    rows = [{"instruction": "One.", "output": "1"}, {"instruction": "Two.", "output": "2"}]
    assert [found.line for found in read("alpaca", written(tmp_path / "a.jsonl", rows))] == [1, 2]
    assert [found.line for found in read("alpaca", written(tmp_path / "a.json", rows, array=True))] == [2, 6]


def test_an_array_is_read_in_pieces_of_any_size(tmp_path, monkeypatch):
    rows = [{"instruction": f"Say {n} [, ] and {{.", "output": '"\\' * n} for n in range(1, 30)]
    path = Path(written(tmp_path / "a.json", rows, array=True))
    for chars in (1, 2, 7, 64):
        monkeypatch.setattr("distill.formats.json_documents.CHUNK_CHARS", chars)
        assert [row.value for row in rows_of(path)] == rows


def test_a_malformed_line_is_told_with_its_number_and_the_rest_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps({"instruction": "One.", "output": "1"}).encode()
    path.write_bytes(b"\n".join([b"\xef\xbb\xbf" + good, b"{oops", b"[1]", b"\xff\xfe", b"", b"[" * 50_000, good]))
    found = read("alpaca", str(path))
    assert [(one.line, getattr(one, "reason", "ok")) for one in found] == [
        (1, "ok"), (2, "not_json"), (3, "no_object"), (4, "not_utf8"), (6, "not_json"), (7, "ok"),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ['[{"a": 1}, {"b"', '[{"a": 1}', '[{"a": 1}] {"b": 2}', '[{"a": 1} oops'])
def test_an_array_that_breaks_off_is_an_error_with_its_line(tmp_path, text):
    (tmp_path / "a.json").write_text("\n" + text)
    with pytest.raises(RecipeError, match=r"a\.json:2: "):
        list(rows_of(tmp_path / "a.json"))


def test_half_a_character_is_replaced_and_noted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "A \\ud83d smile \\ud83d\\ude00", "output": "x"}\n')
    [found] = read("alpaca", str(tmp_path / "a.jsonl"))
    assert isinstance(found, ParsedRow)
    assert (found.instruction, found.repairs) == ("A \ufffd smile 😀", ("half_character_replaced",))


# What rows say


def test_every_shape_gives_the_same_conversation():
    rows = {
        "alpaca": {"instruction": "Hi?", "input": "", "output": "Hello."},
        "distill": {"id": "1", "messages": MESSAGES, "meta": {"importer": "alpaca"}},
        "openai": {"messages": MESSAGES},
        "prompt_response": {"prompt": "Hi?", "response": "Hello."},
        "self_instruct": {"instruction": "Hi?", "instances": [{"input": "", "output": "Hello."}]},
        "sharegpt": {"conversations": CHAT},
    }  # fmt: skip
    for name, row in rows.items():
        assert schemas.name_of(row) == name
        assert said(parsed(name, row)) == ["u: Hi?", "a: Hello."], name


def test_an_input_follows_its_instruction_and_stays_apart_in_a_task():
    found = parsed("alpaca", {"instruction": "Translate.", "input": "Hallo", "output": "Hello"})
    assert said(found)[0] == "u: Translate.\n\nHallo"
    task = importers.task(found, importers.Names(), {})
    assert (task.instruction, task.input) == ("Translate.", "Hallo")


def test_each_instance_of_a_seed_is_a_session_and_the_seed_one_task():
    row = ForeignRow(
        1,
        {
            "id": "s",
            "instruction": "Add.",
            "instances": [{"input": "1 1", "output": "2"}, {"input": 5}, {"input": "2 2", "output": "4"}],
        },
    )
    found = list(schemas.parse(iter([row]), schemas.self_instruct))
    assert [type(one).__name__ for one in found] == ["ParsedRow", "RejectedRow", "ParsedRow"]
    names = importers.Names()
    assert [importers.session(one, names, {}).id for one in (found[0], found[2])] == ["s", "s~2"]
    assert [importers.task(one, importers.Names(), {}) is None for one in (found[0], found[2])] == [False, True]


def test_an_unanswered_row_is_a_task_and_no_session():
    found = parsed("questions", {"question_id": 81, "category": "writing", "turns": ["Write.", "Shorter."]})
    rejected = importers.session(found, importers.Names(), {})
    assert isinstance(rejected, RejectedRow)
    assert rejected.reason == "no_answer"
    task = importers.task(found, importers.Names(), {"source": "q.jsonl"})
    assert (task.id, task.instruction) == ("81", "Write.")
    assert task.meta == {
        "source": "q.jsonl", "line": 1, "original_id": "81", "category": "writing", "turns": ["Write.", "Shorter."],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "row", "why"),
    [
        ("openai", {"messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}]}, "tool_turn"),
        ("openai", {"messages": [*MESSAGES, {"role": "assistant", "tool_calls": [1]}]}, "tool_turn"),
        ("openai", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not_text"),
        ("openai", {"messages": [{"role": "user", "content": 5}]}, "not_text"),
        ("openai", {"messages": "x"}, "no_turns"),
        ("openai", {"messages": []}, "no_turns"),
        ("openai", {"messages": [5]}, "bad_turn"),
        ("openai", {"messages": [{"role": ["user"], "content": "x"}]}, "unknown_role"),
        ("sharegpt", {"conversations": [{"from": "wolf", "value": "x"}]}, "unknown_role"),
        ("sharegpt", sharegpt(("gpt", "x"), ("gpt", "y")), "no_turns"),
        ("sharegpt", sharegpt(("human", "x"), ("system", "y"), ("gpt", "z")), "system_turn_inside"),
        ("sharegpt", sharegpt(("human", "x"), ("gpt", "y"), ("gpt", "z")), "no_turns"),
        ("alpaca", {"instruction": " ", "output": "x"}, "no_text"),
        ("alpaca", {"instruction": "x", "output": 5}, "not_text"),
        ("self_instruct", {"instruction": "x", "instances": []}, "no_instances"),
        ("distill", {"id": "a", "messages": [], "meta": {}}, "no_turns"),
        ("distill", {"messages": [{"role": "user", "content": "x"}], "meta": "{oops"}, "bad_meta"),
        ("questions", {"turns": [3]}, "no_turns"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_rejected_with_its_reason(name, row, why):
    assert reason(name, row) == why


# Repairs


@pytest.mark.parametrize(
    ("turns", "left", "repair"),
    [
        ("aua", "ua", "leading_answer_dropped"),
        ("uau", "ua", "trailing_question_dropped"),
        ("uuaua", "uaua", "questions_joined"),
        ("uaaua", "", "cut_at_second_answer"),
        ("uauaa", "ua", "cut_at_second_answer"),
        ("uaua", "uaua", None),
        ("suaua", "suaua", None),
    ],
)
def test_turns_alternate_after_repair(turns, left, repair):
    roles = {"u": "user", "a": "assistant", "s": "system"}
    messages = [Message(roles[letter], f"{letter} {number}") for number, letter in enumerate(turns)]
    if not left:
        with pytest.raises(MalformedRow):
            regular(messages)
        return
    found, repairs = regular(messages)
    assert "".join(message.role[0] for message in found) == left
    assert repairs == ([repair] if repair else [])


def test_a_conversation_is_cut_at_its_first_empty_turn():
    found = parsed(
        "sharegpt", sharegpt(("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "\u200b"), ("human", "d"))
    )
    assert said(found) == ["u: a", "a: b"]
    assert "cut_at_empty_turn" in found.repairs


def test_an_error_of_the_page_is_no_answer():
    turns = (("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "Too many requests in 1 hour. Try again later."))
    assert said(parsed("sharegpt", sharegpt(*turns))) == ["u: a", "a: b"]


@given(st.lists(st.tuples(st.sampled_from(("user", "assistant", "system")), st.sampled_from(("", " ", "x", "y")))))
def test_what_is_repaired_is_regular_and_repairing_again_changes_nothing(turns):
    messages = [Message(role, content) for role, content in turns]
    try:
        found, _ = regular(messages)
    except MalformedRow:
        return
    if found[-1].role == "assistant":
        assert irregularity(found) is None
    assert regular(found) == (found, [])


# Tables


def test_tables_and_saved_datasets_have_rows_of_any_known_shape(tmp_path):
    import datasets

    shaped = {
        "messages": [[{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]],
        "conversations": [CHAT],
    }
    for column, rows in shaped.items():
        table = datasets.Dataset.from_dict({column: rows})
        table.to_parquet(str(tmp_path / f"{column}.parquet"))
        table.save_to_disk(str(tmp_path / column))
        for path in (tmp_path / f"{column}.parquet", tmp_path / column):
            name, _ = importers.guess(str(path))
            assert name == ("parquet" if path.suffix else "datasets")
            [found] = read(name, str(path))
            assert said(found) == ["u: Hi?", "a: Hello."]


def test_the_splits_that_are_not_read_are_named(tmp_path, capfd):
    import datasets

    one = datasets.Dataset.from_dict({"conversations": [CHAT]})
    datasets.DatasetDict(train=one, test=one, extra=one).save_to_disk(str(tmp_path / "data"))
    for split in (None, "test"):
        assert len(read("datasets", str(tmp_path / "data"), split=split)) == 1
    told = [line for line in capfd.readouterr().err.splitlines() if "split" in line]
    assert told == ["data: the split train is read, not test, extra (--split, in a recipe `split:`)"]


def test_a_hub_dataset_is_read_by_split_without_running_its_code(tmp_path):
    (tmp_path / "data").mkdir()
    written(tmp_path / "data" / "train.jsonl", [{"prompt": "Hi?", "response": "Hello."}])
    written(tmp_path / "data" / "test.jsonl", [{"prompt": "Bye?", "response": "Bye."}])
    (tmp_path / "data.py").write_text("raise SystemExit('ran')")
    [found] = read("hub", str(tmp_path / "data"), split="test")
    assert said(found) == ["u: Bye?", "a: Bye."]


@pytest.mark.parametrize(
    ("name", "what"), [("hub", "x"), ("parquet", "is no parquet"), ("datasets", "folder"), ("alpaca", "none")]
)
def test_what_cannot_be_read_at_all_is_one_line(tmp_path, name, what):
    path = tmp_path / what
    if what == "is no parquet":
        path.write_text("x")
    elif what == "folder":
        path.mkdir()
    with pytest.raises(RecipeError) as raised:
        read(name, str(path))
    assert "\n" not in str(raised.value)


# Names


@pytest.mark.parametrize("name", IMPORTERS)
def test_every_importer_refuses_what_it_does_not_take(name, tmp_path):
    if name != "hub":
        with pytest.raises(RecipeError, match="has no revision"):
            read(name, str(tmp_path / "none"), revision="main")


def test_an_unknown_format_is_suggested():
    with pytest.raises(RecipeError, match='did you mean "sharegpt"'):
        read("sharegtp", "x")


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("a.txt", "Name a river.\n[x]\n", "lines"),
        ("a.txt", "[1] Name a river.\n", "lines"),
        ("a.json", '[{"instruction": "x", "input": "", "output": "y"}]', "alpaca"),
        ("a.json", '[{"conversations": []}]', "sharegpt"),
        ("a.jsonl", '{"question_id": 1, "turns": ["x"]}', "questions"),
        ("a.jsonl", '{"prompt": {"text": "x"}, "message_tree_id": "1"}', "oasst"),
        ("a.jsonl", '{"oops\n{"messages": []}', "openai"),
        ("a.jsonl", '{"id": "1", "instruction": "x"}', "distill"),
    ],
)
def test_a_format_is_guessed_from_what_is_in_the_file(tmp_path, file, text, name):
    (tmp_path / file).write_text(text)
    assert importers.guess(str(tmp_path / file))[0] == name


def test_the_hub_is_never_asked_by_a_guess():
    with pytest.raises(RecipeError, match="add --from hub"):
        importers.guess("owner/name")


def test_rows_with_the_same_id_get_ids_of_their_own():
    names = importers.Names()
    row = {"id": "a", "instruction": "x", "output": "y"}
    assert [names.name(parsed("alpaca", row)) for _ in range(3)] == ["a", "a~2", "a~3"]
