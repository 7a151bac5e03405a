"""Evaluation during training: metrics on held-out sessions, and three answers beside the teacher's.

The sessions are taken from the kept rows and not trained on. The test split stays unseen, so that early stopping and
the choice of the best weights do not bias the comparison.

An evaluation is a row of `train_log.jsonl` with `event: eval`: `step`, `steps`, `eval_loss` (nats per token over the
teacher's last answers, without end tokens), `stop_rate` (share of greedy answers that end within `train.eval_tokens`),
`length_ratio` (tokens of the student's greedy answers divided by those of the teacher's to the same prompts, each
counted up to `train.eval_tokens`), `rows`, `answers` and `seconds`; null where nothing could be measured.
`samples.jsonl` has three rows per evaluation: `step`, `id`, `messages` (the prompt), `teacher`, `student`, and the
student's `finish` (`stop` or `length`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from distill.core import processes
from distill.core.files import replacing
from distill.core.jsonl import append, cut
from distill.engine.providers import Reply
from distill.models import chat_template
from distill.models.generation import answer
from distill.models.likelihood import ContinuationScores, loglikelihoods
from distill.models.quantization import unpacked
from distill.train.callbacks import Log
from distill.train.options import EarlyStopping
from distill.train.step_guard import GuardedTrainer
from distill.types import Message, Request, Sampling, Session

SAMPLES = "samples.jsonl"
SHOWN, ANSWERED = 3, 8
"""Answers per evaluation: how many are logged, and how many are generated."""
EVALUATIONS = 4
"""Evaluations per run by default."""


@dataclass(frozen=True, slots=True)
class HeldOutSession:
    """A held-out session, split where the teacher's last answer begins."""

    id: str
    messages: tuple[Message, ...]
    teacher: str
    tokens: int
    """Tokens of that answer, without its end token."""


def held_out_sessions(sessions: Sequence[Session], template: str, tokenizer: Any) -> list[HeldOutSession]:
    """Split the sessions into prompt and last answer; sessions whose last answer is empty are left out."""
    held_out = []
    for session in sessions:
        *before, last = session.messages
        tokens = len(chat_template.encode(session.messages, template, tokenizer, truncated=True).input_ids)
        tokens -= len(chat_template.prompt_ids(before, template, tokenizer))
        if tokens > 0:
            held_out.append(HeldOutSession(session.id, tuple(before), last.content, tokens))
    return held_out


def evaluation_interval(eval_steps: int | None, steps: int) -> int:
    """Steps between two evaluations; 0 for none. `eval_steps` is the recipe's value."""
    return eval_steps if eval_steps is not None else max(1, math.ceil(steps / EVALUATIONS))


