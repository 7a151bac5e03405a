"""The Parquet layout of sessions, shared by all writers."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from distill.core.extras import install
from distill.core.jsonl import to_json
from distill.errors import MissingPackage, RunFolderError
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
    descriptor, temporary = _beside(path)
    os.close(descriptor)
    try:
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return len(rows)


def _beside(path: Path) -> tuple[int, str]:
    try:
        return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror}; give another --out") from error
