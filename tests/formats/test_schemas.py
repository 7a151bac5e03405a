"""Rows in the shapes of public datasets: what each becomes, what is named as unused, and what is rejected and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.core.jsonl import read_jsonl, read_sessions
from distill.formats import importers, schemas
from distill.formats.import_file import import_command, import_file
from distill.formats.importers import IMPORTERS, Address, load_tasks
from distill.formats.json_rows import ForeignRow, RejectedRow
from distill.formats.oasst_trees import threads
from distill.formats.parsed_row import ParsedRow
from distill.formats.sources import Dataset, SourceCounts, ingest, split
from distill.formats.turns import ANSWER_KEYS, CONTENT_KEYS, QUESTION_KEYS, ROLE_KEYS, ROLES, WEIGHT_KEYS
from distill.types import Message, Session
from tests.support.importing import JSON, said, written

U, A = "Name a tree.", "An elm."
ASK, REPLY = {"role": "user", "content": U}, {"role": "assistant", "content": A}
TALK = [ASK, REPLY]
HUMAN, GPT = {"from": "human", "value": U}, {"from": "gpt", "value": A}
PASSAGE = "The elm stood by the road."


def turns(text: str) -> list[str]:
    """`u a`: the question and its answer."""
    known = {"u": f"u: {U}", "a": f"a: {A}"}
    return [known[letter] for letter in text.split()]


TABLE = [json.loads(line) for line in Path(__file__).with_name("shapes.jsonl").read_text("utf-8").splitlines()]
"""Rows by dataset or tool, and the turns that they become. The next shape is one more line of the file."""
SHAPES = {one["shape"]: one["row"] for one in TABLE if "rejected" not in one}
PAIRS = {one["shape"]: one["row"] for one in TABLE if "rejected" in one}


def parsed(row: dict[str, Any], name: str | None = None) -> ParsedRow | RejectedRow:
    [found] = schemas.parse(iter([ForeignRow(1, row)]), schemas.SHAPES[name] if name else None)
    return found


@pytest.mark.parametrize("line", TABLE, ids=lambda line: line["shape"])
def test_a_row_of_a_public_shape_is_read(line):
    found = parsed(line["row"])
    assert isinstance(found, ParsedRow), found
    assert said(found) == line["turns"]
    assert (found.rejected and found.rejected.content.strip()) == line.get("rejected")
    assert parsed(line["row"], schemas.name_of(line["row"])) == found


def test_the_table_has_many_shapes():
    assert (len(SHAPES), len(PAIRS)) >= (30, 10)


@pytest.mark.parametrize(
    ("row", "ignored"),
    [
        ({"instruction": U, "output": A, "text": "Below is …", "lang": "en"}, ["text", "lang"]),
        ({"instruction": U, "output": A, "text": None, "tools": "[]", "note": " ", "extra": {}}, []),
        ({"prompt": U, "prompt_id": "1", "messages": TALK}, []),
        ({"messages": [{**ASK, "name": "Ann"}, {**REPLY, "thoughts": "…"}]}, ["messages.name", "messages.thoughts"]),
        ({"system": "Other.", "messages": [{"role": "system", "content": "x"}, *TALK]}, ["system"]),
        ({"messages": TALK, "meta": {"source": "forum"}}, ["meta"]),
        ({"question": U, "answer": A, "category": "x"}, []),
    ],
)  # fmt: skip
def test_columns_that_say_something_unused_are_named(row, ignored):
    assert list(parsed(row).ignored) == ignored


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"messages": [{"content": U, "name": "Ann"}]}, "unknown_role", "turn 1: no role in keys content, name"),
        ({"messages": [{"role": "wolf", "content": U}]}, "unknown_role", "turn 1: unknown role 'wolf'; expected user"),
        ({"messages": [ASK, {"role": "assistant", "content": [["x"]]}]}, "not_text", "turn 2 is not only text"),
        ({"messages": [ASK, {"role": "assistant", "content": {"x": 1}}]}, "not_text", "turn 2 is not only text"),
        ({"messages": [{"role": "user", "content": None}, REPLY]}, "no_turns", "cut_at_empty_turn"),
        ({"conversations": [["a", "b", "c"]]}, "bad_turn", "turn 1: found list"),
        ({"conversations": [{"from": "Tool", "value": "x"}]}, "tool_turn", "calls or answers a tool"),
        ({"messages": "[oops"}, "no_turns", "not JSON"),
        ({"messages": [ASK, {**REPLY, "weight": 0}]}, "nothing_learnt", "weight of every answer is 0"),
        ({"messages": [ASK, {**REPLY, "weight": 0.5}]}, "bad_weight", "turn 2 is weighted by `weight` 0.5"),
        ({"messages": [ASK, {**REPLY, "train_detail": [{"begin_offset": 0}]}]}, "bad_weight", "weighted by parts"),
        ({"messages": TALK, "images": ["a.png"]}, "not_text", "`images` holds more than text"),
        ({"prompt": U, "completion": A, "label": False}, "unwanted", "`label` is false"),
        ({"question": U, "choices": [1, 2], "answer": 0}, "not_text", "`choices`: found list"),
        ({"prompt": U, "response": A, "history": "Hello."}, "no_turns", "found str"),
        ({"chosen": "Human: x\n\nAssistant: y", "rejected": "Human: z\n\nAssistant: y"}, "prompts_differ", "follow"),
        ({"prompt": U, "chosen": A, "rejected": A}, "same_answers", "are the same"),
        ({"prompt": U, "chosen": A, "rejected": [REPLY, ASK]}, "different_roles", "of the assistant or of the user"),
        ({"text": "<|im_start|>tool\nx<|im_end|>\n<|im_start|>user\ny<|im_end|>"}, "tool_turn", "turn 1"),
        ({"text": "Some plain text."}, "unknown_shape", "found the keys text"),
        ({"input": PASSAGE, "label": 1}, "unknown_shape", "found the keys input, label"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_rejected_with_what_it_has(row, reason, detail):
    found = parsed(row)
    assert schemas.name_of(row) in (None, *IMPORTERS)
    assert isinstance(found, RejectedRow), found
    assert found.reason == reason
    assert detail in found.detail


@pytest.mark.parametrize(
    "text", ["<noinput>", "<NoOutput>", "nan", "N/A", "n/a.", "None", "No input", "no input needed."]
)
def test_a_placeholder_is_no_input(text):
    found = parsed({"instruction": U, "input": text, "output": A})
    assert (said(found), found.input, found.repairs) == (turns("u a"), "", ("placeholder_input_dropped",))


@pytest.mark.parametrize("text", ["none of them", "nandina", "0", "N", "Canada", "no inputs were lost"])
def test_a_word_that_only_resembles_a_placeholder_is_input(text):
    assert parsed({"instruction": U, "input": text, "output": A}).input == text


def test_strings_of_one_turn_are_joined():
    row = {"messages": [{"role": "user", "content": ["Name", "a tree."]}, REPLY]}
    assert said(parsed(row)) == ["u: Name\na tree.", f"a: {A}"]


# What is ours


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"id": "1", "messages": TALK, "meta": {"importer": "alpaca"}}, "distill"),
        ({"id": "1", "messages": TALK, "meta": json.dumps({"strategy": "answer", "teacher": "x"})}, "distill"),
        ({"instruction": U}, "distill"),
        ({"id": "1", "instruction": U, "input": "x", "meta": {}}, "distill"),
        ({"id": "1", "messages": TALK, "meta": {}}, "openai"),
        ({"id": "1", "messages": TALK, "meta": {"teacher": "x"}}, "openai"),
        ({"id": "1", "messages": TALK, "meta": "forum"}, "openai"),
        ({"id": "1", "messages": TALK, "meta": {"importer": "alpaca"}, "score": 1}, "openai"),
        ({"instruction": U, "category": "x"}, "alpaca"),
        ({"instruction": U, "context": "x", "response": A}, "alpaca"),
    ],
)
def test_a_row_is_ours_by_our_marks_alone(row, name):
    assert schemas.name_of(row) == name


@given(st.permutations(["trailing", "leading", "doubled"]), st.none() | st.just({}) | st.just({"source": "forum"}))
def test_a_foreign_meta_changes_no_repair(order, meta):
    rows = {
        "trailing": [*TALK, ASK],
        "leading": [REPLY, *TALK],
        "doubled": [{**ASK, "content": "Hello."}, *TALK],
    }
    for name in order:
        with_meta, without = (parsed({"messages": rows[name], **more}) for more in ({"meta": meta}, {}))
        assert (with_meta.messages, with_meta.repairs) == (without.messages, without.repairs)


# Weights


@pytest.mark.parametrize("key", WEIGHT_KEYS)
@pytest.mark.parametrize(("off", "on"), [(0, 1), (False, True), (0.0, 1.0), ("false", "true")])
def test_a_turn_that_is_not_learnt_has_weight_0(key, off, on):
    row = {"messages": [ASK, {**REPLY, key: off}, {**ASK, key: on}, {**REPLY, key: on}, ASK, {**REPLY, key: None}]}
    found = parsed(row)
    assert (said(found), found.meta) == (turns("u a u a u a"), {"answer_weights": [0, 1, 1]})


def test_the_weights_of_every_shape_count():
    rows = [
        {"conversations": [HUMAN, {**GPT, "train": False}, HUMAN, GPT]},
        {"conversation": [{"input": U, "output": A, "output_with_loss": False}, {"input": U, "output": A}]},
        {"messages": [ASK, {**REPLY, "loss": 0}, *TALK], "rejected_response": "No."},
    ]
    assert [parsed(row).meta for row in rows] == [{"answer_weights": [0, 1]}] * 3
    assert parsed({"messages": [ASK, {**REPLY, "weight": 1}]}).meta == {}


def test_a_conversation_ends_with_an_answer_to_learn():
    found = parsed({"messages": [*TALK, ASK, {**REPLY, "weight": 0}]})
    assert (said(found), found.repairs, found.meta) == (turns("u a"), ("unlearnt_end_dropped",), {})


@given(st.lists(st.integers(0, 1), min_size=1, max_size=6), st.integers(1, 80))
def test_a_split_keeps_the_weight_of_every_answer(weights, most):
    from distill.formats.sources import Splitter

    messages = tuple(Message(role, "x" * 9) for _ in weights for role in ("user", "assistant"))
    parts = split(Session("s", messages, {"answer_weights": weights}), Splitter(count=len, max_tokens=most))
    found = [one for part in parts for one in part.meta.get("answer_weights", [1] * (len(part.messages) // 2))]
    assert found == weights


# Any row

OTHERS = "messages conversations conversation data items text turns instances meta id history choices system context"
KEYS = sorted({*QUESTION_KEYS, *ANSWER_KEYS, *OTHERS.split(), "chosen", "rejected"})
TOOL_TEXT = "<|im_start|>tool\nx<|im_end|>\n<|im_start|>user\ny<|im_end|>"
TEXTS = ("", " ", "x", "nan", "[", '[{"role": "user"}]', "\n\nHuman: x\n\nAssistant: y", "### Human: x", TOOL_TEXT)
TEXT = st.sampled_from(TEXTS)
ROLE = st.sampled_from([*ROLES, "Tool", "User", "wolf"]) | JSON
CONTENT = TEXT | st.lists(TEXT | st.none() | st.builds(dict, text=TEXT) | st.lists(TEXT, max_size=2), max_size=3) | JSON
TURN = st.one_of(
    st.fixed_dictionaries(
        {}, optional={**dict.fromkeys(ROLE_KEYS, ROLE), **dict.fromkeys(CONTENT_KEYS, CONTENT), "weight": JSON}
    ),
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from([*ROLES]), CONTENT),
    st.builds(lambda question, answer: {"input": question, "output": answer}, CONTENT, CONTENT),
    st.lists(CONTENT, max_size=3),
    JSON,
)
VALUE = TEXT | st.lists(TURN, max_size=4) | TURN | JSON | st.just({"importer": "x"}) | st.just([])
ROWS = st.dictionaries(st.sampled_from(KEYS), VALUE, max_size=5)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(ROWS)
def test_any_row_is_read_or_rejected_with_a_reason(row):
    for shape in (*schemas.SHAPES.values(), None):
        for found in schemas.parse(iter([ForeignRow(1, row)]), shape):
            if isinstance(found, RejectedRow):
                assert found.reason
                assert "\n" not in found.reason
            else:
                json.dumps([message.content for message in found.messages])
                assert {message.role for message in found.messages} <= {"system", "user", "assistant"}
                assert {name.partition(".")[0] for name in found.ignored} <= set(row)


ODD = (
    None,
    True,
    5,
    0.5,
    "",
    "x",
    "[",
    "{}",
    [],
    [None],
    [[]],
    [["x"]],
    ["x"],
    [{}],
    [5],
    {},
    {"role": "user"},
    {"x": []},
)


def odd_rows(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The row with each of its values, and each value of its first turns, odd in every way."""
    for (key, value), odd in product(row.items(), ODD):
        yield {**row, key: odd}
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield from ({**row, key: [{**value[0], inner: odd}, *value[1:]]} for inner in value[0])


