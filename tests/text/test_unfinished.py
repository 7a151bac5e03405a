"""Texts that end within a sentence, in twelve languages, and texts that end where they may."""

from __future__ import annotations

import pytest

from distill.text.unfinished import is_unfinished

CUT = {
    "en": [
        "Tea is a very old drink that came first from China and then went to",
        "Tea is an old drink from China that many drink with milk, lemon,",
    ],
    "zh": [
        "茶是一种非常古老的饮料,最早出现在中国,后来传到了世界各地,例如:",
        "茶是一种非常古老的饮料，很多人喜欢加入牛奶以及",
        "茶在英国很受欢迎，因为",
    ],
    "hi": ["चाय एक बहुत पुराना पेय है जो सबसे पहले चीन में पी गई और", "चाय बनाने के लिए हमें पानी, दूध, चीनी, अदरक और"],
    "es": [
        "El té es una bebida muy antigua que vino de China y luego llegó a",
        "Para preparar el té se necesita agua caliente, una taza y las",
    ],
    "fr": [
        "Le thé est une boisson très ancienne qui est venue de Chine et de",
        "Pour faire du thé, il faut de l'eau chaude et une tasse, car",
    ],
    "ar": [
        "الشاي مشروب قديم جدا جاء من الصين ثم انتشر في العالم إلى",
        "لتحضير الشاي نحتاج إلى ماء ساخن وأوراق الشاي ثم النعناع والسكر،",
    ],
    "bn": ["চা একটি খুব প্রাচীন পানীয় যা প্রথমে চীনে দেখা গিয়েছিল এবং", "চা বানাতে আমাদের গরম জল, দুধ, চিনি ও আদা লাগে কিন্তু"],
    "pt": [
        "O chá é uma bebida muito antiga que veio da China e depois foi para",
        "Para fazer chá é preciso água quente, uma xícara e as folhas do",
    ],
    "ru": [
        "Чай — очень древний напиток, который впервые появился в Китае, а потом в",
        "Чтобы заварить чай, нужны горячая вода, чашка, листья, сахар или",
    ],
    "ur": [
        "چائے ایک بہت پرانا مشروب ہے جو سب سے پہلے چین میں پی گئی اور",
        "چائے بنانے کے لیے ہمیں پانی دودھ اور چینی چاہیے لیکن",
    ],
    "de": [
        "Tee ist ein sehr altes Getränk, das zuerst aus China kam und dann mit der",
        "Für einen guten Tee braucht man heißes Wasser, eine Tasse und die",
    ],
    "ja": [
        "お茶はとても古い飲み物で、最初に中国で生まれ、その後日本を",
        "お茶にはいろいろな種類があります（",
        "お茶が人気なのは、なぜなら",
    ],
}

WHOLE = {
    "en": [
        "He saved for three years and then he bought his only son a new car",
        "He drew a line from the point A to the points x and y",
        "Los Angeles and San Francisco lie in California, and we go there by car",
    ],
    "zh": [
        "茶是一种非常古老的饮料，最早出现在中国。",
        "这两个数字相加之后得到的结果就是总和",
        "参加这个活动的人都会积极参与",
    ],
    "hi": ["चाय एक बहुत पुराना पेय है जो सबसे पहले चीन में पी गई", "चाय बनाने के लिए हमें पानी दूध चीनी और अदरक चाहिए।"],
    "es": [
        "El té es una bebida muy antigua que vino de China y luego llegó aquí",
        "Para preparar el té se necesita agua caliente, una taza y hojas.",
    ],
    "fr": [
        "Le thé est une boisson très ancienne qui est venue de Chine",
        "Pour faire du thé il faut de l'eau chaude et une tasse.",
    ],
    "ar": ["الشاي مشروب قديم جدا جاء من الصين ثم انتشر في العالم كله", "لتحضير الشاي نحتاج إلى ماء ساخن وأوراق الشاي."],
    "bn": ["চা একটি খুব প্রাচীন পানীয় যা প্রথমে চীনে দেখা গিয়েছিল বলে জানা যায়", "চা বানাতে গরম জল লাগে।"],
    "pt": [
        "O chá é uma bebida muito antiga que veio da China para cá",
        "Para fazer chá é preciso água quente e uma xícara.",
    ],
    "ru": [
        "Чай — очень древний напиток, который впервые появился в Китае",
        "Чтобы заварить чай, нужна горячая вода и чашка.",
    ],
    "ur": ["چائے ایک بہت پرانا مشروب ہے جو سب سے پہلے چین میں پی گئی تھی", "چائے بنانے کے لیے پانی چاہیے۔"],
    "de": [
        "Tee ist ein sehr altes Getränk, das zuerst aus China kam",
        "Für einen guten Tee braucht man heißes Wasser und eine Tasse.",
    ],
    "ja": ["お茶はとても古い飲み物で、最初に中国で生まれました", "みなさんお元気ですか、こんにちは"],
}


@pytest.mark.parametrize("language", CUT)
def test_a_cut_text_is_unfinished_and_a_whole_one_is_not(language):
    assert {text: is_unfinished(text) for text in CUT[language]} == dict.fromkeys(CUT[language], True)
    assert {text: is_unfinished(text) for text in WHOLE[language]} == dict.fromkeys(WHOLE[language], False)


def test_every_language_has_both():
    assert CUT.keys() == WHOLE.keys()
