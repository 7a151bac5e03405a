"""References: the right answers of tasks and rows, and the checks that hold a model's answer against them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias, get_args

from distill.text.answer_checks import (
    final_answer,
    label_key,
    label_of,
    matches,
    number,
    pattern_fault,
    same_number,
    same_text,
    same_words,
    vote,
)
from distill.text.thinking import in_text
from distill.text.tokens import normalise
from distill.text.words import word_count

Checking: TypeAlias = Literal["numeric", "exact", "normalised", "choice", "contains", "regex", "json"]
KINDS: tuple[Checking, ...] = get_args(Checking)
KEYS = ("reference", "answer")
"""Keys of a reference in a task's or session's meta, the first present one counts; the second is of older tasks."""
LONGEST_SHOWN = 60
MOST_WORDS = 20
"""Words of a final answer up to which it is compared as text where no check is given; a longer one is prose."""
MOST_NESTED = 100
"""Levels of JSON that are compared."""
_MEASURE = re.compile(r"[$€£¥]?\s?[-+−]?[\d.,/]+(?:[eE][-+]?\d+)?(?:\s?%)?(?:\s\S+){0,2}")
"""A number, with a currency before it or its unit behind it."""


@dataclass(frozen=True, slots=True)
class Check:
    """How an answer is held against a reference."""

    kind: Checking | None = None
    """By the type of each accepted answer where it is `None`."""
    tolerance: float = 0.0
    """Greatest absolute difference of numbers."""
    labels: tuple[str, ...] = ()
    """The labels to choose from."""

    def kind_for(self, accepted: Any) -> Checking:
        """`json` for objects and lists, `choice` among labels, `numeric` for numbers and amounts, else `exact`."""
        if self.kind is not None:
            return self.kind
        if isinstance(accepted, (dict, list)):
            return "json"
        if self.labels:
            return "choice"
        text = final_answer(as_text(accepted))
        return "numeric" if number(text) is not None and _MEASURE.fullmatch(text) else "exact"


@dataclass(frozen=True, slots=True)
class Reference:
    """The accepted answers of a task, one or more."""

    accepted: tuple[Any, ...]
    """Texts, numbers, truth values, objects or lists of JSON; any of them is right."""
    checks: tuple[Check, ...]
    """All of them must pass."""

    def passes(self, text: str) -> bool:
        """Whether an answer is right; thoughts before it do not count."""
        text = in_text(text).answer
        return all(any(_passes(text, one, check) for one in self.accepted) for check in self.checks)

    def fault(self) -> str | None:
        """Why the reference cannot be checked; `None` where it can."""
        pairs = ((one, check) for check in self.checks for one in self.accepted)
        return next(filter(None, (_fault(one, check) for one, check in pairs)), None)

    def field_f1(self, text: str) -> float | None:
        """F1 of an answer's JSON fields, the greatest over the accepted answers; `None` where none is JSON."""
        pairs = ((one, check) for check in self.checks for one in self.accepted)
        expected = [json_of(one) for one, check in pairs if check.kind_for(one) == "json"]
        given = json_in(in_text(text).answer)
        return max((_f1(given[0], one[0]) if given else 0.0 for one in expected if one), default=None)

    def labelled(self, text: str) -> tuple[str, str | None] | None:
        """The right label, and the one that an answer gives, `None` without one; `None` where labels are not asked for.

        Of several right labels, the given one if it is among them.
        """
        check = self.checks[0]
        if not check.labels or any(check.kind_for(one) != "choice" for one in self.accepted):
            return None
        right = [next(_known(as_text(one), check.labels), as_text(one)) for one in self.accepted]
        given = label_of(in_text(text).answer, check.labels)
        return (given if given in right else right[0]), given


def vote_of(text: str, check: Check) -> str | None:
    """The key by which an answer votes: its label, its JSON value, or its final answer; `None` without one."""
    text = in_text(text).answer
    if check.labels:
        return label_of(text, check.labels)
    if check.kind == "json":
        value = json_in(text)
        return None if value is None else json.dumps(value[0], sort_keys=True)
    return vote(text) or None


