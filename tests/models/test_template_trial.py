"""Chat templates of others are tried with little time and memory before a process depends on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from distill.errors import DistillError, ModelError
from distill.models import chat_template, pretrained
from distill.models.third_party import is_bounded
from distill.types import Message
from tests.support import families

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
BOMBS = {
    "loops": LOOPS,
    "loops over a message": (
        "{% for a in messages[-1].content %}{% for b in messages[-1].content %}{% endfor %}{% endfor %}"
    ),
    "loops around answers": "{% generation %}" + LOOPS + "{% endgeneration %}",
    "loops after a date": "{{ strftime_now('%d') }}" + LOOPS,
    "a long text": "{{ 'x' * 10**10 }}",
    "a doubled text": (
        "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
    ),
    "a long number": "{{ (messages | length + 9) ** (10**10) }}",
    "a wide number": "{{ '%1000000000d' % 5 }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_does_not_end_or_fills_the_memory_is_found_out(name):
    assert not is_bounded(BOMBS[name])


@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_templates_of_known_families_pass(name):
    assert is_bounded(families.FAMILIES[name].template)


FAULTS = (
    "{% for a in range(10**12) %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 1 / 0 }}",
    "{{ messages[99]['role'] }}",
    "{{ raise_exception('no') }}",
    "{{ nothing.at.all }}",
    "{% for %}",
    "{{ messages | batch }}",
)


@pytest.fixture
def folder(tiny: str, tmp_path: Path) -> Path:
    """The tokenizer of a model, without its template."""
    for file in Path(tiny).glob("*.json"):
        shutil.copy(file, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


@pytest.mark.model
def test_a_tokenizer_with_such_a_template_is_refused_in_one_line(folder):
    (folder / "chat_template.jinja").write_text(BOMBS["a long text"])
    with pytest.raises(ModelError, match=r"^the chat template in .* takes over 1 s or 400 MB to render; mend it$"):
        pretrained.load_tokenizer(folder)


@pytest.mark.model
@pytest.mark.parametrize("template", FAULTS)
def test_a_template_that_fails_is_an_error_of_the_conversation(folder, template):
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = pretrained.load_tokenizer(folder)
    with pytest.raises(Exception, match="cannot render the conversation") as error:
        chat_template.prompt_ids([Message("user", "Hi?")], "own", tokenizer)
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_panics_at_a_text_is_an_error_of_that_text():
    from tokenizers import Regex, Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("(a|a)*$"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    assert chat_template.token_ids("a", tokenizer) == [0]
    with pytest.raises(DistillError, match="the tokenizer fails at a text of 41 characters"):
        chat_template.token_ids("a" * 40 + "b", tokenizer)
