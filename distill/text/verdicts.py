"""Reads which of two answers a judge prefers, in the forms in which judges write it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distill.errors import one_line
from distill.text import verdict_words
from distill.text.judge_replies import MAX_LINE, MAX_NOTE, fold, json_fields, last_fence, plain_lines, plain_reply

UNPARSED = "unparsed"
WEAK, STATED, FINAL = 1, 2, 3
"""Certainty of a statement: a bare letter at the end, a preference in a sentence, a verdict that is called one."""

_WHO = r"(?:answer|assistant|response|reply|model|option|output)"
_CLOSING = (
    r"(?:(?:so|thus|hence|therefore|overall|ultimately|finally|accordingly|in (?:conclusion|summary|short|the end)"
    r"|on balance|all in all|to conclude|based on(?: \w+){1,5})\b[,:]?\s+)*"
)
"""Words that introduce a conclusion."""
_CLOSES = re.compile(_CLOSING, re.IGNORECASE)
_OVERALL = re.compile(r"(?:(?:the|my|our)\s+)*(?:final|overall)\b", re.IGNORECASE)
_NO_STATEMENT = re.compile(r"\W*$|confidence\b", re.IGNORECASE)
"""What may follow a verdict that ends a reply."""
_ORDINAL = re.compile(rf"\b(?:the )?(?:(first)|second) {_WHO}(?!\w)", re.IGNORECASE)
_BEHIND = r"\b(?:than|ahead of|over|against|behind)\s+"
_TIE = rf"(?:tied?|draw|equal(?:ly good)?|both(?! a\b)|neither|{verdict_words.TIE}|(?<=\[\[)c(?=\]\]))"
_SIDE = (
    rf"(?:\u56de\u7b54|\u52a9\u624b|\b(?:the\s+)?(?:{_WHO}[\s_]*)?)[\s(\[\"'\u201c\u2018]*"
    r"(?<![^\W_\u7b54\u624b])(?P<side>[ab])(?![^\W_])[)\]\"'\u201d\u2019]*"
)
_DEGREE = r"(?:(?:slightly|clearly|significantly|strongly|definitely|narrowly|leaning|for|to|towards?|that)\s+)*"
_BODY = re.compile(
    rf"[\s\[(\"'\u201c\u2018]*(?:(?:it(?:'s| is)\s+)?(?:an?\s+)?(?P<tie>{_TIE})(?!\w)|{_DEGREE}{_SIDE})(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_RANKED = re.compile(r"\W*([AB])\s*(>{1,2}|={1,2}|<{1,2})\s*([AB])\W*")
"""Arena-Hard's labels, such as "[[A>>B]]" (Li et al., 2024, arXiv 2406.11939)."""
_VERDICT = rf"(?:verdict|judge?ment|decision|result|{verdict_words.VERDICT})"
_LABEL = re.compile(
    rf"{_CLOSING}(?:(?:the|my|our|final|overall|total)\s+)*"
    rf"(?:(?P<final>{_VERDICT}(?:\s+(?:fina\w+|définitif))?)|(?P<weak>answer|choice|output)"
    rf"|(?:winner|preference|conclusion|rank(?:ing)?|(?:better|best|preferred)(?:\s+(?:one|{_WHO}))?))"
    r"(?:\s*\([^()]{1,40}\))?"
    r"(?:\s*[:\uff1a=|\u2013\u2014\u2192-]+\s*|\s+(?:is|would be)\b(?:\s*:)?\s*|\s*$)(?P<body>.*)",
    re.IGNORECASE | re.DOTALL,
)
_BECAUSE = r"(?:because|since|as|for|due|given|by|over|than|whereas|while|although|though|but|with)\b"
_REASON = re.compile(rf"[\s)]*(?:(?P<plain>[,;.:\u2013\u2014(-]+)\s*)?(?P<because>{_BECAUSE})?", re.IGNORECASE)
"""How a remark after a side begins: "A, because", "A (slightly)"."""
_BETTER = r"(?:better|best|stronger|superior|preferable|more (?:helpful|accurate|useful|complete|correct)|the winner)\b"
_UNTURNED = rf"(?:(?!\b{_WHO}\b|n't\b|\b(?:not|no|never|nor|worse|less|neither)\b)[^.\n])"
"""Text between an answer's letter and "better": no negation, and no other answer."""
_LETTER = r"\(?(?P<{}>(?-i:[AB])|(?<=\()[ab](?=\)))\)?"
_PROSE = re.compile(
    rf"(?:(?:\b(?P<who>{_WHO})[ \t]+|^|[,;:][ \t]*|\b(?:so|that|and|but|think|believe|overall|therefore)[ \t]+)"
    rf"{_LETTER.format('better')}(?:'s (?:{_WHO}))?[ \t]+(?:(?:wins|better serves|(?:gets|has) the higher score)\b"
    rf"|(?:is|was|does|serves|answers)\b{_UNTURNED}{{0,40}}?(?:\b{_BETTER}|\bwins\b))"
    rf"|\b(?:prefer|choose|pick|favou?r|go with|vote goes to)[ \t]+(?:{_WHO}[ \t]+)?{_LETTER.format('chosen')}"
    r"(?=[\s.,;!]|$)"
    rf"|\b(?:winner|better {_WHO}|best {_WHO}|better one)[ \t]*(?:is|:)[ \t]*(?:{_WHO}[ \t]+)?{_LETTER.format('named')}"
    r"(?=[\s.,;!]|$)|(?P<tie>\b(?:it(?:'s| is)|this is|call(?:ing)? (?:it|this)(?: one)?|overall,?)[ \t]+"
    r"(?:a[ \t]+(?:tie|draw)|even)\b"
    rf"|\bboth (?:{_WHO}s )?are equally \w+|\bneither (?:{_WHO} )?(?:is|serves) better\b))",
    re.IGNORECASE,
)
_NEGATED = re.compile(
    r"(?:\b(?:cannot|not|never|whether|if|would be|may|might|could|some|claim\w*|sa(?:y|ys|id)|ask\w*|states?|insist\w*"
    r"|argue\w*)\b|n't\b)[^.\n]{0,30}$",
    re.IGNORECASE,
)
"""Words that deny what follows, or that report what another text says."""
_CONDITION = re.compile(r"\W{0,3}(?:but\s+)?(?:only\s+)?(?:if|unless|when|depending)\b", re.IGNORECASE)
_CHOICES = re.compile(r"^\W{0,3}A[.):].*^\W{0,3}B[.):]|\\boxed\{", re.MULTILINE | re.DOTALL)
"""A question with lettered choices: a bare letter in a reply may be the judge's answer to it."""
_QUOTE = re.compile(r"[\"\u201c]([^\"\u201c\u201d]{1,400})[\"\u201d]|(?<=\s)'([^'\n]{1,400})'(?=[\s.,;]|$)")
_TAGGED = re.compile(
    r"<(verdict|winner|decision|result|preference|choice|answer)>\s*([^<>]{1,80}?)\s*</\1>", re.IGNORECASE
)
_BOXED = re.compile(r"\$*\\boxed\{(?:\\text(?:bf)?\{)?\s*([^{}]{1,40}?)\s*\}{1,2}\$*")
_RESULT = re.compile(r"\[RESULT\]\s*:?", re.IGNORECASE)
"""The sign of Prometheus (Kim et al., 2024)."""
_MARKER = re.compile(r"(?P<lead>.*?)(?P<mark>\[\[[^\[\]]{1,12}\]\])[\s.!]*", re.DOTALL)
_LEAD = re.compile(
    r"(?!.*\b(?:[AB]|asks?|says?|writes?|ends?|outputs?|states?|claims?)\b)[^.!?]{2,40}[:\uff1a]", re.IGNORECASE
)
"""A label in any words before a marker, where it reports no other text."""
_MARKUP = re.compile(r"[*`#]+|(?<!\w)_+|_+(?!\w)")
_BULLET = re.compile(r"^(?:\d+[.)]\s|[^\w\[(\"'\u201c])+")
_CONTRAST = re.compile(r"\b(?:but|although|though|however|yet|overall|still|while|whereas)\b", re.IGNORECASE)
_RANK_ONE = re.compile(r"\{\s*[\"']\w+[\"']\s*:\s*[\"'](?:\w+[ _])?([AB])[\"']\s*,\s*[\"']rank[\"']\s*:\s*1\s*\}")
"""The first in a ranking as AlpacaEval's judges write it."""
_OBJECT_LAST = re.compile(r"\{[^{}]*\}\s*\Z")
_FIELDS = ("verdict", "final_verdict", "winner", "better", "preference", "preferred", "decision", "choice", "answer")


