"""Canned teacher, user and judge: well-formed answers for each strategy, without a model.

Its answers are nonsense about everyday things, the same for the same question. They serve to run a recipe through once
(`distill smoke`), not to train on.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from distill.engine.mock_server import question

NAME = "stand-in"
"""Of the usual model; another name has other answers."""
VERBS = (
    *("Explain", "Describe", "Compare", "Praise", "Recall", "Sketch"),
    *("Defend", "Rank", "Invent", "Outline", "Rewrite"),
)
THINGS = (
    *("rivers", "kites", "soups", "clocks", "owls", "tools", "coins", "songs", "hats", "tides", "bees", "tents"),
    *("maples", "ferries", "candles", "bridges", "gardens", "letters", "lamps", "boots", "orchards", "wells"),
)
QUALITIES = ("quiet", "useful", "old", "bright", "heavy", "simple", "rare", "round", "slow", "warm")

_LABELS = re.compile(r"Answer with one word: ([\w, ]+) or (\w+)\.")
"""A system message that names the labels to choose from."""

Answers: TypeAlias = Callable[[str, random.Random], str]


def answer(body: Mapping[str, Any]) -> str:
    """The answer to a request in OpenAI's form; drawn from its question, its seed, its turn, and a model's own name."""
    prompt = question(body)
    name = "" if body.get("model") in (None, NAME) else f":{body['model']}"
    messages = body.get("messages", ())
    chance = random.Random(f"{prompt}:{body.get('seed')}:{len(messages)}{name}")
    if messages and (labels := _LABELS.search(str(messages[0]["content"]))):
        return str(chance.choice([*labels[1].split(", "), labels[2]]))
    for mark, write in _FORMS:
        if re.search(mark, prompt, re.IGNORECASE | re.DOTALL):
            return write(prompt, chance)
    return _continued(prompt, chance) if "prompt" in body else _sentences(prompt, chance)


def reply(body: Mapping[str, Any]) -> str | dict[str, Any]:
    """The answer, or the response's body where log-probabilities are asked for: each character is a token."""
    text = answer(body)
    if not body.get("logprobs"):
        return text
    content = [{**_scored(one, -0.1), "top_logprobs": [_scored(one, -0.1), _scored("_", -2.5)]} for one in text]
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": {"content": content}}
    usage = {"prompt_tokens": len(question(body).split()), "completion_tokens": len(text)}
    return {"id": "x", "model": body["model"], "choices": [choice], "usage": usage}


def _scored(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def task(chance: random.Random) -> str:
    """Something to ask, about everyday things."""
    one, other = chance.sample(THINGS, 2)
    return (
        f"{chance.choice(VERBS)} how {chance.choice(QUALITIES)} {one} differ from {chance.choice(QUALITIES)} {other} "
        f"in a {chance.choice(QUALITIES)} {chance.choice(THINGS)[:-1]}."
    )


def _sentences(prompt: str, chance: random.Random) -> str:
    return " ".join(
        f"The {chance.choice(QUALITIES)} {thing} are {chance.choice(QUALITIES)}, and {chance.choice(THINGS)} follow."
        for thing in chance.sample(THINGS, 3)
    )


def _continued(prompt: str, chance: random.Random) -> str:
    """A list that goes on, as a raw completion does."""
    numbers = [int(number) for number in re.findall(r"^(\d+)\.", prompt, re.MULTILINE)] or [0]
    return "\n".join(f"{'' if place == 0 else f'{numbers[-1] + place}. '}{task(chance)}" for place in range(6))


def _listed(prompt: str, chance: random.Random) -> str:
    return "\n".join(f"{number}. {task(chance)}" for number in range(1, 9))


def _topics(prompt: str, chance: random.Random) -> str:
    return "\n".join(f"{number}. {chance.choice(QUALITIES)} {chance.choice(THINGS)}" for number in range(1, 9))


def _tasks(prompt: str, chance: random.Random) -> str:
    count = int(match[1]) if (match := re.search(r"Write (\d+)", prompt)) else 3
    return "\n".join(f"TASK {number}: {task(chance)}" for number in range(1, count + 1))


def _blocks(prompt: str, chance: random.Random) -> str:
    """Alpaca's blocks, from where the prompt breaks off."""
    first = int(re.findall(r"(\d+)\. Instruction:", prompt)[-1])
    pieces = []
    for number in range(first, first + 6):
        context = "<noinput>" if chance.random() < 0.7 else _sentences(prompt, chance)
        lead = "" if number == first else f"{number}. Instruction: "
        pieces.append(
            f"{lead}{task(chance)}\n{number}. Input:\n{context}\n{number}. Output:\n{_sentences(prompt, chance)}"
        )
    return "\n###\n".join(pieces)


def _transcript(prompt: str, chance: random.Random) -> str:
    rounds = int(match[1]) if (match := re.search(r"There are (\d+) messages", prompt)) else 3
    turns = [f"[Visitor] {task(chance)[:-1]}?\n[Helper] {_sentences(prompt, chance)}" for _ in range(rounds)]
    return "\n".join(turns)


def _instance(prompt: str, chance: random.Random) -> str:
    return f"Example 1\n{_sentences(prompt, chance)}\nOutput: {_sentences(prompt, chance)}\n"


def _labelled(prompt: str, chance: random.Random) -> str:
    return f"Class label: yes\n{_sentences(prompt, chance)}\nClass label: no\n{_sentences(prompt, chance)}\n"


def _one_of(*choices: str) -> Answers:
    return lambda prompt, chance: chance.choice(choices)


def _verdict(prompt: str, chance: random.Random) -> str:
    """For the answer that is first in the alphabet, in whatever order the two are shown."""
    first, second = (re.search(rf"<{side}-(\w+)>\n(.*?)\n</{side}-\1>", prompt, re.DOTALL) for side in "AB")
    texts = [match[2] if match else "" for match in (first, second)]
    return "Alike.\nVerdict: tie" if texts[0] == texts[1] else f"It is clearer.\nVerdict: {'AB'[texts[1] < texts[0]]}"


def _rewritten(prompt: str, chance: random.Random) -> str:
    return f"{task(chance)[:-1]}, and give two reasons with an example of each."


_FORMS: Sequence[tuple[str, Answers]] = (
    (r"Answer with one word or two, Equal or Not Equal", _one_of("Not Equal", "Not Equal", "Equal")),
    (
        r"Better: tie\s*$",
        _one_of("The first is clearer.\nBetter: A", "The second is.\nBetter: B", "Alike.\nBetter: tie"),
    ),
    (r"Verdict: X \(where X", _verdict),
    (r"Score: N", _one_of("It is clear.\nScore: 8", "It is thin.\nScore: 6", "It is whole.\nScore: 9")),
    (r"\d+\. Instruction:\s*$", _blocks),
    (r"Begin each with TASK", _tasks),
    (r"^List \d+ topics", _topics),
    (r"\[Visitor\] or \[Helper\]", _transcript),
    (r"Picked from known labels\?\s*$", _one_of("No", "No", "No", "Yes")),
    (r"Class label: .*Task: [^\n]*\s*$", _labelled),
    (r"Output: .*Task: [^\n]*\s*$", _instance),
    (r"#Rewritten instruction#|rewritten|new instruction", _rewritten),
    (r"(?m)^\d+\.\s*\Z", _continued),
    (r"numbered list", _listed),
)
"""Patterns of shipped prompts, each with the function that answers them; the first match counts."""
