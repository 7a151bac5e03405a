"""Reads the blocks of the documentation and runs them: a comment before each says what it is.

`<!-- run -->` commands (`$ …`) with what they say, or Python; `<!-- prints -->` what the Python before it prints;
`<!-- file NAME -->` a file to write; `<!-- recipe -->` sections of a recipe; `<!-- keys FILE -->` a row of that file;
`<!-- not run: WHY -->` the rest. In what is said a number stands for any number, `…` for anything within a line, and a
line of `…` alone for any lines.
"""

from __future__ import annotations

import io
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from distill.cli import main

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "http://127.0.0.1:8000/v1"
"""In a file of the documentation: the server of whoever reads it; here, one of ours."""
_BLOCK = re.compile(r"(?:^<!-- ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"[−+]?\d[\d.,]*\d|[−+]?\d")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    mark: str
    language: str
    text: str


def pages() -> list[Path]:
    """Every page that a reader is sent to."""
    found = [path for path in (ROOT / "distill").rglob("*.md") if "_assets" not in path.parts]
    return sorted([ROOT / "README.md", *(ROOT / "recipes").glob("*.md"), *found])


def blocks(page: Path) -> list[Block]:
    """The page's blocks, in order."""
    return [Block(mark or "", language, text) for mark, language, text in _BLOCK.findall(page.read_text("utf-8"))]


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a console block, with what it says."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, said = part.partition("\n")
        yield command, said


def said_by(command: str) -> str:
    """What a `distill` command says, run here; it must end well."""
    words = [word for word in shlex.split(command, comments=True) if word != "PYTHONPATH=."]
    assert words[0] == "distill", f"only distill is run here: {command}"
    heard = io.StringIO()
    with redirect_stdout(heard), redirect_stderr(heard):
        code = main._code(words[1:])
    assert code == 0, f"{command}: exit code {code}\n{heard.getvalue()}"
    return heard.getvalue()


def printed_by(python: str) -> str:
    """What a piece of Python prints."""
    heard = io.StringIO()
    with redirect_stdout(heard):
        exec(compile(python, "<documentation>", "exec"), {"__name__": "__documentation__"})
    return heard.getvalue()


def matches(told: str, said: str) -> bool:
    """Whether what is told is what was said, but for numbers and what `…` stands for."""
    pattern = ""
    for line in told.strip().splitlines():
        masked = [re.escape(_masked(part)) for part in line.rstrip().split("…")]
        pattern += r"(?:[^\n]*\n)*?" if line.strip() == "…" else r"[^\n]*".join(masked) + r"\s*\n"
    heard = "".join(_masked(line.rstrip()) + "\n" for line in said.strip().splitlines())
    return re.fullmatch(pattern, heard) is not None


def _masked(text: str) -> str:
    """The text without its numbers, and without what lines columns up."""
    return re.sub(r" +", " ", _NUMBER.sub("#", text))


def write(block: Block, folder: Path, url: str) -> Path:
    """Write the file that a block holds."""
    path = folder / block.mark.removeprefix("file ")
    path.write_text(block.text.replace(ADDRESS, url), encoding="utf-8")
    return path


def run_page(page: Path, folder: Path, url: str) -> int:
    """Do what the page says, in a folder that is the current one; returns how many blocks were run."""
    assert Path(os.getcwd()).samefile(folder)
    ran, printed = 0, ""
    for block in blocks(page):
        if block.mark.startswith("file "):
            write(block, folder, url)
        elif block.mark == "prints":
            assert matches(block.text, printed), f"{page.name}: it prints\n{printed}"
        elif block.mark == "run" and block.language == "python":
            printed, ran = printed_by(block.text), ran + 1
        elif block.mark == "run":
            for command, told in commands(block):
                said = said_by(command)
                assert matches(told, said), f"{page.name}: {command} says\n{said}"
            ran += 1
    return ran
