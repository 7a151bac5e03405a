"""Self-Instruct: the teacher continues a list of example tasks (Wang et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Annotated

from pydantic import Field

from distill.core import assets
from distill.expand import pool
from distill.expand.pool import Ask, ExpansionSampling, OwnRule, PoolGrowth, PoolOptions, ProposalCost
from distill.expand.seeds import Seed
from distill.types import Completion, Failure, Flow, Request, Task

PROMPTS: dict[Ask, str] = {
    "completion": "strategies/self_instruct.txt",
    "chatml": "strategies/self_instruct_chatml.txt",
    "chat": "strategies/self_instruct.txt",
}
CLASSIFICATION_PROMPTS: dict[Ask, str] = {
    "completion": "strategies/self_instruct_classification.txt",
    "chatml": "strategies/self_instruct_classification_chatml.txt",
    "chat": "strategies/self_instruct_classification.txt",
}
SHOWN = 8
"""Instructions in context (Self-Instruct, section 2.2)."""
SHOWN_GROWN = 2
"""Most of them that are the teacher's own."""


class SelfInstruct(PoolGrowth):
    """Self-Instruct's bootstrap loop as a `Growth`: the same tasks at any concurrency, and after any interruption.

    Each request shows 8 instructions, of which up to 2 are the teacher's own (8 + 0 while there are none), shuffled and
    numbered, and lets the teacher continue at 9. Its text is split at the numbers, filtered by form, and admitted if
    its ROUGE-L with every seed and every earlier task is at most 0.7, in order of request and item.

    Where this differs from the original, and why:
    - requests are drawn at top_p 0.9 without a penalty, for six tasks; the original's 0.5 with a presence penalty of 2
      is for a model that only continues text (both: `sampling`, `new_tasks`);
    - of an answer cut at `max_tokens` only the last item is dropped, as it alone may be cut; the original drops all;
    - numbers end an answer only at the start of a line: its bare stop string "16." cuts "in 2016." too;
    - the first letter is made upper case; `str.capitalize` would also lower-case every name after it;
    - tasks have no input, so seeds with an empty input are preferred, and rules of form are added, each of which can be
      switched off (option `reject`);
    - Alpaca's five words are added to the forbidden ones;
    - seeds may be in another script than Latin: then a task need not begin with an ASCII character, and letters count
    as words where a script writes no spaces;
    - the nearest text is recorded with its score, in place of the ten nearest and the mean over all.

    `rejected` (by reason) and `candidates` count what `admit` has seen.
    """

    class Options(PoolOptions):
        """Options of `expand: {strategy: self_instruct}`."""

        sampling: ExpansionSampling = ExpansionSampling()
        """Sampling of expansion requests."""
        new_tasks: Annotated[int, Field(ge=1, le=100)] = 6
        """Tasks per request; the list is stopped after them."""
        reject: tuple[OwnRule, ...] = ("needs_input", "statement", "common_opening")
        """Rules beside the original's: `needs_input` for an instruction about a text that is not in it
        ("Summarise this paragraph."), `statement` for one that asks nothing ("The sky is blue."), `common_opening` for
        one whose first three words open an eighth of the tasks before it (at least 8). Without the third,
        SmolLM2-135M-Instruct began 31 of 112 tasks with "What is the", with it 13, for 43 requests in place of 28."""
        classification: bool = False
        """Show only classification seeds, and ask for more of that kind; tasks get `kind: classification`."""
        ask: Ask = "completion"
        """`completion`: let the teacher continue the list as raw text. `chatml`: the same inside an answer that it has
        begun, for teachers whose chat template is ChatML and whose endpoint has completions; SmolLM2-135M-Instruct
        wrote 58 usable tasks in 14 requests so, against 43. `chat`: as a plain message, for other endpoints."""

        @property
        def cost(self) -> ProposalCost:
            """Measured with the embedded teacher and the shipped seeds; a stronger teacher yields more."""
            return ProposalCost(2.5 * self.new_tasks / 6, 220, 18 * self.new_tasks)

    def __init__(self, options: Options, *, seeds: Sequence[Seed], seed: int, target: int) -> None:
        super().__init__(options, seeds=seeds, rules=pool.form_rules(seeds))
        self.options = options
        self._seed = seed
        self._shown_seeds = _shown_seeds(seeds, classification=options.classification)
        self._template = assets.load((CLASSIFICATION_PROMPTS if options.classification else PROMPTS)[options.ask])

    def propose(self, k: int) -> Flow[list[Task]]:
        """Request a continuation of the list; returns its unfiltered items, or nothing on a failure.

        Their ids (`k.item`) are provisional; `admit` numbers the tasks it admits.
        """
        examples = self._in_context(Random(f"{self._seed}:{k}"))
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
        seeds = rng.sample(self._shown_seeds, min(SHOWN - len(own_tasks), len(self._shown_seeds)))
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
        behind = f"\n{len(instructions) + self.options.new_tasks + 1}."
        return pool.request(text, k, replace(sampling, stop=(*sampling.stop, behind)), ask=self.options.ask)


def _shown_seeds(seeds: Sequence[Seed], *, classification: bool) -> list[Seed]:
    """Seeds of the kind; of these, those without input, if they fill a request."""
    of_kind = [seed for seed in seeds if seed.is_classification] if classification else []
    of_kind = of_kind or list(seeds)
    complete = [seed for seed in of_kind if any(not instance.input.strip() for instance in seed.instances)]
    return complete if len(complete) >= SHOWN else of_kind
