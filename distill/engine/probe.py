"""Probes which parameters an endpoint honours, with a dozen tiny calls, and caches the result.

OpenAI-compatible servers ignore parameters silently. `probe` sends the calls (for `doctor URL` and `check --probe`,
never in a run), `save` and `load` keep the findings in the user's cache, `warnings` applies them to a recipe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from distill.core import event_loop
from distill.core.files import cache_dir, read_json, write_json, writing
from distill.core.hashing import text_sha256
from distill.engine.providers import ProviderError, Reply, one_line
from distill.engine.providers.addresses import normalise_url
from distill.engine.providers.openai import OpenAIProvider
from distill.engine.providers.replies import object_of
from distill.errors import EndpointError
from distill.types import Message, Request, Sampling

Verdict: TypeAlias = Literal["honoured", "ignored", "refused", "unclear"]
Judgement: TypeAlias = tuple[Verdict, str]
"""A verdict and its evidence in a few words."""

PARAMETERS = (
    "temperature", "seed", "stop", "max_tokens", "system", "logprobs", "top_logprobs", "response_format", "completions",
)  # fmt: skip
"""The parameters that are probed, in the table's order."""
MOST_CALLS = 26
"""An endpoint that honours everything gets 12 calls; a busy one gets each call twice."""
CALL_SECONDS = 60.0
"""How long one call may take; a local server may load its model at the first one."""
WAIT_SECONDS = 20.0
"""The longest wait for a busy endpoint, once per call."""
SHORT_TOKENS, COUNT_TOKENS, DRAWN_TOKENS = 3, 40, 32
EARLY, LATE = 0.25, 0.5
"""Shares of two answers' length at which they begin to differ: early by sampling, late by rounding on a busy GPU."""
REFUSALS = {f"http_{status}" for status in (400, 401, 403, 404, 405, 406, 410, 413, 415, 422, 501)}
"""Errors that mean a refusal of the parameter in which a call differs from one that was answered."""
STOP = "4"

COUNT = "Count from 1 to 12 in digits, with one space between the numbers. Write plain text, not JSON."
"""Any model gives the same answer at any temperature, so that the effect of one parameter shows."""
DRAW = "Write a sentence of twelve random words that have nothing to do with each other."
"""Has so many answers that two samples are never the same by chance."""
SYSTEM = "Whatever the user writes, answer only with the single word PINEAPPLE, in capital letters."


