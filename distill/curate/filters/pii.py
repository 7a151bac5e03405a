"""Finds personal data (e-mail addresses, numbers, keys); labels, drops or masks it."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

from distill import recipe
from distill.types import Message, Pair, Session, Verdict

Kind = Literal["email", "ip", "phone", "credit_card", "iban", "us_ssn", "secret"]

_EMAIL = re.compile(r"(?<![\w.+-])\w[\w.+-]{0,63}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
_IPV4 = re.compile(
    r"(?=\d)(?<![\w.:])(?<!(?i:section) )(?<!(?i:chapter) )(?<!(?i:version) )(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\w)"
)
_IPV6 = re.compile(r"(?<![\w.:])(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?|(?<!\d[ .-])00[1-9]\d{0,2}[ .-])"
    r"(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}(?![\w-])"
    r"|(?<![\w.+/-])(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[.-]\d{4}(?![\w-])"
)
_CARD = re.compile(r"(?<![\w.-])(?:\d[ -]?){12,18}\d(?![\w-])")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_SECRET = re.compile(
    r"(?<![\w-])(?:sk-(?=[\w-]{0,100}\d)[\w-]{20,200}|A[KS]IA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,80}|github_pat_\w{22,100}"
    r"|xox[abprs]-[\w-]{10,100}|AIza[\w-]{35}|hf_[A-Za-z0-9]{30,50}|eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,2000}"
    r"|[sr]k_live_[A-Za-z0-9]{16,100}|glpat-[\w-]{20,60}|npm_[A-Za-z0-9]{36}|SG\.[\w-]{16,32}\.[\w-]{32,64})(?![\w-])"
    r"|hooks\.slack\.com/services/T\w{6,16}/B\w{6,16}/\w{16,40}"
    r"|-----BEGIN (?:[A-Z]{1,12} ){0,2}PRIVATE KEY(?: BLOCK)?-----"
)
_PLACEHOLDER = re.compile(r"^(?:(?:your|my)?-?(?:domain|company|website))\.com$")
_ISSUERS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3[068]\d{12}|35\d{14}|6\d{15}(?:\d{3})?"
)


class _Finder(NamedTuple):
    kind: Kind
    hints: tuple[str, ...]
    """Only texts with one of them are searched; all texts when empty."""
    digits: int
    """Texts with fewer digits are not searched."""
    pattern: re.Pattern[str]
    length: Callable[[str], int]
    """Length of the valid part of a match, from its start; 0 for none."""


class PersonalData:
    """Personal data by patterns of our own; numbers with a checksum or a known range are verified.

    Verified are cards (Luhn), IBANs (ISO 13616) and social security numbers (the SSA's ranges). Not reported are
    addresses and numbers reserved for examples (RFC 2606, 555-01xx), area code 555, domains such as yourcompany.com,
    and private addresses (RFC 1918). National phone numbers are found in the American form only; secrets by the
    prefixes that their issuers publish. Names and streets are not found, as that takes a model.
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: pii`."""

        action: Literal["label", "drop", "mask"] = "label"
        """`label` or `drop` the session; `mask` replaces the data by `[EMAIL]` and the like, and labels the session."""
        kinds: tuple[Kind, ...] = get_args(Kind)
        """Kinds of personal data that are looked for."""

    scope: Literal["row"] = "row"

    def __init__(self, options: Options) -> None:
        self.options = options
        self._finders = [finder for finder in _FINDERS if finder.kind in options.kinds]

    def measure(self, session: Session) -> dict[str, int]:
        """The number of findings by kind; the data themselves are not recorded."""
        turns = (*session.messages, session.rejected) if isinstance(session, Pair) else session.messages
        return dict(Counter(kind for each in turns for _, _, kind in self._spans(each.content)))

    def decide(self, value: Mapping[str, int]) -> Verdict:
        """Label or drop a session with personal data; the value names the kinds."""
        keep = not value or self.options.action != "drop"
        counts = " ".join(f"{kind}:{count}" for kind, count in sorted(value.items()))
        return Verdict(rule="pii", keep=keep, reason="pii" if value else "ok", value=counts or None, threshold=0)

    def mend(self, session: Session, value: Mapping[str, int]) -> Session:
        """The masked session, if the action is `mask`; else the session itself."""
        if not value or self.options.action != "mask":
            return session
        masked = replace(session, messages=tuple(map(self._masked, session.messages)))
        return replace(masked, rejected=self._masked(masked.rejected)) if isinstance(masked, Pair) else masked

    def _masked(self, message: Message) -> Message:
        return replace(message, content=self._mask(message.content))

    def _mask(self, text: str) -> str:
        while spans := self._spans(text):  # a mask may expose another match: repeat until there is none
            ends = [0, *(end for _, end, _ in spans)]
            pieces = [
                f"{text[before:start]}[{kind.upper()}]" for before, (start, _, kind) in zip(ends, spans, strict=False)
            ]
            text = "".join([*pieces, text[ends[-1] :]])
        return text

    def _spans(self, text: str) -> list[tuple[int, int, str]]:
        """Start, end and kind of each match, in order; of overlapping ones, the first to begin, then the longer."""
        spans = []
        digits = sum(map(text.count, "0123456789"))
        for finder in self._finders:
            if digits >= finder.digits and (not finder.hints or any(hint in text for hint in finder.hints)):
                for match in finder.pattern.finditer(text):
                    if length := finder.length(match.group()):
                        spans.append((match.start(), match.start() + length, finder.kind))
        disjoint: list[tuple[int, int, str]] = []
        for start, end, kind in sorted(spans, key=lambda span: (span[0], -span[1])):
            if not disjoint or start >= disjoint[-1][1]:
                disjoint.append((start, end, kind))
        return disjoint


def _email(text: str) -> int:
    domain = text.rpartition("@")[2].lower()
    example = re.search(r"(?:^|\.)example\.(?:com|org|net)$|\.(?:example|invalid|test|localhost)$", domain)
    return 0 if example or _PLACEHOLDER.search(domain) or text.startswith("git@") else len(text)


def _ip(text: str) -> int:
    """Public addresses only; an IPv6 one needs three groups, as `a::b` occurs in programming languages."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return 0
    groups = [group for group in re.split("[.:]", text) if group]
    return len(text) if address.is_global and len(groups) >= 3 else 0


def _phone(text: str) -> int:
    digits = re.sub(r"\D", "", text)
    fictional = re.search(r"55501\d\d$|^1?555\d{7}$", digits)
    return len(text) if 8 <= len(digits) <= 15 and not fictional else 0


def _card(text: str) -> int:
    """By issuer's prefix and length (ISO/IEC 7812) and Luhn's sum."""
    digits = re.sub(r"\D", "", text)
    products = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    valid = sum(value - 9 * (value > 9) for value in products) % 10 == 0
    return len(text) if valid and _ISSUERS.fullmatch(digits) else 0


def _iban(text: str) -> int:
    """The longest prefix whose remainder modulo 97 is 1 (ISO 13616), since a word in capitals may follow."""
    while len(text) >= 15:
        plain = text.replace(" ", "")
        if len(plain) <= 34 and int("".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])) % 97 == 1:
            return len(text)
        text = text.rpartition(" ")[0]
    return 0


_SECRET_PREFIXES = (
    "sk-",
    "AKIA",
    "ASIA",
    "xox",
    "AIza",
    "hf_",
    "eyJ",
    "-----BEGIN",
    "github_pat_",
    "k_live_",
    "glpat-",
    "npm_",
    "SG.",
    "hooks.slack.com",
    *(f"gh{kind}_" for kind in "pousr"),
)
_FINDERS = (
    _Finder("secret", _SECRET_PREFIXES, 0, _SECRET, len),
    _Finder("email", ("@",), 0, _EMAIL, _email),
    _Finder("iban", (), 6, _IBAN, _iban),
    _Finder("credit_card", (), 13, _CARD, _card),
    _Finder("us_ssn", ("-",), 9, _SSN, len),
    _Finder("ip", (".",), 4, _IPV4, _ip),
    _Finder("ip", (":",), 0, _IPV6, _ip),
    _Finder("phone", (), 8, _PHONE, _phone),
)