def raw(meta: Mapping[str, Any], *, turn: int = 0) -> Any:
    """The reference of a task's or session's meta, or of a row; `None` without one.

    For a question of several turns with a reference for each, as in MT-Bench, that of one `turn`.
    """
    value = next((meta[name] for name in KEYS if not _is_blank(meta.get(name))), None)
    turns = meta.get("turns")
    if isinstance(value, list) and isinstance(turns, list) and len(value) == len(turns) > 1:
        return None if _is_blank(value[turn]) else value[turn]
    return value


def read(meta: Mapping[str, Any], default: Check) -> Reference | None:
    """The reference of a task's or session's meta, or of a row, with its checks; `None` without one.

    A list has the accepted answers; an answer that is a list itself stands in a list of one. Without `checks` of
    `KINDS` of its own, `default` is its check. Raises `ValueError` with a reason on one line for a faulty check.
    """
    value = raw(meta)
    accepted = tuple(one for one in (value if isinstance(value, list) else [value]) if not _is_blank(one))
    if not accepted:
        return None
    own = [replace(check, labels=check.labels or default.labels) for check in map(check_of, checks_in(meta))]
    return Reference(accepted, tuple(own) or (default,))


def fault(meta: Mapping[str, Any], default: Check) -> str | None:
    """Why no answer can be held against the reference of a task's or session's meta; `None` where one can."""
    try:
        reference = read(meta, default)
    except ValueError as error:
        return str(error)
    return "it has no reference" if reference is None else reference.fault()


def shown(meta: Mapping[str, Any]) -> str | None:
    """The reference for a reader: all accepted answers, or those of all turns; `None` without one."""
    value = next((meta[name] for name in KEYS if not _is_blank(meta.get(name))), None)
    parts = value if isinstance(value, list) else [value]
    return "\n\n".join(as_text(one) for one in parts if not _is_blank(one)) or None


def carried(meta: Mapping[str, Any], *, turn: int = 0) -> dict[str, Any]:
    """The entries of a task's meta that its sessions have too: `reference` and `checks`, as of `raw`."""
    entries = {"reference": raw(meta, turn=turn), "checks": meta.get("checks")}
    return {name: value for name, value in entries.items() if not _is_blank(value)}


