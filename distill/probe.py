"""What an endpoint honours: a dozen tiny calls show which parameters have an effect, and the answer is kept.

OpenAI-compatible servers ignore parameters in silence. `probe` asks (`doctor URL` and `check --probe` call it, a run
never does), `save` and `load` keep the findings in the user's cache, `warnings` and `ignored` say what they mean for a
recipe. What to ask and what it shows is a generator and pure functions; only `probe` touches the network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from distill import loops, rows
from distill.embedded import cache_dir, read_json, writing
from distill.errors import EndpointError, RecipeError
from distill.providers import ProviderError, Reply, one_line
from distill.providers.openai import OpenAIProvider, normalise_url
from distill.types import Finish, Message, Request, Sampling

Verdict = Literal["honoured", "ignored", "refused", "unclear"]

MOST_CALLS = 16
"""Upper bound of one probe; an endpoint that honours everything is asked 12 times."""
CALL_SECONDS = 60.0
"""How long one call may take; a local server may load its model at the first."""
WAIT_SECONDS = 20.0
"""The longest that a rate limit is waited for, once a call."""
SHORT_TOKENS, COUNT_TOKENS, DRAWN_TOKENS = 3, 40, 32
COUNT = "Count from 1 to 12 in digits, with one space between the numbers. Write plain text, not JSON."
"""Answered alike by any model at any temperature, so that one changed parameter shows."""
DRAW = "Write a sentence of twelve random words that have nothing to do with each other."
"""So many answers are possible that two samples are never the same by chance."""
SYSTEM = (
    "Whatever the user writes, answer only with the single word PINEAPPLE, in capital letters, without any other "
    "word, number or sign before it or after it."
)
STOPS = ("4", "e", "a", "o")
"""In twelve numbers as in any sentence; some endpoints take no more than four."""
EARLY, LATE = 0.25, 0.5
"""Shares of two answers' length at which they part: sampling parts them early, rounding on a busy GPU late."""
REFUSALS = {400, 401, 403, 404, 405, 406, 410, 413, 415, 422, 501}
"""Statuses that answer a question like one that was answered: what is new in it is not taken."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found of one parameter."""

    parameter: str
    verdict: Verdict
    evidence: str
    """A few words: what was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found of one model behind one address."""

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
    """One question of the probe."""

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What came back of one call."""

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


Plan: TypeAlias = Generator[Call, Heard, tuple[Probe, ...]]


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
    probes = loops.run(caller.drive(examination()))
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
    """Sends the probe's calls through the client that a run uses, which keeps secrets out of whatever comes back."""

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

    async def _asked(self, call: Call) -> Heard:
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

    async def _sent(self, call: Call) -> Heard:
        if self.calls >= MOST_CALLS:
            return Heard(fault=f"not asked: {MOST_CALLS} calls are enough")
        self.calls += 1
        provider = OpenAIProvider(self._base_url, self._model, extra_body=call.parameters, **self._options)
        try:
            reply = await provider.send(Request(role="teacher", messages=call.messages, prompt=call.prompt))
        finally:
            await provider.close()
        self._met = True
        return heard_of(reply)

    def _fault(self, error: ProviderError) -> Heard:
        """A refusal or a lost answer as what was heard; raises where nothing more can be learnt."""
        status = int(error.reason[5:]) if error.reason.startswith("http_") else None
        self._met = self._met or status in {400, 422}
        self._lost += error.reason in {"timeout", "connection", "refused"}
        shown = normalise_url(self._base_url)
        if not self._met or self._lost > 1:
            raise EndpointError(error.detail if shown in error.detail else f"{shown}: {error.detail}") from error
        said = error.detail.removeprefix(f"{shown} answers ")
        if error.fatal:
            said = said.rpartition("; ")[0] or said  # advice for an endpoint that takes nothing at all
        return Heard(fault=printable(said, 110), refused=status in REFUSALS)


