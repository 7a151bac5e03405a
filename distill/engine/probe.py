"""Probes which parameters an endpoint honours, with a dozen tiny calls, and caches the result.

OpenAI-compatible servers ignore parameters in silence. `probe` asks (`doctor URL` and `check --probe` call it, a run
never does), `save` and `load` keep the findings in the user's cache, `warnings` and `ignored` say what they mean for a
recipe. What to ask and what it shows is a generator and pure functions; only `probe` touches the network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from distill.core import event_loop
from distill.core.files import cache_dir, read_json, write_json, writing
from distill.core.hashing import text_sha256
from distill.engine.probe_verdicts import (
    COUNT_TOKENS,
    DRAWN_TOKENS,
    REFUSALS,
    SHORT_TOKENS,
    STOPS,
    Probe,
    ProbeReply,
    Verdict,
    _differ,
    _no_max_tokens,
    judge_completions,
    judge_logprobs,
    judge_max_tokens,
    judge_response_format,
    judge_seed,
    judge_stop,
    judge_system,
    judge_temperature,
    same,
)
from distill.engine.providers import ProviderError, Reply, one_line
from distill.engine.providers.addresses import normalise_url
from distill.engine.providers.openai import OpenAIProvider
from distill.errors import EndpointError, RecipeError
from distill.types import Message, Request, Sampling

MOST_CALLS = 16
"""Upper bound of one probe; an endpoint that honours everything is asked 12 times."""
CALL_SECONDS = 60.0
"""How long one call may take; a local server may load its model at the first."""
WAIT_SECONDS = 20.0
"""The longest that a rate limit is waited for, once a call."""

COUNT = "Count from 1 to 12 in digits, with one space between the numbers. Write plain text, not JSON."
"""Answered alike by any model at any temperature, so that one changed parameter shows."""
DRAW = "Write a sentence of twelve random words that have nothing to do with each other."
"""So many answers are possible that two samples are never the same by chance."""
SYSTEM = (
    "Whatever the user writes, answer only with the single word PINEAPPLE, in capital letters, without any other "
    "word, number or sign before it or after it."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Probe results for one model at one address."""

    url: str
    """Normalised: without userinfo and query."""
    model: str
    date: str
    """When it was asked: ISO 8601, UTC."""
    probes: tuple[Probe, ...]
    calls: int
    prompt_tokens: int
    """As the endpoint reported them; 0 where it reports none."""
    completion_tokens: int

    def verdict(self, parameter: str) -> Verdict:
        """Of one parameter; `unclear` for one that was not looked at."""
        return next((probe.verdict for probe in self.probes if probe.parameter == parameter), "unclear")


@dataclass(frozen=True, slots=True)
class Call:
    """One request of the probe."""

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


Plan: TypeAlias = Generator[Call, ProbeReply, tuple[Probe, ...]]


# Asking


def probe(
    base_url: str,
    model: str,
    *,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_seconds: float = CALL_SECONDS,
) -> Findings:
    """Ask the endpoint one question after the other, as a run would, and judge the answers.

    At most `MOST_CALLS` calls of at most `COUNT_TOKENS` answer tokens, each bounded by `timeout_seconds`. Raises
    `EndpointError` where it cannot be asked at all, and `RecipeError` for an address or a key that cannot be sent.
    """
    url = normalise_url(base_url)
    if api_key and "@" in urlsplit(base_url).netloc:
        raise RecipeError(f"{url} was given with a password and a key, and a call cannot carry both; take one out")
    caller = _Caller(base_url, model, api_key=api_key, headers=headers or {}, timeout_seconds=timeout_seconds)
    probes = event_loop.run(caller.drive(examination()))
    return Findings(
        url=url,
        model=model,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        probes=probes,
        calls=caller.calls,
        prompt_tokens=caller.prompt_tokens,
        completion_tokens=caller.completion_tokens,
    )


