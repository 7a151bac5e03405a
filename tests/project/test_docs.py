"""The documentation: every block runs or says why not, every link leads somewhere, every command has its help."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import distill
from distill.api import Options
from distill.cli.commands import app
from distill.collect.strategies import STRATEGIES as ANSWERING
from distill.compare.metrics import METRICS
from distill.curate.filters import FILTERS
from distill.engine.journal.schema import _SCHEMA, _SENDS, VERSION
from distill.engine.mock_server import MockServer
from distill.engine.mock_server.stand_in import answer
from distill.expand.strategies import STRATEGIES as GROWING
from distill.formats.export import MODELS
from distill.formats.exporters import COMPARISONS, EXPORTERS
from distill.formats.importers import IMPORTERS
from distill.pipeline import smoke
from distill.pipeline.parts import load_recipe
from tests.support.documents import ROOT, blocks, commands, matches, pages, printed_by, run_page, said_by

README = ROOT / "README.md"
MARKS = re.compile(r"run|prints|recipe|file \S+|keys \S+|not run: .{8,}")
HOW_TO = ("collect/strategies", "curate/filters", "compare/metrics", "formats/exporters", "engine/providers", "")
SHELVES = (ANSWERING, GROWING, FILTERS, METRICS, EXPORTERS, COMPARISONS, MODELS, IMPORTERS)
COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)


def of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def next_of(shelf: dict[str, str]) -> str:
    return next(iter(shelf))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with MockServer(answer=answer) as server:
        yield server.url


@pytest.mark.parametrize("page", pages(), ids=of)
def test_every_block_says_what_it_is(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(blocks(page))
    assert [block for block in blocks(page) if not MARKS.fullmatch(block.mark)] == []
    assert re.findall(r"^    \S", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE) == []


@pytest.mark.parametrize("page", pages(), ids=of)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_readme_leads_to_every_page():
    seen, ahead = set(), [README]
    while ahead:
        page = ahead.pop()
        seen.add(page)
        links = re.findall(r"\]\(([^)#]+\.md)", page.read_text(encoding="utf-8"))
        ahead += [found for link in links if (found := (page.parent / link).resolve()) not in seen]
    assert set(pages()) - seen == set()


@pytest.mark.model
@pytest.mark.parametrize("shelf", HOW_TO)
def test_an_example_of_under_thirty_lines_runs(shelf, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    page = ROOT / "distill" / shelf / "README.md"
    assert run_page(page, tmp_path, url) >= 1
    assert max(len(block.text.splitlines()) for block in blocks(page) if block.language == "python") < 30


def tiny(recipe: Path, url: str) -> None:
    """Point a recipe at the stand-in and at a tiny model, and make it small."""
    document = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    del document["teacher"]["serve"]
    document["teacher"] |= {"model": "stand-in", "base_url": url}
    document["expand"]["tasks"] = 12
    document["collect"]["test"] = 4
    document["student"] = {"model": str(smoke.tiny_model())}
    document["train"] |= {"epochs": 1, "batch_rows": 4, "max_length": 256, "lora": {"r": 4}}
    document["compare"]["sampling"] = {"max_tokens": 8}
    recipe.write_text(yaml.safe_dump(document), encoding="utf-8")


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")  # of the training packages, on a model this small
def test_the_readme_says_what_its_commands_say(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran, printed = 0, ""
    for block in blocks(README):
        if block.mark == "run":
            if block.language == "python":
                printed, ran = printed_by(block.text), ran + 1
            for command, told in commands(block):
                said = said_by(command)
                assert matches(told, said), f"{command} says\n{said}"
                ran += 1
                if command.startswith("distill check"):
                    tiny(tmp_path / "my.yaml", url)
        elif block.mark == "prints":
            assert matches(block.text, printed), f"it prints\n{printed}"
        elif block.mark.startswith("keys "):
            row = json.loads((tmp_path / block.mark.removeprefix("keys ")).read_text().splitlines()[0])
            shown = json.loads(block.text)
            assert (shown.keys() <= row.keys(), shown["meta"].keys() <= row["meta"].keys()) == (True, True)
    assert ran >= 8


PIECES = [block for page in pages() for block in blocks(page) if block.mark == "recipe"]


@pytest.mark.parametrize("block", PIECES, ids=lambda _: "")
def test_every_piece_of_a_recipe_is_valid(block, tmp_path):
    whole = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    whole |= yaml.safe_load(block.text)
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    assert load_recipe(tmp_path / "whole.yaml").name == "quickstart"


def test_the_table_of_commands_names_every_command_and_no_other():
    page = (ROOT / "distill" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `distill ([^`]+)`", page, re.MULTILINE)
    named = {word for row in rows for word in re.findall(r"(?:^|/ )([a-z][a-z-]+)", row)}
    assert named == set(COMMANDS)


@pytest.mark.parametrize(
    "shelf", [ANSWERING, GROWING, FILTERS, METRICS, EXPORTERS, COMPARISONS, MODELS, IMPORTERS], ids=next_of
)
def test_the_readme_names_every_part(shelf):
    text = README.read_text(encoding="utf-8")
    assert [name for name in shelf if f"`{name}`" not in text] == []


def test_the_files_to_open_for_a_change_are_there():
    page = (ROOT / "distill" / "README.md").read_text(encoding="utf-8")
    section = page.partition("## How to add a part")[2].partition("## Working on it")[0]
    names = re.findall(r"`([\w.-]+/[\w./-]*)`", section)
    assert len(names) >= 20
    assert [name for name in names if not ((ROOT / "distill" / name).exists() or (ROOT / name).exists())] == []


def test_the_table_of_python_names_is_whole():
    page = (ROOT / "distill" / "README.md").read_text(encoding="utf-8")
    told = page.partition("## From Python")[2].partition("\n## ")[0]
    members = [name for name in dir(distill.RunFolder) if not name.startswith("_") and name != "rows"]
    names = [*distill._PUBLIC, *members, *Options.__annotations__]
    assert [name for name in names if f"`{name}" not in told] == []


def test_the_journals_schema_is_told_whole():
    page = (ROOT / "distill" / "README.md").read_text(encoding="utf-8")
    tables = dict(re.findall(r"CREATE TABLE (\w+) \((.*?)\);", _SCHEMA + _SENDS, re.DOTALL))
    assert len(tables) == 4
    assert f"user_version = {VERSION}" in page
    for table, columns in tables.items():
        told = re.search(rf"^\| `{table}` \|.*\| (.*) \|$", page, re.MULTILINE)
        assert told is not None
        assert told[1].split(", ") == re.findall(r"(\w+) (?:TEXT|INTEGER|REAL)", columns)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_a_sentence_and_an_example_that_can_be_typed(name):
    command = COMMANDS[name]
    first, *_ = command.help.strip().split("\n\n")
    assert re.search(r"[.?:]", first)
    examples = re.findall(r"Example: distill (.+)", command.help)
    assert examples
    for example in examples:
        typed, *words = shlex.split(example)
        assert typed == name
        command.make_context(name, words).close()
    assert [option.name for option in command.params if not option.help and not getattr(option, "hidden", False)] == []


def test_the_picture_is_small():
    picture = ROOT / "recipes" / "report.png"
    assert picture.stat().st_size <= 150_000
    assert "recipes/report.png" in README.read_text(encoding="utf-8")


def test_what_is_told_must_be_said_but_for_numbers_and_gaps():
    said = "start\n1/9, 3 s\ndone in 0.3 s (rows 12, left out 2)\n"
    assert matches("…\ndone in 81.2 s (rows 1,248, …)", said)
    assert not matches("done in 81.2 s (rows 1,248, …)", said)
    assert not matches("…\ndone in 81.2 s (rows 1,248)", said)
    assert not matches("…\nended in 81.2 s (rows 1,248, …)", said)