def heard_of(reply: Reply) -> Heard:
    """What the verdicts rest on, of one response."""
    choice = reply.raw["choices"][0]
    message = choice.get("message") if isinstance(choice.get("message"), dict) else {}
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    return Heard(
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


def _shortest() -> Generator[Call, Heard, tuple[str, Heard]]:
    """The name of the limit that the endpoint takes, and an answer under a very low one."""
    short = yield _chat(COUNT, {"max_tokens": SHORT_TOKENS})
    if not short.refused:
        return "max_tokens", short
    other = yield _chat(COUNT, {"max_completion_tokens": SHORT_TOKENS})
    if other.refused:
        raise EndpointError(f"the endpoint refuses a plain question: {short.fault}; check the model's name")
    return "max_completion_tokens", other


def _logprobs(limit: str) -> Generator[Call, Heard, list[Probe]]:
    both = yield _chat(COUNT, {limit: SHORT_TOKENS, "logprobs": True, "top_logprobs": 2})
    if not both.refused:
        return judge_logprobs(both)
    alone = yield _chat(COUNT, {limit: SHORT_TOKENS, "logprobs": True})
    return [judge_logprobs(alone)[0], Probe("top_logprobs", "refused", both.fault)]


def _drawing(limit: str, cold_refused: Heard | None) -> Generator[Call, Heard, list[Probe]]:
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


# What it shows


def same(one: Heard, other: Heard) -> bool:
    """Whether two answers are the same, but for the token by which one's limit is higher."""
    shorter, longer = sorted((one, other), key=lambda heard: len(heard.drawn))
    if shorter.drawn == longer.drawn:
        return True
    return shorter.finish == "length" and bool(shorter.drawn) and longer.drawn.startswith(shorter.drawn)


def _differ(answers: Sequence[Heard]) -> bool:
    return any(not same(one, other) for one, other in combinations(answers, 2))


def _shared(one: Heard, other: Heard) -> float:
    """The share of the shorter answer after which the two part."""
    pairs = list(zip(one.drawn, other.drawn, strict=False))
    alike = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return alike / max(1, len(pairs))


def _unanswered(parameter: str, answers: Sequence[Heard]) -> Probe | None:
    """The verdict where an answer is missing or empty."""
    for heard in answers:
        if heard.fault:
            return Probe(parameter, "refused" if heard.refused else "unclear", heard.fault)
    if not all(heard.drawn for heard in answers):
        return Probe(parameter, "unclear", "an answer came back empty")
    return None


def judge_temperature(cold: Sequence[Heard], warm: Sequence[Heard]) -> Probe:
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


def judge_seed(first: Heard, again: Heard, other: Heard, bare: Heard | None) -> Probe:
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


def judge_max_tokens(short: Heard, plain: Heard) -> Probe:
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


def judge_stop(plain: Heard, stopped: Heard) -> Probe:
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


def judge_system(plain: Sequence[Heard], heard: Heard) -> Probe:
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


def judge_response_format(plain: Heard, heard: Heard) -> Probe:
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


def judge_logprobs(heard: Heard) -> list[Probe]:
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


def judge_completions(heard: Heard) -> Probe:
    """From one raw prompt."""
    if heard.fault:
        return Probe("completions", "refused" if heard.refused else "unclear", heard.fault)
    if not heard.drawn:
        return Probe("completions", "unclear", "an answer came back empty")
    return Probe("completions", "honoured", "a raw prompt is answered")


# Keeping


def _file(url: str, model: str) -> Path:
    digest = sha256(f"{normalise_url(url)}\n{model}".encode()).hexdigest()
    return cache_dir() / "endpoints" / f"{digest[:24]}.json"


def save(findings: Findings) -> Path:
    """Keep the findings in the user's cache, in place of older ones. Raises `DistillError` where that fails."""
    path = _file(findings.url, findings.model)
    with writing(path.parent):
        rows.write_json(path, findings)
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
