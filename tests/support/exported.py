"""What an exported student answers."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


QUESTION = {"role": "user", "content": "Number 3?"}


def greedy(run: Path, tokens: int) -> str:
    """What the trained student answers."""
    from distill.models.loading import load_student

    model, tokenizer = load_student(run / "student", adapter=True, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [QUESTION], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=tokens, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(answer, skip_special_tokens=True))