@dataclass(frozen=True, slots=True)
class Statement:
    """A place of a reply that states a verdict."""

    verdict: str
    """`A`, `B`, `tie`; `unparsed` where it names a side and decides for none."""
    certainty: int
    words: str
    """The words that state it; the session's own do not count."""


def read_verdict(reply: str, *, texts: Sequence[str] = (), tag: str = "", is_cut: bool = False) -> tuple[str, str]:
    """`A`, `B`, `tie` or `unparsed`, and the judge's reasons.

    The last of the most certain statements counts, unless a later one contradicts it. Thoughts, fences, quotations, and
    statements that stand in the judged `texts` in the same words do not count. Of a reply that `is_cut`, only a verdict
    that is called one does: what was to follow a sentence is unknown.
    """
    text = _ORDINAL.sub(lambda match: "answer A" if match[1] else "answer B", plain_reply(reply, tag))
    session, has_choices = fold("\n".join(texts)), any(_CHOICES.search(each) for each in texts)
    said = [
        one for one in _statements(text)
        if (fold(one.words).strip() in ("a", "b", "tie") or fold(one.words) not in session)
        and one.certainty >= (FINAL if is_cut else STATED if has_choices else WEAK)
    ]  # fmt: skip
    return _decision(said), one_line(_reasons(text, said), MAX_NOTE)


