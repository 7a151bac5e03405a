"""Strikes secrets out of text, in any encoding an endpoint or a library may use.

Code that reads a key, a secret header or a password calls `learn`; every external text passes `strike` after it is
decoded, and before it is shortened, stored or shown. Secrets are known to the whole process.
"""

from __future__ import annotations

import base64
import binascii
import html.entities
import re
from functools import cache
from typing import Any

STRUCK = "***"
"""The text in place of a secret."""
SHORTEST = 8
"""Characters of the shortest secret that is struck: shorter ones (`EMPTY`, `none`) may be words of an answer."""

_SCHEME = re.compile(r"[A-Za-z][\w-]*\s+(\S.*)")
"""A header's value with its scheme word: `Bearer …`, `Basic …`."""
_AMPERSAND = r"(?:&|\\*u0026|%26)"
_known: dict[str, Any] = {}
"""The pattern of each secret."""


def learn(value: str) -> bool:
    """Strike a secret from now on, with and without its scheme word; False where it is too short for that."""
    whole = value.strip()
    bare = match[1] if (match := _SCHEME.fullmatch(whole)) else whole
    for secret in (whole, bare, *_basic(bare)):
        if len(secret) >= SHORTEST and secret not in _known:
            _known[secret] = _pattern(secret)
    return len(bare) >= SHORTEST


def forget() -> None:
    """Forget all secrets."""
    _known.clear()


def strike(text: str) -> str:
    r"""The text with `***` in place of every secret; the same object where it holds none.

    A secret is found literally, and with any of its characters escaped as in JSON (`\/`, `\u002b`, at any depth of
    quoting), in a URL (`%2B`) or in HTML (`&#43;`, `&plus;`), or followed by NUL bytes (UTF-16 read as UTF-8).
    """
    if not _known:
        return text
    data = text.encode("utf-8", "surrogatepass")
    spans = sorted(match.span() for pattern in _known.values() for match in pattern.finditer(data))
    if not spans:
        return text
    pieces, end = [], 0
    for first, last in spans:
        if first >= end:
            pieces += [data[end:first], STRUCK.encode()]
        end = max(end, last)
    return b"".join([*pieces, data[end:]]).decode("utf-8", "surrogatepass")


def _basic(value: str) -> list[str]:
    """`user:password` and the password, where a value is the base64 of them."""
    try:
        decoded = base64.b64decode(value, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return []
    _, colon, password = decoded.partition(":")
    return [decoded, password] if colon and decoded.isprintable() else []


def _pattern(secret: str) -> Any:
    """A pattern of RE2: linear in the text (about 700 MB/s), where `re` tries each spelling at each character."""
    import re2

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # bytes, so that a half surrogate pair passes
    options.log_errors = False
    options.max_mem = 64 << 20
    return re2.compile(r"\x00*".join(map(_spellings, secret)).encode("ascii"), options)


@cache
def _spellings(character: str) -> str:
    """A pattern for every spelling of one character."""
    code, encoded = ord(character), character.encode("utf-8", "surrogatepass")
    plain = "".join(f"\\x{byte:02x}" for byte in encoded)
    quoted = "".join(f"%(?:25)*{_either_case(f'{byte:02x}')}" for byte in encoded)
    escaped = f"u{_either_case(f'{code:04x}')}"
    entities = "|".join([f"#0*{code};?", f"#[xX]0*{_either_case(f'{code:x}')};?", *_entities().get(character, ())])
    forms = [plain, quoted, escaped, f"{_AMPERSAND}(?:amp;)*(?:{entities})", *([r"\+"] if character == " " else [])]
    return rf"\\*(?:{'|'.join(forms)})"


def _either_case(digits: str) -> str:
    return "".join(f"[{digit.lower()}{digit.upper()}]" if digit.isalpha() else digit for digit in digits)


@cache
def _entities() -> dict[str, list[str]]:
    """HTML's entity names by character, with their semicolons."""
    names: dict[str, list[str]] = {}
    for name, character in html.entities.html5.items():
        if name.endswith(";") and len(character) == 1:
            names.setdefault(character, []).append(name)
    return names
