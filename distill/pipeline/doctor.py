"""The `doctor` command: examines this machine, an endpoint or a run, and says what to install or change."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.core import console, credentials, student_folder
from distill.core.embedded import EMBEDDED
from distill.core.extras import install
from distill.core.files import cache_dir, read_json
from distill.core.jsonl import read_sessions
from distill.core.weights import read_base
from distill.engine import probe
from distill.engine.journal.inspection import inspect
from distill.engine.journal.store import NAME
from distill.engine.providers import ProviderError
from distill.engine.providers.addresses import normalise_url
from distill.engine.providers.openai import call
from distill.errors import RecipeError, RunFolderError
from distill.models.child_server import LocalServer
from distill.pipeline import requirements
from distill.pipeline.requirements import require_training_packages
from distill.recipe import Recipe
from distill.run.endpoints import secret_headers
from distill.run.layout import FILES
from distill.run.record import versions
from distill.types import Session

LISTING_SECONDS = 10.0
"""Time limit for listing an endpoint's models."""
NEEDED_GB = 4.0
"""Memory for the quickstart; measured: 3.2 to 3.5 GB."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination's report."""

    ok: bool
    what: str


@dataclass(frozen=True, slots=True)
class Listing:
    """An endpoint's list of models."""

    finding: Finding
    models: tuple[str, ...] = ()
    usable: bool = True
    """Whether a model there can be asked."""


def examine(url: str | None, *, model: str | None = None, api_key_env: str | None = None) -> bool:
    """Print findings on this machine, and on the endpoint at `url`; returns whether nothing is missing.

    Raises `RecipeError` for an invalid address or a key variable that is not set, before anything is examined, and
    `EndpointError` for an endpoint that lists its models but does not answer.
    """
    if url is None and (model or api_key_env):
        raise RecipeError("--model and --api-key-env need the URL of an endpoint")
    api_key = credentials.secret(api_key_env, "--api-key-env")
    address = normalise_url(url) if url is not None else ""
    python = Finding(sys.version_info >= (3, 11), f"Python {sys.version.split()[0]} (3.11 or newer needed)")
    findings = [python, *_packages(), _memory(), _cache()]
    for finding in findings:
        _print(finding)
    healthy = all(finding.ok for finding in findings)
    return healthy if url is None else _examine_endpoint(url, address, model, api_key) and healthy


def _print(finding: Finding) -> None:
    console.result(f"{'ok  ' if finding.ok else 'MISS'} {finding.what}")


def _examine_endpoint(url: str, address: str, model: str | None, api_key: str | None) -> bool:
    listing = _listing(url, address, api_key)
    if model is None and listing.finding.ok and len(listing.models) == 1:
        model = listing.models[0]
    if model is None or not listing.usable:
        _print(listing.finding)
        if listing.usable:
            _print(Finding(False, "no model to probe: name one with --model NAME"))
        return False
    _print(Finding(True, listing.finding.what))
    probe_endpoint(url, model, api_key=api_key)
    return True


def probe_endpoint(
    url: str,
    model: str,
    *,
    api_key: str | None,
    headers: Mapping[str, str] | None = None,
    timeout_seconds: float = probe.CALL_SECONDS,
) -> probe.Findings:
    """Probe an endpoint, print the table and cache it."""
    console.say(f"asking {normalise_url(url)} at most {probe.MOST_CALLS} tiny questions to see what it honours")
    findings = probe.probe(url, model, api_key=api_key, headers=headers, timeout_seconds=timeout_seconds)
    for line in probe.table(findings):
        console.result(line)
    probe.save(findings)
    return findings


def _packages() -> list[Finding]:
    packages = versions()
    lines = [Finding(True, f"{name} {version}") for name, version in packages.items()]
    missing = [name for name in ("torch", "transformers", "trl", "peft", "bitsandbytes") if name not in packages]
    if missing:
        advice = f"for train, compare and local teachers: {install('train')}"
        lines.append(Finding(False, f"{', '.join(missing)} {advice}"))
    return lines


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    gigabytes = memory.available / 1e9
    return Finding(
        gigabytes >= NEEDED_GB,
        f"{gigabytes:.1f} GB of memory free, {os.cpu_count()} cores (the quickstart takes up to {NEEDED_GB:.0f} GB)",
    )


def _cache() -> Finding:
    folder = cache_dir()
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(parent, os.W_OK):
        return Finding(False, f"the cache {folder} cannot be written; set DISTILL_CACHE to a folder that can")
    free = shutil.disk_usage(parent).free / 1e9
    size = sum(model.download for model in EMBEDDED.values()) / 1e9
    return Finding(free > 1.0, f"cache {folder}: {free:.1f} GB free (the embedded model takes about {4 * size:.1f} GB)")


