"""Texts that end within a sentence, in twelve languages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from unicodedata import normalize

from distill.text.words import word_count

LEAST_WORDS = 10
"""Fewest words of an unfinished text; a shorter one may be the single word that a task asks for."""
LONGEST_END = 16
"""Characters at the end of a text that the patterns can match."""
SEEN, LEAST_SEEN = 30, 3
"""Last words of a text, and how many different words of a language in Latin letters are among them: `car` ends an
English sentence, and a French one never."""
_ENGLISH = (
    r"\b(?:the|an|and|or|of|to|with|for|from|at|by|as|is|are|was|were|that|which|their|his|its|your|my|our|if|when|because"
    "|but|than|into|will|would|could|should|has|have|had|be|been|these|those|very|between|including)"
)
_CHINESE_AND_JAPANESE = (
    "(?<![温共总總饱缓柔暖祥平])和|(?<![参參给赋])[与與]|以及|或者?|并且|而且|但是?|因为|因為|所以|如果|例如|比如|包括|对于|對於"
    "|关于|關於|由于|由於|及其|および|または|そして|しかし|例えば|つまり|なぜなら|(?<!こんにち)(?<!こんばん)は|[をがとや]"
)
_UNFINISHED = re.compile(rf"(?:[,:(\[{{，：、（［｛「『【《〈〔،]|{_ENGLISH}|(?:{_CHINESE_AND_JAPANESE}))\Z")

_SUCCEEDED: Mapping[str, str] = {
    "ar": "و في من إلى على عن مع أن إن التي الذي ثم أو لكن لأن إذا بين كما هو هي",
    "bn": "এবং ও বা অথবা কিন্তু কারণ যে যদি একটি তবে যেমন",
    "de": "der die das den dem des ein eine einen einem einer und oder von mit für im am in ist sind war dass sich sein"
    " ihre aber wenn weil als zur zum sehr durch",
    "es": "el la los las un una y o de del al a con por para en que se su sus como pero porque si es son fue sin entre"
    " muy",
    "fr": "le la les un une des et ou de du à au aux avec pour par en dans sur que qui se sa son ses mais car si est"
    " sont ne très",
    "hi": "और का की के को में से पर कि या लेकिन क्योंकि यदि अगर तथा एवं ने जो",
    "pt": "o a os as um uma e ou de do da dos das em no na nos nas com por para que se seu sua mas porque é são foi ao",
    "ru": "и или в на с к по для от из о об что который которая которое которые но а если при под между не как это",
    "ur": "اور کا کی کے کو میں سے پر کہ یا لیکن کیونکہ اگر نے جو",
}
"""By language (ISO 639-1), frequent words that another word follows."""
_WORDS = {language: frozenset(normalize("NFC", words).split()) for language, words in _SUCCEEDED.items()}


def is_unfinished(text: str) -> bool:
    """Whether a text of ten words or more ends with a comma, colon, opening bracket, or a word that needs another."""
    text = text.rstrip()
    if _UNFINISHED.search(text[-LONGEST_END:]) is None and not _needs_another(text):
        return False
    return word_count(text) >= LEAST_WORDS


def _needs_another(text: str) -> bool:
    """Whether the last word is one of `_SUCCEEDED` in the language of the last words."""
    words = normalize("NFC", text[-SEEN * LONGEST_END :]).lower().split()[-SEEN:]
    least = LEAST_SEEN if words and words[-1] < "\u0250" else 1
    return bool(words) and any(words[-1] in few and len(few & {*words}) >= least for few in _WORDS.values())
