"""Labels or drops refusals, and answers in which the model speaks about itself."""

from __future__ import annotations

import re
from typing import Literal

from distill import recipe
from distill.curate.filters import answers_of
from distill.types import Session, Verdict

_NOT_ABLE = r"(?:unable|not able|not allowed)"
_CANNOT = rf"(?:can(?:no|')t|can not|could(?: not|n't)|am {_NOT_ABLE}|'m {_NOT_ABLE}|will not|won't)"
_SERVE = (
    r"(?:help(?! but\b| myself\b| it\b| (?!to\b)\w+ing\b)|assist|provide|answer|comply|do that|fulfil{1,2}|complete"
    r"|create|generate|access|browse|discuss|support|respond|process|perform|retrieve|determine|estimate|predict|summari[sz]e"
    r"|translate|analy[sz]e|display|recommend|verify)"
)
_SAY = r"(?:write|open|view|see|offer|give|share|continue|tell|find|identify|play|draw|read|search|make|execute|edit)"
_APOLOGY = r"(?:(?:i'm|i am|we're) (?:\w+ )?sorry|sorry|(?:my )?apologies|i apologi[sz]e|unfortunately|regrettably)"
_A_MODEL = (
    r"(?:just |only |simply |merely )?an? (?:ai|artificial intelligence|(?:large |ai )?language model|virtual assistant"
    r"|chatbot)\b(?![,.!?]?\")"  # nor a robot of a story
)
_LACK = r"(?:(?:don't|do not) (?:currently )?have|lack)"

_AT_THE_START = (
    rf"{_APOLOGY}\b[^.!?]{{0,60}}?\bi ?{_CANNOT}(?: \w+)? (?:to )?(?:{_SERVE}|{_SAY})\b",
    rf"{_APOLOGY}\b[^.!?]{{0,60}}?\b(?:i'm|i am) {_A_MODEL}",
    rf"{_APOLOGY}\b[^.!?]{{0,60}}?\bi {_LACK} (?:\w+ )?(?:access|ability|capability|capacity|information|data)\b",
    rf"{_APOLOGY},? (?:but )?you (?:did not|didn't|have not|haven't|need to) "
    r"(?:provided?|specif(?:y|ied)|give|given|includ(?:e|ed)|mention(?:ed)?|attach(?:ed)?)\b",
    rf"{_APOLOGY},? (?:but )?(?:the|there|this|no)\b[^.!?]{{0,60}}\b(?:isn't|is not|wasn't|was not|not been|no|not) "
    r"(?:\w+ )?(?:(?:enough|sufficient) (?:information|context|data|detail)|provided|given|attached|specified)\b",
    rf"{_APOLOGY}\b[^.!?]{{0,60}}?\bi(?:'m| am) (?:not capable|incapable) of\b",
    rf"i ?(?!could){_CANNOT}(?: \w+)? (?:to )?{_SERVE}\b",
    rf"i {_LACK} (?:the )?(?:access|ability|capability|capacity|real-time|enough information)\b",
    r"(?:i'm|i am) sorry for (?:any|the) (?:confusion|inconvenience)\b",
)
_ANYWHERE = (
    r"\bas an? (?:ai|artificial intelligence|digital assistant|virtual assistant)\b(?: language)?(?: model| assistant"
    r"| chatbot| system)?(?:,| i\b| my\b| developed| created| trained)",
    r"\bas a (?:large )?language model\b",
    rf"\b(?:i'm|i am) (?:\w+, )?{_A_MODEL}",
    r"\bi (?:don't|do not) have (?:\w+ )?(?:feelings|emotions|consciousness|personal opinions|personal experiences|"
    r"real-time|a physical body|access to (?:the internet|real-time))",
    r"\bmy (?:training data|knowledge cut-?off)\b",
    r"\bi was (?:created|trained|developed) by (?:openai|anthropic|google|meta|hugging ?face)\b",
    r"\bagainst my (?:programming|guidelines|ethical guidelines)\b",
    r"\bi ?(?:can(?:no|')t|can not|am unable to|'m unable to) (?:answer (?:this|that)|(?:help|assist)(?: you)? with"
    r" (?:this|that|your)|comply with|fulfil{1,2} (?:this|that|your))\b",
)
_HINTS = (
    *("as a", "i'm ", "i am ", "i can", "i don't have", "i do not have", "i was "),
    *("my training data", "my knowledge cut", "against my"),
)
"""Every match of `_ANYWHERE` contains one of them; most texts have none and are not searched."""
_START = re.compile("|".join(f"(?:{pattern})" for pattern in _AT_THE_START))
_INSIDE = re.compile("|".join(_ANYWHERE))


class Refusal:
    """English refusals at the start of an answer, and a model's remarks about itself anywhere.

    The patterns are our own. Sessions are labelled by default, because declining is sometimes right, and a student
    that never sees a refusal never declines.
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: refusal`."""

        drop: bool = False
        """Drop such sessions; otherwise they are labelled."""

    scope: Literal["row"] = "row"

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, session: Session) -> str | None:
        """The first such phrase, in lower case, or `None`."""
        return next((phrase for answer in answers_of(session) if (phrase := refusing_phrase(answer))), None)

    def decide(self, value: str | None) -> Verdict:
        """Label or drop an answer with such a phrase."""
        keep = value is None or not self.options.drop
        return Verdict(rule="refusal", keep=keep, reason="ok" if value is None else "refusal", value=value)


def refusing_phrase(answer: str) -> str | None:
    """The phrase by which an answer declines, in lower case with straight apostrophes, or `None`."""
    text = " ".join(answer.lower().replace("\u2019", "'").split()).lstrip("\"'*_ ")
    match = _START.match(text) or (_INSIDE.search(text) if any(hint in text for hint in _HINTS) else None)
    return match.group() if match else None
