"""Strips wrappers from a reply: code fence, greeting, quotes, closing remark."""

from __future__ import annotations

import re

_FENCED = re.compile(r"\A(?P<mark>```|~~~)[^\n]*\n(?P<inside>.*?)\n?(?P=mark)\Z", re.DOTALL)
_RULER = re.compile(r"[-=#*_]{3,}")
_LINE = r"[^\n]{0,300}"
"""The rest of a line that may be a greeting or a preface; unbounded, it would take quadratic time."""
MAX_REMARK = 500
"""Characters of the longest closing remark."""
MAX_NO_INPUT = 100
"""Characters of the longest way to say that there is no input."""
_OF_THE_WHOLE = "(?:tasks?|lists?|topics|blocks|batch|conversation|dialogue|transcript)"
_REMARK = re.compile(
    r"\W*(?:(?:please )?let me know|i hope|would you like|do you want|that (?:makes|completes))\b"
    rf"[^\n]*\b{_OF_THE_WHOLE}\b[^\n]*|\W*these {_OF_THE_WHOLE}\b[^\n]*|\W*end of (?:the )?{_OF_THE_WHOLE}\W*"
    r"|\W*(?:please )?let me know if you(?:'d like|\u2019d like| want| need| would like) (?:any )?more\W*"
    r"|\W*i hope (?:this|these|that) helps?\W*",
    re.IGNORECASE,
)
_GREETING = rf"(?:sure|certainly|of course|okay|ok|absolutely)\b{_LINE}[:!.]"
_HERE = r"here(?:'s|\u2019s| is| are)\b"
_PREFACE = re.compile(
    rf"\A(?:{_GREETING}|{_HERE}{_LINE}\b(?:revis|rewrit|version|prompt|instruction){_LINE}:)[ \t]*\n\s*(?=\S)",
    re.IGNORECASE,
)
_BEFORE_FENCE = re.compile(rf"\A(?:{_GREETING}|{_HERE}{_LINE}:)\s*\n(?=```|~~~)", re.IGNORECASE)
_QUOTES = {'"': '"', "\u201c": "\u201d", "\u201e": "\u201c", "\u00ab": "\u00bb"}
_DONE = "help|assist|fulfil|comply|continue|provide|create|write|rewrite|revise|generate|produce|do (?:that|this|so)"
_UNABLE = (
    rf"(?:i (?:cannot|can't|can\u2019t|won't|won\u2019t) (?:{_DONE})\b"
    r"|i(?:'m|\u2019m| am) (?:not able|unable) to\b|as an ai\b)"
)
_REFUSES = re.compile(
    rf"\A\W*(?:{_UNABLE}|(?:i(?:'m|\u2019m| am) )?(?:very |so )?sorry,? (?:but )?{_UNABLE}"
    rf"|(?:i(?:'m|\u2019m| am) (?:very |so )?sorry|i apologi[sz]e|apologies),? but\b)",
    re.IGNORECASE,
)
_NO_INPUT = re.compile(
    r"[\s<>()\[\]{}*_#`\"'.\u2013\u2014-]*(?:(?:no[\s_-]?input|n/?a|none|not applicable)"
    r"(?: (?:is )?(?:needed|necessary|required|given|provided))?)?[\s<>()\[\]{}*_#`\"'.\u2013\u2014-]*",
    re.IGNORECASE,
)


def strip_wrappers(text: str) -> str:
    """A list or transcript without a fence around it and without a closing remark.

    Line ends become line feeds. A fence that holds only part of the text stays.
    """
    text = "\n".join(text.split("\r\n")).strip()
    fence = _FENCED.match(_BEFORE_FENCE.sub("", text))
    if fence is not None and fence["mark"] not in fence["inside"]:
        text = fence["inside"].strip()
    rest, gap, last = text.rpartition("\n\n")
    return without_rulers(rest) if gap and len(last) <= MAX_REMARK and _REMARK.fullmatch(last) else text


def without_rulers(text: str) -> str:
    """The stripped text without separators at its end, such as `---` or `###`."""
    lines = text.strip().split("\n")
    while lines and (not lines[-1].strip() or _RULER.fullmatch(lines[-1].strip())):
        lines.pop()
    return "\n".join(lines).strip()


def bare(text: str) -> str:
    """A single text without a greeting line before it ("Sure! Here it is:") or quotation marks around it."""
    return strip_quotes(_PREFACE.sub("", strip_wrappers(text)))


def strip_quotes(text: str) -> str:
    """A text without quotation marks around it; they stay where the closing mark also occurs within."""
    text = text.strip()
    closing = _QUOTES.get(text[:1])
    is_quoted = closing is not None and len(text) > 1 and text.endswith(closing) and closing not in text[1:-1]
    return text[1:-1].strip() if is_quoted else text


def refuses(text: str) -> bool:
    """Whether the text begins with a refusal, as a user's turn never would."""
    return _REFUSES.match(text) is not None


def is_no_input(text: str) -> bool:
    """Whether an input field means none: empty, `<noinput>`, "N/A", "None needed"."""
    text = text.strip()
    return len(text) <= MAX_NO_INPUT and _NO_INPUT.fullmatch(text) is not None
