"""Words by which judges state a verdict in other languages than English."""

from __future__ import annotations

import re

VERDICT = (
    "urteil|fazit|veredicto|veredito|verdetto|oordeel|werdykt|вердикт|итог|결론|판정|판결|الحكم(?: النهائي)?"
    "|(?:最终|最終|综合)?(?:判断|判定|裁决|结论|結論|結果)"
)
"""Labels before a verdict."""
TIE = (
    "unentschieden|gleichstand|gleichwertig|égalité|ex[ -]æquo|empate|pareggio|parità|remis|ничья|平局|平手|引き分け"
    "|同点|무승부|동점|تعادل"
)
"""Names of a tie."""
_WHO = (
    r"antwort|réponse|respuesta|risposta|resposta|antwoord|odpowiedź|ответ|回答|助手|アシスタント|답변|응답|الإجابة|assistente?"
    r"|asistente|assistant"
)
_BETTER = (
    "besser|überlegen|meilleure?|supérieure?|mejor|superior|migliore|melhor|beter|lepsza|лучше|更好|更优|更佳|胜出|优れ|優れ"
    "|더 (?:좋|낫|나은|우수|정확)|أفضل"
)
_NOT = (
    r"\b(?:nicht|kein|pas|no|non|não|niet|nie|не|ни|weder|ni|né|schlechter|pire|peor|peggiore|pior|хуже)\b|[不没]|更差|ない"
    r"|않|못|아니|ليس"
)
_GAP = rf"(?:(?!{_NOT}|(?<![^\W_])[ab](?![a-z])|{_BETTER})[^\n.;。]){{0,24}}?"
"""Words between an answer's letter and "better": no negation, and no other answer."""
_LETTER = r"(?<![a-z])(?-i:(?P<{}>[AB]))(?![a-z])"
PREFERENCE = re.compile(
    rf"(?:{_WHO})[ \t]*{_LETTER.format('before')}{_GAP}(?:{_BETTER})"
    rf"|^{_GAP}{_LETTER.format('plain')}{_GAP}(?:{_BETTER})"
    rf"|(?:{_BETTER}){_GAP}(?:(?:{_WHO})[ \t]*)?{_LETTER.format('after')}(?![ \t]*(?:nicht|pas|no|non|não|не)\b)",
    re.IGNORECASE,
)
"""A preference in a sentence: "Antwort B ist besser", "la mejor respuesta es la A", "A的回答更好"."""
NEGATION = re.compile(_NOT, re.IGNORECASE)


def preference(sentence: str) -> tuple[str, str] | None:
    """The answer that a sentence prefers, and its words; None where it prefers none, denies it, or prefers both."""
    matches = list(PREFERENCE.finditer(sentence))
    sides = {match["before"] or match["plain"] or match["after"] for match in matches}
    if len(sides) != 1 or any(NEGATION.search(sentence[: match.start()][-20:]) for match in matches):
        return None
    return sides.pop(), matches[-1][0]
