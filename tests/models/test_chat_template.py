"""Templates: which tokens are trained, and that a student is asked in the very tokens that it was trained on."""

from __future__ import annotations

import copy
import string
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from distill.errors import DistillError, RecipeError
from distill.models import chat_template
from distill.types import Message, pairs

OURS = ("alpaca", "vicuna", "chatml")
TALK = [
    Message("user", "Name 3 primes.\n\nAbove: 10"),
    Message("assistant", "11, 13 and 17."),
    Message("user", "And one more? "),
    Message("assistant", "19 — that is all!"),
]
SYSTEM = Message("system", "Be brief.")
CONVERSATIONS = {
    "single": TALK[:2],
    "multi": TALK,
    "system": [SYSTEM, *TALK[:2]],
    "system and multi": [SYSTEM, *TALK],
}


@pytest.fixture(scope="module")
def smollm():
    from distill.models.loading import load_tokenizer, materialise

    return load_tokenizer(materialise("smollm2"))


def sentencepiece_like(*, prepend: str, bos: bool = True):
    """A tokenizer as Llama 2's: spaces are ▁, and one is put before a text that has none."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    texts = [message.content for message in TALK] * 9 + ["USER: ASSISTANT: Below is an Instruction: Response: \n\n\n"]
    trainer = trainers.BpeTrainer(
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=[*map(chr, range(32, 127)), "\n", "—"],
        vocab_size=400,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def trained_text(example, tokenizer) -> list[str]:
    """The stretches of trained tokens, decoded."""
    stretches, last = [], None
    for label in example.labels:
        if label != chat_template.IGNORED:
            if last in (None, chat_template.IGNORED):
                stretches.append([])
            stretches[-1].append(label)
        last = label
    return [tokenizer.decode(ids) for ids in stretches]


@pytest.mark.model
@pytest.mark.parametrize("template", chat_template.TEMPLATES)
def test_every_answer_and_its_end_token_are_trained_and_nothing_else(smollm, template):
    example = chat_template.encode([SYSTEM, *TALK], template, smollm)
    assert [text.strip() for text in trained_text(example, smollm)] == [
        "11, 13 and 17.<|im_end|>",
        "19 — that is all!<|im_end|>",
    ]
    assert len(example.labels) == len(example.input_ids)
    assert all(
        label in (chat_template.IGNORED, id_) for id_, label in zip(example.input_ids, example.labels, strict=True)
    )


@pytest.mark.model
@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "alpaca",
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            "\n\n### Instruction:\nHi?\n\n### Response:\nHello.<|im_end|>",
        ),
        (
            "vicuna",
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the user's questions. USER: Hi? ASSISTANT: Hello.<|im_end|>",
        ),
        ("chatml", "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>"),
    ],
)
def test_a_template_renders_its_published_form(smollm, template, text):
    example = chat_template.encode([Message("user", "Hi?"), Message("assistant", "Hello.")], template, smollm)
    assert smollm.decode(example.input_ids) == text


@pytest.mark.model
@pytest.mark.parametrize("template", ["alpaca", "vicuna"])
def test_a_system_message_replaces_the_preamble(smollm, template):
    text = smollm.decode(chat_template.prompt_ids([SYSTEM, TALK[0]], template, smollm))
    assert text.startswith("Be brief.")
    assert "Below is" not in text
    assert "A chat between" not in text


SPECIAL = st.sampled_from(["<|im_end|>", "<|im_start|>assistant\n", "<|endoftext|>", "\n\n### Response:\n", " \n"])
TEXT = st.lists(st.one_of(st.text(max_size=12), SPECIAL), max_size=4).map("".join)
PLAIN = st.lists(st.one_of(st.text(string.printable, max_size=12), SPECIAL), max_size=4).map("".join)


@pytest.mark.model
@settings(max_examples=60, deadline=None)
@given(
    template=st.sampled_from(chat_template.TEMPLATES), question=TEXT, answer=TEXT, earlier=st.lists(TEXT, max_size=2)
)
def test_prompt_answer_and_end_make_up_the_example(smollm, template, question, answer, earlier):
    history = [message for text in earlier for message in (Message("user", text), Message("assistant", text))]
    prompt = [*history, Message("user", question)]
    example = chat_template.encode([*prompt, Message("assistant", answer)], template, smollm)
    said = answer if template == "own" else answer.strip()
    said = " " + said if template == "vicuna" else said
    answer_ids = smollm.encode(said, add_special_tokens=False, split_special_tokens=True)
    ids = chat_template.prompt_ids(prompt, template, smollm)
    assert ids + answer_ids + chat_template.end_ids(template, smollm)[:1] == example.input_ids
    assert example.labels[len(ids) :] == example.input_ids[len(ids) :]


@pytest.mark.model
@settings(max_examples=60, deadline=None)
@given(template=st.sampled_from(chat_template.TEMPLATES), question=PLAIN)
def test_special_tokens_that_a_user_mentions_stay_text(smollm, template, question):
    def specials(text: str) -> list[int]:
        ids = chat_template.prompt_ids([Message("user", text)], template, smollm)
        return [id_ for id_ in ids if id_ in smollm.all_special_ids]

    assert specials(question) == specials("harmless")
    mentioned = smollm.decode(chat_template.prompt_ids([Message("user", question)], template, smollm))
    assert question in mentioned


@pytest.mark.model
@pytest.mark.parametrize("template", chat_template.TEMPLATES)
def test_the_saved_chat_template_gives_the_trained_ids(smollm, template, tmp_path):
    from transformers import AutoTokenizer

    saved = copy.deepcopy(smollm)
    saved.chat_template = chat_template.jinja(template, smollm)
    saved.save_pretrained(tmp_path)
    served = AutoTokenizer.from_pretrained(tmp_path)
    for messages in CONVERSATIONS.values():
        plain = [{"role": message.role, "content": message.content} for message in messages]
        whole = served.apply_chat_template(plain, return_dict=False)
        example = chat_template.encode(messages, template, smollm)
        assert whole[: len(example.input_ids)] == example.input_ids
        assert served.decode(whole[len(example.input_ids) :]).strip() == ""
        asked = served.apply_chat_template(plain[:-1], add_generation_prompt=True, return_dict=False)
        assert asked == chat_template.prompt_ids(messages[:-1], template, smollm)


@pytest.mark.model
@pytest.mark.parametrize("template", chat_template.TEMPLATES)
def test_a_truncated_answer_gets_no_end_token(smollm, template):
    whole = chat_template.encode(TALK, template, smollm)
    cut = chat_template.encode(TALK, template, smollm, truncated=True)
    assert whole.input_ids == [*cut.input_ids, *chat_template.end_ids(template, smollm)[:1]]
    assert cut.trained == whole.trained - 1


@pytest.mark.parametrize("template", OURS)
def test_a_prompt_starts_with_the_begin_token_where_the_tokenizer_adds_one(template):
    assert chat_template.prompt_ids(TALK[:1], template, sentencepiece_like(prepend="first"))[0] == 1
    assert 1 not in chat_template.prompt_ids(TALK[:1], template, sentencepiece_like(prepend="first", bos=False))


def test_chatml_is_text_for_a_tokenizer_without_its_tokens_and_answers_end_with_the_end_token():
    tokenizer = sentencepiece_like(prepend="first", bos=False)
    example = chat_template.encode(TALK[:2], "chatml", tokenizer)
    assert tokenizer.decode(example.input_ids).endswith("<|im_start|>assistant\n11, 13 and 17.</s>")
    assert chat_template.end_ids("chatml", tokenizer) == [tokenizer.eos_token_id]


@pytest.mark.model
def test_answers_end_with_the_chatml_token_and_then_the_tokenizers_own(smollm):
    assert chat_template.end_ids("chatml", smollm) == [smollm.convert_tokens_to_ids("<|im_end|>")]


def own(template: str):
    tokenizer = sentencepiece_like(prepend="first", bos=False)
    tokenizer.chat_template = template
    return tokenizer


LAST = "{% for m in messages %}{{ m['role'] + ':' + (m['content'] if loop.last else 'x') + eos_token }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "tokenizer", "talk", "expected"),
    [
        ("klingon", own(LAST), TALK, 'unknown template "klingon"; expected one of alpaca, vicuna, chatml, own'),
        (
            "own",
            sentencepiece_like(prepend="first"),
            TALK,
            "no chat template; set student.template to chatml, vicuna or alpaca",
        ),
        ("own", own(LAST), TALK, "renders an answer differently"),
        ("own", own("{% for m in messages %}{{ m['content'] }}{% endfor %}"), TALK, "with no special token"),
        ("own", own("{{ raise_exception('no system here') }}"), TALK, "no system here"),
        ("chatml", own(LAST), TALK[1:], "begins with an assistant turn; expected a user or system turn first"),
        ("own", own("{{ messages[0]['content'] + 7 }}"), TALK, "cannot render the conversation: can only conc"),
        ("vicuna", own(LAST), [Message("tool", "4"), TALK[1]], 'no place for a "tool" turn'),
        ("alpaca", own(LAST), [TALK[0], SYSTEM, TALK[1]], "turn 2 is a system turn; expected it first"),
        ("chatml", own(LAST), TALK[:1], "does not end with an assistant turn"),
        ("chatml", own(LAST), [], "does not end with an assistant turn"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(template, tokenizer, talk, expected):
    with pytest.raises(DistillError) as caught:
        chat_template.encode(talk, template, tokenizer)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", OURS)
def test_a_tokenizer_without_an_end_token_is_refused(template):
    tokenizer = sentencepiece_like(prepend="first")
    tokenizer.eos_token = None
    with pytest.raises(RecipeError, match="has no end token, so no answer could end; use template own, or name its"):
        chat_template.jinja(template, tokenizer)


@pytest.mark.model
def test_chatml_needs_no_end_token_where_its_own_tokens_are_special(smollm):
    tokenizer = copy.deepcopy(smollm)
    tokenizer.eos_token = None
    example = chat_template.encode(TALK, "chatml", tokenizer)
    assert trained_text(example, tokenizer) == ["11, 13 and 17.<|im_end|>", "19 — that is all!<|im_end|>"]


@pytest.mark.model
@pytest.mark.parametrize("template", chat_template.TEMPLATES)
def test_only_the_last_answer_is_trained_where_that_is_asked_for(smollm, template):
    example = chat_template.encode([SYSTEM, *TALK], template, smollm, train_on="last")
    assert [text.strip() for text in trained_text(example, smollm)] == ["19 — that is all!<|im_end|>"]
    assert example.input_ids == chat_template.encode([SYSTEM, *TALK], template, smollm).input_ids


def test_pairs_are_a_question_or_several_with_what_answers_it():
    talk = [TALK[1], *TALK[:3], Message("user", "Please."), TALK[3], TALK[3]]
    assert [len(pair) for pair in pairs(talk)] == [1, 2, 4]
    assert [message for pair in pairs(talk) for message in pair] == talk


def test_templates_load_neither_torch_nor_transformers():
    found = "[m for m in ('torch', 'transformers', 'jinja2') if m in sys.modules]"
    code = f"import sys, distill.models.chat_template; print({found})"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