@dataclass(frozen=True, slots=True)
class Probe:
    """Probe result for one parameter."""

    parameter: str
    verdict: Verdict
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Probe results for one model at one address."""

    url: str
    """Normalised: without userinfo and query."""
    model: str
    date: str
    """ISO 8601, UTC."""
    probes: tuple[Probe, ...]
    calls: int
    prompt_tokens: int
    """As the endpoint reported them; 0 where it reports none."""
    completion_tokens: int

    def verdict(self, parameter: str) -> Verdict:
        """The verdict on one parameter; `unclear` for one that was not probed."""
        return next((one.verdict for one in self.probes if one.parameter == parameter), "unclear")


def probe(base_url: str, model: str, **options: Any) -> Findings:
    """Send the calls one after the other, through the client that runs use, and judge the answers.

    `options` are those of `OpenAIProvider`. At most `MOST_CALLS` calls of at most `COUNT_TOKENS` answer tokens. Raises
    `EndpointError` where no question is answered, and `RecipeError` for an address or a key that cannot be sent.
    """
    examiner = _Examiner(base_url, model, {"timeout_seconds": CALL_SECONDS, **options})
    judgements = event_loop.run(examiner.examine())
    return Findings(
        url=normalise_url(base_url),
        model=model,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        probes=tuple(Probe(name, *judgements[name]) for name in PARAMETERS),
        calls=examiner.calls,
        prompt_tokens=examiner.prompt_tokens,
        completion_tokens=examiner.completion_tokens,
    )


class _Examiner:
    """Sends the probe's calls and counts them."""

    def __init__(self, base_url: str, model: str, options: Mapping[str, Any]) -> None:
        self._base_url, self._model, self._options = base_url, model, options
        self._limit = "max_tokens"
        self._was_answered, self._lost = False, 0
        self.calls = self.prompt_tokens = self.completion_tokens = 0

    async def examine(self) -> dict[str, Judgement]:
        short = await self._chat(COUNT, SHORT_TOKENS)
        if isinstance(short, ProviderError):
            self._limit = "max_completion_tokens"
            short = await self._chat(COUNT, SHORT_TOKENS)
        plain = await self._chat(COUNT)
        for reply in (short, plain):
            if isinstance(reply, ProviderError):
                raise EndpointError(f"the endpoint refuses a plain question: {reply.detail}; check the model's name")
        newer: Judgement = ("refused", f"{self._limit} is taken instead")
        raw = await self._ask({"prompt": "1 2 3 4 5"}, {"max_tokens": SHORT_TOKENS})
        as_json = {"type": "json_object"}
        return {
            "max_tokens": _judged(_judge_max_tokens, plain, short) if self._limit == "max_tokens" else newer,
            "stop": _judged(_judge_stop, plain, await self._chat(COUNT, stop=[STOP])),
            "system": _judged(_judge_system, plain, await self._chat(COUNT, system=SYSTEM)),
            "response_format": _judged(_judge_json, plain, await self._chat(COUNT, response_format=as_json)),
            "completions": _unanswered(raw) or ("honoured", "a raw prompt is answered"),
            **await self._logprobs(),
            **await self._draw(),
        }

    async def _logprobs(self) -> dict[str, Judgement]:
        both = await self._chat(COUNT, SHORT_TOKENS, logprobs=True, top_logprobs=2)
        alone = await self._chat(COUNT, SHORT_TOKENS, logprobs=True) if isinstance(both, ProviderError) else both
        replies = {"logprobs": (0, alone), "top_logprobs": (2, both)}
        return {name: _judged(_judge_logprobs, least, reply) for name, (least, reply) in replies.items()}

    async def _draw(self) -> dict[str, Judgement]:
        """Temperature and seed. Repeated calls differ by one token in their limit, as the endpoint may have a cache."""
        cold = [await self._chat(DRAW, DRAWN_TOKENS + more, temperature=0) for more in (0, 1)]
        heat: dict[str, Any] = {} if isinstance(cold[0], ProviderError) else {"temperature": 1}
        warm = await self._chat(DRAW, DRAWN_TOKENS, **heat)
        seeded = [await self._chat(DRAW, DRAWN_TOKENS + more, **heat, seed=11) for more in (0, 1)]
        temperature = _unanswered(*cold, warm) or _judge_temperature(*map(_drawn, (*cold, warm)))
        seed = _unanswered(*seeded, warm) or _judge_seed(*map(_drawn, (*seeded, warm)))
        return {"temperature": temperature, "seed": seed}

    async def _chat(
        self, question: str, tokens: int = COUNT_TOKENS, *, system: str = "", **parameters: Any
    ) -> Reply | ProviderError:
        messages = (Message("system", system), Message("user", question))
        return await self._ask({"messages": messages[not system :]}, {self._limit: tokens, **parameters})

    async def _ask(self, question: Mapping[str, Any], parameters: Mapping[str, Any]) -> Reply | ProviderError:
        """The reply, or why there is none. Raises `EndpointError` where further calls are pointless."""
        reply = await self._send(question, parameters)
        if isinstance(reply, ProviderError) and reply.busy:
            await asyncio.sleep(min(reply.retry_after or 2.0, WAIT_SECONDS))
            reply = await self._send(question, parameters)
        if isinstance(reply, ProviderError):
            self._lost += reply.reason in {"timeout", "connection", "refused"}
            if self._lost > 1 or not (
                self._was_answered or (reply.reason in {"http_400", "http_422"} and not reply.fatal)
            ):
                raise EndpointError(reply.detail) from reply
            return reply
        self._was_answered = True
        if reply.usage is not None:
            self.prompt_tokens += reply.usage.prompt_tokens
            self.completion_tokens += reply.usage.completion_tokens
        return reply

    async def _send(self, question: Mapping[str, Any], parameters: Mapping[str, Any]) -> Reply | ProviderError:
        self.calls += 1
        provider = OpenAIProvider(self._base_url, self._model, extra_body=parameters, **self._options)
        try:
            return await provider.send(Request(role="teacher", **question))
        except ProviderError as error:
            return error
        finally:
            await provider.close()


