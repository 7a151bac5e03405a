"""Reads the prompts to compare on, from held-out rows or a file, and recorded answers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from distill.compare.metrics import ModelAnswer
from distill.compare.metrics.instruction_checks import problem
from distill.compare.results import EVERY, NAMES, ModelReplies, Prompt, shared_prompts
from distill.core import console
from distill.core.jsonl import read_sessions
from distill.engine.journal.store import Journal
from distill.errors import RecipeError, RunFolderError
from distill.formats.containers import kind_of, rows, text_lines
from distill.formats.json_rows import ForeignRow, RejectedRow
from distill.text.references import carried, checks_in
from distill.text.tokens import normalise
from distill.types import MODELS, Completion, Message, Model, Session

T = TypeVar("T")
CATEGORIES = ("category", "kind", "topic", "imported")
"""Entries of a session's meta that may give a prompt's category; the first present one counts."""
IDS = ("id", "question_id", "prompt_id")
QUESTIONS = ("instruction", "prompt", "question")
ANSWERS = ("text", "output", "answer", "response", "completion")


def held_out(folder: Path, journal: Journal) -> list[Prompt]:
    """The prompts of test.jsonl. Raises `RunFolderError` without the file, or for a row that is no prompt."""
    path = folder / "test.jsonl"
    if not path.exists():
        raise RunFolderError(
            f"no {path}; expected the held-out sessions that `distill curate` writes, or compare.prompts in the recipe"
        )
    return [of_session(session, journal) for session in read_sessions(path)]


def of_session(session: Session, journal: Journal) -> Prompt:
    """A held-out session as a prompt, with the teacher's answer to its first question, tokens as journalled."""
    roles = [message.role for message in session.messages]
    first = roles.index("assistant") if "assistant" in roles else 0
    if first == 0:
        raise RunFolderError(
            f"test.jsonl: session {session.id} is no prompt with an answer; run `distill curate` again"
        )
    text = session.messages[first].content.strip()
    is_cut = bool(session.meta.get("truncated")) and first == len(roles) - 1
    answers = (journal.get(key) for key in session.meta.get("keys", ()))
    answer = next((one for one in answers if isinstance(one, Completion) and one.text.strip() == text), None)
    tokens = answer.usage.completion_tokens if answer is not None and answer.usage else None
    return Prompt(
        session.id,
        session.messages[:first],
        ModelAnswer(text, "length" if is_cut else "stop", tokens),
        teacher=session.meta.get("teacher"),
        again=0 if session.meta.get("replica") == 1 else 1,
        category=_category(session.meta),
        solution=carried(session.meta),
        checks=_instructions(session.meta, f"test.jsonl: session {session.id}"),
    )


def _category(meta: Mapping[str, Any]) -> str:
    values = (meta.get(name) for name in CATEGORIES)
    return next((value for value in values if isinstance(value, str) and value.strip()), EVERY)


# Files of prompts


def of_file(path: Path, *, system: str = "") -> list[Prompt]:
    """The prompts of a file: plain text, one per line, or rows of JSON.

    A row has `turns` (as in MT-Bench and Vicuna's questions), `messages` (this project's and OpenAI's; answers are left
    out), or an `instruction`, `prompt` or `question`, with an optional `input`; and optionally an id, a `category` and
    a `reference` and `checks`. `system` is added to prompts without a system message. Raises `RecipeError` for a file
    without prompts, a row that is no prompt, or a repeated id.
    """
    where = f"compare.prompts: {path}"
    if kind_of(path) != "lines":
        prompts = [_prompt(row, path) for row in _valid_rows(rows(path), where)]
    else:
        lines = _valid_rows(text_lines(path), where)
        prompts = [Prompt(f"prompt-{number}", (Message("user", text),)) for number, text in lines]
    if not prompts:
        raise RecipeError(f"compare.prompts: {path} holds no prompts; expected one a line, or rows of JSON")
    ids: set[str] = set()
    for prompt in prompts:
        if prompt.id in ids:
            raise RecipeError(f'compare.prompts: {path}: the id "{prompt.id}" comes twice; ids must differ')
        ids.add(prompt.id)
    return [_with_system(prompt, system) for prompt in prompts]


