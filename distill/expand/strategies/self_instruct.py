"""Self-Instruct: the teacher continues a list of example tasks (Wang et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Annotated

from pydantic import Field

from distill.core import assets
from distill.expand import pool
from distill.expand.pool import Ask, ExpansionSampling, OwnRule, PoolGrowth, ProposalCost, SeededOptions
from distill.expand.seeds import Seed
from distill.types import Completion, Failure, Flow, Request, Task

SHOWN, SHOWN_GROWN = 8, 2
"""Instructions in context, and the most of them that are the teacher's own (Self-Instruct, section 2.2)."""


class SelfInstruct(PoolGrowth):
    """Self-Instruct's bootstrap loop, from seed tasks: the same tasks at any concurrency and after interruptions.

    Each request shows 8 instructions, of which up to 2 are the teacher's own (none at first), shuffled and numbered,
    and lets the teacher continue at 9. Its text is split at the numbers. Items are checked for form, and admitted if
    their ROUGE-L with every seed and every earlier task is at most 0.7, in order of request and item.

    Differences from the original, and why:
    - requests are sampled at top_p 0.9 without a penalty, for six tasks; the original's 0.5 with a presence penalty of
      2 is for a model that only continues text (both: `sampling`, `new_tasks`);
    - of an answer cut at `max_tokens` only the last item is dropped, as it alone may be cut; the original drops all;
    - numbers end an answer only at the start of a line: its bare stop string "16." cuts "in 2016." too;
    - the first letter is made upper case; `str.capitalize` would also lower-case every name after it;
    - tasks have no input, so seeds with an empty input are preferred, and rules of form are added, each of which can be
      switched off (option `reject`);
    - Alpaca's five words are added to the forbidden ones;
    - seeds may be in another script than Latin: then a task need not begin with an ASCII character, and characters
      count as words where a script writes no spaces;
    - the nearest text is recorded with its score, in place of the ten nearest and the mean over all.
    """

    class Options(SeededOptions):
        """Options of `expand: {strategy: self_instruct}`."""

        sampling: ExpansionSampling = ExpansionSampling()
        """Sampling of tasks."""
        new_tasks: Annotated[int, Field(ge=1, le=100)] = 6
        """Tasks per request; the list is stopped after them."""
        reject: tuple[OwnRule, ...] = ("needs_input", "statement", "common_opening")
        """Rules in addition to the original's, as for every expansion. Without `common_opening`,
        SmolLM2-135M-Instruct began 31 of 112 tasks with "What is the"; with it 13, in 43 requests instead of 28."""
        classification: bool = False
        """Show only classification seeds, and ask for more of that kind; tasks get `kind: classification`."""
        ask: Ask = "completion"
        """`completion`: let the teacher continue the list as raw text. `chatml`: the same inside an assistant turn that
        it has begun, for teachers whose chat template is ChatML and whose endpoint has completions
        (SmolLM2-135M-Instruct wrote 58 usable tasks in 14 requests this way, 43 otherwise). `chat`: as a plain message,
        for other endpoints."""

        @property
        def cost(self) -> ProposalCost:
            """Estimate: 10 tokens per task (14 by the embedded teacher)."""
            return ProposalCost(self.new_tasks, 220, 10 * self.new_tasks, samplings=(self.sampling.sampling(),))

    options: Options

    def __init__(self, options: Options, *, seeds: Sequence[Seed], seed: int, target: int) -> None:
        super().__init__(options, seeds=seeds, rules=pool.form_rules(seeds), seed=seed)
        self._example_seeds = _example_seeds(seeds, classification=options.classification)
        name = "self_instruct_classification" if options.classification else "self_instruct"
        self._template = pool.list_template(name, options.ask)

    def propose(self, k: int) -> Flow[list[Task]]:
        """Request a continuation of the list; returns its unfiltered items, or nothing on a failure.

        Their ids (`k.item`) are provisional; `admit` numbers the tasks it admits.
        """
        examples = self._in_context(self.random(k))
        answer: Completion | Failure = yield self._request([text for _, text in examples], k)
        if isinstance(answer, Failure):
            return []
        meta = pool.origin("self_instruct", k, answer, [id for id, _ in examples])
        kind = {"kind": "classification"} if self.options.classification else {}
        return pool.candidates(
            k, pool.numbered_items(pool.reply_text(answer)), {**meta, **kind}, is_cut=answer.finish == "length"
        )

    def _in_context(self, rng: Random) -> list[tuple[str, str]]:
        """Ids and texts of the instructions to show, shuffled."""
        own_tasks = rng.sample(self.tasks, min(SHOWN_GROWN, len(self.tasks)))
        seeds = rng.sample(self._example_seeds, min(SHOWN - len(own_tasks), len(self._example_seeds)))
        instructions = [(task.id, task.instruction) for task in own_tasks] + [
            (seed.id, seed.instruction) for seed in seeds
        ]
        examples = [(id, " ".join(text.split()).rstrip(":")) for id, text in instructions]
        rng.shuffle(examples)
        return examples

    def _request(self, instructions: Sequence[str], k: int) -> Request:
        examples = "\n".join(f"{number}. {text}" for number, text in enumerate(instructions, start=1))
        text = assets.fill(self._template, examples=examples, next=str(len(instructions) + 1))
        sampling = self.options.sampling.sampling()
        end = f"\n{len(instructions) + self.options.new_tasks + 1}."
        return pool.request(text, k, replace(sampling, stop=(*sampling.stop, end)), ask=self.options.ask)


def _example_seeds(seeds: Sequence[Seed], *, classification: bool) -> list[Seed]:
    """The seeds, or the classification ones if any; of these, those without an input if they fill a request."""
    of_kind = [seed for seed in seeds if seed.is_classification] if classification else []
    of_kind = of_kind or list(seeds)
    complete = [seed for seed in of_kind if any(not instance.input.strip() for instance in seed.instances)]
    return complete if len(complete) >= SHOWN else of_kind
