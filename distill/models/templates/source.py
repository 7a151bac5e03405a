"""The texts of chat templates: ours, and a tokenizer's own, the same on every day."""

from __future__ import annotations

import re
from datetime import datetime

from distill.errors import RecipeError

DAY = datetime(2024, 7, 26)
"""Today, in a template that asks for it: the day that Llama 3.2's falls back on."""
_TODAY = re.compile(r"""strftime_now\(\s*(["'])((?:(?!\1)[^\\{}])*)\1\s*\)""")
_OTHERS = "set student.template to chatml, vicuna or alpaca"

_ALPACA = (
    "BOS{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}"
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "{% endif %}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '\\n\\n### Instruction:\\n' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '\\n\\n### Response:\\n' + message['content'] | trim + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif %}"
)
"""github.com/tatsu-lab/stanford_alpaca, train.py, with the line break after `### Response:` that alpaca-lora added."""

_VICUNA = (
    "BOS{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}"
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
    "{% endif %}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% if loop.first or loop.previtem['role'] != 'assistant' %}{{ ' ' }}{% endif %}"
    "{{ 'USER: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ASSISTANT: ' + message['content'] | trim + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
"""github.com/lm-sys/FastChat, docs/vicuna_weights_version.md, v1.1."""

_CHATML = (
    "BOS{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}"
    "{{ message['content'] | trim + END }}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{% if messages %}{{ '\\n' }}{% endif %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

TEXTS = {"alpaca": _ALPACA, "vicuna": _VICUNA, "chatml": _CHATML}
"""Ours by name; `BOS` and `END` stand for what the tokenizer has."""


def default_of(chat_template: object) -> str | None:
    """A tokenizer's chat template, or of several the one named `default`, as transformers chooses; else `None`."""
    text = chat_template.get("default") if isinstance(chat_template, dict) else chat_template
    return text if isinstance(text, str) and text else None


def own(chat_template: object) -> str:
    """The chat template that `own` means, with `DAY` for the current date.

    With the date of the day, the ids of a row and the answers of a student would change from one day to the next.
    Raises `RecipeError` where there is none, or where it asks for the date in a form that cannot be replaced.
    """
    text = default_of(chat_template)
    if text is None and isinstance(chat_template, dict) and chat_template:
        names = ", ".join(sorted(map(str, chat_template)))
        raise RecipeError(
            f"template own: the model's tokenizer has chat templates ({names}), none named default; {_OTHERS}"
        )
    if text is None:
        raise RecipeError(f"template own: the model's tokenizer has no chat template; {_OTHERS}")
    text = _TODAY.sub(lambda match: repr(DAY.strftime(match[2])), text)
    if re.search(r"strftime_now\s*\(", text):
        raise RecipeError(
            "template own: the chat template writes the current date in a form of its own; expected "
            f'strftime_now("%d %b %Y") or another fixed format; {_OTHERS}'
        )
    return text
