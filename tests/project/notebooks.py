"""Runs the code cells of a notebook, one after the other, in this process and in the current folder.

`python -m tests.project.notebooks URL FILE …` runs notebooks against a server at URL, and writes what they print into
them.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from tests.support.documents import ADDRESS


def cells(path: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook."""
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def shown(cell: Mapping[str, Any]) -> str:
    """What a cell printed when the notebook was saved."""
    return "".join(text for output in cell["outputs"] for text in output["text"])


def printed(path: Path, replaced: Mapping[str, str]) -> Iterator[str]:
    """What each code cell prints, after these texts of its source are replaced."""
    names: dict[str, Any] = {"__name__": "__notebook__"}
    for number, cell in enumerate(cells(path), start=1):
        source = "".join(cell["source"])
        for old, new in replaced.items():
            source = source.replace(old, new)
        heard = io.StringIO()
        with redirect_stdout(heard):
            exec(compile(source, f"<{path.name}, cell {number}>", "exec"), names)
        yield heard.getvalue()


def save(path: Path, url: str) -> None:
    """Run a notebook, and write what its cells print into it."""
    document = json.loads(path.read_text("utf-8"))
    heard = list(printed(path, {ADDRESS: url}))
    codes = (cell for cell in document["cells"] if cell["cell_type"] == "code")
    for number, (cell, text) in enumerate(zip(codes, heard, strict=True), start=1):
        cell["execution_count"] = number
        output = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
        cell["outputs"] = [output] if text else []
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    for name in sys.argv[2:]:
        save(Path(name), sys.argv[1])
