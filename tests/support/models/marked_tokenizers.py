"""Tokenizers that hold the marks of their turns as added tokens which are not special, with templates that write them.

The templates have the shapes of known families, in our own words.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.support import families

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% elif m['role'] == 'assistant' %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}"
    "{% else %}{{ m['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

TEKKEN = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' + m['content'] + '[/SYSTEM_PROMPT]' }}{% elif m['role'] == 'user' %}"
    "{{ '[INST]' + m['content'] + '[/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)

DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% else %}"
    "{{ '<｜Assistant｜>' + m['content'] + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
"""As of V3."""

R1 = DEEPSEEK.replace("m['content'] + '<｜end", "m['content'].split('</think>')[-1] + '<｜end").replace(
    "{{ '<｜Assistant｜>' }}", "{{ '<｜Assistant｜><think>\\n' }}"
)
"""Its prompt opens a thought, which the answer loses when it is rendered."""

QWEN3 = families.THINKING.replace("+ content }}", "+ content }}{# <tool_call> </tool_call> <tool_response> #}")

COMMAND_R = (
    "{{ bos_token }}{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' }}"
    "{{ {'system': '<|SYSTEM_TOKEN|>', 'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>'}[m['role']] }}"
    "{{ m['content'].strip() + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)

GRANITE = (
    "{% for m in messages %}{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] }}"
    "{{ '<|end_of_text|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Marked:
    """A template, and the added tokens of its tokenizer that are not special."""

    template: str
    marks: tuple[str, ...]
    eos: str
    bos: str | None = None
    end: str | None = None
    """What ends an answer, where it is not `eos`."""
    has_system: bool = True
    train_on: str = "all"
    plain: tuple[str, ...] = ()
    """Further added tokens, which are ordinary text or part of answers."""


MARKED = {
    "chatml": Marked(CHATML, ("<|im_start|>", "<|im_end|>"), "</s>", end="<|im_end|>"),
    "llama-2": Marked(families.LLAMA2, ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"), "</s>", "<s>"),
    "llama-3": Marked(families.LLAMA3, ("<|start_header_id|>", "<|end_header_id|>"), "<|eot_id|>", "<|begin_of_text|>"),
    "mistral": Marked(families.MISTRAL, ("[INST]", "[/INST]"), "</s>", "<s>"),
    "tekken": Marked(TEKKEN, ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"), "</s>", "<s>"),
    "gemma": Marked(
        families.GEMMA,
        ("<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        "<bos>",
        end="<end_of_turn>",
        has_system=False,
        plain=("\n\n", "\n", "<b>", "<table>"),
    ),
    "phi-3": Marked(
        families.PHI3,
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|endoftext|>",
        end="<|end|>\n<|endoftext|>",
        train_on="last",
    ),
    "deepseek": Marked(
        DEEPSEEK,
        ("<｜User｜>", "<｜Assistant｜>"),
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        plain=("<think>",),
    ),
    "qwen3": Marked(
        QWEN3,
        ("<|im_start|>", "<|im_end|>", "<tool_response>"),
        "<|endoftext|>",
        end="<|im_end|>",
        train_on="last",
        plain=("<think>", "</think>"),
    ),
    "zephyr": Marked(families.ZEPHYR, ("<|system|>", "<|user|>", "<|assistant|>"), "</s>", "<s>"),
    "vicuna": Marked(VICUNA, ("USER:", "ASSISTANT:"), "</s>"),
    "command-r": Marked(
        COMMAND_R,
        (
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
        ),
        "<EOS_TOKEN>",
        "<BOS_TOKEN>",
        end="<|END_OF_TURN_TOKEN|>",
    ),
    "granite": Marked(GRANITE, ("<|start_of_role|>", "<|end_of_role|>"), "<|end_of_text|>"),
}


def tokenizer_of(family: Marked, kind: str = "byte-level", *, normalized: bool = False) -> PreTrainedTokenizerFast:
    """A small tokenizer with the family's marks as plain added tokens; `kind` is byte-level, metaspace or nfkc."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind != "byte-level"))
    alphabet = [*map(chr, range(32, 127)), "\n", "\t", "｜", "▁"]
    if kind == "byte-level":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        made.decoder = decoders.Metaspace(prepend_scheme="first")
    if kind == "nfkc":
        made.normalizer = normalizers.NFKC()
    special = dict.fromkeys(("<unk>", *filter(None, (family.bos, family.eos))))
    trainer = trainers.BpeTrainer(
        special_tokens=list(special), initial_alphabet=alphabet, vocab_size=450, show_progress=False
    )
    made.train_from_iterator(["be brief, be kind, and say what is right: user assistant system model"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token=family.bos, eos_token=family.eos
    )
    tokenizer.add_tokens(
        [AddedToken(mark, special=False, normalized=normalized) for mark in (*family.marks, *family.plain)]
    )
    tokenizer.chat_template = family.template
    return tokenizer
