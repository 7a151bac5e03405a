"""The train–serve check as a command: serves a student, or an export of one, and asks for the tokens it is asked in.

It stands in `doctor` rather than in the receipts, for it needs a running server: ours, started for the check, or any
that has `/tokenize`, such as vLLM with an exported student. A receipt holds what can be checked without one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import console, credentials, students
from distill.catalogue import require_training_packages
from distill.embedded import read_base, read_json
from distill.errors import RunFolderError
from distill.exporters import FILES
from distill.providers.local import LocalServer
from distill.rows import read_sessions
from distill.types import Session


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is looked at."""

    served: str
    """As `distill serve` takes it."""
    template: str
    tokenizer: Any
    sessions: list[Session]


def examine(folder: Path, *, at: str | None = None, api_key_env: str | None = None) -> bool:
    """Print whether trainer, saved chat template and server ask a student in the same tokens; returns whether they do.

    `folder` is a run with a student, or an export with whole weights; `at` is the address of a server that runs it,
    with its key in the variable `api_key_env`; else one is started. Raises `RunFolderError` for other folders,
    `ServerError` and `EndpointError` for the server.
    """
    require_training_packages("doctor")
    from distill.student.drift import SAVED, SERVED, by_server, by_template, check, dialogues_of

    asked = _asked(folder)
    with _server(asked.served, at, credentials.secret(api_key_env, "--api-key-env")) as (address, api_key):
        checked = check(
            dialogues_of(asked.sessions),
            template=asked.template,
            tokenizer=asked.tokenizer,
            readings={SAVED: by_template(asked.tokenizer), SERVED: by_server(address, api_key=api_key)},
        )
    for difference in checked.differences:
        console.result(f"{'note' if difference.spelled else 'MISS'} {difference.line()}")
    told = f"{checked.dialogues} dialogues by the trainer, {' and '.join(checked.by)}"
    console.result(f"{'ok   the same tokens in' if checked.alike else 'MISS other tokens in some of'} {told}")
    return checked.alike


def _asked(folder: Path) -> _Asked:
    from distill.student import models

    receipt = read_json(folder / "export.json")
    if isinstance(receipt, dict):
        served = folder / "model.gguf" if (folder / "model.gguf").is_file() else folder
        if (folder / "adapter_config.json").is_file():
            raise RunFolderError(
                f"{folder} holds an adapter, which is served only merged; type: distill export --to merged"
            )
        tokenizer = models.load_tokenizer(models.materialise(str(served), say=console.say))
        return _Asked(str(served), str(receipt.get("template")), tokenizer, [])
    student = students.current(folder)
    if not students.is_student(student):
        raise RunFolderError(f"{folder} is no run with a student and no export; type: distill train {folder}")
    test = folder / FILES["test"]
    template = str(read_base(student)["template"])
    sessions = read_sessions(test) if test.is_file() else []
    return _Asked(str(folder), template, models.load_tokenizer(student), sessions)


@contextmanager
def _server(model: str, at: str | None, api_key: str | None) -> Iterator[tuple[str, str | None]]:
    """The address of a server, and its key."""
    if at is not None:
        yield at, api_key
        return
    with tempfile.TemporaryDirectory() as logs, LocalServer(model, log=Path(logs) / "server.log") as server:
        assert server.base_url is not None
        yield server.base_url, server.api_key