# Verdicts


def _unanswered(*replies: Reply | ProviderError) -> Judgement | None:
    """The verdict where an answer is missing or empty."""
    for reply in replies:
        if isinstance(reply, ProviderError):
            return "refused" if reply.reason in REFUSALS else "unclear", reply.reply or reply.detail
    return None if all(map(_drawn, replies)) else ("unclear", "an answer came back empty")


def _judged(judge: Callable[[Any, Any], Judgement], expected: Any, reply: Reply | ProviderError) -> Judgement:
    return _unanswered(reply) or judge(expected, reply)


def _drawn(reply: Any) -> str:
    """The whole generated text, a reasoning model's thoughts first."""
    message = object_of(reply.raw["choices"][0].get("message"))
    return f"{message.get('reasoning_content') or message.get('reasoning') or ''}{reply.text}".strip()


def _shared(one: str, other: str) -> float:
    """The share of the shorter answer that both begin with; 1 where the longer one only goes on."""
    pairs = list(zip(one, other, strict=False))
    return next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs)) / len(pairs)


def _judge_temperature(cold: str, again: str, warm: str) -> Judgement:
    """From two answers at temperature 0 and one at 1."""
    if (shared := _shared(cold, again)) < 1:
        return "ignored" if shared < EARLY else "unclear", "two answers at 0 differ, as those of some hosted models do"
    if _shared(cold, warm) < 1:
        return "honoured", "answers at 0 are the same, the one at 1 differs"
    return "ignored", "answers at 0 and at 1 are all the same"


def _judge_seed(first: str, again: str, unseeded: str) -> Judgement:
    """From two answers with the same seed and one without a seed."""
    if (shared := _shared(first, again)) < 1:
        return "unclear" if shared >= LATE else "ignored", "two answers to the same seed differ"
    if _shared(first, unseeded) < 1:
        return "honoured", "the same seed gives the same answer, no seed a different one"
    return "unclear", "answers do not vary, so that a seed cannot show an effect"


def _judge_max_tokens(plain: Reply, short: Reply) -> Judgement:
    """From an answer without a tight limit and one under a limit of 3 tokens; a word is at least one token."""
    tokens, words = (short.usage.completion_tokens if short.usage else 0), len(_drawn(short).split())
    if max(tokens, words) > 2 * SHORT_TOKENS:
        return "ignored", f"{max(tokens, words)} tokens came where {SHORT_TOKENS} were allowed"
    is_cut = len(_drawn(plain)) > len(_drawn(short))
    return "honoured" if is_cut else "unclear", f"{max(tokens, words)} tokens came of {SHORT_TOKENS} allowed"


def _judge_stop(plain: Reply, reply: Reply) -> Judgement:
    """From an answer that contains the stop string, and one that must end before it."""
    text, end = reply.text.strip(), f'"{STOP}"'
    if text.partition(STOP)[2]:
        return "ignored", f"the answer goes on after {end}"
    if STOP in plain.text and (text.endswith(STOP) or text == plain.text.partition(STOP)[0].strip()):
        return "honoured", f"the answer ends at {end}"
    return "unclear", "a different answer came, which shows nothing"


def _judge_system(plain: Reply, reply: Reply) -> Judgement:
    """From an answer with a system message, which must be obeyed or at least counted: weak models do not obey it."""
    if "PINEAPPLE" in reply.text.upper():
        return "honoured", "the model obeys it"
    if plain.usage is None or reply.usage is None:
        return "unclear", "the model does not obey it, and prompt tokens are not counted"
    before, after = plain.usage.prompt_tokens, reply.usage.prompt_tokens
    counts = f"{after} prompt tokens with it, {before} without"
    if before == after:
        return "ignored", f"it adds nothing to the prompt: {counts}"
    return "honoured", f"it is in the prompt ({counts}), though this model does not follow it"


