"""Words in every script: the tokens by which texts are compared, counts, and phrases between word boundaries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
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
    if text.isascii() or _NOT_TYPOGRAPHIC.search(text) is None:
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


_PARTICLES = {
    "\uac00-\ud7a3": (
        "",
        "들|은|는|이|가|을|를|의|에|에서|에게|에게서|께|께서|한테|와|과|랑|이랑|하고|로|으로|도|만|까지|부터|마저|조차|밖에|보다|처럼|같이"
        "|만큼|대로|마다|나|이나|라도|이라도|든지|이든지|야|요|라고|이라고|라는|이라는|란|이란|이다|입니다|이에요|예요|인|일|인가|인지|뿐",
    ),
    "\u0600-\u06ff": ("[وف]?[بكل]?(?:ال|لل)?", "ها|هم|ه|ي|نا|كم|ك"),
    "\u0590-\u05ff": ("[והבכלמש]{0,3}", ""),
    "\u0980-\u09ff": ("", "টি|টা|গুলো|গুলি|র|ের|কে|তে|ে|য়"),
}
"""By script, as a character class, what may stand before and after a word and is written with it."""


def phrase_pattern(phrases: Iterable[str], *, ignore_case: bool = True) -> re.Pattern[str]:
    """Pattern of any of the phrases as whole words; white space in them matches any white space, longer ones first.

    A word ends where a letter of another script follows. In scripts without spaces a word is found anywhere; words of
    `_PARTICLES`' scripts are found with these. Phrases are grouped by their first letter, so that at most places few of
    them are tried.
    """
    sides: dict[tuple[str, str], dict[str, list[str]]] = {}
    for phrase in sorted({" ".join(phrase.split()) for phrase in phrases}, key=lambda phrase: (-len(phrase), phrase)):
        if phrase:
            first = phrase[0].lower() if ignore_case and phrase[0].isascii() else phrase[0]
            groups = sides.setdefault((_before(phrase[0]), _after(phrase[-1])), {})
            groups.setdefault(first, []).append(r"\s+".join(map(re.escape, phrase[1:].split(" "))))
    return re.compile(
        "|".join(f"{before}(?:{_grouped(groups)}){after}" for (before, after), groups in sides.items()) or r"(?!)",
        re.IGNORECASE if ignore_case else 0,
    )


def _grouped(groups: Mapping[str, Sequence[str]]) -> str:
    return "|".join(f"{re.escape(first)}(?:{'|'.join(rests)})" for first, rests in groups.items())


def _before(first: str) -> str:
    """What must hold before a phrase with this first character."""
    particles = next((before for script, (before, _) in _PARTICLES.items() if re.match(f"[{script}]", first)), "")
    return "" if _IS_SPACELESS.match(first) else f"(?<!{_same_script(first)}){particles}"


def _after(last: str) -> str:
    """What must hold after a phrase with this last character."""
    particles = next((after for script, (_, after) in _PARTICLES.items() if re.match(f"[{script}]", last)), "")
    if _IS_SPACELESS.match(last):
        return f"(?![{_of_category('M')}])"
    return f"(?=(?:{particles}){{0,3}}(?!{_same_script(last)}))" if particles else f"(?!{_same_script(last)})"


def _same_script(character: str) -> str:
    """A letter, digit or mark that would continue a word with this character at its edge."""
    if re.match(rf"[_{_LATIN}]|[^\w{_of_category('M')}]", character):
        return f"[_{_LATIN}\u0300-\u036f]"
    return f"(?![{_SPACELESS}{_LATIN}])[\\w{_of_category('M')}]"


def is_spaceless(text: str) -> bool:
    """Whether a text has a letter of a script without spaces."""
    return _IS_SPACELESS.search(text) is not None


@cache
def units(*, backwards: bool = False) -> re.Pattern[str]:
    """Pattern of a word, a letter of a script without spaces, or a sign, and a space before; `backwards`: reversed."""
    marks = _of_category("M")
    letter = rf"[{marks}]*[{_SPACELESS}]" if backwards else rf"[{_SPACELESS}][{marks}]*"
    return re.compile(rf" ?(?:{letter}|(?:(?![{_SPACELESS}])[^\W_]|[{marks}])+|\S)")
