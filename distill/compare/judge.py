"""LLM judge: pairwise in both orders, or single grades; answers are treated as data, not as instructions.

A pair is won only if the judge names the same model in both orders, as in MT-Bench (Zheng et al., 2023, arXiv
2306.05685, section 3.4); contradictory verdicts are a tie, and unreadable replies are counted apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from distill.compare.local_model import Engines
from distill.compare.metrics import ModelAnswer
from distill.compare.results import JUDGED, ComparisonResults, Prompt
from distill.core import console
from distill.core.assets import fill, load
from distill.core.hashing import unused_tag
from distill.engine.providers import Provider
from distill.recipe import Judging
from distill.text.judge_replies import GradeScale, between_tags, read_grade
from distill.text.references import shown
from distill.text.verdicts import UNPARSED, read_verdict
from distill.types import Completion, Failure, Flow, Message, Model, Request, Sampling

REPLY_TOKENS = 512
"""Token limit of a judge's reply where the recipe sets none."""
HIGHEST = 10

Verdict: TypeAlias = str
"""The model that is better, `tie`, or `unparsed`."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was read of one reply."""

    verdict: Verdict = UNPARSED
    score: float | None = None
    """Of a single answer."""
    reason: str = "the judge did not answer"
    is_cut: bool = False
    """Whether the reply was cut at its token limit before a verdict or a score."""


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
    """Whether it repeats an earlier question, to test the judge's consistency."""


def judge(
    results: ComparisonResults, engine: Engines, provider: Provider, *, options: Judging, sampling: Sampling
) -> dict[int, dict[str, Any]]:
    """The judge's verdicts (`pairs`) and grades (`single`) by prompt.

    A failed request counts as an unreadable verdict. Raises what the engine raises.
    """
    sampling = _sampling(sampling, options)
    games = list(_games(results, options)) if options.mode != "single" else []
    graded_answers = list(_graded_answers(results)) if options.mode != "pairwise" else []
    flows: list[tuple[str, Callable[[], Flow[Any]]]] = [
        (_name(results, game), partial(_play, results, game, options, sampling)) for game in games
    ]
    flows += [
        (f"{results.prompts[index].id}:{model}", partial(_grade, results, index, model, options, sampling))
        for index, model in graded_answers
    ]
    with console.progress("asking the judge", len(flows)) as bar:
        outcomes = engine({"judge": provider}, progress=bar, local=False).run(flows)
    replies: list[Judgement] = [outcome.value or Judgement() for outcome in outcomes]
    _warn_of_cuts(replies, sampling)
    entries: dict[int, dict[str, Any]] = {}
    if options.mode != "single":
        for index, pair, entry in _pair_entries(results, options, dict(zip(games, replies, strict=False))):
            entries.setdefault(index, {}).setdefault("pairs", {})[pair] = entry
    for (index, model), grade in zip(graded_answers, replies[len(games) :], strict=True):
        entry = {"score": grade.score, "reason": grade.reason, **({"cut": True} if grade.is_cut else {})}
        entries.setdefault(index, {}).setdefault("single", {})[model] = entry
    return dict(sorted(entries.items()))


def _warn_of_cuts(replies: Sequence[Judgement], sampling: Sampling) -> None:
    if cut := sum(reply.is_cut for reply in replies):
        console.warn(
            f"{cut} of the judge's {len(replies)} replies are cut at {sampling.max_tokens} tokens before their verdict;"
            " raise compare.judge.max_tokens"
        )


def _sampling(sampling: Sampling, options: Judging) -> Sampling:
    return replace(
        sampling,
        temperature=0.0 if sampling.temperature is None else sampling.temperature,
        max_tokens=options.max_tokens or sampling.max_tokens or REPLY_TOKENS,
    )


def _name(results: ComparisonResults, game: JudgeQuestion) -> str:
    again = ":again" if game.again else ""
    return f"{results.prompts[game.prompt].id}:{game.first}:{game.second}{again}"


# Questions


