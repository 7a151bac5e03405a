"""An endpoint that honours, ignores or refuses what it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from random import Random
from typing import Any

from distill.engine.probe import COUNT, Findings

KEY = "sk-very-secret-0123456789"


WORDS = ["anchor", "bishop", "cello", "dune", "ember", "ferry", "gravel", "harbour", "igloo", "jigsaw", "kettle"]


class Model:
    """An imaginary model behind an endpoint that honours everything but what it is told to ignore."""

    def __init__(self, *ignoring: str, greedy: bool = False, obeys: bool = True, usage: bool = True) -> None:
        self._ignoring, self._greedy, self._obeys, self._usage = set(ignoring), greedy, obeys, usage
        self._fresh = count()

    def __call__(self, body: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in body.items() if name not in self._ignoring}
        turns = body.get("messages", [])
        system = any(turn["role"] == "system" for turn in turns) and "system" not in self._ignoring
        tokens = [f" {word}" for word in self._words(given, system)]
        limit = given.get("max_tokens", given.get("max_completion_tokens", 200))
        text, finish = "".join(tokens[:limit]), "length" if len(tokens) > limit else "stop"
        for string in given.get("stop", []):
            if string in text:
                text, finish = text.partition(string)[0], "stop"
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        choice |= {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text.strip()}}
        if given.get("logprobs"):
            tops = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}][: given.get("top_logprobs", 0)]
            choice["logprobs"] = {"content": [{"logprob": -0.5, "top_logprobs": tops} for _ in text.split()]}
        asked = sum(len(turn["content"].split()) for turn in turns if turn["role"] != "system" or system)
        usage = {"prompt_tokens": asked, "completion_tokens": len(text.split())}
        return {"choices": [choice], **({"usage": usage} if self._usage else {})}

    def _words(self, given: Mapping[str, Any], system: bool) -> list[str]:
        if system and self._obeys:
            return ["PINEAPPLE"]
        if "response_format" in given:
            return ['{"numbers":', "[1,", "2,", "3]}"]
        if "prompt" in given or given["messages"][-1]["content"] == COUNT:
            return [str(number) for number in range(1, 13)]
        if self._greedy or given.get("temperature", 1) == 0:
            return Random("greedy").choices(WORDS, k=14)
        return Random(f"seed {given['seed']}" if "seed" in given else next(self._fresh)).choices(WORDS, k=14)


def odd(findings: Findings) -> dict[str, str]:
    """What is not honoured."""
    return {found.parameter: found.verdict for found in findings.probes if found.verdict != "honoured"}
