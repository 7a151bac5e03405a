"""Shell completion of recipes, runs, stages and keys, by functions, by the shells' protocol, and in bash itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from distill.cli import completion
from distill.run.layout import STAGES

SETTINGS: Mapping[str, list[str]] = {
    "train.epo": ["train.epochs=", "train.epochs=2"],
    "train.me": ["train.method=", "train.method=qlora", "train.method=lora", "train.method=full"],
    "train.lora.do": ["train.lora.dora=", "train.lora.dora=true", "train.lora.dora=false"],
    "comp": [
        f"compare.{key}"
        for key in (
            "metrics.",
            "prompts=",
            "system=",
            "answers=",
            "student.",
            "base.",
            "judge.",
            "sampling.",
            "lm_eval.",
        )
    ],
    "curate.near": ["curate.near_duplicate.rouge_l=", "curate.near_duplicate.on="],
    "expand.stra": [
        "expand.strategy=",
        *(
            f"expand.strategy={name}"
            for name in ("self_instruct", "alpaca", "attributes", "evol_instruct", "magpie", "topics")
        ),
    ],
    "train.lora.dora=t": [],
}


@pytest.mark.parametrize("typed", SETTINGS)
def test_a_setting_is_completed_a_level_at_a_time(typed: str):
    assert completion.settings(typed) == SETTINGS[typed]


def test_the_sections_are_offered_first():
    assert {"name=", "teacher.", "curate.", "train."} <= set(completion.settings(""))
    assert completion.keys("tr") == ["train"]
    assert "curate.minhash" in completion.keys("curate.m")


def test_stages_are_completed_in_a_list():
    assert tuple(STAGES) == completion.STAGES
    assert completion.stages("") == list(STAGES)
    assert completion.stages("expand,co") == ["expand,collect", "expand,compare"]
    assert "expand,collect,expand" not in completion.stages("expand,collect,")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A folder with a recipe, a run in runs/ and one elsewhere."""
    for run in ("runs/bikes", "elsewhere/other"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "run.json").write_text("{}")
    (tmp_path / "runs" / "no-run").mkdir()
    (tmp_path / "bikes.yaml").write_text("name: bikes\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_recipes_and_runs_of_the_folder_are_offered(folder: Path):
    assert completion.recipes("b") == ["baize", "bikes.yaml"]
    assert completion.shipped("b") == ["baize"]
    assert completion.runs("") == ["runs/bikes"]
    assert completion.runs("elsewhere/") == ["elsewhere/other"]
    assert completion.recipes_and_runs("runs/b") == ["runs/bikes"]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A command `distill`, for shells."""
    file = tmp_path / "bin" / "distill"
    file.parent.mkdir()
    file.write_text(f"#!{sys.executable}\nfrom distill.cli.main import main\nmain()\n")
    file.chmod(0o755)
    return file


def environment(program: Path, **more: str) -> dict[str, str]:
    path = f"{program.parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path), **more}


LINE = "distill run quickstart --set train.epo"
ASKED = {
    "zsh": (
        {"_DISTILL_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": LINE},
        '_arguments \'*: :(("train.epochs="\n"train.epochs=2"))\'\n',
    ),
    "fish": (
        {"_DISTILL_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args", "_TYPER_COMPLETE_ARGS": LINE},
        "train.epochs=\ntrain.epochs=2\n",
    ),
}


@pytest.mark.parametrize("shell", ASKED)
def test_a_shell_is_answered_by_its_protocol(shell: str, program: Path):
    asked, answer = ASKED[shell]
    finished = subprocess.run([program], env=environment(program, **asked), capture_output=True, text=True, check=True)
    assert finished.stdout == answer


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_what_is_typed(folder: Path, program: Path):
    """By the script that `--show-completion` prints, and the function that it defines."""
    typed = [
        "distill exp",
        "distill collect runs/b",
        "distill run x --stages expand,cu",
        LINE,
    ]
    calls = "\n".join(
        f"COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()\n"
        '_distill_completion distill; echo "${COMPREPLY[*]}"'
        for line in typed
    )
    script = f'eval "$(_DISTILL_COMPLETE=source_bash distill)"\ncomplete -p distill\n{calls}\n'
    finished = subprocess.run(
        ["bash", "-c", script], env=environment(program), capture_output=True, text=True, check=True
    )
    assert finished.stdout.splitlines() == [
        "complete -o default -F _distill_completion distill",
        "expand explain explain-miss export",
        "runs/bikes",
        "expand,curate",
        "train.epochs= train.epochs=2",
    ]


def test_the_keys_are_read_without_pydantic():
    script = "import sys; from distill.cli.completion import keys; keys(''); print('pydantic' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout == "False\n"
