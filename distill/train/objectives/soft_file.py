"""soft_targets.arrow: the teacher's most probable tokens at each trained token, keyed by what they were made from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distill.core.files import replacing

NAME = "soft_targets.arrow"
PARTS = f"{NAME}.parts"
"""Folder of the rows that a scoring has written so far; a killed one goes on from them."""
_SCHEMA = pa.schema([("key", pa.string()), *((name, pa.binary()) for name in ("ids", "logprobs", "tail"))])


@dataclass(frozen=True, slots=True)
class SoftTarget:
    """Targets of one row's n trained tokens, k entries each: 6 bytes an entry, and 2 a token."""

    ids: np.ndarray[Any, Any]
    """n × k, int32; distinct in each line."""
    logprobs: np.ndarray[Any, Any]
    """n × k, float16: nats."""
    tail: np.ndarray[Any, Any]
    """n, float16: log of the probability that the entries leave out, computed before rounding. NaN at a token without
    a target."""


def read(path: Path, keys: Collection[str]) -> dict[str, SoftTarget]:
    """The targets of these keys; none of a file that is absent or damaged."""
    try:
        return dict(_rows(path, keys)) if path.is_file() else {}
    except (pa.ArrowException, OSError, ValueError):
        return {}


def _rows(path: Path, keys: Collection[str]) -> Iterator[tuple[str, SoftTarget]]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as batches:
        for number in range(batches.num_record_batches):
            for row in batches.get_batch(number).to_pylist():
                if row["key"] in keys:
                    yield row["key"], _target(row)


def _target(row: Mapping[str, Any]) -> SoftTarget:
    tail = np.frombuffer(row["tail"], np.float16)
    ids, logprobs = (np.frombuffer(row[name], kind) for name, kind in (("ids", np.int32), ("logprobs", np.float16)))
    return SoftTarget(ids.reshape(len(tail), -1), logprobs.reshape(len(tail), -1), tail)


def write(path: Path, targets: Mapping[str, SoftTarget]) -> None:
    """Write targets by key, beside `path` and renamed. Raises `RunFolderError`."""
    rows = [
        {"key": key, **{one.name: np.ascontiguousarray(getattr(target, one.name)).tobytes() for one in fields(target)}}
        for key, target in targets.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside, pa.OSFile(str(beside), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as table:
        table.write_table(pa.Table.from_pylist(rows, _SCHEMA))
