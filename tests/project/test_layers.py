"""The architecture: who may import whom, how large a room may grow, and what may print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "distill").rglob("*.py"))
BESIDE_THE_ROOMS = {"__init__.py", "__main__.py", "README.md", "py.typed"}


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith((".", "__pycache__")))


def folders(top: str) -> list[Path]:
    inside = [path for path in (ROOT / top).rglob("*") if path.is_dir()]
    return [path for path in inside if not {"__pycache__", "node_modules"} & set(path.parts)]


def test_the_contracts_of_pyproject_toml_hold():
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout
    assert "Contracts: 3 kept" in finished.stdout


def test_every_module_is_in_a_layer():
    layers = (ROOT / "pyproject.toml").read_text()
    assert len(MODULES) >= 20
    names = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in MODULES}
    tops = {".".join(name.split(".")[:2]) for name in names} - {"distill.__init__"}
    assert sorted(top for top in tops if not re.search(rf'{re.escape(top)}[ "]', layers)) == []


def test_the_package_opens_on_nineteen_entries_at_most():
    rooms = set(entries(ROOT / "distill")) - BESIDE_THE_ROOMS
    assert len(rooms) <= 19, sorted(rooms)


def test_the_tests_open_on_twenty_four_entries_at_most():
    assert len(entries(ROOT / "tests")) <= 24


@pytest.mark.parametrize("top", ["distill", "tests"])
def test_no_folder_holds_more_than_twenty_five_files(top):
    held = {str(folder.relative_to(ROOT)): len(entries(folder)) for folder in folders(top)}
    assert len(held) >= 15
    assert {folder: files for folder, files in held.items() if files > 25} == {}


def test_no_file_is_longer_than_four_hundred_lines():
    files = [*MODULES, *(ROOT / "tests").rglob("*.py")]
    long = {file.relative_to(ROOT).as_posix() for file in files if len(file.read_text().splitlines()) > 400}
    assert long == set()


def test_only_the_console_prints():
    printing = [path.name for path in MODULES if re.search(r"^\s*print\(", path.read_text(), re.M)]
    assert printing == ["console.py"]


def test_models_are_never_loaded_with_foreign_code_or_from_pickle():
    loads = re.compile(r"trust_remote_code\s*=\s*True|torch\.load\(|pickle\.load")
    assert [path.name for path in MODULES if loads.search(path.read_text())] == []
