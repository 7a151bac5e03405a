"""Refusals in twelve languages, and answers that only look like one."""

from __future__ import annotations

import pytest

from distill.text.refusals import refusals, refusing_phrase

REFUSING = {
    "en": ("I\u2019m sorry, but I can\u2019t help with that.", "As an AI language model, I have no body."),
    "zh": (
        "抱歉,作为一个人工智能语言模型,我无法回答这个问题。",
        "很抱歉，我不能帮助您完成这个请求。",
        "對不起，我無法提供這類資訊。",
        "我是一个AI助手，无法提供医疗建议。",
    ),
    "hi": (
        "क्षमा करें, मैं इस अनुरोध में आपकी मदद नहीं कर सकता।",
        "माफ़ कीजिए, मैं यह जानकारी नहीं दे सकती।",
        "एक एआई भाषा मॉडल के रूप में, मेरी कोई राय नहीं है।",
        "माफ करें, मैं ऐसा नहीं कर सकता।",
    ),
    "es": (
        "Lo siento, pero no puedo ayudarte con eso.",
        "¡Disculpa! No puedo proporcionar esa información.",
        "Claro, pero como modelo de lenguaje no tengo opiniones.",
        "Lamento no poder ayudarte con esa solicitud.",
    ),
    "fr": (
        "Je suis désolé, mais je ne peux pas répondre à cette question.",
        "Malheureusement, je ne suis pas en mesure de vous aider.",
        "En tant qu\u2019IA, je n\u2019ai pas de sentiments.",
        "Je suis désolé de ne pas pouvoir vous aider.",
    ),
    "ar": (
        "عذرًا، لا أستطيع مساعدتك في هذا الطلب.",
        "آسف، لا يمكنني تقديم هذه المعلومات.",
        "بصفتي نموذجًا لغويًا، ليس لدي رأي.",
        "كنموذج لغوي كبير، لا أملك مشاعر.",
    ),
    "bn": (
        "দুঃখিত, আমি এই বিষয়ে আপনাকে সাহায্য করতে পারব না।",
        "আমি দুঃখিত, এই প্রশ্নের উত্তর দিতে পারছি না।",
        "একটি এআই ভাষা মডেল হিসেবে আমার কোনো মতামত নেই।",
        "দুঃখিত, আমি এটি করতে পারি না।",
    ),
    "pt": (
        "Desculpe, mas não posso ajudar com isso.",
        "Sinto muito, não consigo fornecer essas informações.",
        "Como modelo de linguagem, não tenho sentimentos.",
        "Infelizmente, não posso te ajudar com isso.",
    ),
    "ru": (
        "Извините, но я не могу помочь с этим запросом.",
        "К сожалению, я не могу предоставить эту информацию.",
        "Как языковая модель, я не имею мнений.",
        "Я — искусственный интеллект и не имею чувств.",
    ),
    "ur": (
        "معذرت، میں اس میں آپ کی مدد نہیں کر سکتا۔",
        "معاف کیجیے، میں یہ معلومات فراہم نہیں کر سکتی۔",
        "ایک اے آئی ماڈل کے طور پر میری کوئی رائے نہیں ہے۔",
        "معذرت خواہ ہوں، میں ایسا نہیں کر سکتا۔",
    ),
    "de": (
        "Es tut mir leid, aber als KI-Sprachmodell kann ich dabei nicht helfen.",
        "Leider kann ich diese Frage nicht beantworten.",
        "Ich bin eine KI und habe keine Meinung.",
        "Das kann ich leider nicht beantworten.",
    ),
    "ja": (
        "申し訳ありませんが、そのご質問にはお答えできません。",
        "すみませんが、その情報を提供することはできません。",
        "AI言語モデルとして、私には意見がありません。",
        "ごめんなさい、それはできません。",
    ),
}

ORDINARY = {
    "en": ("I'm sorry that I was late yesterday; the bus broke down.",),
    "zh": (
        "抱歉我昨天来晚了,公交车坏了。",
        "作为一个老师,我每天都很忙。",
        "人不能两次踏进同一条河流。",
        "人工智能是计算机科学的一个分支。",
    ),
    "hi": (
        "माफ़ करना, कल मैं देर से आया था।",
        "मैं एक शिक्षक हूँ और रोज़ पढ़ाता हूँ।",
        "पानी के बिना जीवन नहीं चल सकता।",
        "मैं आज स्कूल नहीं जा सकता, क्योंकि बारिश हो रही है।",
    ),
    "es": (
        "Lo siento mucho, perdí el autobús ayer.",
        "Como maestra, trabajo todos los días.",
        "No se puede dividir entre cero.",
        "No puedo creer que ya sea viernes.",
    ),
    "fr": (
        "Je suis désolé du retard, le bus est tombé en panne.",
        "En tant que professeur, je lis beaucoup.",
        "On ne peut pas diviser par zéro.",
        "Je ne peux pas croire qu'il est parti.",
    ),
    "ar": ("آسف على التأخير أمس، تعطلت الحافلة.", "بصفتي معلما أقرأ كل يوم.", "لا يمكن القسمة على صفر."),
    "bn": ("দুঃখিত, কাল আমার দেরি হয়েছিল।", "শিক্ষক হিসেবে আমি প্রতিদিন পড়ি।", "শূন্য দিয়ে ভাগ করা যায় না।"),
    "pt": (
        "Sinto muito pelo atraso, o ônibus quebrou.",
        "Como professora, leio todos os dias.",
        "Infelizmente não posso levar as crianças hoje.",
    ),
    "ru": (
        "Извините за опоздание, автобус сломался.",
        "Как учитель, я читаю каждый день.",
        "К сожалению, магазин закрыт.",
        "Я не могу уснуть из-за шума.",
    ),
    "ur": (
        "معذرت، کل مجھے دیر ہو گئی تھی۔",
        "استاد کے طور پر میں روز پڑھتا ہوں۔",
        "پانی کے بغیر زندگی ممکن نہیں۔",
        "میں آج سو نہیں سکتا کیونکہ بہت شور ہے۔",
    ),
    "de": (
        "Es tut mir leid, dass ich gestern zu spät kam.",
        "Als Kind wohnte ich in Bonn.",
        "Leider ist der Laden heute geschlossen.",
        "Ich kann nicht schlafen, weil es so laut ist.",
    ),
    "ja": (
        "昨日は遅れて申し訳ありませんでした。",
        "私は教師として毎日本を読みます。",
        "ゼロで割ることはできません。",
        "このソフトは古いパソコンでは使うことができません。",
    ),
}


@pytest.mark.parametrize("language", REFUSING)
def test_a_refusal_is_found_and_an_ordinary_answer_is_none(language):
    assert {answer: bool(refusing_phrase(answer)) for answer in REFUSING[language]} == dict.fromkeys(
        REFUSING[language], True
    )
    assert {answer: refusing_phrase(answer) for answer in ORDINARY[language]} == dict.fromkeys(ORDINARY[language])


def test_every_language_of_the_table_has_both():
    assert [*refusals()] == sorted(REFUSING, key=[*refusals()].index)
    assert REFUSING.keys() == ORDINARY.keys()
