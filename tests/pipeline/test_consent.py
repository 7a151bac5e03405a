"""Typing a command again: what it does again, when it asks before, whose folder it is in, and which recipe it reads."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

import distill as api
from distill.cli.main import _code
from distill.engine.mock_server import MockServer
from distill.errors import ConsentNeeded
from distill.run.record import ACCEPTABLE
from tests.support.cli import here, only_line
from tests.support.run_folder import change

pytestmark = pytest.mark.slow

THINGS = ("rivers", "kites", "soups", "clocks", "owls", "songs", "hats", "tides", "bees", "tents")


@pytest.fixture(scope="module")
def server() -> Iterator[MockServer]:
    with MockServer() as server:
        yield server


def write(folder: Path, server: MockServer, *, name: str = "one", price: bool = True, **more: Any) -> Path:
    rows = ({"id": f"t{number}", "instruction": f"What of {thing}?"} for number, thing in enumerate(THINGS))
    (folder / "tasks.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    model = {"base_url": server.url, "terms": "ours", "sampling": {"max_tokens": 20}}
    teacher = {"model": "m", **model, **({"price": {"input": 1.0, "output": 1000.0}} if price else {})}
    recipe = {
        "name": name,
        "teacher": teacher,
        "collect": {"tasks": "tasks.jsonl", "test": 2},
        "curate": [{"filter": "empty"}, {"filter": "length", "min_words": 1}],
        "compare": {"metrics": ["overlap"], "student": {"model": "s", **model}, "base": {"model": "b", **model}},
        **more,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def origin(server: MockServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and its finished run."""
    folder = tmp_path_factory.mktemp("origin")
    write(folder, server)
    assert here(folder, "run", "one.yaml").returncode == 0
    return folder


def test_a_run_of_a_copy_of_the_recipe_leaves_it_where_it_came_from(folder: Path) -> None:
    shutil.copy(folder / "one.yaml", folder / "copy.yaml")
    assert here(folder, "run", "copy.yaml", "--run-dir", "runs/one").returncode == 0
    assert json.loads((folder / "runs/one/run.json").read_text())["origin"]["recipe"] == str(folder / "one.yaml")


@pytest.fixture
def folder(origin: Path, tmp_path: Path) -> Path:
    copy = shutil.copytree(origin, tmp_path / "copy")
    came_from = {"recipe": str(copy / "one.yaml")}
    change(copy / "runs/one/run.json", lambda record: {**record, "origin": {**record["origin"], **came_from}})
    return copy


def stage(name: str, **values: Any) -> Callable[[Path], None]:
    """Changes a stage's entry in run.json."""

    def edit(folder: Path) -> None:
        def changed(record: dict[str, Any]) -> dict[str, Any]:
            record["stages"][name] |= values
            return record

        change(folder / "runs/one/run.json", changed)

    return edit


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / "runs/one" / name).unlink() for name in names] and None


BRIEF, WORDS = ["--set", "collect.system=Be brief."], ["--set", "curate.length.min_words=2"]
LATER = "2999-01-01T00:00:00+00:00"
ASKED = "collect (collect.system unset → Be brief.): about 10 requests, up to about USD 0.20 … ; compare (after curate)"
CASES: dict[str, tuple[Callable[[Path], None] | None, list[str], str | None]] = {
    "the same again": (None, [], None),
    "questions that the journal cannot answer": (None, BRIEF, ASKED),
    "one stage of them": (None, ["--stages", "collect", *BRIEF], "unset → Be brief.): about 10 requests"),
    "with --yes": (None, ["--yes", *BRIEF], None),
    "with --redo": (None, ["--redo", "collect", *BRIEF], None),
    "outputs that the journal gives again": (without("sessions.jsonl", "scores.json", "answers.jsonl"), [], None),
    "a rule that asks nobody, and the same prompts after it": (None, WORDS, None),
    "a stage that took long": (stage("curate", seconds=901), WORDS, "min_words 1 → 2): it took 15 min 01 s"),
    "a stage that took long and is current": (stage("curate", seconds=901), [], None),
    "a long stage whose answers are all there": (stage("collect", seconds=901), ["--redo", "collect"], None),
    "a stage with a few failures": (stage("collect", status="partial", detail=ACCEPTABLE), BRIEF, ASKED),
    "a stage with a few failures that goes on": (stage("collect", status="partial", detail=ACCEPTABLE), [], None),
    "a stage that failed": (stage("collect", status="failed"), BRIEF, None),
    "a stage that was cut off, and those after it": (
        stage("collect", status="running", started=LATER),
        ["--set", "teacher.sampling.temperature=0.3"],
        None,
    ),
    "a stage that was finished after one that had failed": (
        stage("collect", status="partial"),
        ["--set", "compare.sampling={temperature: 0.3, max_tokens: 20}"],
        "compare (compare.sampling.max_tokens unset → 20; compare.sampling.temperature unset → 0.3): about ",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_only_finished_work_that_costs_again_needs_consent(folder: Path, server: MockServer, case: str) -> None:
    prepare, options, line = CASES[case]
    if prepare is not None:
        prepare(folder)
    before, count = files(folder / "runs/one"), server.count
    finished = here(folder, "run", "one.yaml", *options)
    assert finished.returncode == (0 if line is None else 2), finished.stderr
    if line is not None:
        assert all(part in only_line(finished) for part in line.split(" … ")), finished.stderr
        assert "type the same command with --yes" in finished.stderr
        assert (server.count, files(folder / "runs/one")) == (count, before)


def files(run: Path) -> dict[str, bytes]:
    """All but the log and what SQLite keeps beside the journal."""
    there = (path for path in run.rglob("*") if path.is_file() and path.name != "run.log")
    return {str(path.relative_to(run)): path.read_bytes() for path in there if "journal" not in path.name}


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("\n", 2), ("no\n", 2)])
def test_a_terminal_is_asked_once(folder: Path, monkeypatch: pytest.MonkeyPatch, typed: str, code: int) -> None:
    controller, terminal = os.openpty()
    screen: list[bytes] = []

    def watch() -> None:
        with suppress(OSError):  # the terminal is closed
            while text := os.read(controller, 100_000):
                screen.append(text)

    reader = Thread(target=watch)
    reader.start()
    with open(os.dup(terminal)) as stdin, open(terminal, "w") as stderr, chdir(folder):
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stderr", stderr)
        os.write(controller, typed.encode())
        assert _code(["collect", "one.yaml", *BRIEF]) == code
    reader.join()
    os.close(controller)
    assert b"".join(screen).decode().count("; go on? [y/N]") == 1


