"""soft_targets.arrow: the teacher's most probable tokens at each trained token, keyed by what they were made from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distill.core.files import replacing

NAME = "soft_targets.arrow"
PARTS = f"{NAME}.parts"
"""Folder of the rows that a scoring has written so far; a killed one goes on from them."""
PADDING = -65504.0
"""Log-probability of an entry that fills up a shorter list, and counts nothing: float16's lowest number."""
_TEXTS, _ARRAYS = ("key", "session", "teacher"), ("turns", "tokens", "ids", "logprobs", "tail")
_SUMS = {"reported": pa.float64(), "spelt": pa.float64(), "unsound": pa.int64()}
_SCHEMA = pa.schema(
    [*((name, pa.string()) for name in _TEXTS), *((name, pa.binary()) for name in _ARRAYS), *_SUMS.items()]
)


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
    reported: float = 0.0
    """Probability that the teacher reported at tokens mapped by bytes, summed."""
    spelt: float = 0.0
    """The part of it that the student's tokens spell."""
    unsound: int = 0
    """Tokens at which the teacher's report was no distribution."""


def target_of(rows: Sequence[Mapping[int, float]], k: int, **sums: Any) -> SoftTarget:
    """Targets of at most k entries a token, from log-probabilities by id; a token without any has no target."""
    lines = [_line(row, k) for row in rows]
    return SoftTarget(
        np.array([ids for ids, _ in lines], np.int32).reshape(-1, k),
        np.array([logprobs for _, logprobs in lines], np.float16).reshape(-1, k),
        np.array([_rest(row) if row else np.nan for row in rows], np.float16),
        **sums,
    )


def joined(targets: Sequence[SoftTarget]) -> SoftTarget:
    """The targets of one answer after the other."""
    parts = {one.name: [getattr(target, one.name) for target in targets] for one in fields(SoftTarget)}
    whole: dict[str, Any] = {name: np.concatenate(one) if name in _ARRAYS else sum(one) for name, one in parts.items()}
    return SoftTarget(**whole)


def _line(entries: Mapping[int, float], k: int) -> tuple[list[int], list[float]]:
    """The entries with padding up to `k`: ids of the first one again, which counts once."""
    ids, logprobs = list(entries) or [0], list(entries.values()) or [PADDING]
    short = k - len(ids)
    return ids + [ids[0]] * short, logprobs + [PADDING] * short


def _rest(entries: Mapping[int, float]) -> float:
    """Log of the probability that the entries leave out, at least float16's smallest step below 1."""
    left = 1 - float(np.exp(list(entries.values())).sum())
    return float(np.log(max(left, 1e-6)))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the n trained tokens of a row stand: 6 bytes a token."""

    session: str
    """The row's id: the session's, with `#2` behind it for the second part of one that was split."""
    teacher: str
    turns: np.ndarray[Any, Any]
    """n, int16: the message that each token is of, from 0."""
    tokens: np.ndarray[Any, Any]
    """n, int32: the tokens in the student's vocabulary."""


def read(path: Path, keys: Collection[str]) -> dict[str, SoftTarget]:
    """The targets of these keys; none of a file that is absent or damaged."""
    try:
        return dict(_rows(path, keys)) if path.is_file() else {}
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return {}


def places(path: Path) -> dict[tuple[str, bytes], str]:
    """The key of each row by its session and the bytes of its tokens."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as batches:
        rows = batches.read_all().select(["session", "tokens", "key"]).to_pylist()
    return {(row["session"], row["tokens"]): row["key"] for row in rows}


def _rows(path: Path, keys: Collection[str]) -> Iterator[tuple[str, SoftTarget]]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as batches:
        for number in range(batches.num_record_batches):
            for row in batches.get_batch(number).to_pylist():
                if row["key"] in keys:
                    yield row["key"], _target(row)


def _target(row: Mapping[str, Any]) -> SoftTarget:
    tail = np.frombuffer(row["tail"], np.float16)
    ids, logprobs = (np.frombuffer(row[name], kind) for name, kind in (("ids", np.int32), ("logprobs", np.float16)))
    sums = {name: row[name] for name in _SUMS}
    return SoftTarget(ids.reshape(len(tail), -1), logprobs.reshape(len(tail), -1), tail, **sums)


def write(path: Path, targets: Mapping[str, SoftTarget], origins: Mapping[str, Origin]) -> None:
    """Write targets by key, each with its origin, beside `path` and renamed. Raises `RunFolderError`."""
    rows = [{"key": key, **_row(origins[key]), **_row(target)} for key, target in targets.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside, pa.OSFile(str(beside), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as table:
        table.write_table(pa.Table.from_pylist(rows, _SCHEMA))


def _row(part: Origin | SoftTarget) -> dict[str, Any]:
    values = {one.name: getattr(part, one.name) for one in fields(part)}
    return {name: np.ascontiguousarray(one).tobytes() if name in _ARRAYS else one for name, one in values.items()}


def by_token(path: Path) -> pa.Table:
    """The file as a table with a row per trained token; see `distill.soft_targets`. Raises as pyarrow does."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as batches:
        return pa.concat_tables(_tokens_of(row) for row in batches.read_all().to_pylist())


def _tokens_of(row: Mapping[str, Any]) -> pa.Table:
    """The tokens of one row; a token without a target has no entries, and null for a tail."""
    target = _target(row)
    known = ~np.isnan(target.tail)
    counts = (target.logprobs > PADDING) & known[:, None]
    offsets = pa.array(np.concatenate([[0], counts.sum(1).cumsum()]), pa.int32())
    tokens, size = np.frombuffer(row["tokens"], np.int32), len(target.tail)
    return pa.table(
        {
            **{name: pa.array([row[name]] * size, pa.string()) for name in ("session", "teacher")},
            "turn": np.frombuffer(row["turns"], np.int16),
            "token": tokens,
            "ids": pa.ListArray.from_arrays(offsets, target.ids[counts]),
            "logprobs": pa.ListArray.from_arrays(offsets, target.logprobs[counts].astype(np.float32)),
            "tail": pa.array(target.tail.astype(np.float32), mask=~known),
        }
    )
