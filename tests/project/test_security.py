"""SECURITY.md: every row of its table but the first names tests, and each of them is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def rows() -> list[list[str]]:
    lines = (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]


def names_of_tests() -> set[str]:
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    assert files
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_row_of_the_table_of_trust_names_tests_that_are_there() -> None:
    known = names_of_tests()
    found = {row[0]: re.findall(r"`(test_\w+)`", row[-1]) for row in rows()}
    assert [what for what, named in found.items() if not named] == ["the installed package and its environment"]
    assert {name for named in found.values() for name in named} - known == set()
    assert len(found) >= 10
