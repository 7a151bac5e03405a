"""The training plan: rows, tokens, steps, memory, time, and advice.

Memory and time come from one real pass over the largest batch, the rest from the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.core.console import duration
from distill.errors import ModelError
from distill.models import loading
from distill.models.chat_template import Example
from distill.models.device import compute_dtype, free_bytes, training_device
from distill.models.pruning import kept_layers, layers_in
from distill.models.token_bytes import MarkedExample, marked_examples
from distill.train.build import plan_of
from distill.train.dataset import Examples, checked_examples, split_held_out
from distill.train.dry_run import StepMeasurement, measured_pass
from distill.train.memory import Fit, Memory, Pass, Shape, estimate, fit, shape_in
from distill.train.options import TrainOptions, TrainSettings
from distill.train.packing import AIMED_STEPS, Layout, PackingPlan, passes
from distill.types import Session


@dataclass(frozen=True, slots=True)
class Work:
    """All passes of a training, over all epochs."""

    steps: int
    passes: int
    tokens: int
    """Without padding."""
    padding: int
    """Tokens of padding."""
    examples: tuple[int, int]
    """Fewest and most examples in a step."""
    largest: tuple[int, ...]
    """Indices of the examples of the largest pass."""

    @property
    def padding_share(self) -> float:
        """Share of padding in all tokens that are computed."""
        return self.padding / (self.tokens + self.padding)


def work_of(plan: PackingPlan, lengths: Sequence[int], *, micro_tokens: int, packed: bool) -> Work:
    """The work of a plan for examples of these lengths, in passes of at most `micro_tokens` tokens."""
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


def seconds_of(work: Work, measurement: StepMeasurement) -> float:
    """Estimated seconds of all steps at the measured speed."""
    return (work.tokens + work.padding) / measurement.tokens_per_second + work.steps * measurement.optimizer_seconds


def plan(sessions: Sequence[Session], settings: TrainSettings, *, say: Callable[[str], None]) -> Iterator[str]:
    """The lines of the plan; every row passes the mask gate, and one real pass is measured. Leaves no files.

    Raises what training would raise for these rows, options and base.
    """
    settings.require_start()
    options, layers = settings.options, settings.layers
    base = loading.materialise(settings.model, say=say)
    tokenizer = loading.load_tokenizer(base)
    usable = checked_examples(sessions, settings.template, tokenizer, options, say)
    examples, held_out = split_held_out(usable, sessions, options.eval_rows, settings.seed)
    indices = kept_layers(layers_in(base), layers) if layers is not None else None
    device, lengths = training_device(options.device), examples.lengths()
    width, room = compute_dtype(options.dtype, device).itemsize, free_bytes(device)
    layout = fit(base, indices, options, longest=max(lengths), width=width, room=room)
    works = _works(plan_of(lengths, options, settings.seed), lengths, layout, options)
    yield _rows(usable, len(sessions), len(held_out), len(usable.ids) - len(examples.ids) - len(held_out))
    say("making one pass of the largest batch, in a process of its own …")
    as_fitted = options.model_copy(update={"micro_batch_tokens": layout.tokens})
    measurement = _measured(base, indices, examples, works, as_fitted, settings.seed)
    name = measurement.layout if isinstance(measurement, StepMeasurement) else next(iter(works))
    work = works[name]
    yield _tokens(examples, work)
    yield _steps(work, options)
    yield from (f"advice: {line}" for line in of_rows(examples, work, options))
    shape = shape_in(base, layers=layers)
    lora_bytes = None
    if shape is None:
        yield "memory by formula: unknown, the base's config.json does not say its sizes"
    else:
        largest = [examples.examples[row] for row in work.largest]
        one = _pass(largest, shape, layout, packed=name == "packed", width=width, gpu=room is not None)
        yield _formula(estimate(shape, options, one))
        lora_bytes = estimate(shape, options, one, method="lora").total
    if isinstance(measurement, StepMeasurement):
        yield from _of_pass(work, options, measurement, lora_bytes)
    else:
        yield f"not measured: {measurement}"


def _works(steps: PackingPlan, lengths: Sequence[int], layout: Fit, options: TrainOptions) -> Mapping[Layout, Work]:
    """The work for each layout of a pass that the self-check may choose, the one of the options first."""
    padded: dict[Layout, Work] = {
        "padded": work_of(steps, lengths, micro_tokens=layout.tokens, packed=False),
        "alone": work_of(steps, lengths, micro_tokens=1, packed=False),
    }
    if options.packing == "none":
        return padded
    return {"packed": work_of(steps, lengths, micro_tokens=layout.tokens, packed=True), **padded}


def _measured(
    base: Path,
    layers: Sequence[int] | None,
    examples: Examples,
    works: Mapping[Layout, Work],
    options: TrainOptions,
    seed: int,
) -> StepMeasurement | ModelError:
    """One real pass, of the largest batch in the layout that the self-check chooses; or why there is none."""
    rows = sorted({row for work in works.values() for row in work.largest})
    largest = {name: [rows.index(row) for row in work.largest] for name, work in works.items()}
    chosen = [examples.examples[row] for row in rows]
    try:
        return measured_pass(base, layers, chosen, options, seed, largest=largest)
    except ModelError as error:
        return error


def _pass(largest: Sequence[Example], shape: Shape, layout: Fit, *, packed: bool, width: int, gpu: bool) -> Pass:
    lengths = [len(example.input_ids) for example in largest]
    tokens = sum(lengths) if packed else len(lengths) * max(lengths)
    layers = layout.layers if layout.layers is not None else shape.layers
    return Pass(
        tokens,
        recomputed=0 if layout.checkpointing == "none" else layers,
        trained_share=sum(example.trained for example in largest) / tokens,
        device="cuda" if gpu else "cpu",
        width=width,
    )


def _of_pass(
    work: Work, options: TrainOptions, measurement: StepMeasurement, lora_bytes: float | None
) -> Iterator[str]:
    yield measurement.self_check
    yield _measurement(measurement)
    yield f"time to finish: about {duration(seconds_of(work, measurement))}, reading the base not counted"
    for line in of_memory(work, options, measurement, whole_bytes=lora_bytes, gpu="CPU" not in measurement.device):
        yield f"advice: {line}"


def _formula(memory: Memory) -> str:
    return (
        f"memory by formula: {_bytes(memory.total)}: weights {_bytes(memory.base)}, trainable weights "
        f"{_bytes(memory.learning)}, activations {_bytes(memory.activations)}, working space {_bytes(memory.working)}, "
        f"libraries {_bytes(memory.library)}"
    )


def _rows(usable: Examples, total: int, held_out: int, near: int) -> str:
    parts = f" in {usable.split['parts']} parts of {usable.split['sessions']}" if usable.split["sessions"] else ""
    reasons = {"too_long": "too long", "empty": "with an empty answer", "parts": "parts too long", "unspelt": "unspelt"}
    out = [f"{usable.left_out[key]} {name}" for key, name in reasons.items() if usable.left_out[key]]
    apart = [f"{held_out} of them held out to watch by"] if held_out else []
    apart += [f"{near} near to those left out"] if near else []
    info = f"rows: {len(usable.ids):,} of {total:,} sessions{parts}{'; left out: ' if out else ''}{', '.join(out)}"
    return "; ".join([info, *apart])


def _tokens(examples: Examples, work: Work) -> str:
    tokens, trained = sum(examples.lengths()), sum(example.trained for example in examples.examples)
    longest = max(examples.lengths())
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


def _measurement(one: StepMeasurement) -> str:
    return (
        f"measured on {one.device}: {one.tokens:,} tokens forward and backward in {one.seconds:.2f} s "
        f"({one.tokens_per_second:,.0f} tokens/s); peak memory {_bytes(one.peak_bytes)}, "
        f"{_bytes(one.peak_bytes - one.before_bytes)} of it for the pass, of {_bytes(one.room_bytes)}"
    )


def _bytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def masks(
    sessions: Sequence[Session], settings: TrainSettings, *, count: int, say: Callable[[str], None]
) -> list[MarkedExample]:
    """`count` examples to display, once every row has passed the mask gate."""
    tokenizer = loading.load_tokenizer(loading.materialise(settings.model, say=say))
    examples = checked_examples(sessions, settings.template, tokenizer, settings.options, say)
    say(f"{examples.checked.rows} rows have passed the mask gate")
    return marked_examples(examples.ids, examples.examples, tokenizer, count=count)


PADDING_SHARE = 0.15
"""Share of padding above which packing is advised."""
FEW_STEPS = 10
"""Steps below which a student learns little, whatever their size."""
MOST_FILLED = 0.85
"""Share of the memory that advice allows a pass to use."""


def of_rows(examples: Examples, work: Work, options: TrainOptions) -> Iterator[str]:
    """Advice from rows and options."""
    yield from _of_length(examples, options)
    if work.padding_share > PADDING_SHARE and options.packing == "none":
        yield f"train.packing: best_fit would spare the padding, {work.padding_share:.0%} of what is computed now"
    if work.steps < FEW_STEPS:
        tokens = max(1, work.tokens // AIMED_STEPS)
        yield f"only {work.steps} steps: train.batch_tokens: {tokens} would make about {AIMED_STEPS}"


def _of_length(examples: Examples, options: TrainOptions) -> Iterator[str]:
    if not examples.too_long:
        return
    lengths = sorted([*examples.lengths(), *(tokens for tokens, _ in examples.too_long)])
    most = lengths[min(len(lengths) - 1, int(0.99 * len(lengths)))]
    some = f", {most} 99% of them" if options.max_length < most < lengths[-1] else ""
    yield f"train.max_length: {lengths[-1]} would keep all sessions{some}"
    several = sum(pairs > 1 for _, pairs in examples.too_long)
    if several and options.over_length == "drop":
        yield f"train.over_length: split would keep pairs of {several} sessions that are left out for their length"


def of_memory(
    work: Work, options: TrainOptions, measurement: StepMeasurement, *, whole_bytes: float | None, gpu: bool
) -> Iterator[str]:
    """Advice from the measured pass; `whole_bytes` is the estimate for the same training with `method: lora`."""
    tokens = max(measurement.tokens, 1)
    if measurement.micro_tokens < tokens and measurement.layout != "alone":
        yield f"train.micro_batch_tokens: {measurement.micro_tokens} is what memory holds; {tokens} was too much"
    elif measurement.peak_bytes > MOST_FILLED * measurement.room_bytes:
        yield f"memory is almost full: train.micro_batch_tokens: {tokens // 2} would be safer"
    elif (
        gpu
        and options.micro_batch_tokens
        and (fitting := _fitting(measurement)) >= 2 * tokens
        and work.passes > work.steps
    ):
        yield f"train.micro_batch_tokens: {fitting} fits, and larger passes keep a GPU busier"
    fits = whole_bytes is not None and whole_bytes < MOST_FILLED * measurement.room_bytes
    if gpu and options.method == "qlora" and whole_bytes is not None and fits:
        yield (
            f"train.method: lora needs about {whole_bytes / 1e9:.1f} GB here, which fits: with the base in 16 bits it "
            "is faster than QLoRA, which unpacks 4-bit weights in every pass"
        )


def _fitting(measurement: StepMeasurement) -> int:
    """Tokens of the largest pass that fits, a multiple of 1,024, if memory grows linearly with tokens."""
    each = (measurement.peak_bytes - measurement.before_bytes) / measurement.tokens
    return int((MOST_FILLED * measurement.room_bytes - measurement.before_bytes) / max(each, 1) // 1024 * 1024)
