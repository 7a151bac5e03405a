"""The architecture: who may import whom, and what may print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "distill").rglob("*.py"))


def test_layers_hold():
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout


def test_every_module_is_in_a_layer():
    layers = (ROOT / "pyproject.toml").read_text()
    assert len(MODULES) >= 20
    names = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in MODULES}
    tops = {".".join(name.split(".")[:2]) for name in names} - {"distill.__init__"}
    assert sorted(top for top in tops if not re.search(rf'{re.escape(top)}[ "]', layers)) == []


def test_stages_import_no_stage():
    stages = ("expand", "collect", "ingest", "curate", "train", "compare", "report")
    found = [
        (stage, other)
        for stage in stages
        for other in stages
        if re.search(
            rf"from distill\.{other} import|from distill import .*\b{other}\b",
            (ROOT / f"distill/{stage}.py").read_text(),
        )
    ]
    assert found == []


def test_parts_import_only_words_and_ground():
    parts = [
        path for path in MODULES if path.parent.name in ("strategies", "filters", "metrics", "importers", "exporters")
    ]
    assert len(parts) >= 8
    above = re.compile(
        r"distill\.(engine|providers|student|expand|collect|ingest|curate|train|compare|report|pipeline|cli)\b"
    )
    assert [path.name for path in parts if above.search(path.read_text())] == []


def test_only_the_console_prints():
    printing = [path.name for path in MODULES if re.search(r"^\s*print\(", path.read_text(), re.M)]
    assert printing == ["console.py"]


def test_models_are_never_loaded_with_foreign_code_or_from_pickle():
    loads = re.compile(r"trust_remote_code\s*=\s*True|torch\.load\(|pickle\.load")
    assert [path.name for path in MODULES if loads.search(path.read_text())] == []
