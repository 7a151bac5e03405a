r"""Writes Ollama's Modelfile: GGUF file, stop tokens, and the chat template in Go's template language.

A Jinja chat template is not translated: conversations of sentinels are rendered, and the text before, between and
after their contents becomes the Go template. That works for templates that put fixed texts around contents, which is
checked on further conversations before anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from distill.errors import DistillError, ModelError
from distill.models import chat_template
from distill.models.chat_template import Tokenizer
from distill.models.template_check import examples
from distill.types import Message

START = ""
"""Role before the first turn."""

_LESSONS = (("user",), ("system", "user"), ("user", "assistant", "user"), ("system", "user", "assistant", "user"))
"""Roles of the conversations of sentinels; Ollama joins neighbours of one role."""


@dataclass(frozen=True, slots=True)
class FixedTexts:
    """Fixed texts of a chat template around each message."""

    before: Mapping[tuple[str, str], str]
    """By (role of the turn before, role): everything between the two contents."""
    asking: Mapping[str, str]
    """By role of the last turn: everything after it, up to where the answer starts."""

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation up to its next answer, as the Go template renders it."""
        roles = [START, *(message.role for message in messages)]
        turns = zip(pairwise(roles), messages, strict=True)
        return "".join(self.before[pair] + message.content for pair, message in turns) + self.asking[roles[-1]]


def fixed_texts(template: str, tokenizer: Tokenizer) -> FixedTexts:
    """The fixed texts of a chat template, without a begin token that the GGUF adds by itself.

    They are compared with the template on conversations whose contents templates often change. Raises `ModelError` for
    a template that does more than put texts around contents.
    """
    before: dict[tuple[str, str], str] = {}
    asking: dict[str, str] = {}
    for roles in _LESSONS:
        messages = [Message(role, f"\ue000{number}\ue001") for number, role in enumerate(roles)]
        try:
            text = _rendered(messages, template, tokenizer)
        except DistillError as error:
            if roles[0] == "system":
                continue  # it has no place for a system turn
            raise ModelError(f"the chat template fails at {', '.join(roles)}: {error}") from error
        for pair, message in zip(pairwise([START, *roles]), messages, strict=True):
            between, content, text = text.partition(message.content)
            if not content or before.setdefault(pair, between) != between:
                raise _untranslatable()
        if asking.setdefault(roles[-1], text) != text:
            raise _untranslatable()
    texts = FixedTexts(before, asking)
    for dialogue in examples(system=(START, "system") in before):
        if texts.render(dialogue) != _rendered(dialogue, template, tokenizer):
            raise _untranslatable()
    return texts


def _rendered(messages: Sequence[Message], template: str, tokenizer: Tokenizer) -> str:
    begin = str(tokenizer.bos_token) if chat_template.starts_with_bos(tokenizer) else ""
    return chat_template.render(messages, template, tokenizer).removeprefix(begin)


def _untranslatable() -> ModelError:
    return ModelError(
        "the chat template does more than put texts around messages, so it has no form in Go's template language;"
        " train with student.template chatml, or use --to gguf, whose file holds it in Jinja"
    )


def go_template(texts: FixedTexts) -> str:
    """The template in Go's language (pkg.go.dev/text/template) with Ollama's variables (`.Messages`).

    All texts are quoted strings, so nothing in them is read as an instruction. Go templates cannot trim, so earlier
    answers must be sent back unchanged.
    """
    lines = ['{{- $before := "" -}}', "{{- range .Messages -}}"]
    for word, role in zip(("if", "else if", "else if"), ("system", "user", "assistant"), strict=True):
        lines.append(f'{{{{- {word} eq .Role "{role}" -}}}}')
        lines += _cases({earlier: text for (earlier, now), text in texts.before.items() if now == role})
    lines += ["{{- end -}}", "{{- .Content -}}", "{{- $before = .Role -}}", "{{- end -}}"]
    return "\n".join([*lines, *_cases(texts.asking)])


def _cases(texts: Mapping[str, str]) -> list[str]:
    """The text to write, by the role of the turn before."""
    lines = []
    for number, (role, text) in enumerate(texts.items()):
        word = "else if" if number else "if"
        lines += [f'{{{{- {word} eq $before "{role}" -}}}}', f"{{{{- {_quoted(text)} -}}}}"]
    return [*lines, "{{- end -}}"] if lines else []


def _quoted(text: str) -> str:
    """A string as Go spells it. Its quotes are escaped, so three in a row never end the Modelfile's own."""
    return json.dumps(text, ensure_ascii=False)


def modelfile(gguf: str, texts: FixedTexts, *, stops: Sequence[str], system: str | None, about: str) -> str:
    """The whole Modelfile. `gguf` is the name of the file beside it; `about` becomes a comment."""
    lines = [f"# {' '.join(about.split())}", f"FROM ./{gguf}"]
    lines.append(f'TEMPLATE """{go_template(texts)}"""')
    lines += [f"PARAMETER stop {_value(stop)}" for stop in stops]
    if system:
        lines.append(f"SYSTEM {_value(system)}")
    return "\n".join(lines) + "\n"


def _value(text: str) -> str:
    """A text as the Modelfile holds it, which knows no escapes. Raises `ModelError` for one that it cannot hold."""
    if '"' not in text and "\n" not in text:
        return f'"{text}"'
    if '"""' in text or text.endswith('"'):
        raise ModelError(f"{text[:60]!r} ends with quotes or holds three, which a Modelfile cannot; use --to gguf")
    return f'"""{text}"""'
