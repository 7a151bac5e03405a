"""What is exported comes back the same through import; what a format cannot hold is counted, never bent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.core.jsonl import write_rows
from distill.errors import RecipeError, RunFolderError
from distill.formats import importers
from distill.formats.export import export
from distill.formats.importers import Address
from distill.formats.sources import Dataset, SourceCounts, sessions
from distill.run.cards import plain
from distill.run.dataset_card import card
from distill.types import Message, Session
from tests.support.cli import distill
from tests.support.run_folder import HOSTILE, poison, write_run

FILES = {"alpaca": "a.json", "sharegpt": "s.json", "openai": "o.jsonl", "parquet": "p.parquet", "hub": "h"}
KEEPS_IDS = ("sharegpt", "parquet", "hub")
KEEPS_META = ("parquet", "hub")

CHARS = st.characters(codec="utf-8") | st.sampled_from('\n\t <>&#`{}[]"\\/*_\u2028\ufeff')
TEXTS = st.text(CHARS, min_size=1, max_size=30).filter(lambda text: bool(text.strip()))
PAGES = ("<p>x</p>", "1 / 2", '<div class="markdown">x</div>', "```\nCopy code\n```", "null", " padded ")
CONTENTS = TEXTS | st.sampled_from(PAGES)
PAIRS = st.lists(st.tuples(CONTENTS, CONTENTS), min_size=1, max_size=3)
VALUES = st.booleans() | TEXTS | st.lists(TEXTS)
MARKS = {"strategy": TEXTS, "teacher": TEXTS}
"""Of every session that collect writes."""
METAS = st.fixed_dictionaries(MARKS, optional={"keys": VALUES, "truncated": VALUES})


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[tuple[Message, ...], dict[str, Any]]]:
    found = []
    for pairs, system, meta in draw(st.lists(st.tuples(PAIRS, st.none() | CONTENTS, METAS), min_size=1, max_size=4)):
        turns = [Message("system", system)] if system is not None else []
        for asked, answered in pairs:
            turns += [Message("user", asked), Message("assistant", answered)]
        found.append((tuple(turns), meta))
    return found


def write_kept(folder: Path, kept: Sequence[Session], test: Sequence[Session] = ()) -> Path:
    write_run(folder, prompts=1, train=False, compare=False)
    write_rows(folder / "kept.jsonl", kept)
    write_rows(folder / "test.jsonl", test)
    return folder


def back(path: Path, format: str, split: str | None = None) -> list[Session]:
    return list(sessions(Dataset(format=format, address=Address(str(path), split)), SourceCounts(), 7))


def fits_alpaca(session: Session) -> bool:
    return [message.role for message in session.messages] == ["user", "assistant"]


@pytest.mark.parametrize("format", FILES)
@settings(max_examples=15, deadline=None)
@given(rows=conversations())
def test_what_is_exported_comes_back_the_same(format, rows):
    kept = [Session(f"id {number}", messages, meta) for number, (messages, meta) in enumerate(rows)]
    fitting = [session for session in kept if format != "alpaca" or fits_alpaca(session)]
    with TemporaryDirectory() as folder:
        run, out = write_kept(Path(folder) / "run", kept), Path(folder) / FILES[format]
        if not fitting:
            with pytest.raises(RunFolderError, match="none of the run's rows"):
                export(run, to=format, out=out)
            return
        told = export(run, to=format, out=out)
        assert importers.guess(str(out))[0] == format
        found = back(out, "parquet" if format == "hub" else format)
    assert [session.messages for session in found] == [session.messages for session in fitting]
    assert len(told) == (1 if len(fitting) == len(kept) else 2)
    if format in KEEPS_IDS:
        assert [session.id for session in found] == [session.id for session in fitting]
    if format in KEEPS_META:
        assert all({**one.meta, **two.meta} == one.meta for one, two in zip(found, fitting, strict=True))


def test_a_row_that_a_format_cannot_hold_is_counted_by_reason(tmp_path):
    user, said = Message("user", "a"), Message("assistant", "b")
    kept = [
        Session("1", (user, said)),
        Session("2", (user, said, user, said)),
        Session("3", (Message("system", "s"), user, said)),
        Session("4", (user, Message("assistant", " "))),
        Session("5", (said, user)),
    ]
    run = write_kept(tmp_path / "run", kept)
    assert export(run, to="alpaca", out=tmp_path / "a.jsonl") == [
        f"{tmp_path / 'a.jsonl'}: 1 rows as alpaca",
        "4 rows left out, which alpaca cannot hold: several_turns 1, system_turn 1, empty_turn 1, not_alternating 1",
    ]
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"instruction": "a", "input": "", "output": "b"}


def test_an_answer_for_context_keeps_its_weight_in_formats_that_have_one(tmp_path):
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    meta = {"strategy": "answer", "teacher": "x", "answer_weights": [0, 1]}
    run = write_kept(tmp_path / "run", [Session("1", turns, meta)])
    for format, name in (("openai", "o.jsonl"), ("sharegpt", "s.json"), ("parquet", "p.parquet")):
        export(run, to=format, out=tmp_path / name)
        [found] = back(tmp_path / name, format)
        assert (found.messages, found.meta["answer_weights"]) == (turns, [0, 1])
    assert json.loads((tmp_path / "o.jsonl").read_text())["messages"][1] == {**vars_of(turns[1]), "weight": 0}


def vars_of(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def test_the_losers_of_best_of_become_the_rejected_answers_of_pairs(tmp_path):
    turns = (Message("user", "a"), Message("assistant", "b"))
    others = [{"replica": n, "key": "k", "text": f"t{n}", "score": score, "truncated": False} for n, score in OTHERS]
    meta = {"strategy": "best_of", "teacher": "x", "score": 8.0}
    kept = [Session("1", turns, {**meta, "others": others}), Session("2", turns, {**meta, "others": others[2:]})]
    run = write_kept(tmp_path / "run", kept)
    assert export(run, to="pairs", out=tmp_path / "p.jsonl")[1].endswith("cannot hold: no_rejected 1")
    row = json.loads((tmp_path / "p.jsonl").read_text())
    assert row == {
        "id": "1", "messages": [vars_of(turn) for turn in turns],
        "rejected": {"role": "assistant", "content": "t1"},
        "meta": {**meta, "rejected": {"key": "k", "score": 2.0, "truncated": False}},
    }  # fmt: skip
    export(run, to="dpo", out=tmp_path / "d.jsonl")
    turn, chosen, rejected = [vars_of(turns[0])], [vars_of(turns[1])], [row["rejected"]]
    assert json.loads((tmp_path / "d.jsonl").read_text()) == {"prompt": turn, "chosen": chosen, "rejected": rejected}
    for name in ("p.jsonl", "d.jsonl"):
        [again] = importers.read("json", importers.Address(str(tmp_path / name)))
        assert (again.messages, again.rejected) == (turns, Message("assistant", "t1"))


OTHERS = ((0, 5.0), (1, 2.0), (2, 8.0), (3, None))


def test_a_system_turn_can_be_left_out(tmp_path):
    turns = (Message("system", "s"), Message("user", "a"), Message("assistant", "b"))
    run = write_kept(tmp_path / "run", [Session("1", turns)])
    with pytest.raises(RunFolderError, match=r"system_turn 1\); leave it out with --no-system"):
        export(run, to="alpaca", out=tmp_path / "a.json")
    export(run, to="alpaca", out=tmp_path / "a.json", system=False)
    assert json.loads((tmp_path / "a.json").read_text()) == [{"instruction": "a", "input": "", "output": "b"}]
    export(run, to="openai", out=tmp_path / "o.jsonl", system=False)
    assert [one.messages for one in back(tmp_path / "o.jsonl", "openai")] == [turns[1:]]


def test_other_rows_of_a_run_are_exported_too(tmp_path):
    run = write_kept(tmp_path / "run", [session("k")], [session("t")])
    export(run, to="openai", out=tmp_path / "test.jsonl", which="test")
    assert [one.messages[0].content for one in back(tmp_path / "test.jsonl", "openai")] == ["t"]
    export(run, to="openai", out=tmp_path / "dropped.jsonl", which="dropped")
    assert len(back(tmp_path / "dropped.jsonl", "openai")) == 23


def session(text: str) -> Session:
    return Session(text, (Message("user", text), Message("assistant", "b")), {"teacher": "smollm2"})


# The folder for the Hub


def test_the_folder_for_the_hub_is_read_by_datasets_and_its_card_has_a_head(tmp_path):
    run = write_kept(tmp_path / "run", [session("k1"), session("k2")], [session("t")])
    export(run, to="hub", out=tmp_path / "hub")
    found = {split: [one.id for one in back(tmp_path / "hub", "hub", split)] for split in ("train", "test")}
    assert found == {"train": ["k1", "k2"], "test": ["t"]}
    _, head, text = (tmp_path / "hub" / "README.md").read_text().split("---\n", 2)
    assert [file["split"] for file in yaml.safe_load(head)["configs"][0]["data_files"]] == ["train", "test"]
    for part in ("## Sources and terms", "Apache-2.0", "| length | min\\_words: 3 | 12 |", "## Cost", "## Limits"):
        assert part in text


@pytest.mark.parametrize("payload", HOSTILE)
def test_a_card_shows_what_others_wrote_and_does_nothing_with_it(tmp_path, payload):
    run = poison(write_run(tmp_path / "run", train=False, compare=False), payload)
    (run / "recipe.yaml").write_text(yaml.safe_dump({"name": payload, "collect": {"strategy": payload}}))
    text = card(run, {"train": "data/x.parquet"}, {"train": 1})
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(head)["license"] == "other"
    assert not [
        line for line in body.replace("\\<", "").splitlines() if "<" in line or "javascript:" in line.split("\\")
    ]
    assert "\u202e" not in body
    assert "\x00" not in body


@given(st.text())
def test_a_text_of_others_stays_on_one_line_of_a_card(text):
    assert len(plain(text).splitlines()) <= 1


def test_a_folder_that_is_there_is_not_touched(tmp_path):
    run = write_kept(tmp_path / "run", [session("k")])
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "mine").write_text("x")
    with pytest.raises(RunFolderError, match="is there already"):
        export(run, to="hub", out=tmp_path / "hub")
    assert [file.name for file in (tmp_path / "hub").iterdir()] == ["mine"]


# The command


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"to": "alpaka"}, 'did you mean "alpaca"'),
        ({"to": "openai", "which": "keep"}, 'unknown rows "keep"'),
        ({"to": "openai", "run": "none"}, "is no run folder"),
        ({"to": "openai", "which": "kept"}, "has no kept.jsonl yet; type: distill curate"),
        ({"to": "parquet", "out": "run/run.json/x"}, "its folder cannot be made"),
        ({"to": "gguf", "system": False}, "--no-system is for alpaca"),
    ],
)
def test_an_export_that_cannot_be_done_is_one_line(tmp_path, options, line):
    write_run(tmp_path / "run", train=False, compare=False)
    run, out = tmp_path / options.pop("run", "run"), tmp_path / options.pop("out", "x")
    with pytest.raises((RecipeError, RunFolderError)) as raised:
        export(run, out=out, **options)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not out.exists()


def test_the_command_exports(tmp_path):
    write_kept(tmp_path / "run", [session("k")])
    finished = distill("export", "run", "--to", "sharegpt", "--out", "new/er/k.json", cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (0, "new/er/k.json: 1 rows as sharegpt\n")
    assert json.loads((tmp_path / "new/er/k.json").read_text())[0]["id"] == "k"
