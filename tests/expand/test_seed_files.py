"""Seed files: the format of Self-Instruct, and one line with file and row for each fault."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from distill.errors import SeedsError
from distill.expand.seeds import load_seeds


def seeds_file(folder: Path, *lines: str) -> Path:
    path = folder / "seeds.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


GOOD = {
    "id": "s1",
    "name": "clouds",
    "instruction": "Name four kinds of clouds.",
    "instances": [{"input": "", "output": "Cirrus, cumulus, stratus and nimbus."}],
    "is_classification": False,
}


def test_seeds_are_read_in_the_format_of_self_instruct(tmp_path):
    (seed,) = load_seeds(seeds_file(tmp_path, json.dumps(GOOD), ""))
    assert (seed.id, seed.instruction, seed.instances[0].input) == ("s1", GOOD["instruction"], "")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("{not json", "not JSON"),
        ("[]", "seeds.jsonl:2"),
        (json.dumps({**GOOD, "instruction": None}), "`instruction`"),
        (json.dumps({key: value for key, value in GOOD.items() if key != "instruction"}), "`instruction`"),
        (json.dumps({**GOOD, "instances": [{"input": ""}]}), "`instances.0.output`"),
        (json.dumps({**GOOD, "instruction": " "}), "`instruction` is empty"),
    ],
)
def test_a_malformed_seed_is_one_line_with_file_and_line(tmp_path, line, found):
    with pytest.raises(SeedsError, match=re.escape(found)) as error:
        load_seeds(seeds_file(tmp_path, json.dumps(GOOD), line))
    assert "seeds.jsonl:2: " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_seed_may_be_an_instruction_alone(tmp_path):
    lines = [json.dumps({"instruction": text}) for text in ("Name three rivers.", "Say hello.")]
    first, second = load_seeds(seeds_file(tmp_path, *lines))
    assert (first.id, second.id, second.instances, second.is_classification) == ("seed-1", "seed-2", (), False)


def test_a_file_without_seeds_is_an_error(tmp_path):
    with pytest.raises(SeedsError, match="has no seed"):
        load_seeds(seeds_file(tmp_path, "", " "))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(SeedsError, match="cannot read the seeds"):
        load_seeds(tmp_path / "none.jsonl")
