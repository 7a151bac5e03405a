"""Interprets the replies to a probe: honoured, ignored, refused or unclear, per parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from distill.types import Finish

Verdict = Literal["honoured", "ignored", "refused", "unclear"]


SHORT_TOKENS, COUNT_TOKENS, DRAWN_TOKENS = 3, 40, 32


STOPS = ("4", "e", "a", "o")
"""In twelve numbers as in any sentence; some endpoints take no more than four."""
EARLY, LATE = 0.25, 0.5
"""Shares of two answers' length at which they part: sampling parts them early, rounding on a busy GPU late."""
REFUSALS = {400, 401, 403, 404, 405, 406, 410, 413, 415, 422, 501}
"""Statuses that answer a question like one that was answered: what is new in it is not taken."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Probe result for one parameter."""

    parameter: str
    verdict: Verdict
    evidence: str
    """A few words: what was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReply:
    """Reply to one request of the probe."""

    text: str = ""
    thought: str = ""
    """What a reasoning model wrote before its answer, where the endpoint shows it."""
    finish: Finish = "unknown"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    logprobs: Any = None
    fault: str = ""
    """Why there is no answer, in one line; empty where there is one."""
    refused: bool = False
    """Whether the endpoint said that it will not take the question."""

    @property
    def drawn(self) -> str:
        """Everything that was generated."""
        return (self.thought + self.text).rstrip("\ufffd \n")


# What it shows


def same(one: ProbeReply, other: ProbeReply) -> bool:
    """Whether two answers are the same, but for the token by which one's limit is higher."""
    shorter, longer = sorted((one, other), key=lambda heard: len(heard.drawn))
    if shorter.drawn == longer.drawn:
        return True
    return shorter.finish == "length" and bool(shorter.drawn) and longer.drawn.startswith(shorter.drawn)


def _differ(answers: Sequence[ProbeReply]) -> bool:
    return any(not same(one, other) for one, other in combinations(answers, 2))


def _shared(one: ProbeReply, other: ProbeReply) -> float:
    """The share of the shorter answer after which the two part."""
    pairs = list(zip(one.drawn, other.drawn, strict=False))
    alike = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return alike / max(1, len(pairs))


def _unanswered(parameter: str, answers: Sequence[ProbeReply]) -> Probe | None:
    """The verdict where an answer is missing or empty."""
    for heard in answers:
        if heard.fault:
            return Probe(parameter, "refused" if heard.refused else "unclear", heard.fault)
    if not all(heard.drawn for heard in answers):
        return Probe(parameter, "unclear", "an answer came back empty")
    return None


def judge_temperature(cold: Sequence[ProbeReply], warm: Sequence[ProbeReply]) -> Probe:
    """From samples at temperature 0 and at 1: it has an effect if the first agree and the second do not."""
    name = "temperature"
    if missing := _unanswered(name, [*cold, *warm]):
        return missing
    if _differ(cold):
        if len(cold) > 2 and all(_shared(one, other) < EARLY for one, other in combinations(cold, 2)):
            return Probe(name, "ignored", f"{len(cold)} answers at 0 differ from their first words on")
        return Probe(name, "unclear", "answers at 0 differ, but not all of them early; hosted models may")
    if _differ([*cold, *warm]):
        return Probe(name, "honoured", "answers at 0 are the same, at 1 another")
    return Probe(name, "ignored", f"{len(cold) + len(warm)} answers at 0 and at 1 are all the same")


def judge_seed(first: ProbeReply, again: ProbeReply, other: ProbeReply, bare: ProbeReply | None) -> Probe:
    """From two samples with one seed, one with another, and, where these are the same, one without any."""
    name = "seed"
    answers = [first, again, other, *([bare] if bare else [])]
    if missing := _unanswered(name, answers):
        return missing
    if not same(first, again):
        if _shared(first, again) >= LATE:
            return Probe(name, "unclear", "answers to one seed begin the same and part late")
        return Probe(name, "ignored", "two answers to the same seed differ")
    if not same(first, other):
        return Probe(name, "honoured", "the same seed gives the same answer, another seed another")
    if bare is not None and not same(first, bare):
        return Probe(name, "ignored", "two seeds give the same answer, no seed another")
    return Probe(name, "unclear", "answers do not vary, so that a seed has nothing to decide")


def judge_max_tokens(short: ProbeReply, plain: ProbeReply) -> Probe:
    """From an answer under a limit of 3 tokens and one with room; a word is at least one token."""
    name = "max_tokens"
    if fault := plain.fault or short.fault:
        return Probe(name, "unclear", fault)
    tokens, words = short.completion_tokens, len(short.drawn.split())
    if max(tokens or 0, words) > 2 * SHORT_TOKENS:
        unit = f"{tokens} tokens" if (tokens or 0) >= words else f"{words} words"
        return Probe(name, "ignored", f"{unit} came where {SHORT_TOKENS} tokens were allowed")
    longer = (plain.completion_tokens or 0) > SHORT_TOKENS or len(plain.drawn.split()) > SHORT_TOKENS
    if longer and tokens is not None and tokens <= SHORT_TOKENS:
        return Probe(name, "honoured", f"{tokens} tokens of {SHORT_TOKENS} came, {plain.completion_tokens} with room")
    if longer and tokens is None and short.finish == "length":
        return Probe(name, "honoured", f"cut at {words} words; no token counts are reported")
    return Probe(name, "unclear", "the answer is short without a limit as well" if not longer else "cut, but not at 3")


