"""Row filters that ask no model: what each finds, what it leaves alone, and how its thresholds act."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from distill.curate.filters import prose_of
from distill.curate.filters.format import Format
from distill.curate.filters.keywords import Keyword, slow_or_wrong
from distill.curate.filters.language import Language
from distill.curate.filters.length import Length
from distill.errors import ModelError
from distill.types import Message, Session
from tests.support.row_filters import session, verdict


def turns(*roles: str) -> Session:
    return Session("s", tuple(Message(role, "Some text.") for role in roles))


# --- length


def test_tokens_without_a_tokenizer_are_an_error():
    with pytest.raises(ValidationError, match="need a `tokenizer`"):
        Length.Options(max_tokens=9)


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ModelError, match="tokenizer") as raised:
            Length(Length.Options(max_tokens=9, tokenizer=str(folder))).measure(session())
        assert "\n" not in str(raised.value)


def test_tokens_are_counted_by_a_local_tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    plain = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.save(str(tmp_path / "tokenizer.json"))
    rule = Length(Length.Options(max_tokens=3, tokenizer=str(tmp_path)))
    found = verdict(rule, session("one two three four"))
    assert (found.keep, found.reason, found.value, found.threshold) == (False, "too_many_tokens", 4, 3)


# --- format


@pytest.mark.parametrize(
    "roles", [("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant", "user", "assistant")]
)
def test_alternating_turns_that_end_with_an_answer_are_kept(roles):
    assert verdict(Format(Format.Options()), turns(*roles)).reason == "ok"


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ((), "roles"),
        (("assistant", "user"), "roles"),
        (("user", "user", "assistant"), "roles"),
        (("user", "system", "assistant"), "roles"),
        (("system",), "roles"),
        (("user",), "end"),
        (("user", "assistant", "user"), "end"),
    ],
)
def test_other_turns_are_dropped(roles, reason):
    found = verdict(Format(Format.Options()), turns(*roles))
    assert (found.keep, found.reason) == (False, reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Fine.\n### Instruction:\nName a town.", "marker"),
        ("Yes.\n\n### Response: No.", "marker"),
        ("Sure [/INST] here", "marker"),
        ("<<SYS>> be brief", "marker"),
        ("Done.<|im_end|>", "marker"),
        ("Done.<|eot_id|>", "marker"),
        ("<start_of_turn>model", "marker"),
        ("It ends here.</s>", "marker"),
        ("<s>It begins here.", "marker"),
        ("It ends here.### Human: and then?", "marker"),
        ("It goes on <pad><pad>", "marker"),
        ("A line<0x0A>and another", "marker"),
        ("<think>Let me see. It is", "marker"),
        ("Let me see.</think>It is four.", "marker"),
        ("Good. [Human] And now?", "marker"),
        ("Fill in {instruction} here.", "leftover"),
        ("Dear {{ name }}, hello.", "leftover"),
        ("Nothing: <noinput>", "leftover"),
        ("Hello.\nHuman: and then?", "speaker"),
        ("Hello.\nASSISTANT: and then?", "speaker"),
        ("Here:\n```python\nprint(1)", "fence"),
        ("Here:\n```python\nprint(1)\n``\nDone.", "fence"),
    ],
)
def test_what_does_not_belong_in_an_answer_is_found(text, reason):
    found = verdict(Format(Format.Options(drop=["marker", "leftover", "speaker", "fence"])), session(text))
    assert (found.keep, found.reason) == (False, reason)


@pytest.mark.parametrize(
    "text",
    [
        "Wrap it in `<|im_start|>` and `<|im_end|>`.",
        "Alpaca's form:\n```\n### Instruction:\n{instruction}\n```\nThat is all.",
        "Jinja writes `{{ name }}`.",
        "# Heading\n### Input: a list\nText",
        r"The fraction \frac{{a}}{{b}} and the set {x, y}.",
        "Here:\n~~~\n```\nnot open\n~~~\nDone.",
        "1. One:\n   ```sh\n   ls\n   ```\n2. Two.",
        "a <s>struck</s> word",
        "The user: a person. He said: fine.",
    ],
)
def test_marks_inside_code_and_plain_text_are_left_alone(text):
    assert verdict(Format(Format.Options()), session(text)).reason == "ok"


def test_what_may_be_meant_is_labelled_only():
    found = verdict(Format(Format.Options()), session("A scene.\nUser: Who is there?"))
    assert (found.keep, found.reason, found.value) == (True, "speaker", "User:")


@given(st.lists(st.sampled_from(["```", "```py", "~~~", "text", "`a`", "    ```", "````"]), max_size=12))
def test_prose_of_closed_code_holds_no_fence(lines):
    prose, opened = prose_of("\n".join(lines))
    assert "```" not in prose
    assert "~~~" not in prose
    assert opened is None or opened.startswith(("```", "~~~"))


# --- keyword


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Draw a GRAPH.", "GRAPH"),
        ("a  go \n to b", "go \n to"),
        ("in C++ now", "C++"),
        ("日本の本", None),
        ("graphs", None),
    ],
)
def test_words_are_found_whole_in_any_case(text, found):
    rule = Keyword(Keyword.Options(words=["graph", "go to", "c++", "本日"]))
    assert rule.measure(session(text)) == found


def test_case_counts_when_told():
    assert verdict(Keyword(Keyword.Options(words=["graph"], ignore_case=False)), session("A GRAPH")).keep


@pytest.mark.parametrize(("on", "keep"), [("prompt", False), ("answer", True), ("both", False)])
def test_a_side_may_be_left_out(on, keep):
    assert verdict(Keyword(Keyword.Options(patterns=[r"riv\w+"], on=on)), session()).keep is keep


def test_a_keyword_may_label_only():
    found = verdict(Keyword(Keyword.Options(words=["river"], drop=False)), session())
    assert (found.keep, found.reason, found.value) == (True, "keyword", "river")


@pytest.mark.parametrize(
    "pattern",
    [r"(a+)+b", r"(a|a)*b", r"(\w+\s?)*x", r".*.*x", r"(a)\1", r"(?:a{1,99}){1,99}", "(", r"(a{1,60}b?){2,9}"],
)
def test_a_pattern_that_could_take_for_ever_is_refused(pattern):
    with pytest.raises(ValidationError, match=r"for ever|no regular expression"):
        Keyword.Options(patterns=[pattern])


@pytest.mark.parametrize(
    "pattern", [r"\bgraph(s|ic)?\b", r"open ?ai", r"\d{1,3}%", r"as an? \w{1,20} model", r"^#.*$", r"(?i:foo|bar)"]
)
def test_ordinary_patterns_are_taken(pattern):
    assert slow_or_wrong(pattern) is None


def test_the_slowest_pattern_that_is_taken_ends_soon():
    rule = Keyword(Keyword.Options(patterns=[r"a{1,100}a{1,100}b", r".*y"]))
    started = time.perf_counter()
    rule.measure(session("a" * 3_000))
    assert time.perf_counter() - started < 10


# --- language


SENTENCES = {
    "en": "How do I sort a list of numbers in ascending order?",
    "de": "Schreibe bitte ein kurzes Gedicht über den Frühling.",
    "fr": "Donne-moi trois idées de petit-déjeuner sain et rapide.",
    "es": "Escribe un poema corto sobre la primavera en la ciudad.",
    "ru": "Напиши короткое стихотворение о весне и о реке.",
    "zh": "请写一首关于春天的短诗，要求有四行，每行七个字，并且押韵。",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_is_known_and_kept_where_it_is_wanted(language):
    given = session(prompt=SENTENCES[language])
    assert verdict(Language(Language.Options(keep=[language])), given).value == language
    others = sorted({*SENTENCES} - {language})
    assert verdict(Language(Language.Options(keep=others)), given).reason == "other_language"


@pytest.mark.parametrize("text", ["", "42", "OK", "1. 2 x 3 = ?", "```\nSchreibe ein Gedicht über den Frühling.\n```"])
def test_too_little_prose_is_unknown_and_kept_unless_told(text):
    assert verdict(Language(Language.Options()), session(prompt=text)).value == "unknown"
    assert verdict(Language(Language.Options(unknown="drop")), session(prompt=text)).reason == "unknown_language"


@pytest.mark.parametrize("opening", ["Translate into English:", "Correct the grammar.\n", "What does this mean?"])
def test_a_prompt_that_only_quotes_another_language_is_kept(opening):
    given = session(prompt=f"{opening} {SENTENCES['de']} {SENTENCES['de']}")
    found = verdict(Language(Language.Options()), given)
    assert (found.keep, found.reason, found.value) == (True, "ok", "de")
    assert not verdict(Language(Language.Options(keep=["fr"])), given).keep


@pytest.mark.parametrize("opening", ["Übersetze ins Englische:", "Traduce al inglés:", "请翻译成英文：", "Title:"])
def test_an_opening_in_another_language_or_too_short_does_not_help(opening):
    given = session(prompt=f"{opening} {SENTENCES['de']} {SENTENCES['de']}")
    assert verdict(Language(Language.Options()), given).reason == "other_language"


def test_a_translation_is_kept_unless_answers_are_looked_at():
    given = session(SENTENCES["fr"], prompt="Please translate the sentence below into French.")
    assert [verdict(Language(Language.Options(on=on)), given).keep for on in ("prompt", "both")] == [True, False]


def test_a_language_is_a_code():
    with pytest.raises(ValidationError, match="no ISO 639 code"):
        Language.Options(keep=["English"])