class _Caller:
    """Sends the probe's requests through the client used by runs, which redacts secrets."""

    def __init__(self, base_url: str, model: str, **options: Any) -> None:
        self._base_url, self._model, self._options = base_url, model, options
        self._met, self._lost = False, 0
        self.calls = self.prompt_tokens = self.completion_tokens = 0

    async def drive(self, plan: Plan) -> tuple[Probe, ...]:
        call = next(plan)
        while True:
            heard = await self._asked(call)
            self.prompt_tokens += heard.prompt_tokens or 0
            self.completion_tokens += heard.completion_tokens or 0
            try:
                call = plan.send(heard)
            except StopIteration as done:
                probes: tuple[Probe, ...] = done.value
                return probes

    async def _asked(self, call: Call) -> ProbeReply:
        """Ask, and once more where the endpoint wants us to wait."""
        try:
            return await self._sent(call)
        except ProviderError as error:
            if error.fatal or error.reason not in {"http_429", "http_503"}:
                return self._fault(error)
            await asyncio.sleep(min(error.retry_after or 2.0, WAIT_SECONDS))
        try:
            return await self._sent(call)
        except ProviderError as error:
            return self._fault(error)

    async def _sent(self, call: Call) -> ProbeReply:
        if self.calls >= MOST_CALLS:
            return ProbeReply(fault=f"not asked: {MOST_CALLS} calls are enough")
        self.calls += 1
        provider = OpenAIProvider(self._base_url, self._model, extra_body=call.parameters, **self._options)
        try:
            reply = await provider.send(Request(role="teacher", messages=call.messages, prompt=call.prompt))
        finally:
            await provider.close()
        self._met = True
        return heard_of(reply)

    def _fault(self, error: ProviderError) -> ProbeReply:
        """A refusal or a lost answer as what was heard; raises where nothing more can be learnt."""
        status = int(error.reason[5:]) if error.reason.startswith("http_") else None
        self._met = self._met or status in {400, 422}
        self._lost += error.reason in {"timeout", "connection", "refused"}
        shown = normalise_url(self._base_url)
        if not self._met or self._lost > 1:
            raise EndpointError(error.detail if shown in error.detail else f"{shown}: {error.detail}") from error
        reply = error.detail.removeprefix(f"{shown} answers ")
        if error.fatal:
            reply = reply.rpartition("; ")[0] or reply  # advice for an endpoint that takes nothing at all
        return ProbeReply(fault=printable(reply, 110), refused=status in REFUSALS)


def heard_of(reply: Reply) -> ProbeReply:
    """What the verdicts rest on, of one response."""
    choice = reply.raw["choices"][0]
    message = choice.get("message") if isinstance(choice.get("message"), dict) else {}
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    return ProbeReply(
        text=reply.text,
        thought=thought if isinstance(thought, str) else "",
        finish=reply.finish,
        prompt_tokens=reply.usage.prompt_tokens if reply.usage else None,
        completion_tokens=reply.usage.completion_tokens if reply.usage else None,
        logprobs=choice.get("logprobs"),
    )


def printable(text: str, limit: int) -> str:
    """What a server said, on one line, without anything that a terminal would obey."""
    return one_line("".join(c if c.isprintable() else " " for c in text), limit)


# What to ask


def examination() -> Plan:
    """The calls in order; each differs by one parameter from one that was answered before it."""
    limit, short = yield from _shortest()
    temperature: dict[str, Any] = {"temperature": 0}
    plain = yield _chat(COUNT, {limit: COUNT_TOKENS, **temperature})
    if cold_refused := plain if plain.refused else None:
        temperature = {}
        plain = yield _chat(COUNT, {limit: COUNT_TOKENS})
    count = {limit: COUNT_TOKENS, **temperature}
    found = [judge_max_tokens(short, plain) if limit == "max_tokens" else _no_max_tokens(limit)]
    found.append(judge_stop(plain, (yield _chat(COUNT, {**count, "stop": list(STOPS)}))))
    found.append(judge_system([short, plain], (yield _chat(COUNT, count, system=SYSTEM))))
    found.append(judge_response_format(plain, (yield _chat(COUNT, {**count, "response_format": _JSON}))))
    found += yield from _logprobs(limit)
    found += yield from _drawing(limit, cold_refused)
    # A raw prompt knows only the older name of the limit.
    found.append(judge_completions((yield Call(prompt="1 2 3 4 5", parameters={"max_tokens": SHORT_TOKENS}))))
    return tuple(sorted(found, key=lambda probe: PARAMETERS.index(probe.parameter)))


PARAMETERS = (
    "temperature", "seed", "stop", "max_tokens", "system", "logprobs", "top_logprobs", "response_format", "completions",
)  # fmt: skip
"""What is looked at, in the table's order."""
_JSON = {"type": "json_object"}


def _chat(question: str, parameters: Mapping[str, Any], *, system: str | None = None) -> Call:
    before = (Message("system", system),) if system else ()
    return Call(messages=(*before, Message("user", question)), parameters=parameters)


def _shortest() -> Generator[Call, ProbeReply, tuple[str, ProbeReply]]:
    """The name of the limit that the endpoint takes, and an answer under a very low one."""
    short = yield _chat(COUNT, {"max_tokens": SHORT_TOKENS})
    if not short.refused:
        return "max_tokens", short
    other = yield _chat(COUNT, {"max_completion_tokens": SHORT_TOKENS})
    if other.refused:
        raise EndpointError(f"the endpoint refuses a plain question: {short.fault}; check the model's name")
    return "max_completion_tokens", other