def test_the_python_interface_raises_in_place_of_asking(folder: Path, server: MockServer) -> None:
    with chdir(folder):
        change_system = {"overrides": {"collect.system": "Be brief."}, "stages": ["collect"], "quiet": True}
        with pytest.raises(ConsentNeeded, match="yes=True"):
            api.run_recipe("one.yaml", **change_system)
        api.run_recipe("one.yaml", yes=True, **change_system)


def moved(folder: Path) -> str:
    (folder / "elsewhere").mkdir()
    (folder / "one.yaml").rename(folder / "elsewhere/two.yaml")
    shutil.copy(folder / "tasks.jsonl", folder / "elsewhere")
    return "elsewhere/two.yaml"


def edited(folder: Path) -> str:
    (folder / "other.jsonl").write_text('{"id": "a", "instruction": "What of ants?"}\n' * 1)
    text = (folder / "one.yaml").read_text()
    (folder / "one.yaml").write_text(text.replace("tasks.jsonl", "other.jsonl").replace("name: one", "name: renamed"))
    return "one.yaml"


def another(folder: Path) -> str:
    edited(folder)
    (folder / "one.yaml").rename(folder / "two.yaml")
    return "two.yaml"


@pytest.mark.parametrize(
    ("recipe_of", "options", "code"),
    [(moved, [], 0), (edited, [], 0), (another, [], 1), (another, ["--takeover"], 0), (lambda _: "runs/one", [], 0)],
)
def test_a_folder_is_refused_to_a_recipe_of_another_file_and_other_data(
    folder: Path, recipe_of: Callable[[Path], str], options: list[str], code: int
) -> None:
    recipe = recipe_of(folder)
    before = files(folder / "runs/one")
    command = ["collect", recipe, "--run-dir", "runs/one", "--yes", "--set", "collect.test=0", "--set", "compare=null"]
    finished = here(folder, *command, *options)
    assert finished.returncode == code, finished.stderr
    if code:
        assert f'runs/one holds the run "one" of {folder}/one.yaml; this recipe ("renamed")' in only_line(finished)
        assert "--takeover" in only_line(finished)
        assert files(folder / "runs/one") == before


def gone(path: Path) -> None:
    path.unlink()


def rewritten(old: str, new: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(path.read_text().replace(old, new)) and None


@pytest.mark.parametrize(
    ("edit", "options", "line"),
    [
        (None, [], ", which came from one.yaml"),
        (rewritten("name: one", "name: one  # a comment"), [], ", which came from one.yaml"),
        (
            rewritten("min_words: 1\nname:", "min_words: 4\nbudget_usd: 5\nname:"),
            [],
            "; one.yaml, which it came from, has changed since: budget_usd added; curate.length.min_words 1 → 4; to use"
            " that, type it in place of runs/one",
        ),
        (
            rewritten("min_words: 1", "min_words: 4"),
            ["--set", "curate.length.min_words=1"],
            ", which came from one.yaml",
        ),
        (
            rewritten("curate:", "curtae:"),
            [],
            "; one.yaml, which it came from, has changed since, and cannot be read as a recipe now",
        ),
        (gone, [], "; one.yaml, which it came from, is gone"),
    ],
)
def test_a_command_on_a_run_says_which_recipe_it_reads(
    folder: Path, edit: Callable[[Path], None] | None, options: list[str], line: str
) -> None:
    if edit is not None:
        edit(folder / "one.yaml")
    finished = here(folder, "curate", "runs/one", *options)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.splitlines()[0] == f"reads runs/one/recipe.yaml{line}"


def test_reused_answers_are_those_of_the_whole_chain(tmp_path: Path, server: MockServer) -> None:
    asked = {}
    for name, reuse in {"a": [], "b": ["a"], "c": ["b"], "d": ["c", "a"]}.items():
        before = server.count
        assert here(tmp_path, "collect", str(write(tmp_path, server, name=name, reuse=reuse))).returncode == 0
        asked[name] = server.count - before
    assert asked == {"a": 10, "b": 0, "c": 0, "d": 0}
    cycle = here(tmp_path, "collect", str(write(tmp_path, server, name="a", reuse=["d"])), "--set", "seed=8")
    assert (cycle.returncode, "warning" in cycle.stderr) == (0, False), cycle.stderr
    shutil.rmtree(tmp_path / "runs/b")
    broken = here(tmp_path, "collect", str(write(tmp_path, server, name="e", reuse=["c"])))
    assert f"warning: reuse: {tmp_path}/runs/c reuses {tmp_path}/runs/b, which has no journal now" in broken.stderr
    assert server.count - before == 10
