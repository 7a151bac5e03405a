"""Opens files of others as text: compressed or not, in any encoding of Unicode; what is no text is refused by name."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from distill.core.extras import install
from distill.errors import MissingPackage, RecipeError, one_line

Place: TypeAlias = Path | str
"""A local file, or an address that fsspec opens, such as hf://datasets/owner/name/train.jsonl."""
HEAD_BYTES = 1 << 16
"""Start of a file by which its kind is recognised."""
MOST_BYTES, MOST_RATIO = 1 << 24, 200
"""A compressed file unpacks to at most the larger of so many bytes and of its size times the ratio (gzip's limit is
1,032; text of one prompt repeated reaches 100)."""
SUFFIXES = (".gz", ".zst", ".bz2", ".xz")


def _zstd(file: BinaryIO) -> BinaryIO:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingPackage(f"pyarrow is not installed, which reads .zst; type: {install('data')}") from error
    return cast(BinaryIO, pyarrow.CompressedInputStream(file, "zstd"))


COMPRESSIONS: Mapping[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"\x28\xb5\x2f\xfd": _zstd,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
"""What unpacks a file, by its first bytes."""

NO_TEXT: Mapping[bytes, str] = {
    b"PK\x03\x04": "a ZIP archive or an Office file; unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an Office file; save it as CSV or text",
    b"%PDF": "a PDF; save its text",
    b"{\\rtf": "an RTF document; save it as text",
    b"SQLite format 3": "an SQLite database; save its table as CSV",
    b"version https://git-lfs": "a pointer of Git LFS in place of the file; type: git lfs pull",
    b"\x80\x04": "a Python pickle, which is never read; save it as JSON lines",
    b"\x80\x05": "a Python pickle, which is never read; save it as JSON lines",
    b"GGUF": "a model; give a file of rows",
}
"""What a file is that holds no rows, and what to do, by its first bytes."""
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_FAULTS = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)
_FAULTY = "\udcff"
"""Stands for bytes that the encoding lacks, in UTF-16 and UTF-32."""
codecs.register_error("distill.faulty", lambda error: (_FAULTY, cast(UnicodeDecodeError, error).end))


def open_text(place: Place) -> io.TextIOWrapper:
    """The file as text without compression, every line ended by a line feed. Raises `RecipeError`.

    Bytes that are not in the encoding come through as lone surrogates; `fault_of` finds them.
    """
    file = open_bytes(place)
    head = file.peek(HEAD_BYTES)[:HEAD_BYTES]
    encoding = _encoding(head)
    _require_text(place, head, encoding)
    errors = "surrogateescape" if encoding == "utf-8" else "distill.faulty"
    return io.TextIOWrapper(file, encoding, errors=errors, newline=None)


def head_of(place: Place) -> bytes:
    """The first bytes of the file without compression. Raises `RecipeError`."""
    with open_bytes(place) as file:
        return file.peek(HEAD_BYTES)[:HEAD_BYTES]


def text_of(head: bytes, place: Place) -> str:
    """The text of a file's first bytes. Raises `RecipeError` where it is no text."""
    encoding = _encoding(head)
    _require_text(place, head, encoding)
    return head.decode(encoding, "replace").removeprefix("\ufeff")


def from_windows(place: Place) -> str:
    """What to do about a text that is not UTF-8."""
    suffix = data_suffix(place)
    return f"if it is from Excel or Windows, type: iconv -f cp1252 -t utf-8 {place} > utf8{suffix}, and read that"


def fault_of(text: str) -> str | None:
    """What bytes a text of `open_text` has that are not in the file's encoding; `None` for none."""
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        if text[error.start] == _FAULTY:
            return f"bytes that are no character in UTF-16, at position {error.start}; save the file as UTF-8"
        byte = ord(text[error.start]) & 0xFF
        return f"byte 0x{byte:02x} at position {error.start} is not UTF-8; {from_windows('FILE')}"
    return None


def data_suffix(place: Place) -> str:
    """The suffix that names the kind of data: .jsonl of rows.jsonl.gz."""
    suffixes = [suffix.lower() for suffix in Path(place).suffixes if suffix.lower() not in SUFFIXES]
    return suffixes[-1] if suffixes else ""


def open_bytes(place: Place) -> io.BufferedReader:
    """The bytes of a file without compression. Raises `RecipeError`."""
    file = _open(place)
    start = file.peek(8)
    for magic, unpack in COMPRESSIONS.items():
        if start.startswith(magic):
            return io.BufferedReader(_Unpacked(unpack(file), file, place), HEAD_BYTES)
    return file


def _open(place: Place) -> io.BufferedReader:
    if "://" in str(place):
        import fsspec

        return io.BufferedReader(fsspec.open(str(place), "rb").open(), HEAD_BYTES)
    path = Path(place)
    if path.exists() and not path.is_file():
        raise RecipeError(f"cannot read {path}: it is no file, and rows are read more than once; save them to a file")
    try:
        return io.BufferedReader(path.open("rb", buffering=0), HEAD_BYTES)
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}; check the path") from error


class _Unpacked(io.RawIOBase):
    """The contents of a compressed file, up to a bound on their size."""

    def __init__(self, contents: BinaryIO, packed: BinaryIO, place: Place) -> None:
        self._contents, self._packed, self._place = contents, packed, place
        self._left: int | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._contents.read(len(buffer))
        except _FAULTS as error:
            why = one_line(str(error), 120)
            raise RecipeError(f"{self._place}: damaged or cut off, cannot be unpacked ({why})") from error
        if self._left is None:
            self._left = max(MOST_BYTES, MOST_RATIO * self._size())
        self._left -= len(piece)
        if self._left < 0:
            raise RecipeError(f"{self._place}: unpacks to over {MOST_RATIO} times its size; is it damaged?")
        buffer[: len(piece)] = piece
        return len(piece)

    def _size(self) -> int:
        return Path(self._place).stat().st_size if Path(self._place).is_file() else 0

    def close(self) -> None:
        self._packed.close()
        super().close()


def _encoding(head: bytes) -> str:
    """UTF-8, or UTF-16 or UTF-32 by a byte order mark or by where the zeros of its first characters are."""
    name = json.detect_encoding(head)
    return "utf-8" if name == "utf-8-sig" else name


def _require_text(place: Place, head: bytes, encoding: str) -> None:
    """Raise `RecipeError` for a file that is no text."""
    what = next((what for magic, what in NO_TEXT.items() if head.startswith(magic)), None)
    text = head.decode(encoding, "replace").removeprefix("\ufeff")
    strange = len(_CONTROL.findall(text)) + (text.count("\ufffd") if encoding != "utf-8" else 0)
    if what is None and (_CONTROL.match(text) or strange > 1 + len(text) // 50):
        what = "no text; give JSON lines, CSV, Parquet, or text with a prompt per line"
    if what is not None:
        raise RecipeError(f"{place} is {what}")


def numbered_lines(place: Place, most: int) -> Iterator[tuple[int, str | None]]:
    """Every line with its number, with its line end and without a byte order mark; `None` for one over `most`.

    Lengths are in characters. Raises `RecipeError`.
    """
    with open_text(place) as file:
        for number, line in enumerate(iter(lambda: file.readline(most), ""), start=1):
            rest = line
            while len(rest) == most and not rest.endswith("\n"):
                rest = file.readline(most)
            yield number, line.removeprefix("\ufeff") if rest is line else None