def _logprobs(limit: str) -> Generator[Call, ProbeReply, list[Probe]]:
    both = yield _chat(COUNT, {limit: SHORT_TOKENS, "logprobs": True, "top_logprobs": 2})
    if not both.refused:
        return judge_logprobs(both)
    alone = yield _chat(COUNT, {limit: SHORT_TOKENS, "logprobs": True})
    return [judge_logprobs(alone)[0], Probe("top_logprobs", "refused", both.fault)]


def _drawing(limit: str, cold_refused: ProbeReply | None) -> Generator[Call, ProbeReply, list[Probe]]:
    """Samples at temperature 0, and at 1 with and without seeds. A limit one higher defeats caches of equal calls."""

    def draw(more: int = 0, **parameters: Any) -> Call:
        return _chat(DRAW, {limit: DRAWN_TOKENS + more, **parameters})

    cold, heat = [cold_refused] if cold_refused else [], {} if cold_refused else {"temperature": 1}
    if not cold_refused:
        cold = [(yield draw(0, temperature=0)), (yield draw(1, temperature=0))]
        if not same(*cold):
            cold.append((yield draw(2, temperature=0)))
    first = yield draw(0, **heat, seed=11)
    if first.refused:
        unseeded = yield draw(0, **heat)
        warm = [unseeded] if unseeded.refused else [unseeded, (yield draw(1, **heat))]
        seed = Probe("seed", "unclear" if unseeded.refused else "refused", first.fault)
        return [judge_temperature(cold, warm), seed]
    again = yield draw(1, **heat, seed=11)
    other = yield draw(0, **heat, seed=12)
    seeded = [first, again, other]
    bare = None if _differ(seeded) else (yield draw(0, **heat))
    return [judge_temperature(cold, [*seeded, bare] if bare else seeded), judge_seed(first, again, other, bare)]


# Keeping


def _file(url: str, model: str) -> Path:
    digest = text_sha256(f"{normalise_url(url)}\n{model}")
    return cache_dir() / "endpoints" / f"{digest[:24]}.json"


def save(findings: Findings) -> Path:
    """Keep the findings in the user's cache, in place of older ones. Raises `DistillError` where that fails."""
    path = _file(findings.url, findings.model)
    with writing(path.parent):
        write_json(path, findings)
    return path


def load(url: str, model: str) -> Findings | None:
    """What was last found of a model behind an address; `None` where nothing, or nothing readable, is kept."""
    from pydantic import TypeAdapter, ValidationError

    try:
        findings = TypeAdapter(Findings).validate_python(read_json(_file(url, model)))
        datetime.fromisoformat(findings.date).astimezone(UTC)
    except (ValidationError, ValueError, OverflowError, RecursionError):
        return None
    return findings if (findings.url, findings.model) == (normalise_url(url), model) else None


# Telling


def table(findings: Findings) -> list[str]:
    """One line a parameter under a line that says what was asked, when, and what it took."""
    tokens = f"{findings.prompt_tokens:,} + {findings.completion_tokens:,} tokens"
    head = f'what "{printable(findings.model, 80)}" at {findings.url} honours'
    lines = [f"{head} (probed {age(findings)}: {findings.calls} calls, {tokens})"]
    for found in findings.probes:
        lines.append(f"  {found.parameter:15}  {found.verdict:8}  {printable(found.evidence, 110)}")
    return lines


def age(findings: Findings, *, now: datetime | None = None) -> str:
    """How long ago the endpoint was asked, in words."""
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(findings.date)).total_seconds()
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if (count := int(seconds // size)) > 0:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def ignored(findings: Findings) -> frozenset[str]:
    """The parameters that the endpoint takes and does nothing with."""
    return frozenset(found.parameter for found in findings.probes if found.verdict == "ignored")


_CONSEQUENCES = {
    "temperature": "answers are drawn as the endpoint likes",
    "max_tokens": "answers may be longer, and cost more, than forecast",
    "stop": "answers are cut after the fact",
    "seed": "asking again draws other answers",
}


def warnings(findings: Findings, sampling: Sampling, *, section: str = "teacher.sampling") -> list[str]:
    """One line for each parameter that is set in a section of the recipe and that the endpoint ignores or refuses."""
    lines = []
    for name in (item.name for item in fields(sampling)):
        value = getattr(sampling, name)
        if value is None or value is False or value == ():
            continue
        verdict = findings.verdict(name)
        if verdict == "ignored":
            then = _CONSEQUENCES.get(name, "it has no effect")
            lines.append(f"{section}.{name} is set, but this endpoint ignores {name}: {then}")
        if verdict == "refused":
            lines.append(f"{section}.{name} is set, but this endpoint refuses {name}: requests with it will fail")
    return lines
