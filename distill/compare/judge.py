"""LLM judge: pairwise in both orders, or single grades; answers are treated as data, not as instructions.

A pair is won only if the judge names the same model in both orders, as in MT-Bench (Zheng et al., 2023, arXiv
2306.05685, section 3.4); what it contradicts itself in is a tie, and what cannot be read is a class of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

from distill.compare.answers import Engines
from distill.compare.metrics import Model, ModelAnswer
from distill.compare.results import ComparisonResults, Prompt
from distill.core import console
from distill.core.assets import fill, load
from distill.core.hashing import unused_tag
from distill.engine.providers import Provider
from distill.recipe import Judging
from distill.text.judge_replies import GradeScale, graded
from distill.text.tokens import harmless
from distill.types import Completion, Failure, Flow, Message, Request, Sampling

REPLY_TOKENS = 512
"""Bound of a judge's reply where the recipe's judge has none."""
HIGHEST = 10
VERDICTS = ("A", "B", "tie")

Verdict: TypeAlias = str
"""The model that is better, `tie`, or `unparsed`."""
Place = Literal["A", "B"]


@dataclass(frozen=True, slots=True)
class JudgeQuestion:
    """One question to the judge about two answers."""

    prompt: int
    """Its index."""
    pair: str
    """Such as `student:teacher`."""
    first: Model
    second: Model
    again: bool = False
    """Whether it was asked before, to see if the judge says the same."""


def judge(
    results: ComparisonResults, engine: Engines, provider: Provider, *, options: Judging, sampling: Sampling
) -> dict[str, Any]:
    """Ask the judge, write its verdicts into the prompts' lines (`judge`), and return what the audit starts from.

    The result has `model` and `mode`. Requests that fail are verdicts that cannot be read. Raises what the engine does.
    """
    drawing = _sampling(sampling, options)
    games = list(_games(results, options)) if options.mode != "single" else []
    grades = list(_graded_answers(results)) if options.mode != "pairwise" else []
    flows: list[tuple[str, Callable[[], Flow[Any]]]] = [
        (_name(results, game), partial(_play, results, game, options, drawing)) for game in games
    ]
    flows += [
        (f"{results.prompts[index].id}:{model}", partial(_grade, results, index, model, options, drawing))
        for index, model in grades
    ]
    with console.progress("asking the judge", len(flows)) as bar:
        outcomes = engine({"judge": provider}, progress=bar, local=False).run(flows)
    unread = ("unparsed", "the judge did not answer")
    replies = [outcome.value or unread for outcome in outcomes]
    if options.mode != "single":
        _record_pairs(results, options, dict(zip(games, replies, strict=False)))
    _record_grades(results, dict(zip(grades, replies[len(games) :], strict=True)))
    return {"model": provider.endpoint.model, "mode": options.mode}


def _sampling(given: Sampling, options: Judging) -> Sampling:
    return replace(
        given,
        temperature=0.0 if given.temperature is None else given.temperature,
        max_tokens=options.max_tokens or given.max_tokens or REPLY_TOKENS,
    )


def _name(results: ComparisonResults, game: JudgeQuestion) -> str:
    again = ":again" if game.again else ""
    return f"{results.prompts[game.prompt].id}:{game.first}:{game.second}{again}"


# What is asked


def _games(results: ComparisonResults, options: Judging) -> Iterator[JudgeQuestion]:
    """Both orders of each pair on each prompt that both answered in other words; some asked a second time."""
    for pair in options.pairs:
        one, other = _models(pair)
        asked = [index for index in results.shared if _differ(results, index, one, other)]
        for index in asked:
            yield JudgeQuestion(index, pair, one, other)
            yield JudgeQuestion(index, pair, other, one)
        for index in asked[:: max(1, len(asked) // options.retest)][: options.retest] if options.retest else ():
            yield JudgeQuestion(index, pair, one, other, again=True)


def _models(pair: str) -> tuple[Model, Model]:
    names: dict[str, Model] = {"base": "base", "student": "student", "teacher": "teacher"}
    one, _, other = pair.partition(":")
    return names[one], names[other]


def _both(results: ComparisonResults, index: int, one: Model, other: Model) -> tuple[ModelAnswer, ModelAnswer] | None:
    answers = [results.answers.get(model, {}).get(index) for model in (one, other)]
    return (answers[0], answers[1]) if answers[0] is not None and answers[1] is not None else None


def _differ(results: ComparisonResults, index: int, one: Model, other: Model) -> bool:
    both = _both(results, index, one, other)
    return both is not None and _answer_texts(both[0]) != _answer_texts(both[1])


def _answer_texts(answer: ModelAnswer) -> tuple[str, ...]:
    return (*answer.earlier, answer.text)


def _graded_answers(results: ComparisonResults) -> Iterator[tuple[int, Model]]:
    for model in ("base", "student", "teacher"):
        for index in results.shared:
            if index in results.answers.get(model, {}):
                yield index, model


def _play(
    results: ComparisonResults, game: JudgeQuestion, options: Judging, sampling: Sampling
) -> Flow[tuple[Verdict, str] | None]:
    """Who is better, and why; `None` where the judge could not be asked."""
    prompt, shown = results.prompts[game.prompt], (game.first, game.second)
    answers = [results.answers[model][game.prompt] for model in shown]
    tag = tag_of(prompt, answers)
    named = [(place, answer) for place, answer in zip(("A", "B"), answers, strict=True)]
    text = _question("pairwise", prompt, named, tag, options)
    answer: Completion | Failure = yield _request(text, sampling, again=game.again)
    if isinstance(answer, Failure):
        return None
    place, reason = read_verdict(answer.text, texts=_texts(prompt, answers), tag=tag)
    return {"A": game.first, "B": game.second}.get(place, place), reason


def _grade(
    results: ComparisonResults, index: int, model: Model, options: Judging, sampling: Sampling
) -> Flow[tuple[float | None, str] | None]:
    prompt, answer = results.prompts[index], results.answers[model][index]
    tag = tag_of(prompt, [answer])
    reply: Completion | Failure = yield _request(
        _question("single", prompt, [("answer", answer)], tag, options), sampling
    )
    if isinstance(reply, Failure):
        return None
    said = graded(reply.text, GradeScale(HIGHEST), texts=_texts(prompt, [answer]), tag=tag)
    return (None if said.problem else said.score), said.reason


def _request(text: str, sampling: Sampling, *, again: bool = False) -> Request:
    return Request(role="judge", messages=(Message("user", text),), sampling=sampling, replica=int(again))


def _question(kind: str, prompt: Prompt, answers: Sequence[tuple[str, ModelAnswer]], tag: str, options: Judging) -> str:
    """The whole message to the judge: how to judge, and what, between tags that no text of it holds."""
    criteria = "\n".join(f"- {line}" for line in options.criteria or load("judges/quality.txt").splitlines())
    if prompt.solution is not None:
        criteria += f"\n- {load('judges/reference.txt')}"
    parts = [("instructions", message.content) for message in prompt.messages if message.role == "system"]
    parts += [("request", _prompt_text(prompt))] if not prompt.later else []
    parts += [("solution", prompt.solution)] if prompt.solution is not None else []
    for place, answer in answers:
        parts += [(place, _dialogue(prompt, answer))]
    material = "\n\n".join(f"<{name}-{tag}>\n{harmless(text)}\n</{name}-{tag}>" for name, text in parts)
    lead = "The last answer of each dialogue is judged; what stands before it is how it came about.\n\n"
    return fill(
        load(f"judges/{kind}.txt"), tag=tag, criteria=criteria, material=(lead if prompt.later else "") + material
    )


def _prompt_text(prompt: Prompt) -> str:
    return "\n\n".join(message.content for message in prompt.messages if message.role != "system")


def _dialogue(prompt: Prompt, answer: ModelAnswer) -> str:
    """The answer; of a question of several turns, all that was said."""
    if not prompt.later:
        return answer.text
    turns = [("Person", message.content) for message in prompt.messages if message.role == "user"]
    for reply, asked in zip(answer.earlier, prompt.later, strict=False):
        turns += [("Assistant", reply), ("Person", asked)]
    return "\n\n".join(f"{who}: {text}" for who, text in [*turns, ("Assistant", answer.text)])


def _texts(prompt: Prompt, answers: Sequence[ModelAnswer]) -> list[str]:
    """What the judge was shown, whose words are no verdict of its own."""
    asked = [message.content for message in prompt.messages]
    return [*asked, *prompt.later, *(text for answer in answers for text in _answer_texts(answer))]


def tag_of(prompt: Prompt, answers: Sequence[ModelAnswer]) -> str:
    """A mark that none of the texts holds, the same in either order: eight hexadecimal digits of their SHA-256."""
    text = "\n".join([*sorted(_texts(prompt, answers)), prompt.solution or ""])
    return unused_tag(text)


# What is said

_WHO = r"(?:answer|assistant|response|model|option)"
_UNTURNED = rf"(?:(?!\b{_WHO}\b|n't\b|\b(?:not|no|never|nor|worse|less|neither)\b)[^.\n])"
"""What may stand between who is meant and that it is better: nothing that turns it round, or names another."""
_PROSE = re.compile(
    rf"(?:\b{_WHO}[ \t]+\(?(?P<better>(?-i:[AB]))\)?[ \t]+(?:is|was|does|serves|wins|answers)\b{_UNTURNED}{{0,40}}?"
    r"\b(?:better|best|stronger|superior|more (?:helpful|accurate|useful)|wins|the winner)\b"
    rf"|\b(?:prefer|choose|pick|favou?r)[ \t]+{_WHO}?[ \t]*\(?(?P<chosen>(?-i:[AB]))\)?(?=[\s.,;!]|$)"
    rf"|\b(?:winner|better answer|best answer)[ \t]*(?:is|:)[ \t]*{_WHO}?[ \t]*"
    r"\(?(?P<named>(?-i:[AB]))\)?(?=[\s.,;!]|$)"
    r"|(?P<tie>\b(?:it(?:'s| is)|this is|i call it|overall,?)[ \t]+a[ \t]+(?:tie|draw)\b"
    r"|\bboth (?:answers )?are equally (?:good|bad)\b|\bneither (?:answer )?(?:is|serves) better\b))",
    re.IGNORECASE,
)
"""Verdicts of judges that forget the last line."""
_NEGATED = re.compile(r"(?:\b(?:cannot|not|never|whether|if|would be)|n't)\b[^.\n]{0,30}$", re.IGNORECASE)
_BOXED_C = re.compile(r"\[\[\s*C\s*\]\]")
"""MT-Bench's own sign for a tie."""