def _decision(said: Sequence[Statement]) -> str:
    most = max((one.certainty for one in said), default=0)
    top = [place for place, one in enumerate(said) if one.certainty == most]
    if not top:
        return UNPARSED
    sides = {one.verdict for one in said[top[-1] :]} | (
        {said[place].verdict for place in top} if most < FINAL else set()
    )
    return UNPARSED if {"A", "B"} <= sides else said[top[-1]].verdict


def _reasons(text: str, said: Sequence[Statement]) -> str:
    """The reply without the line that states the verdict."""
    verdict = fold(said[-1].words).strip() if said else None
    return " ".join(line for line in plain_lines(text) if fold(line).strip() != verdict) or text


def _statements(text: str) -> Iterator[Statement]:
    """The statements of a reply in their order."""
    yield from _sentences(_lines(text))
    fence = last_fence(text)[1]
    yield from _sentences(_lines(fence))
    last = _OBJECT_LAST.search(text)
    for piece in dict.fromkeys((text, fence, last[0] if last else "")):
        if (verdict := _of_object(piece)) is not None:
            yield Statement(verdict, FINAL, piece)


def _lines(text: str) -> list[str]:
    """Lines without markup and quotations; a heading of one word such as "Verdict" joins the line below it."""
    for pattern, form in ((_TAGGED, r"\n\1: \2\n"), (_RESULT, "\nVerdict: "), (_BOXED, r"\n\1\n")):
        text = pattern.sub(form, text)
    if all(line.lstrip().startswith(">") for line in text.splitlines() if line.strip()):
        text = re.sub(r"^\s*>", "", text, flags=re.MULTILINE)
    kept = _QUOTE.sub(
        lambda quote: quote[1] or quote[2] if _body(quote[1] or quote[2]) else "\u2026", "\n".join(plain_lines(text))
    )
    lines: list[str] = []
    for line in filter(None, map(_bare, kept.splitlines())):
        label = _LABEL.fullmatch(lines[-1]) if lines and len(lines[-1]) <= MAX_LINE else None
        is_heading = (label is not None and not label["body"]) or (lines and _OVERALL.fullmatch(lines[-1]))
        lines[-1:] = [f"{lines[-1].rstrip(': ')}: {line}"] if is_heading else [*lines[-1:], line]
    return lines


def _bare(line: str) -> str:
    bare = _BULLET.sub("", _MARKUP.sub("", line).strip()).rstrip("| ")
    cells = bare.split("|")  # of a table's row the first cell is the label, and the last the verdict
    return f"{cells[0].strip()}: {cells[-1].strip()}" if len(cells) > 2 else bare


def _sentences(lines: Sequence[str]) -> Iterator[Statement]:
    pieces = (unit for line in lines for unit in re.split(r"(?<=[.!?])\s+(?=[^\s\W]|\[)", line))
    units = [unit for unit in pieces if not _NO_STATEMENT.match(unit)]
    for place, unit in enumerate(units):
        if len(unit) <= MAX_LINE and (said := _of_unit(unit, is_last=place == len(units) - 1)) is not None:
            yield said


