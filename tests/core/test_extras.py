"""What is told to install for an extra: right for this copy, and never a name on a package index that is not ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from shlex import quote, split

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
BARE = re.compile(r"distill ?\[|pip3? install\b[^\n`\"]*[ '](distill)\b(?![-./])")
"""`distill[train]`, or `pip install distill`; no path."""
TELL = "import sys; from distill.core.extras import install; print(install(sys.argv[1]))"


def told(python: Path | str, extra: str, *, path: str = "") -> str:
    """What a copy says; `path` is where Python finds it, if it is not installed."""
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [python, "-P", "-c", TELL, extra], capture_output=True, text=True, check=True, env=environment, cwd="/"
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources, in a folder whose name needs quotes."""
    folder = tmp_path / "it's a checkout"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("distill", "prompts", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def by_name(extra: str) -> str:
    return f"pip install {' '.join(map(quote, EXTRAS[extra]))}"


@pytest.mark.parametrize("extra", ["train", "data", "lm-eval"])
def test_a_source_tree_that_is_not_installed_names_the_packages(checkout: Path, extra: str):
    assert told(sys.executable, extra, path=str(checkout)) == by_name(extra)


def test_a_bare_copy_of_the_package_points_to_the_extra(checkout: Path):
    (checkout / "pyproject.toml").unlink()
    said = told(sys.executable, "train", path=str(checkout))
    assert said.startswith("pip install PACKAGE")
    assert "extra `train`" in said


@pytest.mark.slow
def test_an_editable_checkout_is_named_by_its_path_and_a_copy_elsewhere_is_not_taken_for_it(
    checkout: Path, tmp_path: Path
):
    python = tmp_path / "env/bin/python"
    venv.create(tmp_path / "env", with_pip=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", checkout]
    subprocess.run(pip, check=True, capture_output=True)
    command = told(python, "train")
    assert split(command) == ["pip", "install", "-e", f"{checkout}[train]"]
    other = shutil.copytree(checkout, tmp_path / "other")
    assert told(python, "train", path=str(other)) == by_name("train")


@pytest.mark.parametrize("origin", ["{", "[]", '{"url": "file:///x"}', '{"dir_info": {"editable": true}}', ""])
def test_metadata_of_another_copy_or_of_no_installer_are_passed_over(checkout: Path, tmp_path: Path, origin: str):
    foreign = tmp_path / "foreign/distill-9.dist-info"
    foreign.mkdir(parents=True)
    facts = ("Metadata-Version: 2.4", "Name: distill", "Version: 9", "Requires-Dist: evil; extra == 'data'")
    (foreign / "METADATA").write_text("\n".join(facts) + "\n")
    (foreign / "direct_url.json").write_text(origin)
    path = os.pathsep.join((str(foreign.parent), str(checkout)))
    assert told(sys.executable, "data", path=path) == by_name("data")


def test_no_message_page_or_recipe_offers_a_name_that_is_not_ours():
    files = [
        path
        for name in ("distill", "prompts", "recipes", "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml")
        for path in ([ROOT / name] if (ROOT / name).is_file() else sorted((ROOT / name).rglob("*")))
        if path.suffix in {".py", ".pyi", ".md", ".yaml", ".html", ".jinja", ".txt", ".toml", ""} and path.is_file()
    ]
    assert len(files) > 300
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    assert [str(path) for path, text in texts.items() if BARE.search(text)] == []
    offers = ("pip install 'distill[train]'", "pip install distill", "pip install -e '.[train]'")
    assert [bool(BARE.search(offer)) for offer in offers] == [True, True, False]