def read_verdict(reply: str, *, texts: Sequence[str] = (), tag: str = "") -> tuple[str, str]:
    """`A`, `B`, `tie` or `unparsed`, and the judge's reasons.

    The last verdict counts; thoughts, quoted lines, and whatever also stands in the `texts` that were judged do not
    (see `distill.text.judge_replies`). Where no line is a verdict, the last sentence that is one counts.
    """
    found = graded(_BOXED_C.sub("[[tie]]", reply), GradeScale(HIGHEST, VERDICTS), texts=texts, tag=tag)
    if found.choice is not None:
        return found.choice, found.reason
    if found.problem == "echoed":
        return "unparsed", found.reason
    return _of_prose(found.reason, texts), found.reason


def _of_prose(reason: str, texts: Sequence[str]) -> str:
    shown = " ".join(" ".join(texts).casefold().split())
    for match in reversed(list(_PROSE.finditer(reason))):
        if match[0].casefold() in shown or _NEGATED.search(reason[: match.start()]):
            continue
        place = match["better"] or match["chosen"] or match["named"]
        return place.upper() if place else "tie"
    return "unparsed"


# What it comes to


def _record_pairs(
    results: ComparisonResults, options: Judging, replies: Mapping[JudgeQuestion, tuple[Verdict, str]]
) -> None:
    for pair in options.pairs:
        one, other = _models(pair)
        for index in results.shared:
            both = _both(results, index, one, other)
            if both is None:
                continue
            games = [JudgeQuestion(index, pair, one, other), JudgeQuestion(index, pair, other, one)]
            again = replies.get(replace(games[0], again=True))
            info = _pair_entry(pair, [(game, replies[game]) for game in games if game in replies], again)
            _judged(results, index).setdefault("pairs", {})[pair] = info


