"""Alpaca: several tasks with inputs and outputs per request, prompted by three seeds (Taori et al., 2023)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field, model_validator

from distill.core import assets
from distill.expand import pool
from distill.expand.pool import Ask, ExpansionSampling, OwnRule, PoolGrowth, ProposalCost, SeededOptions
from distill.expand.seeds import Seed
from distill.text.wrappers import is_no_input, without_rulers
from distill.types import Completion, Failure, Flow, Request, Task

NO_INPUT = "<noinput>"

_COLON = r"[^\w\n:\uff1a]*[:\uff1a][*_]*[^\S\n]*"
_NUMBER = r"\d+[ \t]?[.):][^\w\n]*"
_BEGIN = tuple(re.compile(rf"^[^\w\n]*{number}Instruction{_COLON}", re.MULTILINE) for number in (_NUMBER, ""))
_FIELDS = tuple(
    re.compile(rf"^[^\w\n]*{number}(Instruction|Input|Output){_COLON}", re.MULTILINE) for number in (_NUMBER, "")
)
"""The fields of a block: numbered as in the prompt, else without numbers."""
_HEADING = re.compile(r"\n[^\w\n]*(?:(?:task|block|example)[ \t]*|(?<=#)[ \t]*)\d+[^\w\n]*\Z", re.IGNORECASE)
"""A block's title ("### Task 5"), which after the split ends the previous block."""


class BatchSampling(ExpansionSampling):
    """Sampling of batches: Alpaca's own settings."""

    temperature: Annotated[float, Field(ge=0, le=5)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    max_tokens: Annotated[int, Field(ge=1)] | None = 3072


class Alpaca(PoolGrowth):
    """Stanford Alpaca's expansion: a batch of 20 tasks per request, each with its input and output.

    Each request shows 3 seeds (never the teacher's own tasks) as blocks of Instruction, Input (`<noinput>` where there
    is none) and Output, and lets the teacher continue at 4. A task has its input, and the output from the same answer
    in `meta["output"]`. There is one instance per task and no classification step: Alpaca's simplifications of
    Self-Instruct.

    Differences from the original, and why:
    - a batch ends where a line begins with `21. Instruction:`; the bare stop string "20." also cuts "in 2020.";
    - blocks are split at their numbered Instruction line, so a heading (`###`) in an output does no harm; a block
      needs an Input and an Output, once each and in this order, or it is `malformed`;
    - empty outputs and outputs that repeat the input are refused: the original's data contain thousands;
    - the first letter of an instruction is not changed, and rules of form are added (option `reject`);
    - a prompt that is too long for the endpoint is a failure; the original retries with a fifth less until it fits
      (`sampling.max_tokens` bounds the reply);
    - no logit bias against an early end, which few endpoints support: `sampling.extra_body` can set it.
    """

    class Options(SeededOptions):
        """Options of `expand: {strategy: alpaca}`."""

        sampling: BatchSampling = BatchSampling()
        """Sampling of batches of tasks."""
        batch: Annotated[int, Field(ge=2, le=100)] = 20
        """Tasks in one list, including those shown: 20 yield at most 17."""
        shown: Annotated[int, Field(ge=1, le=20)] = 3
        """Seeds in context."""
        reject: tuple[OwnRule, ...] = ("needs_input", "statement")
        ask: Ask = "completion"
        """`completion`: let the teacher continue the list as raw text. `chatml`: the same inside an assistant turn that
        it has begun, for teachers whose chat template is ChatML. `chat`: as a plain message, for other endpoints.
        SmolLM2-135M-Instruct needed 27, 38 and 139 requests for 24 tasks (`batch: 8`, temperature 0.7), and few of
        their outputs were right: use a larger teacher."""

        @model_validator(mode="after")
        def _some_are_new(self) -> Alpaca.Options:
            if self.shown >= self.batch:
                raise ValueError(f"batch {self.batch} leaves nothing to write behind {self.shown} shown; raise batch")
            return self

        @property
        def cost(self) -> ProposalCost:
            """Estimate: 40 tokens per block."""
            new = self.batch - self.shown
            return ProposalCost(new, 250 + 80 * self.shown, 40 * new, samplings=(self.sampling.sampling(),))

    options: Options

    def __init__(self, options: Options, *, seeds: Sequence[Seed], seed: int, target: int) -> None:
        super().__init__(options, seeds=seeds, rules=pool.form_rules(seeds), seed=seed)
        self._complete = [each for each in seeds if each.instances] or list(seeds)
        self._template = pool.list_template("alpaca", options.ask)

    def propose(self, k: int) -> Flow[list[Task]]:
        """Request the rest of a batch; returns its blocks, unreadable ones with a fault."""
        examples = self.random(k).sample(self._complete, min(self.options.shown, len(self._complete)))
        answer: Completion | Failure = yield self._request(examples, k)
        if isinstance(answer, Failure):
            return []
        meta = pool.origin("alpaca", k, answer, [each.id for each in examples])
        tasks = [_task(f"{k}.{number}", block, meta) for number, block in enumerate(blocks(pool.reply_text(answer)))]
        if answer.finish == "length" and tasks:
            tasks[-1] = pool.with_fault(tasks[-1], "cut_off")
        return tasks or pool.candidates(k, [], meta, is_cut=False)

    def _request(self, seeds: Sequence[Seed], k: int) -> Request:
        text = assets.fill(
            self._template,
            count=str(self.options.batch),
            examples="\n".join(_example_block(number, seed) for number, seed in enumerate(seeds, start=1)),
            next=str(len(seeds) + 1),
        )
        sampling = self.options.sampling.sampling()
        end = f"\n{self.options.batch + 1}. Instruction:"
        return pool.request(text, k, replace(sampling, stop=(*sampling.stop, end)), ask=self.options.ask)


def _example_block(number: int, seed: Seed) -> str:
    input_text, output = (seed.instances[0].input, seed.instances[0].output) if seed.instances else ("", "")
    instruction = " ".join(seed.instruction.split()).rstrip(":")
    return (
        f"###\n{number}. Instruction: {instruction}\n{number}. Input:\n{input_text.strip() or NO_INPUT}\n"
        f"{number}. Output:\n{output.strip()}"
    )


def blocks(text: str) -> list[str]:
    """The blocks of a continued list, each from its `Instruction:` to the next; the first needs no number."""
    splits = (begin.split(text) for begin in _BEGIN)
    pieces = next((pieces for pieces in splits if len(pieces) > 1), [text])
    return [block for piece in pieces if (block := without_rulers(_HEADING.sub("", without_rulers(piece))))]


def read_block(block: str) -> tuple[str, str, str] | None:
    """Instruction, input and output of a block; `None` where Input and Output are not there once, in this order."""
    splits = (field.split(block) for field in _FIELDS)
    pieces = next((pieces for pieces in splits if pieces[1::2] == ["Input", "Output"]), None)
    if pieces is None:
        return None
    instruction, input_text, output = (piece.strip() for piece in pieces[::2])
    return " ".join(instruction.split()), "" if is_no_input(input_text) else input_text, output


def _task(id: str, block: str, meta: dict[str, object]) -> Task:
    fields = read_block(block)
    if fields is None:
        return Task(id, block, meta={**meta, "fault": "malformed"})
    instruction, input_text, output = fields
    task = Task(id, instruction, input_text, {**meta, "output": output})
    if not output:
        return pool.with_fault(task, "empty_output")
    return pool.with_fault(task, "output_is_input") if output == input_text else task
