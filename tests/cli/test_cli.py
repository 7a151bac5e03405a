"""The command line: quick to start, and one line with the right exit code for each fault."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import pytest

from distill.cli import main
from distill.models.child_server import NO_VLLM
from tests.support.cli import distill, here, only_line

pytestmark = pytest.mark.slow

HEAVY = ("torch", "transformers", "openai", "datasets", "trl", "peft", "aiohttp", "pydantic")
COMMANDS = (
    "run", "expand", "collect", "curate", "train", "compare", "report", "check", "show", "explain-miss", "clean",
    "import", "export", "serve", "doctor", "explain", "schema", "ui",
)  # fmt: skip


def test_help_loads_nothing_heavy():
    script = (
        "import sys; from distill.cli.main import _code; _code(['--help']);"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "[]"


def test_help_is_at_most_eight_times_as_slow_as_a_bare_interpreter():
    def fastest(*command: str) -> float:
        times = []
        for _ in range(4):
            started = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            times.append(time.perf_counter() - started)
        return min(times)

    bare = fastest(sys.executable, "-c", "import typing, re, inspect, dataclasses, json, enum")
    assert fastest(sys.executable, "-m", "distill", "--help") <= 8 * bare


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    finished = distill(command, "--help")
    assert finished.returncode == 0
    assert "Example" in finished.stdout


def test_help_lists_every_command():
    listed = distill("--help").stdout
    assert [command for command in COMMANDS if f"  {command} " not in listed] == []


def test_help_tells_every_command_in_a_whole_sentence():
    listed = distill("--help", COLUMNS="80").stdout.partition("Commands:")[2].strip().splitlines()
    assert len(listed) >= len(COMMANDS)
    assert [line for line in listed if line.endswith("...") or line[-1] not in ".?"] == []


def test_the_version_needs_no_command(tmp_path):
    finished = here(tmp_path, "--version")
    assert (finished.returncode, finished.stdout) == (0, f"{version('distill')}\n")


def test_a_report_of_nothing_is_one_line(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\nsources: [{from: csv, path: rows.csv}]\n")
    (tmp_path / "rows.csv").write_text("frage\nwer?\n")
    assert "runs/mine is no run folder" in only_line(here(tmp_path, "report", "mine.yaml"))
    assert not (tmp_path / "runs").exists()
    here(tmp_path, "run", "mine.yaml")
    assert only_line(here(tmp_path, "report", "mine.yaml")) == (
        "error: runs/mine has no results to report yet; run it first: distill run runs/mine"
    )


def test_an_absent_vllm_is_reported_by_check_and_no_server_is_said_to_start(tmp_path):
    teacher = "teacher: {model: smollm2, serve: vllm, terms: ours, sampling: {max_tokens: 8}}"
    (tmp_path / "mine.yaml").write_text(f"name: mine\n{teacher}\ncollect: {{tasks: tasks.txt}}\n")
    (tmp_path / "tasks.txt").write_text("Name a river.\n")
    checked = here(tmp_path, "check", "mine.yaml", PATH="")
    assert (checked.returncode, checked.stdout.splitlines()[-1]) == (0, f"warning: {NO_VLLM}")
    ran = here(tmp_path, "run", "mine.yaml", PATH="")
    assert (ran.returncode, ran.stderr.splitlines()[-1]) == (1, f"error: {NO_VLLM}")
    assert "starting a server" not in ran.stderr


def test_an_unknown_command_is_a_usage_error():
    assert distill("expnd").returncode == 2


def test_check_forecasts_without_torch_or_a_model(tmp_path):
    finished = distill("check", "quickstart", DISTILL_CACHE=str(tmp_path / "none"))
    assert finished.returncode == 0
    assert "quickstart: valid" in finished.stdout
    assert not (tmp_path / "none").exists()


def test_check_reads_the_seeds(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"instruction": "Name three rivers."}\nSay hello.\n')
    finished = distill("check", "quickstart", "--set", "expand.seeds=own.jsonl", cwd=tmp_path)
    assert finished.returncode == 2
    assert "own.jsonl:2: not JSON" in only_line(finished)


def test_a_shipped_recipe_is_found_from_any_folder(tmp_path):
    assert distill("check", "quickstart", cwd=tmp_path).returncode == 0


def test_an_unknown_recipe_is_suggested(tmp_path):
    finished = distill("check", "quikstart", cwd=tmp_path)
    assert finished.returncode == 2
    assert only_line(finished).endswith('; did you mean "quickstart"?')


def test_a_missing_recipe_is_one_line(tmp_path):
    finished = distill("run", "none.yaml", cwd=tmp_path)
    assert finished.returncode == 2
    assert "cannot read the recipe none.yaml" in only_line(finished)


def test_a_missing_key_variable_is_one_line_and_nothing_is_made(tmp_path):
    finished = distill(
        "collect", "quickstart", "--set", "teacher.serve=null", "--set", "teacher.base_url=http://127.0.0.1:9/v1",
        "--set", "teacher.api_key_env=NO_SUCH_VARIABLE", cwd=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 2
    assert "the variable NO_SUCH_VARIABLE is not set" in only_line(finished)
    assert not (tmp_path / "runs").exists()


def test_an_unreachable_teacher_is_one_line(tmp_path):
    finished = distill(
        "expand", "quickstart", "--set", "teacher.serve=null", "--set", "teacher.base_url=http://127.0.0.1:9/v1",
        cwd=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 1
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "http://127.0.0.1:9/v1" in last
    assert "Traceback" not in finished.stderr


def test_show_of_no_run_is_one_line(tmp_path):
    finished = distill("show", str(tmp_path))
    assert finished.returncode == 1
    assert "is no run folder" in only_line(finished)


def test_an_unknown_stage_is_suggested(tmp_path):
    finished = distill("run", "quickstart", "--stages", "colect", cwd=tmp_path)
    assert finished.returncode == 2
    assert 'unknown stage "colect"; did you mean "collect"?' in only_line(finished)


def test_a_stage_whose_input_is_missing_says_what_to_type(tmp_path):
    finished = distill("curate", "quickstart", cwd=tmp_path)
    assert finished.returncode == 1
    assert "`curate` needs a finished `expand`; type: distill expand" in finished.stderr


def test_ctrl_c_says_that_what_was_finished_is_kept(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    arguments = ["import", "rows.jsonl", "--from", "alpaca", "--out", "sessions.jsonl"]
    command = [sys.executable, "-m", "distill", *arguments]
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=path)
    with (tmp_path / "rows.jsonl").open("w"):  # opens once the child reads
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "interrupted; what was finished is kept" in said


@pytest.mark.parametrize(("given", "found"), [({}, "1000"), ({"OMP_WAIT_POLICY": "active"}, "None")])
def test_waiting_threads_of_the_command_line_soon_sleep_unless_told(given, found):
    code = (
        "import atexit, os; from distill.cli.main import main; "
        "atexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT'))); main(['check', '--help'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, **given, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
    ).stdout
    assert said.splitlines()[-1] == found


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("libgfortran.so.5: failed to map segment from shared object"),
        ImportError("libtorch.so: cannot allocate memory in static TLS block"),
        RuntimeError("can't start new thread"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_a_lack_of_memory_is_one_line_of_advice(error):
    assert main._machine_fault(error).startswith("out of memory; free some")


@pytest.mark.parametrize("error", [ImportError("No module named 'x'"), RuntimeError("dictionary changed size")])
def test_a_fault_of_the_program_is_no_lack_of_memory(error):
    assert main._machine_fault(error) is None