def _no_max_tokens(limit: str) -> Probe:
    return Probe("max_tokens", "refused", f"HTTP 400; {limit} is taken instead")


def judge_stop(plain: ProbeReply, stopped: ProbeReply) -> Probe:
    """From an answer, and one with stop strings so common that any answer of some length holds one."""
    name = "stop"
    if missing := _unanswered(name, [plain, *([stopped] if stopped.fault else [])]):
        return missing
    usual, text = plain.text.strip(), stopped.text.strip()
    expected, found = _first_stop(usual), _first_stop(text)
    if found is not None and text[sum(map(len, found)) :]:
        return Probe(name, "ignored", f'the answer goes on behind "{found[1]}"')
    if found is not None and (text == "".join(expected or ()) or stopped.finish == "stop"):
        return Probe(name, "honoured", f'the answer ends with "{found[1]}", which is kept')
    if expected is not None and text == expected[0].strip():
        return Probe(name, "honoured", f'the answer ends before "{expected[1]}"')
    if text and expected is not None and stopped.finish == "stop" and len(text) < len(usual) / 2:
        return Probe(name, "honoured", f"another answer, cut before any of {', '.join(STOPS)}")
    return Probe(name, "unclear", "another answer came, which shows nothing")


def _first_stop(text: str) -> tuple[str, str] | None:
    """The text before the first of the stop strings in it, and that string."""
    found = [(text.partition(stop)[0], stop) for stop in STOPS if stop in text]
    return min(found, key=lambda pair: len(pair[0]), default=None)


def judge_system(plain: Sequence[ProbeReply], heard: ProbeReply) -> Probe:
    """From answers without and with a system message: obeyed, or at least counted among the prompt's tokens.

    Weak models do not obey, so that a change of `usage.prompt_tokens` shows that the message reached the model; it
    is believed only where the same prompt was counted the same twice.
    """
    name = "system"
    if heard.fault:
        return Probe(name, "refused" if heard.refused else "unclear", heard.fault)
    if "PINEAPPLE" in heard.text.upper() and not any("PINEAPPLE" in other.text.upper() for other in plain):
        return Probe(name, "honoured", "the model obeys it")
    counts = {other.prompt_tokens for other in plain}
    if None in counts or len(counts) != 1 or heard.prompt_tokens is None:
        return Probe(name, "unclear", "the model does not obey it, and prompt tokens are not counted reliably")
    (count,) = counts
    if heard.prompt_tokens != count:
        return Probe(name, "honoured", f"{heard.prompt_tokens} prompt tokens with it, {count} without; not obeyed")
    return Probe(name, "ignored", f"not obeyed, and {count} prompt tokens with it and without")


def judge_response_format(plain: ProbeReply, heard: ProbeReply) -> Probe:
    """From an answer to a question that asks for plain text, with JSON demanded by the parameter."""
    name = "response_format"
    if heard.fault:
        return Probe(name, "refused" if heard.refused else "unclear", heard.fault)
    start, usual = heard.text.strip()[:3], plain.text.strip()[:3]
    if not start or plain.fault:
        return Probe(name, "unclear", "an answer came back empty")
    if start[0] not in "{[":
        verdict: Verdict = "unclear" if start == "```" else "ignored"
        return Probe(name, verdict, "the answer is no bare JSON")
    if usual[:1] in {"{", "["}:
        return Probe(name, "unclear", "the answer is JSON without it as well")
    return Probe(name, "honoured", "JSON comes where plain text was asked for")


def judge_logprobs(heard: ProbeReply) -> list[Probe]:
    """From one answer with log-probabilities and two alternatives a token; both known shapes are read."""
    if heard.fault:
        verdict: Verdict = "refused" if heard.refused else "unclear"
        return [Probe(name, verdict, heard.fault) for name in ("logprobs", "top_logprobs")]
    values, alternatives = _logprob_values(heard.logprobs)
    if not values:
        return [Probe(name, "ignored", "none in the answer") for name in ("logprobs", "top_logprobs")]
    if not any(values):
        return [Probe(name, "unclear", "every value is 0") for name in ("logprobs", "top_logprobs")]
    fewest = min(alternatives, default=0)
    top = Probe("top_logprobs", "ignored" if not fewest else "unclear", f"{fewest} alternatives where 2 were asked for")
    if fewest >= 2:
        top = Probe("top_logprobs", "honoured", f"{fewest} alternatives a token")
    return [Probe("logprobs", "honoured", f"a value for each of {len(values)} tokens"), top]


def _logprob_values(found: Any) -> tuple[list[float], list[int]]:
    """Log-probabilities and numbers of alternatives, from chat's `content` or the older `token_logprobs`."""
    if not isinstance(found, dict):
        return [], []
    if isinstance(found.get("content"), list):
        items = [item for item in found["content"] if isinstance(item, dict)]
        values, tops = [item.get("logprob") for item in items], [item.get("top_logprobs") for item in items]
    else:
        values, tops = found.get("token_logprobs") or [], found.get("top_logprobs") or []
    numbers = [value for value in values if isinstance(value, (int, float))] if isinstance(values, list) else []
    return numbers, [len(top) if isinstance(top, (list, dict)) else 0 for top in tops]


def judge_completions(heard: ProbeReply) -> Probe:
    """From one raw prompt."""
    if heard.fault:
        return Probe("completions", "refused" if heard.refused else "unclear", heard.fault)
    if not heard.drawn:
        return Probe("completions", "unclear", "an answer came back empty")
    return Probe("completions", "honoured", "a raw prompt is answered")
