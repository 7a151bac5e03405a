"""The training plan: rows, tokens, steps, memory, time, and advice.

Memory and time come from one real pass over the largest batch, all else from the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from distill.core.console import duration
from distill.core.files import read_json
from distill.errors import ModelError
from distill.models import loading
from distill.models.chat_template import Example
from distill.models.device import compute_dtype, default_device, free_bytes
from distill.models.pruning import kept_layers
from distill.models.token_bytes import MarkedExample, shown
from distill.train.build import plan_of
from distill.train.dataset import Examples, checked_examples, split_held_out
from distill.train.dry_run import StepMeasurement, measured_pass
from distill.train.memory import Fit, Memory, Pass, Shape, estimate, fit, shape_in
from distill.train.options import TrainOptions, TrainSettings
from distill.train.packing import AIMED_STEPS, PackingPlan, passes
from distill.types import Session


@dataclass(frozen=True, slots=True)
class Work:
    """All passes of a training."""

    steps: int
    passes: int
    tokens: int
    """Over all epochs, without padding."""
    padding: int
    """Tokens of padding, over all epochs."""
    examples: tuple[int, int]
    """Fewest and most in a step."""
    largest: tuple[int, ...]
    """Examples of the largest pass."""

    @property
    def padding_share(self) -> float:
        """Share of all tokens that are computed."""
        return self.padding / (self.tokens + self.padding)


def work_of(plan: PackingPlan, lengths: Sequence[int], *, micro_tokens: int, packed: bool) -> Work:
    """The passes, of at most `micro_tokens` tokens, that a plan makes of examples of these lengths."""
    count = tokens = computed = 0
    largest: tuple[int, tuple[int, ...]] = (0, ())
    for step in plan.steps:
        for group in passes(step, lengths, tokens=micro_tokens, packed=packed):
            total = sum(lengths[row] for row in group)
            size = total if packed else len(group) * max(lengths[row] for row in group)
            count, tokens, computed = count + 1, tokens + total, computed + size
            largest = max(largest, (size, tuple(group)))
    sizes = [len(step) for step in plan.steps]
    return Work(len(plan.steps), count, tokens, computed - tokens, (min(sizes), max(sizes)), largest[1])


def seconds_of(work: Work, measured: StepMeasurement) -> float:
    """Seconds that all steps take at the measured pace."""
    return (work.tokens + work.padding) / measured.tokens_per_second + work.steps * measured.optimizer_seconds


def plan(sessions: Sequence[Session], settings: TrainSettings, *, say: Callable[[str], None]) -> Iterator[str]:
    """The lines of the plan; every row passes the mask gate, and one pass is really made. Nothing is left behind.

    Raises what training would raise of its rows, options and base.
    """
    options, layers = settings.options, settings.layers
    base = loading.materialise(settings.model, say=say)
    tokenizer = loading.load_tokenizer(base)
    usable = checked_examples(sessions, settings.template, tokenizer, options, say)
    examples, held_out = split_held_out(usable, sessions, options.eval_rows, settings.seed)
    kept = kept_layers(read_json(base / "config.json")["num_hidden_layers"], layers) if layers is not None else None
    device, lengths = default_device(), examples.lengths()
    width, room = compute_dtype(options.dtype, device).itemsize, free_bytes(device)
    layout = fit(base, kept, options, longest=max(lengths), width=width, room=room)
    steps, is_packed = plan_of(lengths, options, settings.seed), options.packing == "best_fit"
    work = work_of(steps, lengths, micro_tokens=layout.tokens, packed=is_packed)
    yield _rows(usable, len(sessions), len(held_out), len(usable.ids) - len(examples.ids) - len(held_out))
    yield _tokens(examples, work)
    yield _steps(work, options)
    yield from (f"advice: {line}" for line in of_rows(examples, work, options))
    largest = [examples.examples[row] for row in work.largest]
    shape = shape_in(base, layers=layers)
    lora_bytes = None
    if shape is None:
        yield "memory by formula: unknown, the base's config.json does not say its sizes"
    else:
        one = _pass(largest, shape, options, layout, width=width, gpu=room is not None)
        yield _formula(estimate(shape, options, one))
        lora_bytes = estimate(shape, options, one, method="lora").total
    say("making one pass of the largest batch, in a process of its own …")
    try:
        as_fitted = options.model_copy(update={"micro_batch_tokens": layout.tokens})
        measured = measured_pass(base, kept, largest, as_fitted, settings.seed)
    except ModelError as error:
        yield f"not measured: {error}"
        return
    yield from _of_pass(work, options, measured, lora_bytes)


def _pass(
    largest: Sequence[Example], shape: Shape, options: TrainOptions, layout: Fit, *, width: int, gpu: bool
) -> Pass:
    lengths = [len(example.input_ids) for example in largest]
    tokens = sum(lengths) if options.packing == "best_fit" else len(lengths) * max(lengths)
    layers = layout.layers if layout.layers is not None else shape.layers
    return Pass(
        tokens,
        recomputed=0 if layout.checkpointing == "none" else layers,
        trained_share=sum(example.trained for example in largest) / tokens,
        device="cuda" if gpu else "cpu",
        width=width,
    )


def _of_pass(work: Work, options: TrainOptions, measured: StepMeasurement, lora_bytes: float | None) -> Iterator[str]:
    yield _measured(measured)
    yield f"time to finish: about {duration(seconds_of(work, measured))}, reading the base not counted"
    for line in of_memory(work, options, measured, whole_bytes=lora_bytes, gpu="CPU" not in measured.device):
        yield f"advice: {line}"


def _formula(found: Memory) -> str:
    return (
        f"memory by formula: {_bytes(found.total)}: weights {_bytes(found.base)}, trainable weights "
        f"{_bytes(found.learning)}, activations {_bytes(found.activations)}, working space {_bytes(found.working)}, "
        f"libraries {_bytes(found.library)}"
    )


def _rows(found: Examples, total: int, held: int, near: int) -> str:
    parts = f" in {found.split['parts']} parts of {found.split['sessions']}" if found.split["sessions"] else ""
    reasons = {"too_long": "too long", "empty": "with an empty answer", "parts": "parts too long", "unspelt": "unspelt"}
    out = [f"{found.left_out[key]} {name}" for key, name in reasons.items() if found.left_out[key]]
    apart = [f"{held} of them held out to watch by"] if held else []
    apart += [f"{near} near to those left out"] if near else []
    info = f"rows: {len(found.ids):,} of {total:,} sessions{parts}{'; left out: ' if out else ''}{', '.join(out)}"
    return "; ".join([info, *apart])


def _tokens(found: Examples, work: Work) -> str:
    tokens, trained = sum(found.lengths()), sum(example.trained for example in found.examples)
    longest = max(found.lengths())
    padding = f"{work.padding_share:.0%} more for padding" if work.padding else "no padding"
    share = f"{trained:,} of them trained ({trained / tokens:.0%})"
    return f"tokens: {tokens:,} an epoch, {share}, {padding}; the longest row has {longest}"


def _steps(work: Work, options: TrainOptions) -> str:
    least, most = work.examples
    each = f"{least}" if least == most else f"{least} to {most}"
    return (
        f"steps: {work.steps:,} over {options.epochs:g} epochs, {each} examples and about "
        f"{work.tokens // work.steps:,} tokens each, in {work.passes / work.steps:.1f} passes, at a learning "
        f"rate of {options.learning_rate:g} at most"
    )


def _measured(measured: StepMeasurement) -> str:
    return (
        f"measured on {measured.device}: {measured.tokens:,} tokens forward and backward in {measured.seconds:.2f} s "
        f"({measured.tokens_per_second:,.0f} tokens/s); peak memory {_bytes(measured.peak_bytes)}, "
        f"{_bytes(measured.peak_bytes - measured.before_bytes)} of it for the pass, of {_bytes(measured.room_bytes)}"
    )


def _bytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def masks(
    sessions: Sequence[Session], settings: TrainSettings, *, count: int, say: Callable[[str], None]
) -> list[MarkedExample]:
    """`count` examples for the reader, all rows having passed the mask gate."""
    tokenizer = loading.load_tokenizer(loading.materialise(settings.model, say=say))
    found = checked_examples(sessions, settings.template, tokenizer, settings.options, say)
    say(f"{found.checked.rows} rows have passed the mask gate")
    return shown(found.ids, found.examples, tokenizer, count=count)


PADDING_SHARE = 0.15
"""Padding above this share is worth a word."""
FEW_STEPS = 10
"""With fewer steps a student learns little, whatever they are made of."""
SPARE = 0.85
"""Of the memory that there is, what a pass may be advised to take."""


def of_rows(found: Examples, work: Work, options: TrainOptions) -> Iterator[str]:
    """What the rows and the options alone say."""
    yield from _of_length(found, options)
    if work.padding_share > PADDING_SHARE:
        yield f"train.packing: best_fit would spare the padding, {work.padding_share:.0%} of what is computed now"
    if work.steps < FEW_STEPS:
        tokens = max(1, work.tokens // AIMED_STEPS)
        yield f"only {work.steps} steps: train.batch_tokens: {tokens} would make about {AIMED_STEPS}"


def _of_length(found: Examples, options: TrainOptions) -> Iterator[str]:
    if not found.too_long:
        return
    lengths = sorted([*found.lengths(), *(tokens for tokens, _ in found.too_long)])
    most = lengths[min(len(lengths) - 1, int(0.99 * len(lengths)))]
    some = f", {most} 99% of them" if options.max_length < most < lengths[-1] else ""
    yield f"train.max_length: {lengths[-1]} would keep all sessions{some}"
    several = sum(pairs > 1 for _, pairs in found.too_long)
    if several and options.over_length == "drop":
        yield f"train.over_length: split would keep pairs of {several} sessions that are left out for their length"


def of_memory(
    work: Work, options: TrainOptions, measured: StepMeasurement, *, whole_bytes: float | None, gpu: bool
) -> Iterator[str]:
    """What the measured pass says; `whole_bytes`: what the same training takes with the base in 16 bits, by formula."""
    asked = max(measured.tokens, 1)
    if measured.micro_tokens < asked:
        yield f"train.micro_batch_tokens: {measured.micro_tokens} is what memory holds; {asked} was too much"
    elif measured.peak_bytes > SPARE * measured.room_bytes:
        yield f"memory is almost full: train.micro_batch_tokens: {asked // 2} would be safer"
    elif (
        gpu and options.micro_batch_tokens and (fitting := _fitting(measured)) >= 2 * asked and work.passes > work.steps
    ):
        yield f"train.micro_batch_tokens: {fitting} fits, and larger passes keep a GPU busier"
    if gpu and options.method == "qlora" and whole_bytes is not None and whole_bytes < SPARE * measured.room_bytes:
        yield (
            f"train.method: lora needs about {whole_bytes / 1e9:.1f} GB here, which fits: with the base in 16 bits it "
            "is faster than QLoRA, which unpacks 4-bit weights in every pass"
        )


def _fitting(measured: StepMeasurement) -> int:
    """Tokens of a pass that the memory would hold, a multiple of 1,024; its need grows with the tokens."""
    each = (measured.peak_bytes - measured.before_bytes) / measured.tokens
    return int((SPARE * measured.room_bytes - measured.before_bytes) / max(each, 1) // 1024 * 1024)
