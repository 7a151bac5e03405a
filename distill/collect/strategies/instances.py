"""Generates inputs and outputs for an instruction (Wang et al., 2023, Self-Instruct, steps 2 to 4)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from distill.collect.sessions import ROLE, InputForm, lead, put, session
from distill.core import assets
from distill.recipe import Asks, BaseOptions, SamplingOptions
from distill.text.thinking import split_answer
from distill.text.wrappers import is_no_input, strip_wrappers
from distill.types import Completion, Failure, Flow, Message, Request, Sampling, Session, Task

IS_LABEL, LABEL_FIRST, INPUT_FIRST, IN_CHAT = (
    f"strategies/instances_{name}.txt" for name in ("is_label", "label_first", "input_first", "chat")
)
MOST_INSTANCES = 5
"""Kept of one instruction (Self-Instruct's code)."""
MAX_TOKENS = {True: 300, False: 350}
"""`max_tokens` of a request for instances, by whether the task is answered with labels (Self-Instruct's code)."""
STOP = ("\nExample 6", "\nTask:")

Ask: TypeAlias = Literal["completion", "chat"]

_LEAD = r"^[ \t*#>-]*(?:\d+[.)][ \t*]*)?"
"""Prefixes of a field: bullets, bold face, a number."""
_LABEL = re.compile(rf"{_LEAD}Class label:[ \t*]*", re.IGNORECASE | re.MULTILINE)
_EXAMPLE = re.compile(
    r"^[ \t*#>-]*(?:Example(?:\s?\d+[.:]?|[.:]?(?=[ \t*]*$))[ \t*]*|\d+[.)][ \t*]*(?=Input\s*\d*\s*:))", re.MULTILINE
)
_OUTPUT = re.compile(r"^[ \t*#]*Output\s*\d*\s*:[ \t*]*", re.MULTILINE)
_OUTPUT_INLINE = re.compile(r"\bOutput\s*\d*\s*:[ \t*]*")
_INPUT = re.compile(r"^[ \t*#]*Input\s*\d*\s*:[ \t*]*", re.MULTILINE)
_NEXT_TASK = re.compile(r"^[ \t*#]*Task:", re.MULTILINE)
_FIELD = re.compile(r"^\w+:[ \t]*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class GeneratedInstance:
    """One input of an instruction, and the output for it."""

    input: str
    output: str


class InstanceSampling(SamplingOptions):
    """Sampling of instances (Self-Instruct's code); the teacher's own sampling applies to its answers."""

    temperature: Annotated[float, Field(ge=0, le=5)] | None = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 1.5
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """300 for tasks answered with labels and 350 for others, when left out."""


class Instances:
    """Up to five sessions per instruction, each with its own input and output, from two requests.

    The first asks whether the instruction is answered with labels, unless the task's `meta.is_classification` says so.
    The second asks for labels and then an input for each, so that every label occurs, or for inputs and then their
    outputs. A task with an input of its own has that as its first instance, and more are requested.

    Differences from the original, and why:
    - a request that fails is a failure; the original stores it as an empty answer, and takes that for "no";
    - the words Task, Example, Output and Class label separate instances only at the start of a line, since they occur
      in sentences too;
    - an example without an output is dropped; the original takes its input for the output;
    - the first of equal instances is kept, and the five drawn keep their order, so that runs can be repeated.
    """

    class Options(BaseOptions):
        """Options of `collect: {strategy: instances}`."""

        ask: Ask = "completion"
        """`completion`: let the teacher continue a list of worked tasks as raw text. `chat`: the same in a message,
        for endpoints without completions."""
        sampling: InstanceSampling = InstanceSampling()
        """Sampling of instances."""
        system: str = ""
        """System message of every session, not of the requests. Empty: none."""
        input: InputForm = "below"
        """Position of an instance's input: `below`, `labelled` or `before` the instruction; `varied` draws a form for
        each."""
        plain_inputs: Annotated[float, Field(ge=0, le=1)] = 0.5
        """Share of inputs from which the name of their only field ("Text: …") and blank lines are removed
        (Self-Instruct's code), so that the student sees inputs as people write them."""

        @property
        def asks(self) -> Asks:
            """Two requests with some worked tasks in each."""
            own = self.sampling.sampling()
            return Asks(2, 1600, samplings=(replace(own, max_tokens=own.max_tokens or max(MAX_TOKENS.values())),))

    def __init__(self, options: Options, *, sampling: Sampling | None = None) -> None:
        self.options = options

    def flow(self, task: Task, rng: Random) -> Flow[tuple[Session, ...] | Failure]:
        """The sessions of a task, or a failure: `no_instance` where no instance passes the rules.

        `rng` draws five of more instances, then plain inputs and forms.
        """
        keys: list[str] = []
        test: bool | str | Failure | None = False if task.input else task.meta.get("is_classification")
        if not isinstance(test, bool):
            test = yield from self._ask_whether_label(task, keys)
        if isinstance(test, Failure):
            return test
        by_label = test is True
        answer: Completion | Failure = yield self._request(task, by_label)
        if isinstance(answer, Failure):
            return answer
        split = split_answer(answer, "strip", f"{task.instruction}\n{task.input}")
        if isinstance(split, Failure):
            return split
        text = f"Example 1\n{task.input}\nOutput: {split.answer}" if task.input else split.answer
        instances = by_labels(text) if by_label else by_inputs(text)
        usable, rejected = valid(instances[:-1] if answer.finish == "length" else instances)
        if not usable:
            detail = f"{len(instances)} instances, none usable: {dict(rejected)} (finish: {answer.finish})"
            return Failure(key=answer.key, reason="no_instance", detail=detail, transient=False)
        places = sorted(rng.sample(range(len(usable)), min(MOST_INSTANCES, len(usable))))
        return tuple(
            self._session(task, usable[index], rng, keys=[*keys, answer.key], test=test, rejected=rejected)
            for index in places
        )

    def _ask_whether_label(self, task: Task, keys: list[str]) -> Flow[bool | str | Failure]:
        """Whether a task is answered with labels; `unparsed`, treated as no, where the reply is neither yes nor no."""
        answer: Completion | Failure = yield self._to_request(
            assets.fill(assets.load(IS_LABEL), instruction=_line(task.instruction)),
            Sampling(temperature=0.0, max_tokens=3, stop=("\n", "Task")),
        )
        if isinstance(answer, Failure):
            return answer
        keys.append(answer.key)
        reply = re.match(r"[\W_]*(yes|no)\b", answer.text, re.IGNORECASE)
        return reply[1].lower() == "yes" if reply else "unparsed"

    def _request(self, task: Task, by_label: bool) -> Request:
        text = assets.fill(assets.load(LABEL_FIRST if by_label else INPUT_FIRST), instruction=_line(task.instruction))
        opening = f"Example 1\n{task.input}\nOutput:" if task.input else "Class label:" if by_label else ""
        sampling = self.options.sampling.sampling()
        sampling = replace(
            sampling,
            max_tokens=sampling.max_tokens or MAX_TOKENS[by_label],
            stop=tuple(dict.fromkeys((*sampling.stop, *STOP))),
        )
        return self._to_request(f"{text}\n{opening}", sampling)

    def _to_request(self, text: str, sampling: Sampling) -> Request:
        if self.options.ask == "completion":
            return Request(role=ROLE, prompt=text, sampling=sampling)
        message = assets.fill(assets.load(IN_CHAT), text=text)
        return Request(role=ROLE, messages=(Message("user", message),), sampling=sampling)

    def _session(
        self,
        task: Task,
        instance: GeneratedInstance,
        rng: Random,
        *,
        keys: Sequence[str],
        test: bool | str,
        rejected: Counter[str],
    ) -> Session:
        input_text = plain(instance.input) if rng.random() < self.options.plain_inputs else instance.input
        question = put(replace(task, input=input_text), self.options.input, rng=rng)
        return session(
            task,
            (*lead(self.options.system), Message("user", question), Message("assistant", instance.output)),
            strategy="instances",
            keys=keys,
            is_classification=test,
            rejected=dict(rejected),
        )


def _line(instruction: str) -> str:
    return " ".join(instruction.split())


def by_labels(text: str) -> list[GeneratedInstance]:
    """The instances of a continuation of labels, each followed by its input; the first label may lack its heading."""
    body = _NEXT_TASK.split(strip_wrappers(text))[0].strip()
    pieces = (piece.strip() for piece in _LABEL.split(body))
    fields = (piece.partition("\n") for piece in pieces if piece)
    return [GeneratedInstance(_input_text(input_text), label.strip(" \t*_`")) for label, _, input_text in fields]


def by_inputs(text: str) -> list[GeneratedInstance]:
    """The instances of a continuation of inputs, each followed by its output; or of a single output without input."""
    body = _NEXT_TASK.split(strip_wrappers(text))[0].strip()
    pieces = [piece.strip() for piece in _EXAMPLE.split(body)]
    return [_example(piece) for piece in pieces if piece]


def _example(text: str) -> GeneratedInstance:
    """One example; its output is empty where none is marked."""
    parts = _OUTPUT.split(text)
    parts = parts if len(parts) > 1 else _OUTPUT_INLINE.split(text)
    output = _INPUT.split(parts[1])[0].strip() if len(parts) > 1 else ""
    return GeneratedInstance(_input_text(parts[0]), output)


def _input_text(text: str) -> str:
    """The input without its field name; empty where the text says that there is none."""
    input_text = _INPUT.sub("", text.strip(), count=1).strip()
    return "" if is_no_input(input_text) else input_text


def valid(instances: Sequence[GeneratedInstance]) -> tuple[list[GeneratedInstance], Counter[str]]:
    """The instances that pass Self-Instruct's rules, and the number rejected by each rule.

    Where one input has two outputs, all are rejected: the task was not understood.
    """
    rejected = Counter(reason for each in instances if (reason := _fault(each)) is not None)
    usable = [each for each in instances if _fault(each) is None]
    outputs: dict[str, str] = {}
    if any(each.input and outputs.setdefault(each.input, each.output) != each.output for each in usable):
        return [], rejected + Counter({"contradiction": len(usable)})
    once = list(dict.fromkeys(usable))
    return once, rejected + Counter({"duplicate": len(usable) - len(once)})


def _fault(instance: GeneratedInstance) -> str | None:
    if not instance.output:
        return "empty_output"
    if instance.input == instance.output:
        return "output_is_input"
    return "ends_with_colon" if instance.input.endswith(":") or instance.output.endswith(":") else None


def plain(text: str) -> str:
    """The input without its field's name, if it has a single field, and without blank lines."""
    bare = _FIELD.sub("", text) if len(_FIELD.findall(text)) == 1 and _FIELD.match(text) else text
    return re.sub(r"\n{2,}", "\n", bare.strip())
