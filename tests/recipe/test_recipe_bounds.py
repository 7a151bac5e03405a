"""Recipes made to exhaust memory, time or the stack, and paths that are no data: a line each, at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.core import assets
from distill.errors import RecipeError
from distill.pipeline.parts import load_recipe

BASE = 'name: x\nteacher: {model: m, base_url: "http://127.0.0.1:9/v1", terms: ours}\ncollect: {tasks: tasks.txt}\n'
LAUGHS = "\n".join(
    ["l0: &l0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    + [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 10)]
)
MERGES = "\n".join(
    ["m0: &m0 {a: 1, b: 2}"] + [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 10)]
)
NESTED = "{" + LAUGHS.replace("\n", ", ") + "}"


def fault(folder: Path, text: str, *overrides: str) -> str:
    (folder / "tasks.txt").write_text("Name three rivers.\n")
    path = folder / "recipe.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides=overrides)
    assert time.process_time() - start < 5
    line = str(caught.value)
    assert len(line) < 1_200
    assert "\n" not in line
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    "text",
    [
        BASE + LAUGHS,
        BASE + MERGES,
        BASE + f"sources: {NESTED}",
        BASE + f"curate: {NESTED}",
        BASE.replace("terms: ours", f"terms: ours, sampling: {{extra_body: {NESTED}}}"),
        BASE + "curate: &a [*a]",
        BASE + "judge: &a {model: m, terms: *a}",
        BASE + "long: &s " + "x" * 5_000 + "\nlist: [" + "*s, " * 2_000 + "]",
        BASE + "list: [" + "a, " * 51_000 + "]",
    ],
    ids=["top", "merges", "sources", "curate", "extra_body", "itself", "itself in a map", "a long text", "no alias"],
)
def test_aliases_count_as_what_they_stand_for(tmp_path, text):
    assert "over 50,000 keys and values" in fault(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "? " * 100_000, "\n".join(" " * n + "a:" for n in range(1_000))],
    ids=["lists", "maps", "dashes", "keys", "lines"],
)
def test_deep_yaml_is_one_line(tmp_path, text):
    assert "nested over 50 levels deep" in fault(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "line"),
    [("name: x\ntrain: {}\nname: y\n", 3), ("name: x\ntrain:\n  epochs: 1\n  epochs: 2\n", 4), ('a: 1\n"a": 2\n', 2)],
)
def test_a_key_that_stands_twice_is_one_line(tmp_path, text, line):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=rf"stands twice in one mapping, in line {line}, column"):
        load_recipe(path)


def test_prompts_held_out_without_curate_are_one_line():
    recipe = {"name": "x", "test": 20, "sources": [{"path": "x.jsonl", "from": "openai"}]}
    with pytest.raises(RecipeError, match="test: prompts are held out by the stage curate; add `curate: "):
        load_recipe(recipe)


def test_a_deep_key_of_set_is_one_line(tmp_path):
    assert "nested over 50 levels deep" in fault(tmp_path, BASE, f"teacher.sampling.extra_body{'.a' * 5_000}=1")


def test_aliases_in_a_value_of_set_are_counted_too(tmp_path):
    line = fault(tmp_path, BASE, f"teacher.sampling.extra_body={NESTED}")
    assert "--set teacher.sampling.extra_body: the value is no usable YAML: over 50,000" in line


@pytest.mark.parametrize("value", ["9" * 5_000, "-" + "9" * 5_000, "0x" + "f" * 5_000, "1" + ":1" * 50_000])
def test_a_number_of_thousands_of_digits_is_one_line(tmp_path, value):
    assert "a number of" in fault(tmp_path, f"{BASE}seed: {value}")


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30])
def test_an_integer_beyond_64_bits_is_one_line(tmp_path, value):
    assert "found an integer of" in fault(tmp_path, f"{BASE}seed: {value}")
    assert "found an integer of" in fault(tmp_path, BASE, f"teacher.sampling.extra_body.top_k={value}")


@pytest.mark.parametrize("value", ["2001-01-01", "!!binary eHh4", "!!set {a, b}", "2001-99-99", "!!int x"])
def test_what_json_cannot_hold_is_one_line(tmp_path, value):
    fault(tmp_path, f"{BASE}judge: {{model: m, terms: ours, sampling: {{extra_body: {{a: {value}}}}}}}")


@pytest.mark.parametrize("key", ["train.epochs", "budget_usd", "teacher.sampling.extra_body.min_p"])
def test_a_number_that_is_not_finite_is_named(key):
    with pytest.raises(RecipeError, match=f"{key}: found inf; expected a finite number"):
        load_recipe(assets.find("recipes/quickstart.yaml"), overrides=[f"{key}=.inf"])


def test_many_faults_are_counted_and_not_all_shown(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE + "sources: [" + "1, " * 10_000 + "]")
    start = time.process_time()
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert time.process_time() - start < 8
    lines = str(caught.value).split("\n")
    assert len(lines) == 51
    assert lines[-1].endswith("and 9950 more faults")


def test_a_large_value_is_not_shown_whole(tmp_path):
    assert len(fault(tmp_path, f"{BASE}seed: [{'a, ' * 5_000}]")) < 300


PATHS = [
    {"collect": {"tasks": "{}"}},
    {"expand": {"seeds": "{}", "tasks": 5}},
    {"expand": {"strategy": "topics", "topics_file": "{}", "tasks": 5}},
    {"expand": {"strategy": "attributes", "attribute_files": {"persona": "{}"}, "tasks": 5}},
    {"sources": [{"path": "{}", "from": "alpaca"}]},
    {"sources": [{"path": "tasks.txt", "from": "alpaca", "max_tokens": 99, "tokenizer": "{}"}]},
    {"curate": [{"filter": "contamination", "files": ["{}"]}]},
    {"curate": [{"filter": "length", "max_tokens": 9, "tokenizer": "{}"}]},
    {"curate": [{"filter": "semantic_duplicate", "model": "{}"}]},
    {"student": {"model": "{}"}, "train": {"method": "lora"}},
    {"teacher": {"model": "{}", "serve": "transformers", "terms": "ours"}},
    {"judge": {"model": "{}", "serve": "transformers", "terms": "ours"}},
    {"compare": {"prompts": "{}", "answers": {"student": "tasks.txt", "base": "tasks.txt"}}},
    {"compare": {"prompts": "tasks.txt", "answers": {"student": "{}", "base": "tasks.txt"}}},
    {"reuse": ["{}"]},
]


def of_path(sections: dict[str, Any], path: str) -> str:
    filled = json.loads(json.dumps(sections).replace("{}", path))
    return yaml.safe_dump({**yaml.safe_load(BASE), **filled})


@pytest.mark.parametrize("sections", PATHS, ids=lambda sections: json.dumps(sections)[:60])
def test_a_path_that_no_file_can_have_is_one_line(tmp_path, sections):
    for path in ("n" * 300, "a/" * 3_000 + "b", "~nobody-of-this-name/x"):
        fault(tmp_path, of_path(sections, path))


@pytest.mark.parametrize("sections", PATHS, ids=lambda sections: json.dumps(sections)[:60])
def test_no_path_may_lie_among_processes_and_devices(tmp_path, sections):
    """As written, by dots and by links, and through a process's own root folder."""
    (tmp_path / "file").symlink_to("/proc/self/environ")
    (tmp_path / "folder").symlink_to("/proc/self")
    dots = "../" * len(tmp_path.parts) + "proc/self/environ"
    paths = ["/proc/self/environ", "/dev/stdin", "/sys/kernel/notes", dots, "file", "folder/environ"]
    for path in [*paths, f"/proc/self/root{tmp_path}/tasks.txt", "/dev/fd/0"]:
        if sections != {"reuse": ["{}"]}:  # names a folder: a link to one with a journal would be needed
            assert "lies in /proc, /sys or /dev, which no recipe may read" in fault(tmp_path, of_path(sections, path))


