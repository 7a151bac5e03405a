"""Chat templates shaped as those of well-known families, in our own words, and tokenizers that have their tokens."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TURNS_ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns') }}{% endif %}"
)

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set said = messages[1:] %}{% set rules = messages[0]['content'] %}"
    "{% else %}{% set said = messages %}{% set rules = none %}{% endif %}{% for message in said %}"
    + TURNS_ALTERNATE
    + "{% if loop.first and rules is not none %}"
    "{% set content = '<<SYS>>\\n' + rules + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""The system turn stands in the first user turn, and each pair begins anew."""

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set rules = messages[0]['content'] %}{%- set said = messages[1:] %}"
    "{%- else %}{%- set said = messages %}{%- endif %}{{- bos_token }}{%- for message in said %}"
    + TURNS_ALTERNATE
    + "{%- if message['role'] == 'user' %}{%- if loop.first and rules is defined %}"
    "{{- '[INST]' + rules + '\\n\\n' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST]' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
"""With [INST] and [/INST] as special tokens, and no generation prompt of its own."""

MISTRAL_LAST = MISTRAL.replace("loop.first", "loop.last")
"""The system turn stands in the last user turn, and wanders when a conversation goes on."""

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('there is no system role') }}{% endif %}"
    "{% for message in messages %}"
    + TURNS_ALTERNATE
    + "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)

GEMMA_SILENT = GEMMA.replace(
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('there is no system role') }}{% endif %}"
    "{% for message in messages %}",
    "{% for message in messages if message['role'] != 'system' %}",
)
"""The same, which leaves a system turn out and says nothing."""

QWEN = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are Q, a kind machine.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message['role'] == 'user' or message['role'] == 'assistant' %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""With a default system turn."""

THINKING = (
    "{%- set ns = namespace(last=0) %}{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{%- if message['role'] == 'assistant' %}"
    "{%- set content = message['content'] %}{%- set thought = '' %}{%- if '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}"
    "{%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}{{- '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""Thoughts are shown in the last answer, even where there are none, and stripped from earlier ones."""

FORGETFUL = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\\n' + message['content'].split('</think>')[-1] + '<|im_end|>\\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Thoughts are stripped from every answer, the last too."""

ZEPHYR = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|user|>\\n' + message['content'] + eos_token }}{% elif message['role'] == 'system' %}"
    "{{ '<|system|>\\n' + message['content'] + eos_token }}{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '\\n<|assistant|>\\n' }}"
    "{% elif not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
)
"""Roles are plain text, and the end of every turn is the tokenizer's own end token."""

PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
"""What is no prompt ends with one more token; its tokens swallow the white space behind them."""

CHANNELS = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + message['content'] }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}"
    "{{ '<|start|>' + message['role'] + '<|message|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
"""An answer names its channel first, and ends with another token when it is the last."""


@dataclass(frozen=True, slots=True)
class Family:
    """A template with its special tokens."""

    template: str
    tokens: tuple[str, ...]
    eos: str
    bos: str | None = None
    swallows: bool = False
    """Whether the special tokens swallow white space behind them."""


FAMILIES = {
    "llama-2": Family(LLAMA2, (), "</s>", "<s>"),
    "llama-3": Family(
        LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|end_of_text|>", "<|begin_of_text|>"
    ),
    "mistral": Family(MISTRAL, ("[INST]", "[/INST]"), "</s>", "<s>"),
    "gemma": Family(GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>"),
    "qwen": Family(QWEN, ("<|im_start|>",), "<|im_end|>"),
    "zephyr": Family(ZEPHYR, (), "</s>", "<s>"),
    "phi": Family(PHI3, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|endoftext|>", swallows=True),
}


def byte_level(tokenizer: Any, family: Family) -> Any:
    """A copy of a byte-level tokenizer with a family's tokens and template."""
    made = copy.deepcopy(tokenizer)
    made.add_tokens(
        [AddedToken(token, special=True, normalized=False, rstrip=family.swallows) for token in _all(family)]
    )
    made.eos_token, made.bos_token, made.chat_template = family.eos, family.bos, family.template
    return made


def sentencepiece(family: Family, *, prepend: str = "first") -> Any:
    """A tokenizer as SentencePiece makes them: spaces are ▁, unknown characters are bytes."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    made.decoder = decoders.Metaspace(prepend_scheme=prepend)
    specials = ["<unk>", *_all(family), *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        special_tokens=specials, initial_alphabet=[*map(chr, range(32, 127))], vocab_size=700, show_progress=False
    )
    made.train_from_iterator(["the quick brown fox says: be brief, be kind. user assistant system model"], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=_without_bytes_as_special(made, family),
        eos_token=family.eos,
        bos_token=family.bos,
        unk_token="<unk>",
    )
    wrapped.chat_template = family.template
    return wrapped


def _all(family: Family) -> list[str]:
    return list(dict.fromkeys([*([family.bos] if family.bos else []), family.eos, *family.tokens]))


def _without_bytes_as_special(made: Tokenizer, family: Family) -> Tokenizer:
    """The same vocabulary with the bytes as plain tokens, which the trainer cannot make."""
    import json

    plain = json.loads(made.to_str())
    keep = {"<unk>", *_all(family)}
    plain["added_tokens"] = [
        {**token, "rstrip": family.swallows} for token in plain["added_tokens"] if token["content"] in keep
    ]
    return Tokenizer.from_str(json.dumps(plain))