def _pair_entry(
    pair: str, games: Sequence[tuple[JudgeQuestion, tuple[Verdict, str]]], again: tuple[Verdict, str] | None
) -> dict[str, Any]:
    """The games of a pair and their outcome for the first of the two; identical answers are a tie without a game."""
    info: list[dict[str, Any]] = [
        {"first": game.first, "verdict": verdict, "reason": reason} for game, (verdict, reason) in games
    ]
    if again is not None:
        info[0]["again"] = again[0]
    return {"games": info, "outcome": outcome_of(pair, [verdict for _, (verdict, _) in games])}


def outcome_of(pair: str, verdicts: Sequence[Verdict]) -> str:
    """`win` or `loss` of the pair's first model where all games agree on it, `unparsed` where one cannot be read."""
    one, other = pair.split(":")
    if "unparsed" in verdicts:
        return "unparsed"
    if verdicts and set(verdicts) == {one}:
        return "win"
    return "loss" if verdicts and set(verdicts) == {other} else "tie"


def _record_grades(results: ComparisonResults, replies: Mapping[tuple[int, Model], tuple[Any, str]]) -> None:
    for (index, model), (score, reason) in replies.items():
        read = score if isinstance(score, float) else None
        _judged(results, index).setdefault("single", {})[model] = {"score": read, "reason": reason}


def _judged(results: ComparisonResults, index: int) -> dict[str, Any]:
    info: dict[str, Any] = results.more.setdefault(index, {}).setdefault("judge", {})
    return info