def examine_teachers(recipe: Recipe) -> None:
    """Probe the endpoint of each teacher, and print which options of the recipe it ignores.

    Raises `RecipeError` for a key variable that is not set and `EndpointError` for an endpoint that does not answer.
    """
    if not any(teacher.base_url for teacher in recipe.teachers):
        console.result("probe: no teacher.base_url in the recipe; a server of our own needs no probe")
    for teacher in recipe.teachers:
        if teacher.base_url is None:
            continue
        findings = probe_endpoint(
            teacher.base_url,
            teacher.model,
            api_key=credentials.secret(teacher.api_key_env, "teacher.api_key_env"),
            headers=secret_headers(teacher.headers_env),
            timeout_seconds=min(probe.CALL_SECONDS, teacher.timeout_seconds),
        )
        for line in requirements.ignored_options(recipe, teacher, findings):
            console.result(f"warning: {line}")


def _listing(url: str, address: str, api_key: str | None) -> Listing:
    try:
        status, reply = call(url, "GET", "/models", api_key=api_key, timeout_seconds=LISTING_SECONDS)
    except ProviderError as error:
        line = error.detail if address in error.detail else f"{address}: {error.detail}"
        return Listing(Finding(False, line), usable=False)
    if status != 200:
        is_refusal = status in {401, 403}
        advice = "; name the variable that holds the key with --api-key-env" if is_refusal else ""
        return Listing(Finding(False, f"{address} answered {status} to GET /models{advice}"), usable=not is_refusal)
    try:
        names = tuple(str(model["id"]) for model in json.loads(reply)["data"])
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        line = f"{address}: {type(error).__name__}: no OpenAI-compatible endpoint; is the server running?"
        return Listing(Finding(False, line), usable=isinstance(error, (KeyError, TypeError)))
    shown_names = ", ".join(probe.printable(name, 100) for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return Listing(Finding(True, f"{address} serves {shown_names or 'no model'}{more}"), names)


@dataclass(frozen=True, slots=True)
class _Target:
    """A student to examine."""

    model: str
    """The argument for `distill serve`."""
    template: str
    tokenizer: Any
    sessions: list[Session]


def examine_folder(folder: Path, *, at: str | None = None, api_key_env: str | None = None) -> bool:
    """Print which rows of a run's journal are sound, then what `examine_student` finds; returns whether all is well.

    A run without a student has only its journal examined. Raises what `examine_student` raises.
    """
    path = folder / NAME
    if not path.is_file():
        return examine_student(folder, at=at, api_key_env=api_key_env)
    journal = inspect(path)
    for line in journal.lines():
        console.result(f"     journal: {line}")
    damage = "damaged; the next run sets such rows aside, and asks for their answers again"
    _print(Finding(journal.is_sound, f"journal: {'every row is sound' if journal.is_sound else damage}"))
    if at is None and not student_folder.is_student(student_folder.current(folder)):
        return journal.is_sound
    return examine_student(folder, at=at, api_key_env=api_key_env) and journal.is_sound


def examine_student(folder: Path, *, at: str | None = None, api_key_env: str | None = None) -> bool:
    """Print whether trainer, saved chat template and server give the student the same tokens; returns whether they do.

    `folder` is a run with a student, or an export with whole weights; `at` is the address of a server that runs it,
    with its key in the variable `api_key_env`, else one is started. Raises `RunFolderError` for other folders,
    `ServerError` and `EndpointError` for the server.
    """
    require_training_packages("doctor")
    from distill.models.templates.check import SAVED, SERVED, by_server, by_template, check, dialogues_of

    target = _target(folder)
    with _server(target.model, at, credentials.secret(api_key_env, "--api-key-env")) as (address, api_key):
        comparison = check(
            dialogues_of(target.sessions),
            template=target.template,
            tokenizer=target.tokenizer,
            readings={SAVED: by_template(target.tokenizer), SERVED: by_server(address, api_key=api_key)},
        )
    for difference in comparison.differences:
        console.result(f"{'note' if difference.spelled else 'MISS'} {difference.line()}")
    info = f"{comparison.dialogues} dialogues by the trainer, {' and '.join(comparison.by)}"
    console.result(f"{'ok   the same tokens in' if comparison.alike else 'MISS other tokens in some of'} {info}")
    return comparison.alike


def _target(folder: Path) -> _Target:
    from distill.models import loading

    receipt = read_json(folder / "export.json")
    if isinstance(receipt, dict):
        model = folder / "model.gguf" if (folder / "model.gguf").is_file() else folder
        if (folder / "adapter_config.json").is_file():
            raise RunFolderError(
                f"{folder} holds an adapter, which is served only merged; type: distill export --to merged"
            )
        tokenizer = loading.load_tokenizer(loading.materialise(str(model), say=console.say))
        return _Target(str(model), str(receipt.get("template")), tokenizer, [])
    student = student_folder.current(folder)
    if not student_folder.is_student(student):
        raise RunFolderError(f"{folder} is no run with a student and no export; type: distill train {folder}")
    test = folder / FILES["test"]
    template = str(read_base(student)["template"])
    sessions = read_sessions(test) if test.is_file() else []
    return _Target(str(folder), template, loading.load_tokenizer(student), sessions)


@contextmanager
def _server(model: str, at: str | None, api_key: str | None) -> Iterator[tuple[str, str | None]]:
    """The address of a server, and its key."""
    if at is not None:
        yield at, api_key
        return
    with tempfile.TemporaryDirectory() as logs, LocalServer(model, log=Path(logs) / "server.log") as server:
        assert server.base_url is not None
        yield server.base_url, server.api_key
