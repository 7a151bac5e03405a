"""Strikes secrets out of text, in any encoding an endpoint or a library may use.

Whoever reads a key, a secret header or a password calls `learn`; every text of others passes `strike` once it is
decoded, and before it is shortened, stored or shown. What is learnt holds for the whole process.
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
"""Characters of the shortest secret that is struck: a shorter one (`EMPTY`, `none`) may be a word of an answer."""

_SCHEME = re.compile(r"[A-Za-z][\w-]*\s+(\S.*)")
"""A header's value with its scheme word: `Bearer …`, `Basic …`."""
_AMPERSAND = r"(?:&|\\*u0026|%26)"
_known: dict[str, Any] = {}
"""The pattern of each secret."""


def learn(value: str) -> bool:
    """Have a secret struck from now on, also without its scheme word; False where it is too short for that."""
    whole = value.strip()
    bare = match[1] if (match := _SCHEME.fullmatch(whole)) else whole
    for secret in (whole, bare, *_basic(bare)):
        if len(secret) >= SHORTEST and secret not in _known:
            _known[secret] = _pattern(secret)
    return len(bare) >= SHORTEST


def forget() -> None:
    """Know no secret."""
    _known.clear()


def strike(text: str) -> str:
    r"""The text with `***` in place of every secret; the very same text where it holds none.

    A secret is found as it is, and with any of its characters spelled as in JSON (`\/`, `\u002b`, at any depth of
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


def strike_all(value: Any) -> Any:
    """The same for every text in a JSON value, names included."""
    if isinstance(value, str):
        return strike(value)
    if isinstance(value, dict):
        return {strike(str(name)): strike_all(each) for name, each in value.items()}
    return [strike_all(each) for each in value] if isinstance(value, (list, tuple)) else value


def _basic(value: str) -> list[str]:
    """`user:password` and the password, where a value is the base64 of such."""
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
    """A pattern for one character in each of its spellings."""
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
    """HTML's names of each character, with their semicolons."""
    names: dict[str, list[str]] = {}
    for name, character in html.entities.html5.items():
        if name.endswith(";") and len(character) == 1:
            names.setdefault(character, []).append(name)
    return names
