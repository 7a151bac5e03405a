"""Stand-in rows of a smoke run, in the columns of the datasets that recipes name."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.engine.mock_server.stand_in import answer, task


def _turns(question: str, reply: str, **more: Any) -> list[dict[str, Any]]:
    turns = {"user": question, "assistant": reply}
    return [{"content": content, "role": role, **more} for role, content in turns.items()]


def _messages(question: str, reply: str, id: str) -> dict[str, Any]:
    return {"messages": _turns(question, reply)}


def _wildchat(question: str, reply: str, id: str) -> dict[str, Any]:
    about = {"language": "English", "country": "Sweden", "hashed_ip": id, "header": {"accept-language": "en"}}
    turns = _turns(question, reply, turn_identifier=1, toxic=False, redacted=False, **about)
    whole = {"turn": 1, "toxic": False, "redacted": False, "openai_moderation": [], "detoxify_moderation": []}
    return {"conversation_hash": id, "model": "stand-in", "conversation": turns, "state": None, **whole, **about}


def _two(question: str, reply: str) -> dict[str, Any]:
    """The two conversations of a preference."""
    other = answer({"messages": [{"content": question}], "seed": f"{question} again"})
    return {"chosen": _turns(question, reply), "rejected": _turns(question, f"Well. {other}")}


COLUMNS: Mapping[str, Callable[[str, str, str], dict[str, Any]]] = {
    "HuggingFaceH4/no_robots": lambda question, reply, id: {
        "prompt": question, "prompt_id": id, "messages": _turns(question, reply), "category": "Open QA",
    },
    "HuggingFaceH4/ultrafeedback_binarized": lambda question, reply, id: {
        "prompt": question, "prompt_id": id, **_two(question, reply), "messages": _turns(question, reply),
        "score_chosen": 8.5, "score_rejected": 6.0,
    },
    "HuggingFaceH4/ultrachat_200k": lambda question, reply, id: {
        "prompt": question, "prompt_id": id, "messages": _turns(question, reply),
    },
    "allenai/WildChat-1M": _wildchat,
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": lambda question, reply, id: {
        "id": id, "prompt": question, **_two(question, reply), "source": "stand-in",
    },
    "databricks/databricks-dolly-15k": lambda question, reply, id: {
        "instruction": question, "context": "", "response": reply, "category": "open_qa",
    },
    "garage-bAInd/Open-Platypus": lambda question, reply, id: {
        "input": "", "output": reply, "instruction": question, "data_source": "stand-in",
    },
    "nomic-ai/gpt4all-j-prompt-generations": lambda question, reply, id: {
        "prompt": question, "response": reply, "source": "stand-in",
    },
    "tatsu-lab/alpaca": lambda question, reply, id: {
        "instruction": question, "input": "", "output": reply, "text": f"### Instruction:\n{question}\n\n{reply}",
    },
    "tiedong/goat": lambda question, reply, id: {
        "instruction": question, "input": "", "output": reply, "answer": "2",
    },
}  # fmt: skip
"""A row of a question and its reply by Hub id; other datasets have `messages`."""


def write_stand_in(folder: Path, hub: str, *, split: str | None, rows: int, seed: object) -> Path:
    """Make a folder laid out as on the Hub, with rows in the columns of the dataset; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    head = {"configs": [{"config_name": "default", "data_files": [{"split": split or "train", "path": "rows.jsonl"}]}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(head)}\n---\n", encoding="utf-8")
    lines = (json.dumps(row) + "\n" for row in _rows(hub, rows, seed))
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def _rows(hub: str, rows: int, seed: object) -> Iterator[dict[str, Any]]:
    row_of = COLUMNS.get(hub, _messages)
    for number in range(rows):
        question = task(random.Random(f"{seed}:{number}"))
        reply = answer({"messages": [{"content": question}], "seed": question})
        yield row_of(question, reply, f"row-{number:05}")