def _judge_json(plain: Reply, reply: Reply) -> Judgement:
    """From an answer to a question that asks for plain text while the parameter demands JSON."""
    if not reply.text.strip().startswith(("{", "[")):
        return "unclear" if "```" in reply.text else "ignored", "the answer is no bare JSON"
    is_usual = plain.text.strip().startswith(("{", "["))
    return "unclear" if is_usual else "honoured", "JSON comes where plain text was asked for"


def _judge_logprobs(alternatives: int, reply: Reply) -> Judgement:
    """From an answer with log-probabilities: whether each token has one, and enough alternatives."""
    tokens = object_of(reply.raw["choices"][0].get("logprobs")).get("content")
    tokens = [object_of(token) for token in tokens] if isinstance(tokens, list) else []
    if not any(token.get("logprob") for token in tokens):
        return "ignored", "none in the answer"
    lists = [token.get("top_logprobs") for token in tokens]
    fewest = min(len(one) if isinstance(one, list) else 0 for one in lists)
    return "honoured" if fewest >= alternatives else "ignored", f"{len(tokens)} tokens, {fewest} alternatives of each"


# The cache


def _file(url: str, model: str) -> Path:
    digest = text_sha256(f"{normalise_url(url)}\n{model}")
    return cache_dir() / "endpoints" / f"{digest[:24]}.json"


def save(findings: Findings) -> Path:
    """Write the findings to the user's cache, in place of older ones. Raises `DistillError` where that fails."""
    path = _file(findings.url, findings.model)
    with writing(path.parent):
        write_json(path, findings)
    return path


def load(url: str, model: str) -> Findings | None:
    """The last findings for a model at an address; `None` where none are kept, or they are unreadable."""
    from pydantic import TypeAdapter, ValidationError

    try:
        findings = TypeAdapter(Findings).validate_python(read_json(_file(url, model)))
        datetime.fromisoformat(findings.date).astimezone(UTC)
    except (ValidationError, ValueError, OverflowError):
        return None
    return findings if (findings.url, findings.model) == (normalise_url(url), model) else None


# Reports


def printable(text: str, limit: int) -> str:
    """A server's text on one line, without characters that a terminal would obey."""
    return one_line("".join(c if c.isprintable() else " " for c in text), limit)


def table(findings: Findings) -> list[str]:
    """One line per parameter under a line that says what was asked, when, and what it took."""
    tokens = f"{findings.prompt_tokens:,} + {findings.completion_tokens:,} tokens"
    head = f'what "{printable(findings.model, 80)}" at {findings.url} honours'
    rows = [f"  {one.parameter:15}  {one.verdict:8}  {printable(one.evidence, 110)}" for one in findings.probes]
    return [f"{head} (probed {age(findings)}: {findings.calls} calls, {tokens})", *rows]


def age(findings: Findings, *, now: datetime | None = None) -> str:
    """How long ago the endpoint was probed, in words."""
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(findings.date)).total_seconds()
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if (count := int(seconds // size)) > 0:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


_CONSEQUENCES = {
    "temperature": "answers are sampled at the endpoint's own temperature",
    "max_tokens": "answers may be longer, and cost more, than forecast",
    "stop": "answers are cut after the fact",
    "seed": "repeated requests get different answers",
}


def warnings(findings: Findings, sampling: Sampling, *, section: str = "teacher.sampling") -> list[str]:
    """One line for each parameter that is set in a section of the recipe and that the endpoint ignores or refuses."""
    lines = []
    for name in (item.name for item in fields(sampling)):
        value, verdict = getattr(sampling, name), findings.verdict(name)
        if value is None or value is False or value == () or verdict not in {"ignored", "refused"}:
            continue
        effect = _CONSEQUENCES.get(name, "it has no effect") if verdict == "ignored" else "requests with it will fail"
        verb = "ignores" if verdict == "ignored" else "refuses"
        lines.append(f"{section}.{name} is set, but this endpoint {verb} {name}: {effect}")
    return lines
