"""Reads seed tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distill.errors import RecipeError, SeedsError
from distill.formats import schemas
from distill.formats.containers import kind_of, rows, text_lines
from distill.formats.importers import Names
from distill.formats.json_rows import ForeignRow, RejectedRow


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
    """The seeds of a file: rows of JSON or CSV in our format or another, or a prompt per line.

    Raises `SeedsError` with file and line.
    """
    try:
        is_text = kind_of(path) == "lines"
        names, seeds = Names(), list[Seed]()
        for row in text_lines(path) if is_text else rows(path):
            seed = _seed(row, path)
            line = row[0] if isinstance(row, tuple) else row.line
            seeds.append(seed if seed.id else replace(seed, id=names.unique(f"seed-{line}")))
    except SeedsError:
        raise
    except RecipeError as error:
        raise SeedsError(f"cannot read the seeds: {error}") from error
    if not seeds:
        raise SeedsError(f"{path} has no seed; expected one JSON object a line, such as those of seeds/general.jsonl")
    return seeds


def _seed(row: ForeignRow | RejectedRow | tuple[int, str], path: Path) -> Seed:
    """The seed of a row, or of a line and its text; `instances` and other keys that are null are left out."""
    if isinstance(row, tuple):
        return Seed(row[1])
    where = f"{path}:{row.line}"
    if isinstance(row, RejectedRow):
        raise SeedsError(f"{where}: {row.detail}; {_EXPECTED}")
    if "instruction" not in row.value and schemas.name_of(row.value) is not None:
        return _foreign(row, where)
    try:
        seed = _SEED.validate_python(_without_nulls(row.value))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SeedsError(f"{where}: `{key}`: {first['msg'].lower()}; {_EXPECTED}") from error
    if not seed.instruction.strip():
        raise SeedsError(f"{where}: `instruction` is empty; {_EXPECTED}")
    return seed


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without its null values; a worked example whose input is null has none."""
    kept = {key: value for key, value in row.items() if value is not None}
    if isinstance(instances := kept.get("instances"), list):
        kept["instances"] = [
            {**each, "input": ""} if isinstance(each, dict) and each.get("input") is None else each
            for each in instances
        ]
    return kept


def _foreign(row: ForeignRow, where: str) -> Seed:
    """The first question of a row of another format, with its answer as a worked example."""
    parsed = next(schemas.parse(iter([row])))
    if isinstance(parsed, RejectedRow):
        raise SeedsError(f"{where}: {parsed.detail}; {_EXPECTED}")
    answer = next((message.content for message in parsed.messages if message.role == "assistant"), None)
    instances = () if answer is None else (Instance(parsed.input, answer),)
    return Seed(parsed.instruction, parsed.id or "", instances=instances)


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
        lines = list(text_lines(Path(path)))
    except RecipeError as error:
        raise SeedsError(f"{error}; expected a text file with a value on each line") from error
    fault = next((line for line in lines if isinstance(line, RejectedRow)), None)
    if fault is not None or not lines:
        why = f"line {fault.line}: {fault.detail}" if fault is not None else "it is empty"
        raise SeedsError(f"cannot read {path}: {why}; expected a value on each line")
    return [line[1] for line in lines if isinstance(line, tuple)]
