"""Which added tokens control a conversation in a chat template, whether or not the tokenizer calls them special.

Many tokenizers hold the marks of their turns as added tokens that are not special: DeepSeek-R1-Distill `<｜User｜>`,
Command-R `<|START_OF_TURN_TOKEN|>`, fine-tunes their ChatML marks. A text that spells one would open a turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import product
from typing import Any

_EDGE = r"(?:[\W_]|begin|start|end|of)*"
_THOUGHT = re.compile(rf"{_EDGE}(?:think|thinking|thoughts?|reasoning|answer){_EDGE}", re.IGNORECASE)
_CALL = re.compile(rf"{_EDGE}(?:tool|function){_EDGE}(?:calls?|sep){_EDGE}", re.IGNORECASE)
_ROLES = (
    ("user", "assistant", "user", "assistant"),
    ("system", "user", "assistant"),
    ("user", "assistant", "tool"),
)


def plain_controls(source: str, tokenizer: Any) -> dict[str, int]:
    """Ids, by content, of the added tokens that a chat template writes and that are not special.

    Left out are marks of thoughts, which are part of answers, and tokens that are ordinary text, such as Gemma's runs
    of line breaks: a mark has letters and punctuation.
    """
    added = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items() if not token.special}
    if not added:
        return {}
    text = source + _frames(source, str(tokenizer.bos_token or ""), str(tokenizer.eos_token or ""))
    return {content: id_ for content, id_ in added.items() if content in text and _is_mark(content)}


def _is_mark(content: str) -> bool:
    has_letters = any(char.isalpha() for char in content)
    has_punctuation = any(not (char.isalnum() or char.isspace()) for char in content)
    return has_letters and has_punctuation and not is_thought(content)


def is_thought(text: str) -> bool:
    """Whether a text is the mark of a thought, such as `<think>`, which a template's prompt may open."""
    return _THOUGHT.fullmatch(text) is not None


def is_call(mark: str) -> bool:
    """Whether a mark belongs to a tool call: an answer may hold it, and no other text."""
    return _CALL.fullmatch(mark) is not None


def pattern_of(marks: Iterable[str]) -> re.Pattern[str]:
    """Finds any of the marks, the longest first; nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or r"(?!)")


@lru_cache(maxsize=32)
def _frames(source: str, bos: str, eos: str) -> str:
    """What a template writes around short messages, for marks that it composes, as Phi's `'<|' + role + '|>'`."""
    from transformers.utils.chat_template_utils import render_jinja_template

    texts = []
    for roles, prompt in product(_ROLES, (False, True)):
        messages = [{"role": role, "content": "x"} for role in roles]
        try:
            (text,), _ = render_jinja_template(
                [messages], chat_template=source, add_generation_prompt=prompt, bos_token=bos, eos_token=eos
            )
        except Exception:  # noqa: BLE001 - a template may refuse some roles, each in its own way
            continue
        texts.append(text)
    return "\0".join(["", *texts])