def _of_unit(unit: str, *, is_last: bool) -> Statement | None:
    """What a sentence states."""
    if (marked := _MARKER.fullmatch(unit)) is not None:
        return _of_marker(unit, marked["lead"], _body(marked["mark"]))
    closing = match[0] if (match := _CLOSES.match(unit)) else ""
    certainty = FINAL if closing else STATED
    label = _LABEL.fullmatch(unit)
    if label is not None and (verdict := _of_label(label["body"])) is not None:
        if label["weak"]:
            return Statement(verdict, WEAK, unit) if is_last else None
        return Statement(verdict, FINAL if label["final"] or _OVERALL.match(unit) else certainty, unit)
    if (prose := _of_prose(unit)) is not None:
        return Statement(prose[0], certainty, prose[1])
    rest = unit[len(closing) :]
    if rest.startswith("[["):
        verdict = _body(rest)
        return Statement(verdict, FINAL, unit) if verdict else None
    verdict = _alone(rest) if is_last else None
    return Statement(verdict, FINAL if closing else WEAK, unit) if verdict else None


def _of_marker(unit: str, lead: str, verdict: str | None) -> Statement | None:
    """A marker such as "[[A]]" that ends a sentence counts where the words before it are a label or agree."""
    if verdict is None:
        return None
    if _alone(lead) not in (None, verdict):
        return Statement(UNPARSED, FINAL, unit)
    said, label = _of_prose(lead), _LABEL.fullmatch(lead.strip()) or _LEAD.fullmatch(lead.strip())
    if said is not None and said[0] != verdict:
        return Statement(UNPARSED, FINAL, unit)
    is_own = said is not None or label is not None or _CLOSES.fullmatch(f"{lead} ")
    return Statement(verdict, FINAL, unit) if is_own or not lead.strip() else None


def _of_label(body: str) -> str | None:
    """The verdict after a label; `unparsed` where it names a side and is none; None where it names no side."""
    if (verdict := _body(body)) is not None:
        return verdict
    if (prose := _of_prose(body)) is not None:
        return prose[0]
    return UNPARSED if re.search(r"\b[AB]\b", body) else None


def _body(text: str) -> str | None:
    """The verdict that a text begins with, where what follows it is a reason and not another side."""
    if (ranked := _RANKED.fullmatch(text)) is not None:
        first, sign, second = ranked.groups()
        return "tie" if sign[0] == "=" else None if first == second else first if sign[0] == ">" else second
    found = _BODY.fullmatch(text)
    if found is None:
        return None
    rest = found["rest"]
    if found["tie"]:
        return None if re.search(r"\bor\b", rest) else "tie"
    side, other = found["side"].upper(), "B" if found["side"] in "aA" else "A"
    if found["side"].islower() and re.search(r"\w", rest):
        return None
    return side if _is_reason(rest, other) else None


def _is_reason(rest: str, other: str) -> bool:
    """Whether the words after a side leave the verdict as it is."""
    if (prose := _of_prose(rest)) is not None and prose[0] != "tie":
        return prose[0] != other
    if not re.search(r"\w", rest) or re.match(
        rf"\s+(?:wins\b|(?:is|was)\b{_UNTURNED}{{0,40}}?{_BETTER})", rest, re.IGNORECASE
    ):
        return True
    reason = _REASON.match(rest)
    if reason is None or not (reason["plain"] or reason["because"]):
        return False
    without_loser = re.sub(rf"{_BEHIND}(?:{_WHO}\s+)?{other}\b", "", rest, flags=re.IGNORECASE)
    return bool(reason["because"]) or not re.search(rf"\b{other}\b|\bor\b", without_loser)


def _alone(text: str) -> str | None:
    """The verdict of a sentence that is nothing else."""
    found = _BODY.fullmatch(text)
    is_alone = _RANKED.fullmatch(text) or (found is not None and not re.search(r"\w", found["rest"]))
    return _body(text) if is_alone else None


def _of_prose(text: str) -> tuple[str, str] | None:
    """The last preference that a sentence states, `unparsed` where it prefers each for something; and its words."""
    found = list(_PROSE.finditer(text))
    if any(_CONDITION.match(text, match.end()) for match in found):
        return None
    counted = [match for match in found if not _NEGATED.search(text[: match.start()])]
    if not counted:
        return verdict_words.preference(text)
    last, sides = counted[-1], [_side(match) for match in counted]
    is_split = {"A", "B"} <= set(sides) and not _CONTRAST.search(text)
    return UNPARSED if is_split else sides[-1], last[0]


def _side(match: re.Match[str]) -> str:
    side = match["better"] or match["chosen"] or match["named"]
    return side.upper() if side else "tie"


def _of_object(text: str) -> str | None:
    """The verdict in a JSON object."""
    fields = json_fields(text)
    verdict = next((fields[key] for key in _FIELDS if key in fields), None)
    if isinstance(verdict, str):
        return _body(verdict)
    return first[1] if (first := _RANK_ONE.search(text)) else None
