"""Sessions to curate, and the common rules."""

from __future__ import annotations

import random
from pathlib import Path

from distill.core.jsonl import read_jsonl, write_rows
from distill.curate.filters.length import Length
from distill.curate.stage import curate
from distill.types import Message, Session

VERBS = ("Explain", "Describe", "Compare", "Praise", "Recall", "Name", "Sketch", "Defend", "Rank", "Invent")


THINGS = ("rivers", "kites", "soups", "clocks", "owls", "poems", "coins", "songs", "hats", "tides", "bees", "tents")


def session(number: int, prompt: str, answer: str = "A plain and honest answer.", **meta) -> Session:
    return Session(f"s{number:03}", (Message("user", prompt), Message("assistant", answer)), meta)


def varied(count: int, seed: int = 0) -> list[Session]:
    rng = random.Random(seed)
    return [session(number, f"{rng.choice(VERBS)} {' '.join(rng.sample(THINGS, 5))}.") for number in range(count)]


def curated(folder: Path, sessions: list[Session], *filters, test: int = 0, seed: int = 7):
    write_rows(folder / "sessions.jsonl", sessions)
    return curate(folder, filters=filters, test=test, seed=seed)


def ids(folder: Path, name: str) -> list[str]:
    return [row["id"] for row in read_jsonl(folder / f"{name}.jsonl")]


LENGTH = ("length", Length(Length.Options(min_words=3)))
