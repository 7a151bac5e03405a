"""Looks at this machine, and at an endpoint: what is there, what is missing, what to do."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass

from distill import console
from distill.embedded import EMBEDDED, cache_dir
from distill.run import versions

NEEDED_GB = 6.0
"""Memory that the quickstart may take."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination."""

    ok: bool
    what: str


def examine(url: str | None) -> bool:
    """Print what was found; returns whether nothing is missing."""
    findings = [_python(), *_packages(), _memory(), _cache()]
    if url is not None:
        findings.append(_endpoint(url))
    for finding in findings:
        console.result(f"{'ok  ' if finding.ok else 'MISS'} {finding.what}")
    return all(finding.ok for finding in findings)


def _python() -> Finding:
    return Finding(sys.version_info >= (3, 11), f"Python {sys.version.split()[0]} (3.11 or newer needed)")


def _packages() -> list[Finding]:
    found = versions()
    lines = [Finding(True, f"{name} {version}") for name, version in found.items()]
    missing = [name for name in ("torch", "transformers", "trl", "peft", "bitsandbytes") if name not in found]
    if missing:
        needed = "for train, compare and local teachers: pip install 'distill[train]'"
        lines.append(Finding(False, f"{', '.join(missing)} {needed}"))
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


def _endpoint(url: str) -> Finding:
    import httpx

    address = f"{url.rstrip('/')}/models"
    try:
        answer = httpx.get(address, timeout=10)
        answer.raise_for_status()
        names = [str(model["id"]) for model in answer.json()["data"]]
    except httpx.HTTPStatusError as error:
        return Finding(False, f"{url} answered {error.response.status_code} to GET /models")
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        return Finding(False, f"{url}: {type(error).__name__}: no OpenAI-compatible endpoint; is the server running?")
    return Finding(True, f"{url} serves {', '.join(names[:5])}")