def of_metrics(metrics: Iterable[Any]) -> list[Prompt]:
    """The prompts that metrics bring themselves; each is scored by its own metric only."""
    return [
        replace(_prompt(ForeignRow(number, row), type(metric).__name__), asked_by=type(metric).__name__)
        for metric in metrics
        if hasattr(metric, "prompts")
        for number, row in enumerate(metric.prompts(), start=1)
    ]


def notes_on_references(metrics: Iterable[Any], prompts: Sequence[Prompt]) -> list[str]:
    """What metrics note of the prompts' references, or that none of the metrics reads them; printed, too."""
    looks = [metric.look for metric in metrics if hasattr(metric, "look")]
    notes = [note for look in looks for note in look([prompt.last_solution for prompt in prompts])]
    if not looks and (known := sum("reference" in prompt.last_solution for prompt in prompts)):
        notes.append(f"{known} of {len(prompts)} prompts have a reference, and no metric reads it; there is `accuracy`")
    for note in notes:
        console.warn(note)
    return notes


def _with_system(prompt: Prompt, system: str) -> Prompt:
    if not system or prompt.messages[0].role == "system":
        return prompt
    return replace(prompt, messages=(Message("system", system), *prompt.messages))


def _valid_rows(rows: Iterable[T | RejectedRow], where: str) -> Iterator[T]:
    """The rows. Raises `RecipeError` for the first rejected one."""
    for row in rows:
        if isinstance(row, RejectedRow):
            raise RecipeError(f"{where}, line {row.line}: {row.detail}")
        yield row


def _prompt(row: ForeignRow, path: Path | str) -> Prompt:
    messages, later = _question_turns(row.value)
    if not messages:
        raise RecipeError(
            f"compare.prompts: {path}, line {row.line}: no prompt; expected `turns`, `messages` or one of "
            f"{', '.join(f'`{name}`' for name in QUESTIONS)}"
        )
    meta = row.value.get("meta")
    entries = {**(meta if isinstance(meta, dict) else {}), **row.value}
    return Prompt(
        _id(row.value) or f"prompt-{row.line}",
        messages,
        category=_category(entries),
        later=later,
        solution={name: entries[name] for name in ("reference", "checks", "turns") if name in entries},
        checks=_instructions(entries, f"compare.prompts: {path}, line {row.line}"),
    )


def _instructions(entries: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...]:
    """The row's checkable instructions; a `checks` that is no list belongs to another format and is ignored."""
    checks = entries.get("checks")
    if not isinstance(checks, list):
        return ()
    of_answers = list(checks_in(entries))
    checks = [one for one in checks if one not in of_answers]
    if (wrong := next(filter(None, map(problem, checks)), None)) is not None:
        raise RecipeError(f"{where}: checks: {wrong}")
    return tuple(checks)


