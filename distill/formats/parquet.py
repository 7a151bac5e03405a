"""The Parquet layout of sessions, shared by all writers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from distill.core.extras import install
from distill.core.files import replacing, to_json
from distill.errors import MissingPackage
from distill.types import Session


def write_parquet(path: Path, sessions: Iterable[Session]) -> int:
    """Write `id`, `messages` (role, content) and `meta` (JSON, as rows differ in it); returns how many rows.

    Written beside `path` and renamed. Raises `MissingPackage` without pyarrow, `RunFolderError`.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingPackage(f"pyarrow is not installed; type: {install('data')}") from error
    turn = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    schema = pyarrow.schema([("id", pyarrow.string()), ("messages", pyarrow.list_(turn)), ("meta", pyarrow.string())])
    rows = [
        {"id": one.id, "messages": to_json(one.messages), "meta": json.dumps(to_json(one.meta), ensure_ascii=False)}
        for one in sessions
    ]
    with replacing(path) as new:
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), new)
    return len(rows)