def _games(results: ComparisonResults, options: Judging) -> Iterator[JudgeQuestion]:
    """Both orders of each pair on each prompt where their answers differ; `retest` of them once more."""
    for pair in options.pairs:
        one, other = _models(pair)
        indices = [index for index in results.shared if _differ(results, index, (one, other))]
        for index in indices:
            yield JudgeQuestion(index, pair, one, other)
            yield JudgeQuestion(index, pair, other, one)
        step = max(1, len(indices) // max(1, options.retest))
        for index in indices[::step][: options.retest]:
            yield JudgeQuestion(index, pair, one, other, again=True)


def _models(pair: str) -> tuple[Model, Model]:
    one, other = (next(model for model in JUDGED if model == name) for name in pair.split(":"))
    return one, other


def _both(results: ComparisonResults, index: int, models: Sequence[Model]) -> list[ModelAnswer]:
    """The answers of both models to a prompt; empty where one has none."""
    answers = [results.answers[model][index] for model in models if index in results.answers.get(model, {})]
    return answers if len(answers) == len(models) else []


def _differ(results: ComparisonResults, index: int, models: Sequence[Model]) -> bool:
    return len({answer.texts for answer in _both(results, index, models)}) > 1


def _graded_answers(results: ComparisonResults) -> Iterator[tuple[int, Model]]:
    for model in JUDGED:
        for index in results.shared:
            if index in results.answers.get(model, {}):
                yield index, model


def _play(
    results: ComparisonResults, game: JudgeQuestion, options: Judging, sampling: Sampling
) -> Flow[Judgement | None]:
    """The better model, and the reason; `None` where the request failed."""
    prompt, models = results.prompts[game.prompt], (game.first, game.second)
    answers = [results.answers[model][game.prompt] for model in models]
    tag = tag_of(prompt, answers)
    places = [(place, answer) for place, answer in zip(("A", "B"), answers, strict=True)]
    text = _question("pairwise", prompt, places, tag, options)
    answer: Completion | Failure = yield _request(text, sampling, again=game.again)
    if isinstance(answer, Failure):
        return None
    is_cut = answer.finish == "length"
    place, reason = read_verdict(answer.text, texts=_texts(prompt, answers), tag=tag, is_cut=is_cut)
    verdict = {"A": game.first, "B": game.second}.get(place, place)
    return Judgement(verdict, reason=reason, is_cut=is_cut and place == UNPARSED)


def _grade(
    results: ComparisonResults, index: int, model: Model, options: Judging, sampling: Sampling
) -> Flow[Judgement | None]:
    prompt, answer = results.prompts[index], results.answers[model][index]
    tag = tag_of(prompt, [answer])
    reply: Completion | Failure = yield _request(
        _question("single", prompt, [("answer", answer)], tag, options), sampling
    )
    if isinstance(reply, Failure):
        return None
    grade = read_grade(reply.text, GradeScale(HIGHEST), texts=_texts(prompt, [answer]), tag=tag)
    is_cut = bool(grade.problem) and reply.finish == "length"
    return Judgement(score=None if grade.problem else grade.score, reason=grade.reason, is_cut=is_cut)


def _request(text: str, sampling: Sampling, *, again: bool = False) -> Request:
    return Request(role="judge", messages=(Message("user", text),), sampling=sampling, replica=int(again))


def _question(kind: str, prompt: Prompt, answers: Sequence[tuple[str, ModelAnswer]], tag: str, options: Judging) -> str:
    """The message to the judge: criteria, and the texts between tags that none of them contains."""
    criteria = "\n".join(f"- {line}" for line in options.criteria or load("judges/quality.txt").splitlines())
    solution = shown(prompt.solution)
    if solution is not None:
        criteria += f"\n- {load('judges/reference.txt')}"
    parts = [("instructions", message.content) for message in prompt.messages if message.role == "system"]
    parts += [("request", _prompt_text(prompt))] if not prompt.later else []
    parts += [("solution", solution)] if solution is not None else []
    for place, answer in answers:
        parts += [(place, _dialogue(prompt, answer))]
    material = between_tags(parts, tag)
    lead = "The last answer of each dialogue is judged; what stands before it is how it came about.\n\n"
    return fill(
        load(f"judges/{kind}.txt"), tag=tag, criteria=criteria, material=(lead if prompt.later else "") + material
    )


def _prompt_text(prompt: Prompt) -> str:
    return "\n\n".join(message.content for message in prompt.messages if message.role != "system")


def _dialogue(prompt: Prompt, answer: ModelAnswer) -> str:
    """The answer; for a question of several turns, the whole dialogue."""
    if not prompt.later:
        return answer.text
    turns = [("Person", message.content) for message in prompt.messages if message.role == "user"]
    for reply, turn in zip(answer.earlier, prompt.later, strict=False):
        turns += [("Assistant", reply), ("Person", turn)]
    return "\n\n".join(f"{who}: {text}" for who, text in [*turns, ("Assistant", answer.text)])


def _texts(prompt: Prompt, answers: Sequence[ModelAnswer]) -> list[str]:
    """All judged texts of a question; a verdict quoted from them does not count."""
    messages = [message.content for message in prompt.messages]
    return [*messages, *prompt.later, *(text for answer in answers for text in answer.texts)]


def tag_of(prompt: Prompt, answers: Sequence[ModelAnswer]) -> str:
    """Eight hexadecimal digits that none of the texts contains, the same in either order of the answers."""
    text = "\n".join([*sorted(_texts(prompt, answers)), shown(prompt.solution) or ""])
    return unused_tag(text)


# Entries of answers.jsonl


def _pair_entries(
    results: ComparisonResults, options: Judging, replies: Mapping[JudgeQuestion, Judgement]
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for pair in options.pairs:
        one, other = _models(pair)
        for index in results.shared:
            if _both(results, index, (one, other)):
                yield index, pair, _pair_entry(JudgeQuestion(index, pair, one, other), replies)


def _pair_entry(question: JudgeQuestion, replies: Mapping[JudgeQuestion, Judgement]) -> dict[str, Any]:
    """The games of a pair and their outcome for the first of the two; identical answers are a tie without a game."""
    questions = [question, replace(question, first=question.second, second=question.first)]
    games: list[dict[str, Any]] = [
        {
            "first": game.first,
            "verdict": replies[game].verdict,
            "reason": replies[game].reason,
            **({"cut": True} if replies[game].is_cut else {}),
        }
        for game in questions
        if game in replies
    ]
    if (again := replies.get(replace(question, again=True))) is not None:
        games[0]["again"] = again.verdict
    return {"games": games, "outcome": outcome_of(question.pair, [game["verdict"] for game in games])}


def outcome_of(pair: str, verdicts: Sequence[Verdict]) -> str:
    """`win` or `loss` of the pair's first model where all games agree on it, `unparsed` where one cannot be read."""
    one, other = pair.split(":")
    if UNPARSED in verdicts:
        return UNPARSED
    if verdicts and set(verdicts) == {one}:
        return "win"
    return "loss" if verdicts and set(verdicts) == {other} else "tie"