def checks_in(meta: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Checks of answers among the `checks` of a row, which may have instructions to check as well."""
    checks = meta.get("checks")
    for one in checks if isinstance(checks, list) else ():
        if isinstance(one, dict) and one.get("kind") in KINDS:
            yield one


def check_of(values: Mapping[str, Any]) -> Check:
    """A check as a row has it, such as `{"kind": "numeric", "tolerance": 0.01}`. Raises `ValueError`."""
    tolerance, labels = values.get("tolerance", 0.0), values.get("labels") or ()
    if unknown := values.keys() - {"kind", "tolerance", "labels"}:
        raise ValueError(f"checks: unknown key {min(unknown)!r}; expected kind, tolerance or labels")
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < float("inf"):
        raise ValueError(f"checks: tolerance {_short(tolerance)}; expected a number of 0 or more")
    if not isinstance(labels, (list, tuple)) or not all(isinstance(one, str) and one.strip() for one in labels):
        raise ValueError(f"checks: labels {_short(labels)}; expected a list of texts")
    return Check(values.get("kind"), tolerance, tuple(labels))


def as_text(value: Any) -> str:
    """An accepted answer as text: JSON of what is none."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _is_blank(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


# Checks


def _json_equal(text: str, accepted: Any) -> bool:
    given, expected = json_in(text), json_of(accepted)
    return given is not None and expected is not None and same_json(given[0], expected[0])


def _choice(text: str, accepted: Any, check: Check) -> bool:
    given = label_of(text, check.labels) if check.labels else final_answer(text)
    return given is not None and label_key(given) == label_key(as_text(accepted))


CHECKS: Mapping[Checking, Callable[[str, Any, Check], bool]] = {
    "numeric": lambda text, accepted, check: same_number(text, as_text(accepted), check.tolerance),
    "exact": lambda text, accepted, _: same_text(text, as_text(accepted)),
    "normalised": lambda text, accepted, _: same_words(text, as_text(accepted)),
    "choice": _choice,
    "contains": lambda text, accepted, _: normalise(as_text(accepted)) in normalise(text),
    "regex": lambda text, accepted, _: matches(text, accepted),
    "json": lambda text, accepted, _: _json_equal(text, accepted),
}


def _passes(text: str, accepted: Any, check: Check) -> bool:
    return CHECKS[check.kind_for(accepted)](text, accepted, check)


# Faults


def _fault(accepted: Any, check: Check) -> str | None:
    kind = check.kind_for(accepted)
    why = _FAULTS[kind](accepted, check) if kind in _FAULTS else None
    if kind != "json" and isinstance(accepted, (dict, list)):
        why = f"is JSON, and the check `{kind}` needs a text or a number"
    return why and f"the reference {_short(accepted)} {why}"


def _prose(accepted: Any, check: Check) -> str | None:
    is_prose = check.kind is None and word_count(final_answer(as_text(accepted))) > MOST_WORDS
    return "is prose; give a check, such as `contains` or `numeric`" if is_prose else None


def _no_number(accepted: Any, check: Check) -> str | None:
    is_number = not isinstance(accepted, bool) and number(as_text(accepted)) is not None
    return None if is_number else "is no number, as the check `numeric` needs"


def _no_label(accepted: Any, check: Check) -> str | None:
    known = not check.labels or next(_known(as_text(accepted), check.labels), None) is not None
    return None if known else f"is none of the labels{_suggested(as_text(accepted), check.labels)}"


_FAULTS: Mapping[Checking, Callable[[Any, Check], str | None]] = {
    "json": lambda accepted, _: "is no JSON, as the check `json` needs" if json_of(accepted) is None else None,
    "numeric": _no_number,
    "regex": lambda accepted, _: (
        pattern_fault(accepted) if isinstance(accepted, str) else "is no text, as the check `regex` needs"
    ),
    "choice": _no_label,
    "exact": _prose,
}
"""Why a reference is of another type than its check, by the kind of check."""


def _known(value: str, labels: Sequence[str]) -> Iterator[str]:
    return (label for label in labels if label_key(label) == label_key(value))


def _suggested(value: str, labels: Sequence[str]) -> str:
    close = get_close_matches(value, labels, n=1)
    return f'; did you mean "{close[0]}"?' if close else f" {', '.join(labels)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


# JSON

_FENCED = re.compile(r"```[a-zA-Z]*[ \t]*\n(.*?)```", re.DOTALL)


def json_of(accepted: Any) -> tuple[Any] | None:
    """A reference's JSON value: itself, or what its text holds; `None` where that is no JSON."""
    return _parsed(accepted) if isinstance(accepted, str) else (accepted,)


def json_in(text: str) -> tuple[Any] | None:
    """The JSON value of an answer: the whole text, a fenced block, or what is between the outermost brackets."""
    fenced = _FENCED.search(text)
    starts = [place for place in (text.find("{"), text.find("[")) if place >= 0]
    outermost = text[min(starts) : max(text.rfind("}"), text.rfind("]")) + 1] if starts else ""
    forms = filter(None, (text, fenced and fenced[1], outermost))
    return next((value for form in forms if (value := _parsed(form)) is not None), None)


def _parsed(text: str) -> tuple[Any] | None:
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return (value,) if _is_shallow(value, MOST_NESTED) else None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _is_shallow(value: Any, levels: int) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_shallow(one, levels - 1) for one in items)


def same_json(one: Any, other: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0 but not true; the order of keys does not count, that of items does."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of a JSON value with their paths; items of a list share a path, so their order does not count."""
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else (("[]", one) for one in value)
        for key, one in items:
            yield from _fields(one, f"{path}/{key}")
        return
    is_whole = isinstance(value, float) and value.is_integer()
    yield path, json.dumps(int(value) if is_whole else value)


def _f1(value: Any, reference: Any) -> float:
    given, expected = Counter(_fields(value)), Counter(_fields(reference))
    return 2 * (given & expected).total() / (given.total() + expected.total())
