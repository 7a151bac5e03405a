"""Any chat template that a tokenizer of the Hub holds is used alike every day, or refused in a line."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from distill.errors import DistillError, ModelError, RecipeError
from distill.models import chat_template, pretrained
from distill.models.chat_template import IGNORED
from distill.models.templates import check as template_check
from distill.train.mask_check import MaskGate, MaskRow
from distill.types import Message
from tests.models.test_template_trial import LOOPS
from tests.support import families
from tests.support.models.marked_tokenizers import CHATML, R1, Marked, tokenizer_of

TURNS = (Message("user", "What is right?"), Message("assistant", "This is."))
THOUGHT = (TURNS[0], Message("assistant", "<think>\nbe kind\n</think>\n\nThis is."))
LONG = (*TURNS, Message("user", "And what else?"), Message("assistant", "That is."))
SYSTEM = (Message("system", "Be brief."), *TURNS)
MARKS = ("<|im_start|>", "<think>", "</think>", "<｜User｜>", "<｜Assistant｜>")
HEADER = "{{ '<|im_start|>' + m['role'] + '\\n' }}"


@functools.cache
def tokenizer():
    return tokenizer_of(Marked(CHATML, MARKS, "<|im_end|>", "<s>"))


def trained(template: object, talk, *, train_on="all", **options) -> str:
    """The trained text of a conversation whose mask the gate has passed."""
    made = tokenizer()
    made.chat_template = template
    example = chat_template.encode(talk, "own", made, train_on=train_on)
    MaskGate("own", made, train_on=train_on, **options).check(MaskRow("s1", talk, example))
    return made.decode([label for label in example.labels if label != IGNORED])


def chatml(content: str, *, prompt: str = "<|im_start|>assistant\\n", start: str = "") -> str:
    """ChatML with an expression for the content."""
    return (
        start
        + "{% for m in messages %}"
        + HEADER
        + "{{ "
        + content
        + " + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '"
        + prompt
        + "' }}{% endif %}"
    )


PLAIN = chatml("m['content']")
MARKED_ANSWERS = PLAIN.replace(
    "{{ m['content'] + '<|im_end|>\\n' }}",
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}",
)
REASONING = (
    "{% for m in messages %}" + HEADER + "{% if m['role'] == 'assistant' %}{% set said = m['content'] %}"
    "{% set thought = '' %}{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{% if loop.last %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' + said }}{% else %}{{ said }}{% endif %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
"""As of Qwen3-Thinking: the prompt opens the thought that the answer begins with."""


@pytest.mark.parametrize(
    ("template", "talk", "expected"),
    [
        (PLAIN, TURNS, "This is.<|im_end|>"),
        ({"default": PLAIN, "tool_use": "{{ nothing }}", "rag": "x"}, TURNS, "This is.<|im_end|>"),
        (MARKED_ANSWERS, TURNS, "This is.<|im_end|>"),
        (chatml("m['content'] | trim"), (TURNS[0], Message("assistant", "\n This is. \n")), "This is.<|im_end|>"),
        ("{% if tools %}{{ tools }}{% endif %}{% if documents %}D{% endif %}" + PLAIN, TURNS, "This is.<|im_end|>"),
        (REASONING, THOUGHT, "be kind\n</think>\n\nThis is.<|im_end|>"),
        (REASONING, TURNS, "</think>\n\nThis is.<|im_end|>"),
        (families.LLAMA2, TURNS, "This is. <|im_end|>"),
    ],
)
def test_a_template_of_each_form_trains_the_answer_and_its_end(template, talk, expected):
    assert trained(template, talk).strip() == expected


@pytest.mark.parametrize(
    ("template", "talk", "expected"),
    [
        (None, TURNS, "has no chat template; set student.template to chatml, vicuna or alpaca"),
        ("", TURNS, "has no chat template; set student.template to chatml"),
        ({}, TURNS, "has no chat template; set student.template to chatml"),
        (
            {"tool_use": PLAIN, "rag": PLAIN},
            TURNS,
            "has chat templates (rag, tool_use), none named default; set student",
        ),
        ({"default": ""}, TURNS, "has chat templates (default), none named default"),
        ({"default": 7}, TURNS, "has chat templates (default), none named default"),
        (PLAIN.partition("{% if")[0], TURNS, "ignores add_generation_prompt: the answer in turn 2 would begin with"),
        (CHATML.partition("{% if")[0], LONG, "ignores add_generation_prompt"),
        (
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}",
            TURNS,
            "add_generation",
        ),
        (R1, TURNS, "renders an answer differently when it is generated"),
        (R1, THOUGHT, "so it cannot be trained; use template chatml"),
        (
            chatml("m['content']", prompt="<|im_start|>assistant\\n<think>\\n\\n</think>"),
            TURNS,
            "renders an answer diff",
        ),
        (REASONING, LONG, "set train_on to last, or use template chatml"),
        (families.GEMMA, SYSTEM, "cannot render the conversation: there is no system role; set student.template"),
        (families.MISTRAL, (TURNS[0], *LONG), "cannot render the conversation: user and assistant must take turns"),
        (families.LLAMA2, (*LONG, LONG[-1]), "user and assistant must take turns; set student.template to chatml"),
        (chatml("m['content'].split('</think>')[-1]"), THOUGHT, "the template changes the answer in turn 2"),
        (chatml("m['content'][:4]"), TURNS, "leaves out the user turn of session s1"),
        (chatml("m['content'] | upper"), TURNS, "the template changes the answer in turn 2"),
        (chatml("m['content'].split(':')[1]"), TURNS, "cannot render the conversation: list object has no element 1"),
        (
            chatml("m['content'].split(':')[1]"),
            (Message("user", "a:b"), Message("assistant", "c:d")),
            "cannot render the conversation: list object has no element 1",
        ),
        (
            "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}",
            TURNS,
            "no spec",
        ),
        (
            "{% for m in messages %}{{ m['content'] }}",
            TURNS,
            "cannot render the conversation: Unexpected end of template",
        ),
        (
            chatml("m['content']", start="{{ strftime_now(messages[0]['content']) }}"),
            TURNS,
            "writes the current date in a",
        ),
        (
            chatml("m['content']", start="{% set f = '%d' %}{{ strftime_now(f) }}"),
            TURNS,
            "form of its own; expected strft",
        ),
        (
            chatml("m['content']", start="{{ strftime_now('%d' + '%m') }}"),
            TURNS,
            "or another fixed format; set student",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line(template, talk, expected):
    with pytest.raises(DistillError) as caught:
        trained(template, talk)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ('{{ strftime_now( "%Y-%m-%d" ) }}', "2024-07-26"),
        ("{% set date = strftime_now('%B %d, %Y') if strftime_now is defined else 'x' %}{{ date }}", "July 26, 2024"),
        ("{{ strftime_now('%H:%M:%S.%f') }}", "00:00:00.000000"),
        ("{{ (strftime_now('%d') | int) - 1 }}", "25"),
        ('{{ strftime_now("it\'s %Y") }}', "it's 2024"),
    ],
)
def test_a_template_that_writes_the_date_gives_the_same_ids_on_every_day(date, expected):
    made = tokenizer()
    made.chat_template = date + PLAIN
    ids = chat_template.prompt_ids(TURNS[:1], "own", made)
    assert made.decode(ids).startswith(expected + "<|im_start|>user\n")
    made.chat_template = chat_template.jinja("own", made)
    assert template_check.by_template(made)(TURNS[:1]) == ids
    assert trained(made.chat_template, TURNS) == "This is.<|im_end|>"


@pytest.mark.parametrize("bos", ["{{ bos_token }}", "<s>", ""])
def test_a_begin_token_stands_once_where_template_and_tokenizer_both_add_it(bos):
    from tokenizers.processors import TemplateProcessing

    made = tokenizer_of(Marked(bos + PLAIN, MARKS, "<|im_end|>", "<s>"))
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
    )
    ids = chat_template.prompt_ids(TURNS[:1], "own", made)
    assert ids.count(made.bos_token_id) == int(bool(bos))
    assert ids == template_check.by_template(made)(TURNS[:1])
    assert chat_template.prompt_ids(TURNS[:1], "chatml", made).count(made.bos_token_id) == 1


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tokenizer()
    made.chat_template = None
    made.save_pretrained(tmp_path)
    return tmp_path


def configure(folder: Path, template: object) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))


def further(folder: Path, **templates: str) -> None:
    (folder / "additional_chat_templates").mkdir()
    for name, text in templates.items():
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text)


def test_the_default_of_several_templates_in_a_folder_is_used_and_saved_alone(folder, tmp_path_factory):
    listed = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": "x"}]
    configure(folder, listed)
    first = pretrained.load_tokenizer(folder)
    configure(folder, None)
    (folder / "chat_template.jinja").write_text(PLAIN)
    further(folder, tool_use="x")
    second = pretrained.load_tokenizer(folder)
    for made in (first, second):
        assert chat_template.jinja("own", made) == PLAIN
        made.chat_template = chat_template.jinja("own", made)
        saved = tmp_path_factory.mktemp("saved")
        made.save_pretrained(saved)
        assert (saved / "chat_template.jinja").read_text() == PLAIN
        assert not (saved / "additional_chat_templates").exists()


@pytest.mark.parametrize("template", [[{"name": "default"}], [7], [["default", PLAIN]]])
def test_templates_of_another_shape_are_an_error_of_the_folder(folder, template):
    configure(folder, template)
    with pytest.raises(ModelError) as caught:
        pretrained.load_tokenizer(folder)
    assert str(caught.value).startswith(f"the tokenizer in {folder} cannot be read: ")
    assert "\n" not in str(caught.value)


def test_the_default_of_several_templates_is_tried_with_little_time(folder):
    configure(folder, [{"name": "default", "template": LOOPS}, {"name": "rag", "template": PLAIN}])
    with pytest.raises(ModelError, match="takes over 1 s or 400 MB to render"):
        pretrained.load_tokenizer(folder)
    configure(folder, [{"name": "default", "template": PLAIN}, {"name": "rag", "template": LOOPS}])
    assert chat_template.jinja("own", pretrained.load_tokenizer(folder)) == PLAIN


def test_templates_without_a_default_are_refused_when_one_is_needed(folder):
    further(folder, rag=PLAIN, tool_use=PLAIN)
    made = pretrained.load_tokenizer(folder)
    with pytest.raises(RecipeError, match=r"chat templates \(rag, tool_use\), none named default"):
        chat_template.jinja("own", made)
    assert chat_template.prompt_ids(TURNS[:1], "chatml", made)
