"""Rows of made-up words for filters that compare rows with each other."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from distill.types import Message, Session

WORDS = [
    f"{first}{second}" for first in ("ra", "le", "mo", "ti", "su") for second in ("ban", "der", "fin", "gol", "ket")
]


SEEDS = st.integers(0, 2**32)


def session(id: str, prompt: str, answer: str = "The Danube.", **meta) -> Session:
    return Session(id, (Message("user", prompt), Message("assistant", answer)), meta)


def sessions(*prompts: str) -> list[Session]:
    return [session(f"s{number}", prompt) for number, prompt in enumerate(prompts)]


def text(rng: random.Random, words: int = 40) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def kept(rule, rows: list[Session]) -> list[str]:
    return [row.id for row, found in zip(rows, rule.decide_all(rows), strict=True) if found.keep]
