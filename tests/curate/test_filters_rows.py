"""Row filters that ask no model: what each finds, what it leaves alone, and how its thresholds act."""

from __future__ import annotations

import json
import random
import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from distill.curate.filters import prose_of
from distill.curate.filters.contamination import Contamination
from distill.curate.filters.format import Format
from distill.curate.filters.keywords import Keyword, slow_or_wrong
from distill.curate.filters.language import Language
from distill.curate.filters.length import Length
from distill.curate.filters.pii import PersonalData
from distill.curate.filters.repetition import Repetition
from distill.errors import ModelError, RecipeError
from distill.types import Message, Session, Verdict


def session(answer: str = "The Danube.", prompt: str = "Name a river.", **meta) -> Session:
    return Session("s", (Message("user", prompt), Message("assistant", answer)), meta)


def turns(*roles: str) -> Session:
    return Session("s", tuple(Message(role, "Some text.") for role in roles))


def verdict(rule, of: Session) -> Verdict:
    return rule.decide(rule.measure(of))


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


# --- repetition

SOUND = (
    "A river begins at a spring high in the hills, where rain and melted snow gather. It runs down over stones, joins "
    "other streams, and slows when the land grows flat. Towns were built on its banks, since water carried goods and "
    "turned mills. Near the sea it spreads into a delta, dropping the sand it brought along, and birds come to feed."
)


def test_a_sound_answer_repeats_nothing():
    found = verdict(Repetition(Repetition.Options()), session(SOUND))
    assert (found.keep, found.reason) == (True, "ok")


@pytest.mark.parametrize(
    "text",
    [
        "the cat sat on the mat and then " * 20,
        "\n".join(["I like tea very much indeed."] * 30),
        "\n\n".join(["A whole paragraph that is said again, word for word, and again."] * 8),
        "yes " * 200,
        "我喜欢喝茶。" * 40,
    ],
)
def test_a_loop_is_dropped(text):
    found = verdict(Repetition(Repetition.Options()), session(text))
    assert (found.keep, found.reason, found.threshold) == (False, "loop", 5)
    assert not verdict(Repetition(Repetition.Options(loop=1000)), session(text)).keep


@pytest.mark.parametrize("loop", [" yes" * 30, " on and on it goes" * 6, f" {'word by word and so on ' * 6}"])
def test_a_loop_at_the_end_of_a_long_answer_is_dropped_however_small_its_share(loop):
    text = " ".join(random.Random(1).choices(SOUND.split(), k=300))
    rule = Repetition(Repetition.Options(drop_above=1))
    assert verdict(rule, session(text)).keep
    found = verdict(rule, session(text + loop))
    assert (found.keep, found.reason, found.threshold) == (False, "loop", 5)
    assert verdict(Repetition(Repetition.Options(drop_above=1, loop=40)), session(text + loop)).keep


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("a " * 20, 20),
        ("a " * 19, 1),
        ("a b c d e " * 4, 4),
        ("x a b c d e a b c d e y a b c d e a b c d e", 1),
        (f"{' '.join(map(str, range(40)))} " * 3, 3),
        (f"{' '.join(map(str, range(41)))} " * 3, 1),
    ],
)
def test_times_in_a_row_are_counted_as_defined(text, times):
    (found,) = Repetition(Repetition.Options()).measure(session(text))
    assert found["loop"] == times


def test_a_repeat_above_its_threshold_alone_is_labelled():
    sentences = SOUND.split(". ")
    text = ".\n".join([*sentences, sentences[1]])
    found = verdict(Repetition(Repetition.Options()), session(text))
    assert (found.keep, found.reason != "ok") == (True, True)
    assert not verdict(Repetition(Repetition.Options(drop_above=0)), session(text)).keep


def test_short_answers_are_not_judged():
    assert verdict(Repetition(Repetition.Options()), session("ha " * 49)).reason == "ok"


@pytest.mark.parametrize(
    ("text", "name", "share"),
    [
        ("a b a b c", "top_2_gram", 4 / 5),
        ("a a a", "top_2_gram", 0.0),  # the two overlap
        ("x x x y y y z z z and one two one two", "top_2_gram", 12 / 24),
        ("one two three four five one two three four five", "duplicate_5_grams", 0.5),
        ("x\ny\nx\nx", "duplicate_lines", 0.5),
        ("x\n\ny\n\nx\n\nzz", "duplicate_paragraph_chars", 1 / 5),
    ],
)
def test_shares_are_counted_as_defined(text, name, share):
    (found,) = Repetition(Repetition.Options()).measure(session(text))
    assert found[name] == pytest.approx(share, abs=1e-4)


@given(st.lists(st.sampled_from(["ab", "c", "d"]), max_size=80), st.integers(1, 6))
def test_shares_lie_between_0_and_1(tokens, width):
    text = "\n".join(" ".join(tokens[place : place + width]) for place in range(0, len(tokens), width))
    (found,) = Repetition(Repetition.Options()).measure(session(text))
    assert all(0 <= share <= 1 for name, share in found.items() if name not in ("words", "loop"))


