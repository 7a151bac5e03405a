"""Others read a run's rows as they stand: `datasets` files of any size, and TRL's trainer its kept.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.core.jsonl import FIRST_META, read_jsonl, read_sessions, write_rows
from distill.curate.filters.length import Length
from distill.curate.filters.refusal import Refusal
from distill.curate.stage import curate
from distill.formats.importers import Address
from distill.formats.sources import Dataset, SourceCounts, sessions
from distill.types import Message, Session

datasets = pytest.importorskip("datasets")

ARROW_BYTES = 10 * 2**20
"""From so much of a file, and a line more, `datasets` takes the type of every column."""
PROMPT = "many words and more " * 15_000
EARLY: dict[str, Any] = {"a": 1, "b": None, "c": [], "d": {}, "e": "text", "labels": []}
LATE: dict[str, Any] = {"a": 1.5, "b": "text", "c": [{"x": 1}], "d": {"y": "z"}, "e": 3, "f": True, "labels": ["own"]}
RULES = [("length", Length(Length.Options(max_words=9))), ("refusal", Refusal(Refusal.Options()))]
LONG = "One after the other they went over the bridge and home."


def session(number: int, answer: str, meta: dict[str, Any], prompt: str = "Why?") -> Session:
    return Session(f"s{number}", (Message("user", f"{number} {prompt}"), Message("assistant", answer)), meta)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run whose kept and dropped rows are alike for more than 10 MiB, and have other types of meta after that."""
    place = tmp_path_factory.mktemp("run")
    early = [session(n, ("A good answer.", LONG)[n % 2], EARLY, PROMPT) for n in range(80)]
    late = [session(80, "As an AI, I cannot eat.", LATE), session(81, LONG, LATE), session(82, "Yes, I can.", {})]
    write_rows(place / "sessions.jsonl", [*early, *late])
    curate(place, filters=RULES, test=0, seed=7)
    return place


def read(path: Path, cache: Path, **options: Any) -> Any:
    return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache), **options)


@pytest.mark.parametrize(("name", "rows"), [("kept", 42), ("dropped", 41)])
def test_datasets_reads_a_file_whose_late_rows_are_of_other_types(folder, tmp_path, name, rows):
    path = folder / f"{name}.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert sum(map(len, lines[:40])) > ARROW_BYTES
    found = read(path, tmp_path)
    assert len(found) == rows
    assert [{**row, "meta": row["meta"]} for row in found] == [json.loads(line) for line in lines]
    assert found[40]["meta"] == LATE | {"labels": ["own", *(["refusal"] if name == "kept" else [])]}


def test_datasets_reads_a_stream_of_rows(folder, tmp_path):
    found = [row["id"] for row in read(folder / "kept.jsonl", tmp_path, streaming=True)]
    assert found == [each.id for each in read_sessions(folder / "kept.jsonl")]


def test_the_first_row_alone_says_that_rows_differ_and_is_read_back_without(folder):
    marks = [set(FIRST_META) <= set(row["meta"]) for row in read_jsonl(folder / "kept.jsonl")]
    assert marks == [True, *[False] * 41]
    assert [each.meta for each in read_sessions(folder / "kept.jsonl")][:2] == [EARLY, EARLY]
    address = Address(str(folder / "kept.jsonl"))
    imported = sessions(Dataset(format="distill", address=address), SourceCounts(), 7)
    assert not any(set(FIRST_META) & set(each.meta) for each in imported)


@pytest.mark.model
def test_trl_prepares_kept_rows_as_they_stand(tiny, tmp_path):
    trl = pytest.importorskip("trl")
    answers = ("A good answer.", "As an AI, I do not eat.", "Yes, I can.", LONG)
    write_rows(tmp_path / "sessions.jsonl", [session(n, one, EARLY) for n, one in enumerate(answers)])
    curate(tmp_path, filters=RULES, test=0, seed=7)
    rows = read(tmp_path / "kept.jsonl", tmp_path / "cache")
    trainer = trl.SFTTrainer(
        model=str(tiny),
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "out"),
            report_to="none",
            use_cpu=True,
            bf16=False,
            max_length=128,
            activation_checkpointing=False,
            gradient_checkpointing=None,
        ),
        train_dataset=rows,
    )
    texts = [trainer.processing_class.decode(ids) for ids in trainer.train_dataset["input_ids"]]
    assert len(texts) == 3
    for text, answer in zip(texts, answers[:3], strict=True):
        assert f"assistant\n{answer}<|im_end|>" in text