def test_a_public_row_with_one_odd_value_is_read_or_rejected():
    for row in (*SHAPES.values(), *PAIRS.values()):
        for odd, shape in product(odd_rows(row), (None, schemas.SHAPES[schemas.name_of(row)])):
            assert schemas.name_of(odd) in (None, *IMPORTERS)
            for found in schemas.parse(iter([ForeignRow(1, odd)]), shape):
                assert found.reason if isinstance(found, RejectedRow) else found.messages, odd


@QUICK
@given(st.lists(TURN, max_size=5))
def test_what_is_read_of_a_foreign_conversation_can_be_learnt(items):
    found = parsed({"messages": items}, "openai")
    if isinstance(found, ParsedRow) and found.is_answered:
        roles = [message.role for message in found.messages if message.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert found.meta.get("answer_weights", [1])[-1] == 1


# By the command, and in a recipe


def imported(tmp_path, rows, **options: Any) -> list[str]:
    path = written(tmp_path / "rows.jsonl", rows)
    settings = {"format": None, "kind": None, "take": None, "seed": 7, "tokenizer": None, "max_tokens": None}
    more = {"split": None, "revision": None, "licence": None}
    return import_command(path, tmp_path / "out.jsonl", **{**settings, **more, **options})


def test_one_odd_turn_costs_its_row_alone(tmp_path):
    odd = [["x"], None, [["x"]], {"y": 1}, [{"type": "image_url"}], 5]
    rows = [{"messages": [{"role": "user", "content": content}, REPLY]} for content in odd]
    lines = imported(tmp_path, [{"messages": TALK}, *rows, {"messages": TALK}])
    assert lines[0] == f"{tmp_path / 'out.jsonl'}: 3 sessions of 8 rows"
    assert lines[1] == "rejected: not_text 4, no_turns 1"


def test_rows_of_several_shapes_are_read_by_the_keys_of_each(tmp_path):
    rows = [*SHAPES.values()]
    assert f"{len(rows)} sessions of {len(rows)} rows" in imported(tmp_path, rows)[0]
    found = [one.messages for one in read_sessions(tmp_path / "out.jsonl")]
    assert found == [parsed(row).messages for row in rows]


def test_unused_columns_are_named_once_with_their_rows(tmp_path):
    lines = imported(tmp_path, [{"instruction": U, "output": A, "lang": "en", **{f"c{n}": n for n in range(60)}}] * 3)
    assert lines[1].startswith("columns_ignored: lang 3, c0 3, c1 3")
    assert lines[1].endswith("c48 3, others 33")


def test_unused_columns_of_tasks_and_of_trees_are_named_too(tmp_path, capsys):
    load_tasks(Path(written(tmp_path / "a.jsonl", [{"question": U, "answer": A, "lang": "en"}] * 2)))
    assert capsys.readouterr().err.count("columns_ignored: lang") == 1
    root = {"role": "prompter", "text": U, "replies": [{"role": "assistant", "text": A, "replies": []}]}
    [found] = threads(iter([ForeignRow(1, {"message_tree_id": "1", "prompt": root, "origin": "x", "lang": None})]))
    assert (said(found), found.ignored) == (turns("u a"), ("origin",))


def test_a_pair_is_written_as_a_row_with_its_rejected_answer_and_read_back(tmp_path):
    rows = [*PAIRS.values()]
    assert imported(tmp_path, rows)[0] == f"{tmp_path / 'out.jsonl'}: {len(rows)} pairs of {len(rows)} rows"
    found = list(read_jsonl(tmp_path / "out.jsonl"))
    assert {tuple(row) for row in found} == {("id", "messages", "meta", "rejected")}
    assert found[0]["rejected"] == {"role": "assistant", "content": "No."}
    again = list(importers.read("distill", Address(str(tmp_path / "out.jsonl"))))
    assert [one.rejected.content.strip() for one in again] == ["No."] * len(rows)


def test_the_kind_of_rows_can_be_chosen(tmp_path):
    rows = [PAIRS["Orca DPO"], {"prompt": U, "response": A}]
    assert "1 pairs and 1 sessions of 2 rows" in imported(tmp_path, rows)[0]
    assert imported(tmp_path, rows, kind="pairs")[1] == "rejected: no_pair 1"
    assert imported(tmp_path, rows, kind="sessions")[1] == "columns_ignored: rejected 1"
    assert "2 tasks of 2 rows" in imported(tmp_path, rows, kind="tasks")[0]


def test_a_preference_in_a_source_is_a_pair_with_the_scores_by_which_it_was_chosen(tmp_path):
    pair, single = PAIRS["Orca DPO"], {"prompt": U, "response": A, "lang": "en"}
    scored = {**pair, "score_chosen": 8.5, "score_rejected": 6.0}
    source = Dataset(format="json", address=Address(written(tmp_path / "a.jsonl", [scored, single, pair])), name="a")
    found, counts = ingest(tmp_path, sources=[source], seed=7)
    assert [getattr(one, "rejected", None) and one.rejected.content for one in found] == ["No.", None, "No."]
    assert (found[0].meta["score"], found[0].meta["rejected"]) == (8.5, {"score": 6.0})
    assert (counts["import_reasons"], counts["columns_ignored"]) == ({}, {"a": ["lang"]})
    imported(tmp_path, [pair])
    assert read_sessions(tmp_path / "out.jsonl")[0].rejected == Message("assistant", "No.")


def test_an_import_says_that_an_answer_is_context_only(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"messages": [ASK, {**REPLY, "weight": 0}, *TALK]}])
    import_file(Dataset(format="openai", address=Address(path)), tmp_path / "out.jsonl")
    [found] = read_sessions(tmp_path / "out.jsonl")
    assert found.meta["answer_weights"] == [0, 1]
    [again] = read_sessions(tmp_path / "out.jsonl")
    counts = SourceCounts()
    assert (again, counts.rows) == (found, 0)