@given(st.lists(st.sampled_from(["ab", "c", "d"]), min_size=50, max_size=90), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_bound_never_drops_more(tokens, one, other):
    measured = Repetition(Repetition.Options()).measure(session(" ".join(tokens)))
    strict, lax = sorted((one, other))
    if Repetition(Repetition.Options(drop_above=strict)).decide(measured).keep:
        assert Repetition(Repetition.Options(drop_above=lax)).decide(measured).keep


# --- pii

PERSONAL = [
    ("Write to anna.smith+x@mail.co.uk today", "email", "anna.smith+x@mail.co.uk"),
    ("from 8.8.4.4, port 53", "ip", "8.8.4.4"),
    ("see 2a00:1450:4001:81b::200e", "ip", "2a00:1450:4001:81b::200e"),
    ("call +49 30 901820 now", "phone", "+49 30 901820"),
    ("call (415) 555-2671.", "phone", "(415) 555-2671"),
    ("call 212-736-5000.", "phone", "212-736-5000"),
    ("card 4111 1111 1111 1111, please", "credit_card", "4111 1111 1111 1111"),
    ("card 378282246310005", "credit_card", "378282246310005"),
    ("to DE89 3704 0044 0532 0130 00 BY FRIDAY", "iban", "DE89 3704 0044 0532 0130 00"),
    ("to GB82WEST12345698765432.", "iban", "GB82WEST12345698765432"),
    ("SSN 078-05-1120", "us_ssn", "078-05-1120"),
    ("key sk-abcdef1ghijklmnopqrstuvwx", "secret", "sk-abcdef1ghijklmnopqrstuvwx"),
    ("id AKIAIOSFODNN7EXAMPLE", "secret", "AKIAIOSFODNN7EXAMPLE"),
    ("ghp_" + "a1B2" * 9, "secret", "ghp_" + "a1B2" * 9),
    ("-----BEGIN RSA PRIVATE KEY-----", "secret", "-----BEGIN RSA PRIVATE KEY-----"),
    ("-----BEGIN PGP PRIVATE KEY BLOCK-----", "secret", "-----BEGIN PGP PRIVATE KEY BLOCK-----"),
    *(
        (f"key {start}{'a1B2' * 9}.", "secret", f"{start}{'a1B2' * 9}")
        for start in (
            "sk_" + "live_",
            "glpat-",
            "npm_",
            f"SG.{'a1B2' * 5}.",
            "hooks.slack.com/services/T0A1B2C3/B0A1B2C3/",
        )
    ),
    ("key ASIAIOSFODNN7EXAMPLE", "secret", "ASIAIOSFODNN7EXAMPLE"),
    ("call 0049 30 901820 now", "phone", "0049 30 901820"),
]


@pytest.mark.parametrize(("text", "kind", "piece"), PERSONAL)
def test_personal_data_are_found_counted_and_masked(text, kind, piece):
    rule = PersonalData(PersonalData.Options(action="mask"))
    given = session(text)
    found = rule.measure(given)
    assert found == {kind: 1}
    assert rule.mend(given, found).messages[1].content == text.replace(piece, f"[{kind.upper()}]")


@pytest.mark.parametrize(
    "text",
    [
        "anna@example.com and bob@test.invalid",
        "name@domain.com, you@yourcompany.com, git@github.com:org/repo",
        "+1 (555) 234-5678 or 555-234-5678",
        "Section 1.2.3.4, chapter 2.1.3.4, version 5.6.7.8",
        "at 192.168.1.1, 127.0.0.1 and 10.0.0.7",
        "version 1.2.3.4.5, at 12:30:45, on 2021-03-04",
        "std::vector<a::b> and a::b::c",
        "555-0100 or 212-555-0123",
        "4111 1111 1111 1112",
        "1612345678901234",
        "ISBN 978-3-16-148410-0",
        "DE89 3704 0044 0532 0130 01",
        "000-12-3456, 666-12-3456, 123-00-4567",
        "12 + 34567890123 = x",
        "a sk-short key, sk-learn-without-any-digit, @handle, user@host",
        "the regex [a-z.+-]+@[a-z-]+\\.[a-z]{2,}",
    ],
)
def test_examples_private_addresses_and_wrong_sums_are_left_alone(text):
    assert PersonalData(PersonalData.Options()).measure(session(text)) == {}


@pytest.mark.parametrize(("action", "keep"), [("label", True), ("drop", False), ("mask", True)])
def test_the_action_decides_and_the_verdict_names_kinds_only(action, keep):
    found = verdict(PersonalData(PersonalData.Options(action=action)), session("to anna@mail.net and bob@mail.net"))
    assert (found.keep, found.reason, found.value) == (keep, "pii", "email:2")


def test_kinds_may_be_chosen():
    rule = PersonalData(PersonalData.Options(kinds=["phone"]))
    assert rule.measure(session("to anna@mail.net, 212-736-5000")) == {"phone": 1}


@pytest.mark.parametrize("action", ["label", "drop"])
def test_only_masking_changes_a_session(action):
    rule = PersonalData(PersonalData.Options(action=action))
    given = session("to anna@mail.net")
    assert rule.mend(given, rule.measure(given)) is given


PIECES = st.one_of(st.sampled_from([piece for _, _, piece in PERSONAL]), st.text("0123 4-.@:+abAB", max_size=20))


@given(st.lists(PIECES, max_size=6), st.sampled_from(["", " ", "-", "."]))
@example(["4111 1111 1111 1111", "4111 1111 1111 1111"], "")
def test_a_mask_leaves_no_match(pieces, between):
    rule = PersonalData(PersonalData.Options(action="mask"))
    given = session(between.join(pieces), prompt=" ".join(pieces))
    mended = rule.mend(given, rule.measure(given))
    assert rule.measure(mended) == {}
    assert rule.mend(mended, rule.measure(mended)) is mended


@pytest.mark.parametrize(
    "text", ["a" * 50_000, "1 " * 25_000, "a." * 25_000 + "@", "+1" * 25_000, "::" * 25_000, "eyJ" * 9_000]
)
def test_no_text_takes_long(text):
    started = time.perf_counter()
    for rule in (PersonalData(PersonalData.Options()), Format(Format.Options()), Repetition(Repetition.Options())):
        rule.measure(session(text))
    assert time.perf_counter() - started < 10


# --- contamination

LONG = "A train leaves Boston at noon and another leaves New York one hour later so when do they meet"


@pytest.fixture
def benchmark(tmp_path):
    rows = [
        {"id": 1, "turns": [LONG, "And which of the two arrives first in the end?"]},
        {"id": 2, "question": "Who wrote Hamlet?", "answer": "Shakespeare"},
        *(
            {"id": n, "question": f"Choose the one best answer to the question that is given below now: item {n}"}
            for n in range(3, 20)
        ),
    ]
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_a_shared_run_of_words_is_dropped_with_the_row_that_it_is_from(benchmark):
    rule = Contamination(Contamination.Options(files=[str(benchmark)]))
    found = verdict(rule, session(f"Here is one: “{LONG.upper()}!” Good luck."))
    assert (found.keep, found.reason, found.neighbour) == (False, "contaminated", "bench.jsonl:1")
    assert found.value == "a train leaves boston at noon and another leaves new york one hour"


@pytest.mark.parametrize(
    ("prompt", "row"),
    [
        ("So: and which of the two arrives first in the end? Tell me.", "bench.jsonl:1"),
        ("who wrote Hamlet", "bench.jsonl:2"),
        ("Tell me who wrote Hamlet, please", None),
        (" ".join(LONG.split()[:12]), None),
        ("Choose the one best answer to the question that is given below now: my own", None),
        ("Name a river in Europe that flows into the Black Sea after ten countries.", None),
    ],
)
def test_short_rows_match_whole_and_common_runs_do_not_count(benchmark, prompt, row):
    rule = Contamination(Contamination.Options(files=[str(benchmark)]))
    assert verdict(rule, session(prompt=prompt)).neighbour == row


def test_keys_name_what_is_compared(benchmark):
    rule = Contamination(Contamination.Options(files=[str(benchmark)], keys=["question"]))
    assert verdict(rule, session(LONG)).keep
    assert not verdict(rule, session(prompt="Who wrote Hamlet?")).keep


@pytest.mark.parametrize("name", ["bench.txt", "bench.json"])
def test_text_and_json_lists_are_read_too(tmp_path, name):
    path = tmp_path / name
    path.write_text(f"first line\n{LONG}\n" if name.endswith("txt") else json.dumps(["first line", LONG]))
    rule = Contamination(Contamination.Options(files=[str(path)]))
    assert verdict(rule, session(LONG)).neighbour == f"{name}:2"


def test_a_benchmark_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{")
    for name in ("bad.jsonl", "none.jsonl"):
        with pytest.raises(RecipeError, match=re.escape(name)) as raised:
            Contamination(Contamination.Options(files=[str(tmp_path / name)])).measure(session())
        assert "\n" not in str(raised.value)


WORDS = st.lists(st.sampled_from(["red", "green", "blue", "one", "two", "three"]), min_size=8, max_size=30)


@settings(max_examples=50, deadline=None)
@given(WORDS, WORDS, WORDS, st.integers(8, 14))
def test_a_copied_run_is_found_wherever_it_stands(tmp_path_factory, before, copied, after, words):
    path = tmp_path_factory.getbasetemp() / "copied.txt"
    path.write_text(" ".join(copied))
    rule = Contamination(Contamination.Options(files=[str(path)], words=words, common=1000))
    assert rule.measure(session(" ".join([*before, *copied, *after]))) is not None


@settings(max_examples=50, deadline=None)
@given(WORDS, WORDS)
def test_longer_runs_never_find_more(tmp_path_factory, row, text):
    path = tmp_path_factory.getbasetemp() / "row.txt"
    path.write_text(" ".join([*row, *("end" * n for n in range(1, 15))]))
    found = [
        Contamination(Contamination.Options(files=[str(path)], words=words)).measure(session(" ".join(text)))
        is not None
        for words in (8, 10, 13)
    ]
    assert found == sorted(found, reverse=True)
