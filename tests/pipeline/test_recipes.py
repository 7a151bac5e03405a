"""Every shipped recipe: valid, documented, and run through whole with a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from distill.core import assets
from distill.pipeline.forecast import lines
from distill.pipeline.parts import load_recipe
from distill.pipeline.smoke import MOST, smoke
from distill.pipeline.smoke_rows import COLUMNS

RECIPES = sorted(path for path in assets.find("recipes").rglob("*.yaml") if path.parent.name != "accelerate")
NAMES = [path.stem for path in RECIPES]
ALLOWED = re.compile(
    r"(teacher(\.\d+)?|user|judge|compare\.(student|base))\.(model|base_url|serve|api_key_env|headers_env|revision)"
    r"|student\.model|student\.prune\.layers"
    r"|teacher\.sampling\.(logprobs|top_logprobs)|teacher\.1\.(name|terms|kinds\.0)"
    r"|sources\.\d+\.(hub|from|path|split|revision|take)"
    r"|curate\.\d+\.(count|most|min_chars)"
    r"|compare\.metrics(\.\d+(\.(metric|prompts))?)?"
    rf"|{'|'.join(map(re.escape, MOST))}"
)
"""Models and where they are, sizes, paths and counts."""


def test_all_of_the_literature_is_there():
    assert len(RECIPES) == 26
    assert {"self-instruct", "alpaca-7b", "vicuna-7b", "koala-13b", "gpt4all", "baize", "guanaco", "lima"} <= set(NAMES)
    assert {"wizardlm", "orca", "airoboros", "platypus", "goat", "instructgpt-sft", "llama2-chat-sft"} <= set(NAMES)
    assert {"zephyr-sft", "zephyr-dpo", "tulu3-dpo", "distil-soft", "on-policy"} <= set(NAMES)
    assert {"opt-sft", "open-mix", "domain", "classify", "quickstart", "modern"} <= set(NAMES)


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_is_valid_and_named_like_its_file(path: Path):
    loaded = load_recipe(path)
    assert loaded.name == path.stem
    assert lines(loaded)[0].startswith(f"{path.stem}: valid")


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_says_what_it_is_before_it_begins(path: Path):
    text = path.read_text(encoding="utf-8")
    head = text[: text.index("\nname:")]
    assert head.startswith("# ")
    assert all(line.startswith("#") for line in head.splitlines())
    assert len(head) > 150


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_every_number_of_a_paper_has_a_source_or_a_mark(path: Path):
    """Each value of `train` says in its comment whose it is, in recipes that follow a paper."""
    text = path.read_text(encoding="utf-8")
    if not re.search(r"# The (paper|project|example)", text):
        return
    train = text[text.index("\ntrain:") :].split("\n\n")[0]
    marked = [
        line for line in train.splitlines() if re.search(r"# (the (paper|project|example)|not published|ours)", line)
    ]
    assert len(marked) >= 3


def test_data_from_elsewhere_is_named_with_its_licence():
    sources = [source for path in RECIPES for source in yaml.safe_load(path.read_text()).get("sources", [])]
    assert len(sources) >= 15
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", source["hub"]) and source["licence"] for source in sources)


def test_every_dataset_of_a_recipe_has_stand_in_rows_in_its_own_columns():
    sources = [source for path in RECIPES for source in yaml.safe_load(path.read_text()).get("sources", [])]
    hubs = {source["hub"] for source in sources}
    assert set(COLUMNS) | {"HuggingFaceH4/oasst1_en"} == hubs  # the latter has `messages` alone


def table() -> dict[str, list[str]]:
    """The cells of the table in recipes/README.md, by recipe."""
    text = assets.find("recipes/README.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    return {row[0].strip("`"): row for row in rows}


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_the_table_says_what_the_recipe_says(path: Path):
    loaded = load_recipe(path)
    train = loaded.train.options
    teacher = ", ".join(one.model for one in loaded.teachers) or "the data's own answers"
    _, _, _, _, told, student, method, _, _ = table()[path.stem]
    assert (told, student) == (teacher, loaded.student.model)
    epochs = f"{train.epochs:g} epoch{'' if train.epochs == 1 else 's'}"
    assert method == f"{train.method}, {epochs}, {train.learning_rate:g}"


def test_the_table_has_every_recipe():
    assert list(table()) == NAMES


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")  # of the training packages, on models this small
@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_runs_through_with_a_tiny_model(path: Path, tmp_path: Path, capsys):
    smoked = smoke(path, tmp_path)
    assert capsys.readouterr().out == ""  # no headline of a random model, no path of a folder that is deleted
    counts = json.loads((smoked.folder / "run.json").read_text())["stages"]["train"]["counts"]
    assert table()[path.stem][-1] == f"{counts['rows']} rows, {counts['steps']} steps"
    assert (smoked.folder / "report.html").is_file()
    assert (smoked.folder / "student" / "base.json").is_file()
    assert [change.key for change in smoked.changes if not ALLOWED.fullmatch(change.key)] == []