def _question_turns(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """The messages up to the first answer, and the user's later turns; empty where the row is no prompt."""
    turns = row.get("turns")
    if isinstance(turns, list) and turns and all(isinstance(turn, str) and turn.strip() for turn in turns):
        return (Message("user", turns[0]),), tuple(turns[1:])
    if isinstance(row.get("messages"), list):
        return _of_messages(row["messages"])
    question = next((row[name] for name in QUESTIONS if isinstance(row.get(name), str) and row[name].strip()), "")
    input_text = row.get("input")
    text = (
        f"{question}\n\n{input_text}" if question and isinstance(input_text, str) and input_text.strip() else question
    )
    return ((Message("user", text),) if text else ()), ()


def _of_messages(items: Sequence[Any]) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    turns = [
        (item["role"], item["content"])
        for item in items
        if isinstance(item, dict) and isinstance(item.get("role"), str) and isinstance(item.get("content"), str)
    ]
    if len(turns) != len(items):
        return (), ()
    system = [Message("system", text) for role, text in turns[:1] if role == "system"]
    questions = [text for role, text in turns if role == "user"]
    return ((*system, Message("user", questions[0])) if questions else ()), tuple(questions[1:])


def _id(row: Mapping[str, Any]) -> str | None:
    value = next((row[name] for name in IDS if isinstance(row.get(name), (str, int))), None)
    return None if value is None or value == "" else str(value)


# Recorded answers


def recorded_answers(prompts: Sequence[Prompt], files: Mapping[Model, Path]) -> list[ModelReplies]:
    """Answers from files, for the models that have one.

    A row has its answer as `text`, `output` (AlpacaEval), `answer`, `response`, `completion`, `turns`, or `choices`
    with `turns` (FastChat), and may have `samples` of it. It belongs to the prompt with the same id, else with the same
    question, ignoring case and white space; rows with the same question go to such prompts in order. Prompts without an
    answer are counted in a note. Raises `RecipeError` for a file without an answer to any prompt, or with two answers
    to one.
    """
    return [_replies_of_file(prompts, model, files[model]) for model in MODELS if model in files]


def _replies_of_file(prompts: Sequence[Prompt], model: Model, path: Path) -> ModelReplies:
    ids = {prompt.id: index for index, prompt in enumerate(prompts)}
    same_text: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        same_text.setdefault(normalise(prompt.messages[-1].content), []).append(index)
    answers: dict[int, ModelAnswer] = {}
    for row in _valid_rows(rows(path), f"compare.answers.{model}: {path}"):
        place = ids.get(_id(row.value) or "")
        if place is None:
            place = _next_free(next((same_text[key] for key in _questions(row.value) if key in same_text), []), answers)
        answer = _answer(row.value)
        if place is None or answer is None:
            continue
        if place in answers:
            raise RecipeError(
                f"compare.answers.{model}: {path}, line {row.line}: a second answer to prompt {prompts[place].id}"
            )
        answers[place] = answer
    if not answers:
        raise RecipeError(
            f"compare.answers.{model}: no answer in {path} belongs to a prompt; expected rows with the prompts' ids or "
            "their very questions"
        )
    return _with_note(prompts, model, answers)


def _next_free(places: Sequence[int], answers: Collection[int]) -> int | None:
    """The first of these prompts without an answer yet, else the first of all; `None` where there are none."""
    return next((place for place in places if place not in answers), places[0] if places else None)


def _with_note(prompts: Sequence[Prompt], model: Model, answers: Mapping[int, ModelAnswer]) -> ModelReplies:
    indices = shared_prompts(prompts)
    missing = sum(index not in answers for index in indices)
    note = (
        f"{NAMES[model]} has no recorded answer to {missing} of {len(indices)} prompts; "
        "each number rests on the prompts that have what it needs"
    )
    return ModelReplies(model=model, answers=answers, missing=missing, notes=(note,) if missing else ())


def _questions(row: Mapping[str, Any]) -> Iterator[str]:
    for name in QUESTIONS:
        if isinstance(row.get(name), str):
            yield normalise(row[name])


def _answer(row: Mapping[str, Any]) -> ModelAnswer | None:
    """The answer of a row; its finish is unknown unless the row says it."""
    choices = row.get("choices")
    inner = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    turns = next((value for value in (row.get("turns"), inner.get("turns")) if isinstance(value, list) and value), None)
    samples = value if isinstance(value := row.get("samples"), list) else []
    texts = turns or [value for name in ANSWERS if isinstance(value := row.get(name), str)][:1] or samples[:1]
    if not texts or not all(isinstance(text, str) for text in texts):
        return None
    finish = row.get("finish")
    tokens = row.get("tokens")
    return ModelAnswer(
        texts[-1].strip(),
        finish if finish in ("stop", "length", "filtered") else "unknown",
        tokens if isinstance(tokens, int) else None,
        tuple(text.strip() for text in texts[:-1]),
        tuple(text.strip() for text in samples if isinstance(text, str)),
    )


def same_questions(prompts: Sequence[Prompt]) -> int:
    """Number of prompts that repeat an earlier one's question, and so are no independent evidence."""
    questions = [normalise("\n".join((prompt.messages[-1].content, *prompt.later))) for prompt in prompts]
    return len(questions) - len(set(questions))
