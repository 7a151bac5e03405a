"""The image: what the build of the package needs is let through to it, and nothing else."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_the_image_is_given_what_the_package_is_built_of():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*wheel["packages"], *wheel["force-include"], project["project"]["readme"], "constraints.txt"]
    needed += ["pyproject.toml", *project["project"]["license-files"]]
    let_through = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE)
    assert sorted(let_through) == sorted(needed)
    assert (ROOT / ".dockerignore").read_text("utf-8").splitlines()[0] == "*"


def test_the_image_pins_torch_and_installs_within_the_constraints():
    lines = (ROOT / "Dockerfile").read_text("utf-8")
    [pattern] = re.findall(r"sed -n 's/(.+?)/\\1/p' constraints", lines)
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if re.match(r"^torch==.*", line)]
    assert (pattern, len(pins)) == (r"^\(torch==.*\)", 1)
    assert "pip install --constraint constraints.txt" in lines


def test_the_readme_says_what_init_writes():
    recipe = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text("utf-8"))
    sizes = (recipe["expand"]["tasks"], recipe["collect"]["test"], recipe["train"]["epochs"])
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert "the recipe that `init` writes has {}, {} and {})".format(*sizes) in readme
