"""Labels, or drops, answers in which the teacher declines or speaks of itself as a model."""

from __future__ import annotations

import re
from typing import Literal

from distill import recipe
from distill.filters import answers_of
from distill.types import Session, Verdict

_NOT_ABLE = r"(?:unable|not able|not allowed)"
_CANNOT = rf"(?:can(?:no|')t|can not|could(?: not|n't)|am {_NOT_ABLE}|'m {_NOT_ABLE}|will not|won't)"
_SERVE = (
    r"(?:help|assist|provide|answer|comply|do that|fulfil|complete|create|generate|write|access|browse|open|view|"
    r"see|discuss|support|offer|give|share|respond|process|perform|continue)"
)
_APOLOGY = r"(?:(?:i'm|i am|we're) (?:\w+ )?sorry|sorry|(?:my )?apologies|i apologi[sz]e|unfortunately|regrettably)"

_AT_THE_START = (
    rf"{_APOLOGY}\b[^.!?]{{0,60}}?\bi ?{_CANNOT}(?: \w+)? (?:to )?{_SERVE}\b",
    rf"i ?{_CANNOT}(?: \w+)? (?:to )?{_SERVE}\b",
    r"(?:i'm|i am) sorry for (?:any|the) (?:confusion|inconvenience)\b",
    r"(?:i'm|i am) (?:just |only |simply )?an? (?:ai|artificial intelligence|(?:large )?language model|chatbot)\b",
)
_ANYWHERE = (
    r"\bas an? (?:ai|artificial intelligence|digital assistant|virtual assistant)\b(?: language)?(?: model| assistant"
    r"| chatbot| system)?(?:,| i\b| my\b| developed| created| trained)",
    r"\bas a (?:large )?language model\b",
    r"\bi (?:don't|do not) have (?:\w+ )?(?:feelings|emotions|consciousness|personal opinions|personal experiences|"
    r"real-time|a physical body|access to (?:the internet|real-time))",
    r"\bmy (?:training data|knowledge cut-?off)\b",
    r"\bi was (?:created|trained|developed) by (?:openai|anthropic|google|meta|hugging ?face)\b",
    r"\bagainst my (?:programming|guidelines|ethical guidelines)\b",
)
_START = re.compile("|".join(f"(?:{pattern})" for pattern in _AT_THE_START))
_INSIDE = re.compile("|".join(_ANYWHERE))


class Refusal:
    """English phrases of refusal, at an answer's start, and of a model about itself, anywhere.

    The list is our own. It labels by default, because to decline is sometimes the right answer, and because an
    imitation without any refusal declines nothing.
    """

    class Options(recipe.Options):
        """Options of `filter: refusal`."""

        drop: bool = False
        """Drop them; else they are labelled."""

    scope: Literal["row"] = "row"

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, session: Session) -> str | None:
        """The first phrase found, in lower case, or `None`."""
        return next((phrase for answer in answers_of(session) if (phrase := refusing_phrase(answer))), None)

    def decide(self, value: str | None) -> Verdict:
        """Label or drop an answer with such a phrase."""
        keep = value is None or not self.options.drop
        return Verdict(rule="refusal", keep=keep, reason="ok" if value is None else "refusal", value=value)


def refusing_phrase(answer: str) -> str | None:
    """The phrase by which an answer declines, in lower case with straight apostrophes, or `None`."""
    text = " ".join(answer.lower().replace("\u2019", "'").split()).lstrip("\"'*_ ")
    found = _START.match(text) or _INSIDE.search(text)
    return found.group() if found else None
