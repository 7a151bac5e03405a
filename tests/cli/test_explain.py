"""`distill explain` and `distill schema`: every key can be found from the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.pipeline import explain_key
from distill.pipeline.recipe_keys import every_key, keys, schema_text
from tests.support.cli import here, only_line

EXPLAINED = {
    "train.epochs": ["train.epochs: Passes over all sessions.", "default: 2", "unit: epochs", "read by: train"],
    "epochs": ["train.epochs: Passes over all sessions."],
    "expand.rouge_l": ["default: 0.7", "option of: self_instruct, alpaca", "default: 0.95", "option of: evol_instruct"],
    "expand.evol_instruct.rouge_l": ["default: 0.95"],
    "expand.sampling.temperature": ["0.7 (self_instruct)", "option of:"],
    "curate.near_duplicate.rouge_l": [
        "number from 0 to 1",
        "similarity, 0 to 1",
        "--set curate.near_duplicate.rouge_l=",
    ],
    "near_duplicate": ["curate.near_duplicate:", "  rouge_l  ", "  on  ", "curate: [{filter: near_duplicate}]"],
    "self_instruct": ["expand: {strategy: self_instruct}", "  new_tasks  "],
    "similarity": ["compare.metrics.similarity:", "[required]"],
    "sources.from": ["sharegpt", "package.module:thing", "--set sources.NAME.from="],
    "student.template": ["value: chatml, alpaca, vicuna, own", "default: chatml"],
    "judge": ["judge: ", "  terms  ", "see also: collect.judge, compare.judge, curate.judge"],
    "collect.test": ["value: section or integer from 0", "  count  ", "read by: curate"],
    "curate": ["  near_duplicate  ", "  truncated  "],
}


@pytest.mark.parametrize("key", EXPLAINED)
def test_a_key_a_section_or_a_part_is_explained(key: str, tmp_path: Path):
    shown = here(tmp_path, "explain", key)
    assert (shown.returncode, [words for words in EXPLAINED[key] if words not in shown.stdout]) == (0, [])


UNKNOWN = {
    "trian.epochs": 'unknown key "trian.epochs"; did you mean "train.epochs"?',
    "train.epoch": 'unknown key "train.epoch"; did you mean "epochs"?',
    "near_dupliacte": 'unknown key "near_dupliacte"; did you mean "near_duplicate"?',
    "curate.near_duplicate.threshold": 'unknown key "curate.near_duplicate.threshold"; expected one of on, rouge_l',
    "zzz": 'unknown key "zzz"; `distill explain` lists the sections',
    "train.compiled": 'unknown key "train.compiled": it has gone, as its gain was never measured; leave it out',
}


@pytest.mark.parametrize("key", UNKNOWN)
def test_an_unknown_key_is_one_line_with_what_is_near(key: str, tmp_path: Path):
    shown = here(tmp_path, "explain", key)
    assert (shown.returncode, only_line(shown)) == (2, f"error: {UNKNOWN[key]}")


def test_without_a_key_the_sections_are_listed():
    listed = [line.split()[0] for line in explain_key.lines(None)[1:] if line[2] != " "]  # not a sentence's next line
    assert listed == [key.path for key in keys()]


def test_a_list_of_keys_says_each_sentence_to_its_end():
    for section in ("collect", "train", "curate"):
        [key] = explain_key.find(section)
        listed = " ".join(" ".join(explain_key.lines(section)).split())
        assert [child.path for child in key.children if " ".join(child.summary.split()) not in listed] == []


def test_every_key_and_part_is_found_by_its_path():
    assert [key.path for key in every_key() if key not in explain_key.find(key.path)] == []


def test_the_schema_is_printed_as_it_is_shipped(tmp_path: Path):
    assert here(tmp_path, "schema").stdout == schema_text()
