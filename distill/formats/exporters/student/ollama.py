r"""Writes Ollama's Modelfile: GGUF file, stop tokens, and the chat template in Go's template language.

A Jinja chat template is not translated: conversations of sentinels are rendered, and the text before, between and
after their contents becomes the Go template. That works for templates that put fixed texts around contents, which is
checked on further conversations before anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from distill.errors import DistillError, ModelError
from distill.models import chat_template
from distill.models.chat_template import Tokenizer
from distill.models.templates.check import examples
from distill.types import Message

START = ""
"""Role before the first turn."""
ROLES = ("system", "user", "assistant")
"""Roles with texts of their own; a turn of another, such as `tool`, is written as a user's."""

_LESSONS = (("user",), ("system", "user"), ("user", "assistant", "user"), ("system", "user", "assistant", "user"))
"""Roles of the conversations of sentinels; Ollama joins neighbours of one role."""
_LATER_SYSTEM = (("user", "system", "user"), ("user", "assistant", "system", "user"), ("user", "assistant", "system"))
_FURTHER = (*_LATER_SYSTEM, ("system",), ("user", "user"))
"""Conversations that training does not have and clients send; many templates refuse them."""


@dataclass(frozen=True, slots=True)
class FixedTexts:
    """Fixed texts of a chat template around each message."""

    before: Mapping[tuple[str, str], str]
    """By (role of the turn before, role): everything between the two contents; the template has them all."""
    asking: Mapping[str, str]
    """By role of the last turn: everything after it, up to where the answer starts."""
    has_later_system: bool
    """Whether a system turn has texts of its own behind other turns; otherwise it is written there as a user's."""

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation up to its next answer, as the Go template renders it."""
        text, before = "", START
        for message in messages:
            role = self._role(message.role, before)
            text, before = text + self.before[before, role] + message.content, role
        return text + self.asking[before]

    def _role(self, role: str, before: str) -> str:
        is_own = role == "assistant" or (role == "system" and (self.has_later_system or before == START))
        return role if is_own else "user"


def fixed_texts(template: str, tokenizer: Tokenizer) -> FixedTexts:
    """The fixed texts of a chat template, without a begin token that the GGUF adds by itself.

    They are compared with the template on conversations whose contents templates often change. Raises `ModelError` for
    a template that does more than put texts around contents.
    """
    before: dict[tuple[str, str], str] = {}
    asking: dict[str, str] = {}
    for roles in _LESSONS:
        try:
            lesson = _lesson(roles, template, tokenizer)
        except DistillError as error:
            if roles[0] == "system":
                continue  # it has no place for a system turn
            raise ModelError(f"the chat template fails at {', '.join(roles)}: {error}") from error
        if lesson is None or not _learn(lesson, before, asking):
            raise _untranslatable()
    has_system = (START, "system") in before
    for roles in _FURTHER:
        with suppress(DistillError):
            if lesson := _lesson(roles, template, tokenizer):
                _learn(lesson, before, asking)
    texts = FixedTexts(*_completed(before, asking))
    for dialogue in examples(system=has_system):
        if texts.render(dialogue) != _rendered(dialogue, template, tokenizer):
            raise _untranslatable()
    return texts


_Lesson = tuple[dict[tuple[str, str], str], tuple[str, str]]
"""Texts by pair of roles, and the last role with the text behind it."""


def _lesson(roles: Sequence[str], template: str, tokenizer: Tokenizer) -> _Lesson | None:
    """The texts of one conversation; `None` where its contents are not found in order, or a pair has two texts."""
    messages = [Message(role, f"\ue000{number}\ue001") for number, role in enumerate(roles)]
    text = _rendered(messages, template, tokenizer)
    before: dict[tuple[str, str], str] = {}
    for pair, message in zip(pairwise([START, *roles]), messages, strict=True):
        between, content, text = text.partition(message.content)
        if not content or before.setdefault(pair, between) != between:
            return None
    return before, (roles[-1], text)


def _learn(lesson: _Lesson, before: dict[tuple[str, str], str], asking: dict[str, str]) -> bool:
    """Add a lesson's texts unless they contradict earlier ones."""
    texts, (last, after) = lesson
    fits = all(before.get(pair, text) == text for pair, text in texts.items()) and asking.get(last, after) == after
    if fits:
        before.update(texts)
        asking[last] = after
    return fits


def _completed(
    before: Mapping[tuple[str, str], str], asking: Mapping[str, str]
) -> tuple[dict[tuple[str, str], str], dict[str, str], bool]:
    """Texts for every pair of roles: where the template has none, those of the way through empty turns between."""
    has_later = all((role, "system") in before for role in ("user", "assistant"))
    whole = {
        (earlier, now): _way(before, earlier, now)
        for earlier in (START, *ROLES)
        for now in ROLES
        if earlier or now != "system" or (START, "system") in before
    }
    whole.setdefault((START, "system"), whole[START, "user"])
    ends = {"system": _way(before, "system", "user") + asking["user"], "assistant": "", **asking}
    return whole, ends, has_later


def _way(before: Mapping[tuple[str, str], str], earlier: str, now: str) -> str:
    """The text from one turn to another over the fewest empty turns; to a user's turn where no way leads."""
    if not any(pair[0] == earlier for pair in before):
        earlier = "user"
    ways = {earlier: ""}
    waiting = [earlier]
    while waiting:
        place = waiting.pop(0)
        for (start, end), text in before.items():
            if start == place and end == now:
                return ways[place] + text
            if start == place and end not in ways:
                ways[end] = ways[place] + text
                waiting.append(end)
    return _way(before, earlier, "user")


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
    where = 'eq .Role "system"' if texts.has_later_system else 'and (eq .Role "system") (eq $before "")'
    lines = ['{{- $before := "" -}}', "{{- range .Messages -}}", '{{- $role := "user" -}}']
    lines += [f'{{{{- if or (eq .Role "assistant") ({where}) -}}}}', "{{- $role = .Role -}}", "{{- end -}}"]
    for word, role in zip(("if", "else if", "else if"), ROLES, strict=True):
        lines.append(f'{{{{- {word} eq $role "{role}" -}}}}')
        lines += _cases({earlier: text for (earlier, now), text in texts.before.items() if now == role})
    lines += ["{{- end -}}", "{{- .Content -}}", "{{- $before = $role -}}", "{{- end -}}"]
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