class EvaluationCallback(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Evaluates every `every` steps and after the last, `from_start` also before the first; changes no training."""

    def __init__(
        self,
        held_out: Sequence[HeldOutSession],
        folder: Path,
        trainer: GuardedTrainer,
        log: Log,
        *,
        every: int,
        template: str,
        tokenizer: Any,
        max_tokens: int,
        stopping: EarlyStopping | None,
        best: BestCheckpoint | None,
        say: Callable[[str], None],
        from_start: bool = False,
    ) -> None:
        self._from_start = from_start
        self._held_out, self._trainer, self._log, self._every = held_out, trainer, log, every
        self._template, self._tokenizer, self._max_tokens = template, tokenizer, max_tokens
        self._stopping, self._best, self._say = stopping, best, say
        self._samples = folder / SAMPLES
        cut(self._samples, log.steps[-1]["step"] if log.steps else 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the starting student, once."""
        if self._from_start and not evaluations(self._log.events):
            self._evaluated(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Evaluate after a step's row is logged and before its checkpoint is saved."""
        step, last = state.global_step, state.global_step >= state.max_steps
        if not logs or "loss" not in logs or not (last or step % self._every == 0):
            return
        self._evaluated(state)
        if self._stopping is not None and (reason := reason_to_stop(self._stopping, self._log.events)) and not last:
            self._say(reason)
            control.should_training_stop = True
            control.should_save = False  # a run resumed from a checkpoint of this step would train beyond it

    def _evaluated(self, state: Any) -> None:
        with self._log.paused(state, "evaluating"):
            row = self._evaluate(state.global_step, state.max_steps)
        self._log.event(row)
        self._say(line(row))
        self._trainer.log({f"eval_{key}": row[name] for key, name in LOGGED.items() if row[name] is not None})
        if self._best is not None:
            self._best.consider(self._trainer.model, self._log.events)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Delete the weights of all but the best evaluation."""
        if self._best is not None:
            self._best.forget_worse(self._log.events)

    def _evaluate(self, step: int, steps: int) -> dict[str, Any]:
        started = time.monotonic()
        with aside(self._trainer.model):
            loss = self._loss()
            answers = self._answers()
        sessions = self._held_out[: len(answers)]
        rows = [_sample(step, one, reply) for one, reply in zip(sessions, answers, strict=True)]
        append(self._samples, rows[:SHOWN])
        values = {"eval_loss": loss, "stop_rate": stop_rate(answers), "length_ratio": self._ratio(sessions, answers)}
        counts = {"rows": len(self._held_out), "answers": len(answers), "seconds": round(time.monotonic() - started, 3)}
        return {"event": "eval", "step": step, "steps": steps, **values, **counts}

    def _loss(self) -> float | None:
        """Nats per token over the teacher's answers; answers that cannot be scored are left out."""
        pairs = [(one.messages, one.teacher) for one in self._held_out]
        scores = loglikelihoods(self._trainer.model, self._tokenizer, self._template, pairs)
        scored = [one for one in scores if isinstance(one, ContinuationScores)]
        tokens = sum(len(one.logprobs) for one in scored)
        return -sum(one.total for one in scored) / tokens if tokens else None

    def _answers(self) -> list[Reply]:
        """Greedy answers to the first prompts; empty where the prompt fills the context or the model has diverged."""
        sampling = Sampling(temperature=0.0, max_tokens=self._max_tokens)
        requests = [
            Request(role="student", messages=one.messages, sampling=sampling) for one in self._held_out[:ANSWERED]
        ]
        with unpacked(self._trainer.model):
            replies = answer(self._trainer.model, self._tokenizer, self._template, requests)
        return [reply if isinstance(reply, Reply) else Reply() for reply in replies]

    def _ratio(self, sessions: Sequence[HeldOutSession], answers: Sequence[Reply]) -> float | None:
        expected = sum(min(one.tokens, self._max_tokens) for one in sessions)
        written = sum(reply.usage.completion_tokens - (reply.finish == "stop") for reply in answers if reply.usage)
        return written / expected if expected and answers else None


def _sample(step: int, session: HeldOutSession, reply: Reply) -> dict[str, Any]:
    row = {"step": step, "id": session.id, "messages": session.messages, "teacher": session.teacher}
    return {**row, "student": reply.text, "finish": reply.finish}


LOGGED = {"nll": "eval_loss", "stop_rate": "stop_rate", "length_ratio": "length_ratio"}
"""Watched metrics, and their keys in an evaluation's row."""


def stop_rate(answers: Sequence[Reply]) -> float | None:
    """Share of the answers that end with an end token or a stop string."""
    return sum(reply.finish == "stop" for reply in answers) / len(answers) if answers else None


def line(row: dict[str, Any]) -> str:
    """An evaluation as one line for the reader."""
    info = [f"held-out NLL {row['eval_loss']:.3f} nats per token"] if row["eval_loss"] is not None else []
    if row["stop_rate"] is not None:
        info.append(f"{row['stop_rate']:.0%} of answers stop")
    if row["length_ratio"] is not None:
        info.append(f"{row['length_ratio']:.2f} times the rows' own length")
    return f"step {row['step']}/{row['steps']}: {', '.join(info)} ({row['rows']} rows, {row['seconds']:.0f} s)"


@contextmanager
def aside(model: Any) -> Iterator[None]:
    """Switch to evaluation mode within the block; training mode, random state and cache are restored on exit."""
    training, cache = model.training, model.config.use_cache
    model.eval()
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            yield
    finally:
        model.train(training)
        model.config.use_cache = cache


def badness(row: dict[str, Any], watch: str) -> float:
    """The metric as a number to be minimised, |log ratio| for `length_ratio`; infinite where it is missing."""
    value = row[LOGGED[watch]]
    if value is None or not math.isfinite(value):
        return math.inf
    if watch == "length_ratio":
        return abs(math.log(value)) if value > 0 else math.inf
    return -value if watch == "stop_rate" else float(value)


def evaluations(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations among the events of a log."""
    return [row for row in events if row["event"] == "eval"]


def best_of(events: Sequence[dict[str, Any]], watch: str, *, min_delta: float = 0.0) -> int | None:
    """Index of the best evaluation, where each new best must improve on the last by more than `min_delta`."""
    best, least = None, math.inf
    for place, row in enumerate(evaluations(events)):
        value = badness(row, watch)
        if value < least - (min_delta if best is not None else 0):
            best, least = place, value
    return best


def reason_to_stop(options: EarlyStopping, events: Sequence[dict[str, Any]]) -> str:
    """Why training stops early, as one line; empty while it continues."""
    rows, best = evaluations(events), best_of(events, options.watch, min_delta=options.min_delta)
    since = len(rows) - 1 - (best if best is not None else -1)
    if since < options.patience:
        return ""
    info = f"since step {rows[best]['step']}" if best is not None else "so far"
    return f"early stopping: no better {options.watch} {info}, in {since} evaluations (train.early_stopping.patience)"


class BestCheckpoint:
    """Saves the trainable weights of the best evaluation, in safetensors."""

    def __init__(self, folder: Path, watch: str) -> None:
        self._folder, self._watch = folder, watch

    def step(self, events: Sequence[dict[str, Any]]) -> int | None:
        """Step of the best evaluation."""
        place = best_of(events, self._watch)
        return evaluations(events)[place]["step"] if place is not None else None

    def consider(self, model: Any, events: Sequence[dict[str, Any]]) -> None:
        """Save the weights if the last evaluation is the best; the previous best stays until the next checkpoint."""
        rows = evaluations(events)
        if self.step(events) == rows[-1]["step"] and processes.is_first():
            save_weights(model, self._path(rows[-1]["step"]))

    def forget_worse(self, events: Sequence[dict[str, Any]]) -> None:
        """Delete all but the best weights."""
        best = self._path(self.step(events))
        for path in self._folder.glob("best-*"):
            if path != best and processes.is_first():
                path.unlink()

    def load(self, model: Any, events: Sequence[dict[str, Any]]) -> int | None:
        """Load the best weights into the model; returns their step."""
        step = self.step(events)
        if step is not None:
            load_weights(model, self._path(step))
        return step

    def _path(self, step: int | None) -> Path:
        return self._folder / f"best-{step}.safetensors"


def save_weights(model: Any, path: Path) -> None:
    """Save a model's trainable weights in safetensors."""
    from safetensors.torch import save_file

    with replacing(path) as beside:
        save_file({name: weight.detach().cpu().contiguous() for name, weight in _trainable(model)}, beside)


def load_weights(model: Any, path: Path) -> None:
    """Give a model the trainable weights that `save_weights` has saved."""
    from safetensors.torch import load_file

    weights = load_file(path)
    with torch.no_grad():
        for name, weight in _trainable(model):
            weight.copy_(weights[name])


def _trainable(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
