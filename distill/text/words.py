"""Words in every script: the tokens by which texts are compared, counts, and phrases between word boundaries."""

from __future__ import annotations

import re
from functools import cache
from unicodedata import category, normalize

from distill.text.tokens import rouge_l, rouge_tokens

_SPACELESS = (
    "\u0e00-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f\u3040-\u312f\u31a0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua980-\ua9ff\uaa60-\uaadf\uf900-\ufaff\uff66-\uff9f\U00016fe0-\U00018d8f\U0001aff0-\U0001b2ff"
    "\U00020000-\U0003ffff"
)
"""Scripts without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, Tai, Javanese, kana, Han and others."""
_IS_SPACELESS = re.compile(f"[{_SPACELESS}]")
_LATIN = "0-9A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u1e00-\u1eff\ua722-\ua787\uab30-\uab64"
_NOT_TYPOGRAPHIC = re.compile("[^\x00-\x7f\u2010-\u2027\u2030-\u203a]")
"""A character that is neither ASCII nor a typographic quotation mark, dash or bullet."""
_ENDS = ".!?\u2026\u3002\uff0e\uff01\uff1f\uff61\u061f\u06d4\u0964\u0965"
_SIGN = re.compile(r"[#$%&*+/<=>@\\^|~\[\]{}]")
ALMOST = 0.9999
"""Greatest similarity of texts that differ as written."""


def comparable(text: str) -> list[str]:
    """The tokens by which two texts are compared: words of every script, wherever they stand in the text.

    Texts of ASCII characters have rouge_score's tokens, runs of [a-z0-9]. Beside them, other texts have words with
    accents and combining marks, single letters where a script writes no spaces, and symbols that are not ASCII (emoji,
    ×, €). A Latin word within another script is a token of its own.
    """
    if _NOT_TYPOGRAPHIC.search(text) is None:
        return rouge_tokens(text)
    return _tokens().findall(normalize("NFKC", text).casefold())


def whole(text: str) -> tuple[str, ...]:
    """The tokens of a short text, then its ASCII signs, such as `+`: equal only for texts that say the same."""
    return (*comparable(text), *_SIGN.findall(text))


def likeness_as_written(one: str, other: str) -> float:
    """The similarity of two texts with the same tokens, which may differ in what is no token (`C++`, `C#`).

    1 if they are the same but for case, white space and punctuation that ends a sentence; otherwise the ROUGE-L
    F-measure of their characters, at most `ALMOST`.
    """
    one, other = _as_written(one), _as_written(other)
    return 1.0 if one == other else min(rouge_l(one, other), ALMOST)


def _as_written(text: str) -> str:
    return normalize("NFC", "".join(text.casefold().split())).rstrip(_ENDS)


def word_count(text: str) -> int:
    """The number of words between white space; in a script without spaces, the number of letters."""
    return len(_words().findall(text) if _IS_SPACELESS.search(text) else text.split())


@cache
def _words() -> re.Pattern[str]:
    """Pattern of a word in any script, with its combining marks, which `re` does not count as letters."""
    marks, other = _of_category("M"), f"(?![{_SPACELESS}{_LATIN}])[^\\W_]"
    return re.compile(f"[{_LATIN}][{_LATIN}{marks}]*|(?=[^\\W_])[{_SPACELESS}][{marks}]*|{other}(?:{other}|[{marks}])*")


@cache
def _tokens() -> re.Pattern[str]:
    """Pattern of a word, or of a symbol that is not ASCII."""
    return re.compile(f"{_words().pattern}|[{_of_category('S')}]|[\U0001f000-\U0001fbff]")


@cache
def _of_category(major: str) -> str:
    """The characters of a category (`M`: marks, `S`: symbols) from U+0080 to U+FFFF, as ranges of a character class.

    A class with single characters beyond U+FFFF would be forty times as slow.
    """
    codes = [code for code in range(0x80, 0x10000) if category(chr(code)).startswith(major)]
    firsts = [code for code, before in zip(codes, [0, *codes], strict=False) if code != before + 1]
    lasts = [code for code, after in zip(codes, [*codes[1:], 0], strict=True) if code != after - 1]
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in zip(firsts, lasts, strict=True))
