"""Reads seed tasks."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from distill.errors import SeedsError


@dataclass(frozen=True, slots=True)
class Instance:
    """One worked example of a seed."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Seed:
    """One hand-written task in Self-Instruct's format; other keys are ignored, and only `instruction` is required."""

    instruction: str
    id: str = ""
    """`seed-` and the line number, where the file gives none."""
    name: str = ""
    instances: tuple[Instance, ...] = ()
    is_classification: bool = False


_SEED: TypeAdapter[Seed] = TypeAdapter(Seed)


def load_seeds(path: Path) -> list[Seed]:
    """The seeds of a JSONL file. Raises `SeedsError` with file and line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SeedsError(f"cannot read the seeds {path}: {error}; expected a UTF-8 file of JSON lines") from error
    seeds = [_seed(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not seeds:
        raise SeedsError(f"{path} has no seed; expected one JSON object a line, such as those of seeds/general.jsonl")
    return seeds


def _seed(line: str, path: Path, number: int) -> Seed:
    where = f"{path}:{number}"
    try:
        seed = _SEED.validate_python(json.loads(line))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the line"
        raise SeedsError(f"{where}: `{key}`: {first['msg'].lower()}; {_EXPECTED}") from error
    except ValueError as error:
        raise SeedsError(f"{where}: not JSON ({error}); {_EXPECTED}") from error
    if not seed.instruction.strip():
        raise SeedsError(f"{where}: `instruction` is empty; {_EXPECTED}")
    return seed if seed.id else replace(seed, id=f"seed-{number}")


_EXPECTED = (
    'expected a line such as {"instruction": "Name three rivers."}; it may have id, name, instances (each with input'
    " and output) and is_classification"
)


def seed_text(seed: Seed) -> str:
    """The instruction, followed by the input of the first instance, if any."""
    input_text = seed.instances[0].input.strip() if seed.instances else ""
    return f"{seed.instruction}\n\n{input_text}" if input_text else seed.instruction


def lines_of(path: str) -> list[str]:
    """The stripped lines of a text file that are not empty. Raises `SeedsError` where there are none."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SeedsError(f"cannot read {path}: {error}; expected a UTF-8 file with a value on each line") from error
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise SeedsError(f"{path} is empty; expected a value on each line")
    return lines
