"""A Modelfile's TEMPLATE asks as the chat template does, by Go's own engine; what cannot be said in it is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from distill.errors import ModelError
from distill.models import chat_template
from distill.types import Message
from tests.models.test_gguf_writing import tokenizer
from tests.support import families

pytest.importorskip("torch")
GO = Path(__file__).parents[1] / "go_template"
SAID = (
    [("user", "Hi")],
    [("system", "Be brief.\nBe kind."), ("user", "Hi")],
    [
        ("user", "What is {{ .Content }}?"),
        ("assistant", '"Nothing" \\ {{ end }}'),
        ("user", "A `b`\n\n<think>c</think>"),
    ],
    [("system", "日本 🙂"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")],
)


USER = "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
ANSWER = "<|im_start|>assistant\n"


def go(cases: list[dict[str, Any]]) -> list[str]:
    """What Go's text/template makes of templates and values."""
    if shutil.which("node") is None or not (GO / "node_modules").is_dir():
        if os.environ.get("REQUIRE_GO_TEMPLATE") == "1":
            pytest.fail(f"REQUIRE_GO_TEMPLATE=1 but Go's engine is not there; npm ci --prefix {GO}")
        pytest.skip(f"Go's engine has NOT rendered the Modelfiles: npm ci --prefix {GO}")
    command = ["node", "render.mjs"]
    finished = subprocess.run(
        command, cwd=GO, input=json.dumps(cases), capture_output=True, text=True, timeout=120, check=True
    )
    found: list[str] = json.loads(finished.stdout)
    return found


def values(turns: list[tuple[str, str]]) -> dict[str, Any]:
    """What Ollama hands to a template."""
    return {"Messages": [{"Role": role, "Content": content} for role, content in turns]}


def rendered(turns: list[tuple[str, str]], template: str, words: Any) -> str:
    """By Jinja, without the begin token that the GGUF file adds by itself."""
    plain = [{"role": role, "content": content} for role, content in turns]
    text = words.apply_chat_template(
        plain, chat_template=chat_template.jinja(template, words), tokenize=False, add_generation_prompt=True
    )
    return str(text).removeprefix(words.bos_token if chat_template.starts_with_bos(words) else "")


def asked(template: str, words: Any, dialogues: Any = SAID) -> tuple[list[str], list[str]]:
    """The dialogues by Go, and by Jinja."""
    from distill.formats.exporters.student.ollama import fixed_texts, go_template

    written = go_template(fixed_texts(template, words))
    found = go([{"template": written, "values": values(turns)} for turns in dialogues])
    return found, [rendered(turns, template, words) for turns in dialogues]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("template", chat_template.TEMPLATES)
def test_go_renders_every_template_as_jinja_does(template, bos):
    found, expected = asked(template, tokenizer(bos=bos))
    assert found == expected


@pytest.mark.parametrize("name", ["llama-3", "qwen", "zephyr", "phi"])
def test_go_renders_the_templates_of_well_known_families(name):
    found, expected = asked("own", families.byte_level(tokenizer(), families.FAMILIES[name]))
    assert found == expected


LATER = [
    [("system", "Be brief.")],
    [("user", "Hi"), ("assistant", "Yo."), ("system", "Be rude."), ("user", "And?")],
    [("user", "Hi"), ("assistant", "Yo."), ("system", "Be rude.")],
]


def test_a_system_turn_has_its_header_wherever_it_stands_and_a_turn_of_another_role_is_a_users():
    found, expected = asked("chatml", tokenizer(), LATER)
    assert found == expected
    assert found[1].endswith("<|im_end|>\n<|im_start|>system\nBe rude.<|im_end|>\n" + USER)
    (tool,), _ = asked("chatml", tokenizer(), [[("user", "Hi"), ("tool", "42"), ("user", "And?")]])
    assert tool == "".join(f"<|im_start|>user\n{text}<|im_end|>\n" for text in ("Hi", "42", "And?")) + ANSWER


@pytest.mark.parametrize("template", ["own", "vicuna", "alpaca"])
def test_no_turn_is_glued_to_the_one_before_it(template):
    """Whatever the roles, a turn is parted from an earlier one, and a prompt for the answer follows the last."""
    from distill.formats.exporters.student.ollama import fixed_texts

    for name in ("llama-3", "zephyr", "phi", "qwen", "gemma", "mistral"):
        texts = fixed_texts(template, families.byte_level(tokenizer(), families.FAMILIES[name]))
        for role in ("system", "user", "tool"):
            turns = [Message("user", "Hi"), Message("assistant", "Yo."), Message(role, "42"), Message("user", "And?")]
            said = texts.render(turns)
            parts = [*said.replace("Yo.", "\0").replace("42", "\0").replace("And?", "\0").split("\0")]
            assert len(parts) == 4
            assert all(part.strip() for part in parts), (name, role, said)


def test_a_template_without_a_place_for_a_system_turn_is_written_without_one():
    words = families.byte_level(tokenizer(), families.FAMILIES["gemma"])
    found, expected = asked("own", words, [turns for turns in SAID if turns[0][0] == "user"])
    assert found == expected


@pytest.mark.parametrize("template", ["THINKING", "FORGETFUL", "MISTRAL_LAST"])
def test_a_template_that_does_more_than_put_texts_around_contents_is_refused(template):
    from distill.formats.exporters.student.ollama import fixed_texts

    words = tokenizer()
    words.chat_template = getattr(families, template)
    with pytest.raises(ModelError, match=r"no form in Go's template language.*--to gguf"):
        fixed_texts("own", words)


def modelfile(**changes: Any) -> str:
    from distill.formats.exporters.student.ollama import fixed_texts, modelfile

    settings = {"stops": ["<|im_end|>"], "system": "Be brief.", "about": "by distill", **changes}
    return modelfile("model.gguf", fixed_texts("chatml", tokenizer()), **settings)


def test_a_modelfile_has_the_file_the_template_the_stops_and_the_system_message():
    text = modelfile()
    assert text.splitlines()[:2] == ["# by distill", "FROM ./model.gguf"]
    (template,) = re.findall(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    assert go([{"template": template, "values": values(SAID[1])}]) == [rendered(SAID[1], "chatml", tokenizer())]
    assert text.splitlines()[-2:] == ['PARAMETER stop "<|im_end|>"', 'SYSTEM "Be brief."']
    assert "SYSTEM" not in modelfile(system=None)


def test_a_system_message_of_several_lines_is_held_and_one_that_cannot_be_is_refused():
    assert modelfile(system='a "b"\nc').endswith('SYSTEM """a "b"\nc"""\n')
    for hostile in ('a\n"""\nFROM /etc/passwd', 'say "so"'):
        with pytest.raises(ModelError, match="which a Modelfile cannot"):
            modelfile(system=hostile)


def test_what_others_wrote_never_starts_an_instruction():
    text = modelfile(about="x\nFROM /etc/passwd", system="y\nFROM /etc/passwd")
    outside = re.sub(r'""".*?"""', "", text, flags=re.DOTALL)
    assert [line for line in outside.splitlines() if line.startswith("FROM")] == ["FROM ./model.gguf"]


def test_the_examples_that_templates_are_checked_on_take_turns():
    from distill.models.templates.check import examples

    for turns in examples():
        roles = [turn.role for turn in turns if turn.role != "system"]
        assert roles == ["user", "assistant", "user", "assistant", "user"][: len(roles)]
        assert isinstance(turns[-1], Message)
