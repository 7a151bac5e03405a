"""Refusals, and a model's remarks about itself, in twelve languages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple
from unicodedata import normalize


class Refusals(NamedTuple):
    """Patterns of a language, over lower-case text with straight apostrophes and single spaces."""

    start: re.Pattern[str]
    """Of a refusal at the start of an answer."""
    inside: re.Pattern[str]
    """Of a remark about oneself, anywhere."""
    hints: tuple[str, ...]
    """Every match of `inside` contains one of them; most texts have none and are not searched."""


_ARABIC_VOWELS = re.compile("[\u0640\u064b-\u0652]")

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


class _Phrases(NamedTuple):
    """The parts of a sentence that declines, and of a remark about oneself, as patterns over lower-case text."""

    apology: str
    """Or `I` in languages whose verb comes last."""
    cannot: str
    help: str
    """What one cannot do."""
    more: str
    """The same, where the sentence begins with an apology."""
    itself: str
    hints: tuple[str, ...]
    """Every match of `itself` contains one of them; most texts have none and are not searched."""
    ends: str = ".!?"
    """Characters that end a sentence."""


_PHRASES: Mapping[str, _Phrases] = {
    "zh": _Phrases(
        "(?:很|非常|十分|实在|真的)?(?:抱歉|对不起|對不起|遗憾|不好意思)",
        "我?(?:目前|暂时)?(?:无法|無法|不能|没法|没办法|没有办法|没有能力|不便|不可以)",
        "帮[助你您]|幫[助你您]|为[你您]提供|提供|回答|回應|协助|協助|满足|滿足|生成|访问|訪問|解答",
        "完成|处理|给出|执行|讨论|继续|创作|分享|浏览|支持|参与|翻译|分析|查看|打开|写",
        "作[为為](?:一个|一個|一名|一款)?(?:人工智能|人工智慧|ai|大?型?语言模型|大?型?語言模型|聊天机器人|虚拟助手)"
        "(?:大?语言模型|大?語言模型|语言助手|模型|助手|助理|程序|系统|机器人)?[,，我、]"
        "|我(?:只|仅仅|仅)?是(?:一个|一個|一款)?(?:由[^。]{1,12}(?:开发|训练)的)?"
        "(?:人工智能|人工智慧|ai|大?型?语言模型|大?型?語言模型)",
        ("作为", "作為", "我是", "我只是", "我仅"),
        "。！？!?",
    ),
    "ja": _Phrases(
        "(?:大変|誠に)?申し訳|恐れ入りますが|すみません|残念ながら|ごめんなさい|私(?:は|に)"
        "|その(?:ような)?ご?(?:質問|依頼|要望|リクエスト)",
        "できません|できかね|出来ません|いたしかね|ことはできない",
        "(?!)",
        "お(?:手伝い|答え|応え|教え)|回答|提供|対応|サポート|支援|生成|作成|協力|説明|アクセス|翻訳|それは",
        "(?:ai|人工知能|言語モデル)(?:の?(?:言語モデル|アシスタント|チャットボット))?"
        "(?:として(?:は|、)|(?:な|である)ので|であり、|ですので)|私は(?:ただの)?(?:ai|人工知能|大規模言語モデル|言語モデル)",
        ("として", "ので", "であり", "私は"),
        "。！？!?",
    ),
    "de": _Phrases(
        "(?:es )?tut mir (?:sehr |wirklich )?leid|leider|entschuldigung|entschuldigen sie|bedauerlicherweise"
        "|ich bedau(?:er)?e",
        r"(?:ich (?:kann|darf|werde|könnte|bin)|(?:(?:das|dabei|dazu) )?(?:kann|darf|werde|könnte|bin) ich)\b"
        r"[^.!?]{0,40}?\b(?:nicht|kein\w*)",
        r"\b(?:weiter)?helfen\b|\b(?:beantworten|unterstützen|bereitstellen|erfüllen|behilflich|nachkommen)\b",
        r"\b(?:geben|zugreifen|erstellen|ausführen|anbieten|bearbeiten|diskutieren|liefern|verarbeiten|generieren|öffnen"
        r"|anzeigen|übersetzen)\b",
        r"\bals (?:eine? )?(?:reine[rs]? )?(?:ki\b|künstliche intelligenz|(?:großes )?sprachmodell"
        r"|virtueller assistent)"
        r"|\bich bin (?:nur |lediglich |bloß )?eine? (?:ki\b|künstliche intelligenz|(?:großes )?(?:ki-)?sprachmodell)",
        ("als ki", "als eine ki", "eine ki", "ein ki", "sprachmodell", "künstliche", "assistent"),
    ),
    "es": _Phrases(
        "(?:lo )?(?:siento|lamento)|disculp[ae]|perdón|desafortunadamente|lamentablemente|me temo",
        "no (?:puedo|podré|podría|poder|me es posible|soy capaz de|estoy (?:autorizad|capacitad|permitid)[oa])",
        r"\b(?:ayudar|asistir(?:te|le)|proporcionar|responder|cumplir con|brindar|satisfacer)",
        r"\b(?:ofrecer|dar(?:te|le)?\b|generar|crear|acceder|completar|realizar|procesar|escribir|discutir|compartir|atender"
        "|navegar|analizar|traducir)",
        r"\bcomo (?:un |una )?(?:modelo de (?:lenguaje|ia)|ia\b|inteligencia artificial|asistente (?:virtual|de ia))"
        r"|\bsoy (?:solo |sólo |solamente )?una? (?:modelo de lenguaje|ia\b|inteligencia artificial|asistente virtual)",
        ("modelo de", " ia", "inteligencia artificial", "asistente"),
    ),
    "fr": _Phrases(
        "(?:je suis )?(?:vraiment |sincèrement )?(?:désolée?|navrée?)|je regrette|malheureusement|excusez-moi"
        "|je m'excuse",
        r"je ne (?:peux|puis|pourrai|saurais|suis)(?: \w+)? pas|ne pas (?:pouvoir|être)",
        r"\b(?:aider|assister|fournir|répondre|satisfaire|apporter)",
        r"\b(?:donner|créer|générer|accéder|effectuer|traiter|discuter|écrire|partager|accomplir|naviguer|analyser|traduire)",
        r"\ben tant (?:qu'|que )(?:une? )?(?:ia\b|intelligence artificielle|(?:grand )?modèle (?:de langage"
        r"|linguistique)|assistant virtuel)"
        r"|\bje (?:ne )?suis (?:qu'|juste )?une? (?:ia\b|intelligence artificielle|modèle de langage)",
        ("modèle", "qu'ia", " ia", "intelligence artificielle", "assistant virtuel"),
    ),
    "pt": _Phrases(
        "(?:me )?desculp[ae]|(?:eu )?(?:sinto muito|lamento)|infelizmente|peço desculpas?|perdão",
        "(?:eu )?não (?:posso|consigo|poderei|poderia|me é possível|sou capaz de|estou (?:autorizad|apt|permitid)[oa])",
        r"\b(?:ajud[aá]|auxiliar|fornecer|responder|cumprir|atender)",
        r"\b(?:oferecer|dar\b|gerar|criar|acessar|completar|discutir|realizar|processar|escrever|compartilhar|navegar|analisar"
        "|traduzir)",
        r"\bcomo (?:um |uma )?(?:modelo de (?:linguagem|ia)|ia\b|inteligência artificial|assistente (?:virtual|de ia))"
        r"|\bsou (?:apenas |só |somente )?uma? (?:modelo de linguagem|ia\b|inteligência artificial|assistente virtual)",
        ("modelo de", " ia", "inteligência artificial", "assistente"),
    ),
    "ru": _Phrases(
        "извини(?:те)?|прости(?:те)?|к сожалению|прошу прощения|приношу извинения|мне (?:очень )?жаль|сожалею",
        r"(?:я )?не (?:могу|смогу|в состоянии|имею возможности|способ(?:ен|на))",
        r"\b(?:помочь|помогать|предостав|ответить на (?:этот|эт|ваш)|отвечать|выполнить)",
        r"\b(?:ответить|дать|создать|создавать|обсуждать|генерировать|сгенерировать|получить доступ|написать|поделиться"
        "|обработать|удовлетворить|перевести|проанализировать|открыть|просматривать)",
        r"\bкак (?:большая )?(?:языковая модель|искусственный интеллект|ии\b|виртуальный (?:помощник|ассистент))"
        r"|\bя (?:[—–-] |всего лишь |просто |являюсь )*(?:языков(?:ая модель|ой моделью)"
        r"|искусственн(?:ый|ым) интеллект|ии\b)",
        ("языков", "искусственн", " ии", "виртуальный"),
    ),
    "ar": _Phrases(
        "(?:أنا )?(?:عذرا|آسف|اسف|أعتذر|للأسف|معذرة|يؤسفني)",
        "لا (?:أستطيع|استطيع|يمكنني|أقدر)|لن (?:أستطيع|أتمكن|أقدر)|لست قادر|غير قادر|ليس (?:بإمكاني|باستطاعتي)",
        "مساعد|أساعد|تقديم|أقدم|الإجابة|إجابة|أجيب|توفير|تلبية|تزويد",
        "الوصول|إنشاء|كتابة|مناقشة|تنفيذ|إعطا|معالجة|إكمال|ترجمة|الرد",
        "(?:بصفتي|باعتباري|كوني) (?:مجرد )?(?:نموذج(?:ا)? (?:لغوي|للغة|لغة|ذكاء)|ذكاء|مساعد(?:ا)? (?:افتراضي|ذكي))"
        "|أنا (?:مجرد )?(?:نموذج (?:لغوي|لغة|ذكاء)|ذكاء اصطناعي)|كنموذج (?:لغوي|لغة|ذكاء)",
        ("نموذج", "ذكاء", "مساعد"),
        ".!؟",
    ),
    "hi": _Phrases(
        "क्षमा|माफ़|माफ|मुझे खेद|खेद|दुर्भाग्य|मैं",
        "नहीं[^।!?]{0,15}?(?:सकत|पाऊ|पाउ)|असमर्थ|अक्षम",
        "(?!)",
        "मदद|सहायता|उत्तर|जवाब|प्रदान|जानकारी|अनुरोध|अनुवाद|चर्चा|ऐसा",
        "(?:एआई|ए\\.?आई\\.?|ai|कृत्रिम बुद्धिमत्ता)(?: (?:भाषा|लैंग्वेज))?(?: (?:मॉडल|सहायक))?"
        "(?: के रूप में| होने के नाते| हूँ| हूं)|भाषा मॉडल (?:के रूप में|होने के नाते|हूँ|हूं)",
        ("के रूप में", "होने के नाते", "हूँ", "हूं"),
        "।!?",
    ),
    "bn": _Phrases(
        "(?:আমি )?(?:খুব |খুবই |অত্যন্ত )?দুঃখিত|ক্ষমা|মাফ|দুর্ভাগ্য|আমি",
        "পার(?:ি|ছি|ব|বো|লাম) ?না|সক্ষম নই|অক্ষম|অপারগ|সম্ভব (?:নয়|হচ্ছে না)",
        "(?!)",
        "সাহায্য|সহায়তা|উত্তর|জবাব|প্রদান|তথ্য|অনুরোধ|অনুবাদ|আলোচনা|সরবরাহ|এটি|এটা",
        "(?:এআই|এ\\.?আই\\.?|ai|কৃত্রিম বুদ্ধিমত্তা)(?: ভাষা)?(?:র)?(?: (?:মডেল|সহকারী))? ?(?:হিসেবে|হিসাবে)"
        "|ভাষা মডেল (?:হিসেবে|হিসাবে)|আমি একটি (?:এআই|ai|কৃত্রিম বুদ্ধিমত্তা|ভাষা মডেল)",
        ("হিসেবে", "হিসাবে", "আমি একটি"),
        "।!?",
    ),
    "ur": _Phrases(
        "معذرت|معاف|مجھے افسوس|افسوس|بدقسمتی|میں",
        "نہیں[^۔!؟]{0,15}?سکت|قاصر|سے معذور",
        "(?!)",
        "مدد|معاونت|جواب|فراہم|معلومات|درخواست|ترجمہ|رسائی|گفتگو|ایسا",
        "(?:اے آئی|ai|مصنوعی ذہانت)(?: (?:زبان|لینگویج))?(?: کے)?(?: (?:ماڈل|اسسٹنٹ|معاون))?"
        "(?: کے طور پر| کی حیثیت سے| ہونے کے ناطے| ہوں)|(?:زبان کے|لسانی) ماڈل (?:کے طور پر|کی حیثیت سے|ہونے کے ناطے)",
        ("کے طور پر", "کی حیثیت", "کے ناطے", " ہوں"),
        "۔!؟",
    ),
}
"""The most frequent phrases by language (ISO 639-1)."""


def _refusals(phrases: _Phrases) -> Refusals:
    """Patterns of that one cannot help, perhaps after an apology, with the verb before or after its object."""
    apology, cannot, help, more, itself = (normalize("NFC", part) for part in phrases[:5])
    inside, gap, what = f"[^{phrases.ends}]", f"[^{phrases.ends}]{{0,60}}?", f"(?:{help}|{more})"
    apology = f"(?:{apology})(?:{inside}{{0,20}}[{phrases.ends}])?{gap}"
    start = f"(?:{cannot}){inside}{{0,30}}?(?:{help})|{apology}(?:(?:{cannot}){gap}{what}|{what}{gap}(?:{cannot}))"
    return Refusals(re.compile(start), re.compile(itself), tuple(normalize("NFC", hint) for hint in phrases.hints))


_ENGLISH = Refusals(
    re.compile("|".join(f"(?:{pattern})" for pattern in _AT_THE_START)),
    re.compile("|".join(_ANYWHERE)),
    (
        *("as a", "i'm ", "i am ", "i can", "i don't have", "i do not have", "i was "),
        *("my training data", "my knowledge cut", "against my"),
    ),
)


@cache
def refusals(*, is_ascii: bool = False) -> Mapping[str, Refusals]:
    """Patterns of refusals by language (ISO 639-1); for ASCII texts, those of languages that need no other letters."""
    others = {name: one for name, one in _PHRASES.items() if not is_ascii or any(map(str.isascii, one.hints))}
    return {"en": _ENGLISH, **{language: _refusals(phrases) for language, phrases in others.items()}}


def refusing_phrase(answer: str) -> str | None:
    """The phrase by which an answer declines, in lower case with straight apostrophes, or `None`."""
    text = " ".join(answer.lower().replace("\u2019", "'").split()).lstrip("\"'*_ \u00a1")
    if not text.isascii():
        text = _ARABIC_VOWELS.sub("", normalize("NFC", text))
    for start, inside, hints in refusals(is_ascii=text.isascii()).values():
        if match := start.match(text) or (inside.search(text) if any(hint in text for hint in hints) else None):
            return match.group()
    return None
