"""The `chat` command: reads lines, executes those that begin with `/`, and prints the answers of every side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from distill.cli.app import RunFolder, app
from distill.core import console

if TYPE_CHECKING:
    from distill.pipeline.chat import Conversation

HELP = (
    "/base on|off: ask the untrained base too · /system TEXT · /temp NUMBER · /clear: start over · /save FILE · /quit"
)


@app.command()
def chat(run_folder: RunFolder) -> None:
    """Talk with a run's student and its teacher at once.

    Lines come from the terminal, or from a pipe. Nothing is written but what /save writes.

    Example: distill chat runs/quickstart
    """
    for line in talk(run_folder, console.asked("you: ")):
        console.result(line)


def talk(run: Path, lines: Iterable[str]) -> Iterator[str]:
    """What to print for each line of the user; ends with the last one or at /quit. Raises `DistillError`."""
    from distill.pipeline.chat import opened
    from distill.run.remarks import student_remark

    with opened(run) as conversation:
        yield from filter(None, [student_remark(run), HELP])
        for line in map(str.strip, lines):
            if line == "/quit":
                return
            if line:
                yield from replies(conversation, line)


def replies(conversation: Conversation, line: str) -> Iterator[str]:
    """What to print for a line: the effect of a command, or the answer of every side."""
    from distill.compare.results import NAMES
    from distill.text.tokens import visible

    if line.startswith("/"):
        yield _execute(conversation, line)
        return
    for side, text in conversation.answers(line):
        yield f"{NAMES[side]}: {visible(text)}"


def _execute(conversation: Conversation, line: str) -> str:
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command == "/base" and rest in ("on", "off"):
        others = [side for side in conversation.sides if side != "base"]
        conversation.sides = others + (["base"] if rest == "on" else [])
        return f"the base is {rest}"
    if command == "/system":
        conversation.system = rest
        conversation.turns.clear()
        return "started over with that system message" if rest else "started over without a system message"
    if command == "/temp" and _is_temperature(rest):
        conversation.sampling = replace(conversation.sampling, temperature=float(rest))
        return f"temperature {float(rest):g}"
    if command == "/clear":
        conversation.turns.clear()
        return "started over"
    return _save(conversation, Path(rest).expanduser()) if command == "/save" and rest else HELP


def _is_temperature(text: str) -> bool:
    try:
        return 0 <= float(text) <= 5
    except ValueError:
        return False


def _save(conversation: Conversation, path: Path) -> str:
    from distill.core.jsonl import write_rows
    from distill.errors import DistillError

    sessions = conversation.sessions()
    if not sessions:
        return "there is no conversation yet"
    try:
        write_rows(path, sessions)
    except (OSError, DistillError) as error:
        return f"cannot write {path}: {error}"
    return f"{path}: {len(sessions)} conversations"
