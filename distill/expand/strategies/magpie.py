"""Magpie: an aligned model completes an empty user turn with a user's question (Xu et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from distill.expand import pool
from distill.expand.pool import Ask, ExpansionSampling, OwnRule, PoolGrowth, PoolOptions, ProposalCost
from distill.expand.seeds import Seed
from distill.types import Completion, Failure, Flow, Sampling, Task


@dataclass(frozen=True, slots=True)
class Turns:
    """How a chat template begins a user's turn, and what marks its end."""

    user: str
    """Ends before the user's first word. Without the begin-of-text token, which endpoints add themselves."""
    system: str
    """Precedes it where there is a system message, at `{system}`."""
    stop: tuple[str, ...]
    """At most three: with the line break that makes four, the most that many endpoints accept."""


TEMPLATES = {
    "chatml": Turns(
        "<|im_start|>user\n",
        "<|im_start|>system\n{system}<|im_end|>\n",
        ("<|im_end|>", "<|im_start|>", "<|endoftext|>"),
    ),
    "llama3": Turns(
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        ("<|eot_id|>", "<|start_header_id|>", "<|end_of_text|>"),
    ),
    "gemma": Turns("<start_of_turn>user\n", "<start_of_turn>user\n{system}\n\n", ("<end_of_turn>", "<start_of_turn>")),
    "mistral": Turns("[INST] ", "[INST] {system}\n\n", ("[/INST]", "[INST]", "</s>")),
    "phi3": Turns("<|user|>\n", "<|system|>\n{system}<|end|>\n", ("<|end|>", "<|assistant|>", "<|user|>")),
    "vicuna": Turns("USER: ", "{system} ", ("ASSISTANT:", "USER:", "</s>")),
}
"""Chat templates by name; Qwen and SmolLM use chatml."""
_USER_IN_SYSTEM = {"gemma", "mistral"}
"""Templates without a system turn: the system message stands at the start of the user's."""


class FreeSampling(ExpansionSampling):
    """Sampling of instructions: Magpie's own settings, at a shorter length."""

    temperature: Annotated[float, Field(ge=0, le=5)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    max_tokens: Annotated[int, Field(ge=1)] | None = 512


class Magpie(PoolGrowth):
    """Magpie's first half: one instruction per request, which the teacher writes in the user's role.

    The prompt is the teacher's chat template up to the user's first word, so it needs an endpoint with completions and
    an aligned model. An instruction ends at a line break or at the template's own tokens; it is refused if it ends
    with a colon, is cut, or resembles an earlier one. The second half, the answer, is `collect`.

    Differences from the original: one instruction per request instead of n = 200, each with its own random seed, since
    equal requests would get the same cached answer; and similarity is ROUGE-L, not that of embeddings.
    """

    class Options(PoolOptions):
        """Options of `expand: {strategy: magpie}`."""

        ask: ClassVar[Ask] = "completion"
        sampling: FreeSampling = FreeSampling()
        """Sampling of instructions."""
        template: Literal["chatml", "gemma", "llama3", "mistral", "own", "phi3", "vicuna"] = "chatml"
        """The teacher's chat template; `own`: the text of `before_user`."""
        before_user: str = ""
        """For `template: own`: all text up to the user's first word; list its end tokens in `sampling.stop`."""
        system: str | tuple[str, ...] = ()
        """System message that steers the subject; of several, one is drawn for each request."""
        one_line: bool = True
        """End an instruction at its first line break, as the original does; otherwise only at the template's tokens."""
        send_seed: bool = True
        """Send a random seed with each request; turn off for endpoints that refuse it."""
        reject: tuple[OwnRule, ...] = ("needs_input", "statement")

        @model_validator(mode="after")
        def _own_text_fits(self) -> Magpie.Options:
            if (self.template == "own") != bool(self.before_user):
                raise ValueError("before_user and `template: own` belong together: one of them is missing")
            if self.template == "own" and self.system:
                raise ValueError("with `template: own`, write the system message into before_user")
            return self

        @property
        def cost(self) -> ProposalCost:
            """Estimate: 10 tokens per task (25 by the embedded teacher)."""
            return ProposalCost(1, 10, 10, samplings=(self.sampling.sampling(),))

    options: Options

    def __init__(self, options: Options, *, seed: int, target: int, seeds: Sequence[Seed] = ()) -> None:
        super().__init__(options, seed=seed)
        self._systems = (options.system,) if isinstance(options.system, str) else options.system

    def propose(self, k: int) -> Flow[list[Task]]:
        """Request a user's message; returns it as one task, with a fault where it is cut or ends with a colon."""
        rng = self.random(k)
        system = rng.choice(self._systems) if self._systems else ""
        sampling = self._sampling(rng)
        answer: Completion | Failure = yield pool.request(self._prompt(system), k, sampling, ask="completion")
        if isinstance(answer, Failure):
            return []
        meta = {**pool.origin("magpie", k, answer, []), **({"system": system} if system else {})}
        task = Task(f"{k}.0", answer.text.strip(), meta=meta)
        if answer.finish == "length":
            return [pool.with_fault(task, "cut_off")]
        return [pool.with_fault(task, "colon_last") if task.instruction.endswith(":") else task]

    def _prompt(self, system: str) -> str:
        if self.options.template == "own":
            return self.options.before_user
        turns = TEMPLATES[self.options.template]
        before = turns.system.replace("{system}", system) if system else ""
        return before if before and self.options.template in _USER_IN_SYSTEM else before + turns.user

    def _sampling(self, rng: Random) -> Sampling:
        sampling = self.options.sampling.sampling()
        ends = TEMPLATES[self.options.template].stop if self.options.template != "own" else ()
        stop = (*sampling.stop, *(["\n"] if self.options.one_line else []), *ends)
        seed = rng.getrandbits(31) if self.options.send_seed and sampling.seed is None else sampling.seed
        return replace(sampling, stop=stop, seed=seed)