def test_a_folder_may_not_link_to_processes_or_devices(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").symlink_to("/proc/self/environ")
    text = BASE + "sources: [{path: data, from: alpaca}]"
    assert "which no recipe may read" in fault(tmp_path, text)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "no file pipe" in fault(tmp_path, BASE.replace("tasks.txt", "pipe"))


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_bomb_ends_a_command_in_one_line_within_bounds(tmp_path, command):
    (tmp_path / "recipe.yaml").write_text(BASE + MERGES + "\n" + LAUGHS)
    arguments = [sys.executable, "-P", "-m", "distill", command, "recipe.yaml"]
    limit = ["prlimit", f"--as={2 << 30}"] if shutil.which("prlimit") else []
    ended = subprocess.run([*limit, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert len(ended.stderr.strip().split("\n")) == 1
    assert "over 50,000 keys and values" in ended.stderr
    assert not (tmp_path / "runs").exists()


def test_a_recipe_whose_name_no_file_can_have_is_one_line():
    with pytest.raises(RecipeError, match=r"^cannot read the recipe n+\.yaml: File name too long"):
        load_recipe(Path("n" * 300 + ".yaml"))


def test_a_run_folder_with_thousands_of_unknown_keys_is_refused_soon(tmp_path):
    (tmp_path / "tasks.txt").write_text("Name three rivers.\n")
    (tmp_path / "recipe.yaml").write_text(BASE + "".join(f"k{number}: 1\n" for number in range(3_000)))
    start = time.process_time()
    with pytest.raises(RecipeError, match='unknown key "k'):
        load_recipe(tmp_path)
    assert time.process_time() - start < 10
