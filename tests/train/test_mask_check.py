"""The mask gate: it passes every sound mask, of every family's template, and names the first token that is not."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import DistillError, MaskError, RecipeError
from distill.models import chat_template
from distill.models.chat_template import IGNORED, Example
from distill.models.token_bytes import Spelling
from distill.train.mask_check import MaskGate, MaskRow, UnspeltError
from distill.types import Message
from tests.support import families
from tests.support.families import FAMILIES, Family, byte_level, sentencepiece

SYSTEM = Message("system", "Be brief.")
TALK = (
    Message("user", "Name 3 primes.\n\nAbove: 10"),
    Message("assistant", "11, 13 and 17."),
    Message("user", "And one more? "),
    Message("assistant", "19 — that is all!"),
)
CONVERSATIONS = {
    "single": TALK[:2],
    "multi": TALK,
    "system": (SYSTEM, *TALK[:2]),
    "system and multi": (SYSTEM, *TALK),
    "lines": (Message("user", "\n  Code?"), Message("assistant", "\n\n  code:\n\tfoo\n")),
    "other scripts": (Message("user", "日本 ﬁ\xa0\u3000x"), Message("assistant", "👩‍👩‍👧 e\u0301 \ufffd")),
    "mentions": (Message("user", "What is </s>, [INST] or <|im_end|>?"), Message("assistant", "A <|im_end|> </s> .")),
}
KINDS = ("byte-level", "a space at the start", "a space at every text")


@functools.cache
def tokenizer_for(kind: str, family: Family):
    if kind == "byte-level":
        return byte_level(tokenizer_of(), family)
    return sentencepiece(family, prepend="first" if kind == "a space at the start" else "always")


THINKING = Family(families.THINKING, ("<|im_start|>",), "<|im_end|>")
THOUGHTS = (
    Message("user", "2 + 2?"),
    Message("assistant", "<think>\nTwo twos.\n</think>\n\n4"),
    Message("user", "And 3 + 3?"),
    Message("assistant", "<think>\nThrees.\n</think>\n\n6"),
)


@pytest.fixture(scope="module")
def smollm():
    return tokenizer_of()


@functools.cache
def tokenizer_of():
    from distill.models.loading import load_tokenizer, materialise

    return load_tokenizer(materialise("smollm2"))


def passed(messages, template, tokenizer, *, truncated=False, train_on="all", lost_system="refuse"):
    """The gate after it has let a row through, and the row."""
    gate = MaskGate(template, tokenizer, train_on=train_on, lost_system=lost_system)
    row = MaskRow(
        "s1",
        messages,
        chat_template.encode(messages, template, tokenizer, truncated=truncated, train_on=train_on),
        truncated,
    )
    gate.check(row)
    assert gate.checked.rows == 1
    return gate, row


def answers(gate, row) -> list[str]:
    """The stretches of trained tokens, spelt."""
    stretches: list[bytes] = []
    before = IGNORED
    for piece, label in zip(gate.spelling.pieces(row.example.input_ids), row.example.labels, strict=True):
        if label != IGNORED and before == IGNORED:
            stretches.append(b"")
        if label != IGNORED:
            stretches[-1] += piece
        before = label
    return [stretch.decode() for stretch in stretches]


@pytest.mark.model
@pytest.mark.parametrize("template", chat_template.TEMPLATES)
@pytest.mark.parametrize("train_on", ["all", "last"])
def test_sound_masks_pass(smollm, template, train_on):
    for messages in CONVERSATIONS.values():
        passed(messages, template, smollm, train_on=train_on)
        passed(messages, template, smollm, train_on=train_on, truncated=True)


@pytest.mark.model
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_familys_own_template_trains_the_answers_with_their_end_tokens(smollm, family, kind):
    tokenizer = tokenizer_for(kind, FAMILIES[family])
    end = {"llama-3": "<|eot_id|>", "gemma": "<end_of_turn>", "phi": "<|end|>"}.get(family, tokenizer.eos_token)
    for name, messages in CONVERSATIONS.items():
        if family == "gemma" and name.startswith("system"):
            continue
        gate, row = passed(messages, "own", tokenizer)
        lines = [message.content.strip() for message in messages if message.role == "assistant"]
        if name not in ("other scripts", "mentions") or kind == "byte-level":
            assert [text.removesuffix(end).strip() for text in answers(gate, row)] == lines
        assert all(text.endswith(end) for text in answers(gate, row))
        passed(messages, "own", tokenizer, truncated=True)
        passed(messages, "own", tokenizer, train_on="last")


@pytest.mark.model
@pytest.mark.parametrize("template", ["alpaca", "vicuna", "chatml"])
@pytest.mark.parametrize("family", FAMILIES)
def test_our_templates_pass_on_every_familys_tokenizer(smollm, template, family):
    for kind in KINDS:
        for messages in CONVERSATIONS.values():
            passed(messages, template, tokenizer_for(kind, FAMILIES[family]))


@pytest.mark.model
@settings(max_examples=80, deadline=None)
@given(
    template=st.sampled_from(chat_template.TEMPLATES),
    talk=st.sampled_from(sorted(CONVERSATIONS)),
    train_on=st.sampled_from(["all", "last"]),
    truncated=st.booleans(),
    where=st.floats(0, 1, exclude_max=True),
)
def test_one_label_that_is_wrong_is_found_and_its_token_named(template, talk, train_on, truncated, where):
    tokenizer, messages = tokenizer_of(), CONVERSATIONS[talk]
    gate, row = passed(messages, template, tokenizer, truncated=truncated, train_on=train_on)
    ids, labels = row.example.input_ids, list(row.example.labels)
    at = int(where * len(ids))
    labels[at] = ids[at] if labels[at] == IGNORED else IGNORED
    with pytest.raises(MaskError) as caught:
        gate.check(MaskRow("s1", messages, Example(ids, labels), truncated))
    assert str(caught.value).startswith("mask gate: session s1: ")
    assert f"token {at + 1} of {len(ids)}, " in str(caught.value) or "no token is trained" in str(caught.value)
    assert "\n" not in str(caught.value)


def faulty(row: MaskRow, change: str) -> MaskRow:
    """The row with one fault."""
    ids, labels = list(row.example.input_ids), list(row.example.labels)
    last = len(ids) - 1
    if change == "labels are shorter":
        labels.pop()
    elif change == "a label is another token":
        labels[last] = 7
    elif change == "nothing is trained":
        labels = [IGNORED] * len(ids)
    elif change == "the end token is missing":
        ids.pop()
        labels.pop()
    elif change == "a token is missing":
        del ids[3], labels[3]
    elif change == "a token is doubled":
        ids.insert(3, ids[3])
        labels.insert(3, labels[3])
    elif change == "an answer is cut":
        del ids[last - 3 : last], labels[last - 3 : last]
    elif change == "something follows":
        ids.append(ids[last])
        labels.append(ids[last])
    return MaskRow(row.id, row.messages, Example(ids, labels), row.truncated)


@pytest.mark.model
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("labels are shorter", "57 tokens and 56 labels; expected as many"),
        ("a label is another token", "token 57 of 57, '<|im_end|>' (id 2), is trained towards the id 7"),
        ("nothing is trained", "no token is trained"),
        ("the end token is missing", "token 56 of 56, '!' (id 17), is the last of an answer, and no end token follows"),
        ("a token is missing", "token 4 of 56, ' ' (id 216), does not spell what the template has: 'Name 3 primes."),
        ("a token is doubled", "token 5 of 58, 'Name' (id 5820), does not spell what the template has: ' 3 primes."),
        (
            "an answer is cut",
            "token 54 of 54, '<|im_end|>' (id 2), does not spell what the template has: ' is all!<|im",
        ),
        ("something follows", "token 58 of 58, '<|im_end|>' (id 2), stands behind the template's end"),
    ],
)
def test_a_fault_in_ids_or_labels_is_named(smollm, change, expected):
    gate, row = passed(TALK, "chatml", smollm)
    with pytest.raises(MaskError) as caught:
        gate.check(faulty(row, change))
    assert expected in str(caught.value)


@pytest.mark.model
def test_a_cut_answer_with_an_end_token_does_not_pass(smollm):
    whole = chat_template.encode(TALK, "chatml", smollm)
    with pytest.raises(MaskError, match=r"token 57 of 57, '<\|im_end\|>' \(id 2\), follows an answer that was cut off"):
        MaskGate("chatml", smollm).check(MaskRow("s1", TALK, whole, truncated=True))


@pytest.mark.model
@pytest.mark.parametrize(
    ("unlearnt", "trained", "what"), [({1}, {3}, None), ({1}, {1, 3}, "is trained"), ((), {3}, "is not trained")]
)
def test_an_answer_for_context_must_not_be_trained_and_every_other_must(smollm, unlearnt, trained, what):
    example = chat_template.encode(TALK, "chatml", smollm, unlearnt={1, 3} - trained)
    row = MaskRow("s1", TALK, example, unlearnt=frozenset(unlearnt))
    if what is None:
        MaskGate("chatml", smollm).check(row)
        return
    with pytest.raises(MaskError, match=what):
        MaskGate("chatml", smollm).check(row)


@pytest.mark.model
def test_a_special_token_that_a_message_makes_real_is_found(smollm):
    talk = CONVERSATIONS["mentions"]
    plain = [{"role": message.role, "content": message.content} for message in talk]
    ids = smollm.apply_chat_template(plain, chat_template=chat_template.jinja("chatml", smollm), return_dict=False)
    good = chat_template.encode(talk, "chatml", smollm)
    labels = [IGNORED] * (len(ids) - good.trained) + list(ids[len(ids) - good.trained :])
    with pytest.raises(MaskError, match=r"'<\|im_end\|>' \(id 2\), is real where a message only mentions it"):
        MaskGate("chatml", smollm).check(MaskRow("s1", talk, Example(list(ids), labels)))


@pytest.mark.model
def test_an_answer_may_spell_special_tokens_and_they_stay_text(smollm):
    gate, row = passed(CONVERSATIONS["mentions"], "chatml", smollm)
    assert answers(gate, row) == ["A <|im_end|> </s> .<|im_end|>"]
    assert row.example.input_ids.count(2) == 2
    assert gate.checked.mentioning == ["s1"]


@pytest.mark.model
def test_rows_that_one_pass_over_the_text_would_merge_are_noted_and_trained_as_they_are_generated(smollm):
    gate, row = passed(CONVERSATIONS["lines"], "own", smollm)
    assert gate.checked.merging == ["s1"]
    assert answers(gate, row) == ["\n\n  code:\n\tfoo\n<|im_end|>"]
    assert row.example.input_ids[: row.example.labels.index(row.example.input_ids[-row.example.trained])]
    prompt = chat_template.prompt_ids(CONVERSATIONS["lines"][:1], "own", smollm)
    assert row.example.input_ids[: len(prompt)] == prompt


def test_a_space_too_many_at_the_edge_of_an_answer_does_not_pass():
    tokenizer = sentencepiece(FAMILIES["mistral"])
    good = chat_template.encode(TALK[:2], "own", tokenizer)
    space = tokenizer.convert_tokens_to_ids("▁")
    at = len(good.input_ids) - good.trained
    ids = [*good.input_ids[:at], space, *good.input_ids[at:]]
    labels = [*good.labels[:at], space, *good.labels[at:]]
    with pytest.raises(MaskError, match=f"token {at + 1} of {len(ids)}, ' ' .* does not spell what the template has"):
        MaskGate("own", tokenizer).check(MaskRow("s1", TALK[:2], Example(ids, labels)))


# Templates that lose something


def test_a_template_that_leaves_the_system_turn_out_is_refused_by_name_and_session(smollm):
    tokenizer = byte_level(smollm, Family(families.GEMMA_SILENT, FAMILIES["gemma"].tokens, "<eos>", "<bos>"))
    with pytest.raises(MaskError) as caught:
        passed(CONVERSATIONS["system"], "own", tokenizer)
    assert str(caught.value) == (
        "template own leaves out the system turn of session s1 ('Be brief.'); set student.template to chatml, or "
        "train.lost_system to accept"
    )
    gate, row = passed(CONVERSATIONS["system"], "own", tokenizer, lost_system="accept")
    assert gate.checked.lost == ["s1"]
    assert answers(gate, row) == ["11, 13 and 17.<end_of_turn>"]


def test_a_template_that_refuses_a_system_turn_is_told_in_its_words(smollm):
    with pytest.raises(DistillError, match=r"there is no system role; set student.template to chatml"):
        passed(CONVERSATIONS["system"], "own", byte_level(smollm, FAMILIES["gemma"]))


@pytest.mark.parametrize(("family", "joined"), [("llama-2", ["s1"]), ("mistral", ["s1"]), ("zephyr", []), ("qwen", [])])
def test_a_system_turn_that_is_put_into_the_users_is_noted(smollm, family, joined):
    gate, _ = passed(CONVERSATIONS["system"], "own", byte_level(smollm, FAMILIES[family]))
    assert gate.checked.joined == joined


def test_a_system_turn_that_wanders_to_the_last_question_is_refused(smollm):
    tokenizer = byte_level(smollm, Family(families.MISTRAL_LAST, FAMILIES["mistral"].tokens, "</s>", "<s>"))
    with pytest.raises(RecipeError, match="renders an answer differently"):
        passed(CONVERSATIONS["system and multi"], "own", tokenizer)


@pytest.mark.parametrize("talk", [THOUGHTS, TALK])
@pytest.mark.parametrize("kind", KINDS)
def test_thoughts_that_are_stripped_later_can_be_trained_in_the_last_answer_only(smollm, kind, talk):
    tokenizer = tokenizer_for(kind, THINKING)
    with pytest.raises(RecipeError, match=r"differently .* set train_on to last, or use template chatml"):
        passed(talk, "own", tokenizer)
    gate, row = passed(talk, "own", tokenizer, train_on="last")
    thought = "<think>\nThrees.\n</think>\n\n6" if talk is THOUGHTS else "<think>\n\n</think>\n\n19 — that is all!"
    assert answers(gate, row) == [thought + "<|im_end|>"]
    assert chat_template.prompt_ids(talk[:-1], "own", tokenizer) == row.example.input_ids[: -row.example.trained]


def test_a_template_that_takes_something_out_of_an_answer_is_refused(smollm):
    tokenizer = byte_level(smollm, Family(families.FORGETFUL, ("<|im_start|>",), "<|im_end|>"))
    passed(TALK, "own", tokenizer)
    with pytest.raises(MaskError, match=r"the template changes the answer in turn 2, '<think>Twotwos.</think>4'"):
        passed(THOUGHTS, "own", tokenizer)


def test_an_answer_with_a_header_and_an_end_of_its_own_is_trained_whole(smollm):
    tokens = ("<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|end|>")
    tokenizer = byte_level(smollm, Family(families.CHANNELS, tokens, "<|return|>"))
    gate, row = passed(TALK, "own", tokenizer, train_on="last")
    assert answers(gate, row) == ["<|channel|>final<|message|>19 — that is all!<|return|>"]
    assert chat_template.end_ids("own", tokenizer) == [tokenizer.convert_tokens_to_ids("<|return|>")]


def test_an_empty_answer_does_not_pass(smollm):
    talk = (Message("user", "Hi"), Message("assistant", " \n"))
    with pytest.raises(MaskError, match="the answer in turn 2 is empty"):
        passed(talk, "own", smollm)


# What tokens spell


def test_a_row_that_the_tokenizer_cannot_spell_is_told_apart(smollm):
    with pytest.raises(UnspeltError, match="session s1: the tokenizer has no tokens for some of its characters"):
        passed((Message("user", "a\x06b"), TALK[1]), "chatml", smollm)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cn", "Co", "Cc"])))
def test_the_pieces_of_a_byte_level_tokenizer_join_to_the_text(text):
    ids = tokenizer_of().encode(text, add_special_tokens=False, split_special_tokens=True)
    assert b"".join(Spelling(tokenizer_of()).pieces(ids)).decode() == text


@pytest.mark.parametrize("text", ["two words", "a\ttab, 日本", "e\u0301 \U0001f642"])
def test_the_pieces_of_a_tokenizer_with_spaces_as_letters_join_to_the_normalised_text(text):
    tokenizer = sentencepiece(FAMILIES["mistral"])
    pieces = Spelling(tokenizer).pieces(tokenizer.encode(text, add_special_tokens=False))
    assert b"".join(pieces).decode() == " " + Spelling(tokenizer).readable(text)
