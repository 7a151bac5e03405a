"""Trains a student on kept sessions: (Q)LoRA through TRL, with our own ids and loss mask, exactly resumable."""

from __future__ import annotations

import copy
import logging
import math
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
from huggingface_hub import constants as hub
from peft import LoraConfig
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from distill import chat
from distill.console import Progress, Silent
from distill.embedded import fingerprint, read_json, write_json
from distill.errors import DistillError, ModelError, RunFolderError
from distill.fingerprints import json_sha256
from distill.rows import append_row, read_jsonl, write_rows
from distill.student import models
from distill.student.options import TrainOptions
from distill.types import Session

AIMED_STEPS = 36
"""Optimizer steps that a small set is divided into; with few large ones it learns little."""
BATCH_TOKENS = (128, 16_384)
"""Least and most tokens a step where the recipe says nothing. The field's usual 128 rows are about 20,000."""
MICRO_BATCH_TOKENS = {"cpu": 512, "cuda": 4096}
"""Tokens in one forward pass; in longer ones attention costs more than is saved on unpacking 4-bit weights."""
FUSED_HEAD_TOKENS = 2048
"""Answer tokens in one forward pass above which TRL's chunked output head is used, for memory's sake."""
SCALED_HEADS = (
    "final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling"
)  # fmt: skip
"""Settings of architectures that do more after the output head than a softmax."""

_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
_NOISY = ("trl", "accelerate", "datasets", "bitsandbytes", "peft", "huggingface_hub")
_MARKER = "distill.json"
_DRIFT_SAMPLE = 64


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run did."""

    rows: int
    """Sessions trained on."""
    too_long: int
    """Sessions over `max_length` tokens, left out."""
    empty: int
    """Sessions without a single token to train, left out."""
    tokens: int
    """Tokens of the sessions, once."""
    trained_tokens: int
    """Those of them that bear on the loss: answers and their end tokens."""
    steps: int
    final_loss: float
    """Mean loss over the last tenth of the steps, nats a token."""
    tokens_per_second: float
    """All tokens seen, by the time spent in training steps."""


@dataclass(frozen=True, slots=True)
class Batches:
    """How examples are laid into optimizer steps."""

    pack: int
    """Tokens in a row that several examples are packed into; at least the longest example."""
    accumulation: int
    """Rows in one step."""


def train(
    sessions: Sequence[Session],
    student_folder: Path,
    *,
    model: str,
    layers: int | None,
    template: str,
    options: TrainOptions,
    seed: int,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train and leave a student in `student_folder`: adapter, tokenizer, train_log.jsonl, and base.json last.

    A run that was stopped, even by SIGKILL, goes on from its last whole checkpoint and ends with the very weights of
    an uninterrupted one (on the same machine); if data, options or base have changed since, it starts over and says so.
    Raises `ModelError` when the base cannot be read or the loss is no number, `DistillError` when nothing is left to
    train on.
    """
    tell = say or _nothing
    base = models.materialise(model, say=tell)
    tokenizer = models.load_tokenizer(base)
    examples, left_out = _examples(sessions, template, tokenizer, options.max_length)
    _say_left_out(left_out, len(sessions), options.max_length, tell)
    _say_drift(sessions, template, tokenizer, tell)
    kept = _kept_layers(base, layers)
    told: dict[str, Any] = {"model": model, "fingerprint": fingerprint(model), "layers": kept, "template": template}
    told["quantised"] = options.method == "qlora"
    run = _Run(student_folder, _identity(examples, told, options, seed), tell)
    with _quiet(), _in_our_words(student_folder):
        trainer = _build(base, kept, tokenizer, examples, options=options, seed=seed, output=run.checkpoints)
        done = run.resume()
        log = _Log(student_folder / "train_log.jsonl", done, trainer, run, progress or Silent())
        trainer.add_callback(log)
        trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
        _save(trainer, tokenizer, template, told, student_folder)
    shutil.rmtree(run.checkpoints)
    return _result(examples, left_out, log)


# From sessions to examples


def _examples(
    sessions: Sequence[Session], template: str, tokenizer: Any, max_length: int
) -> tuple[list[chat.Example], Counter[str]]:
    examples, left_out = [], Counter[str]()
    for session in sessions:
        example = _example(session, template, tokenizer)
        if len(example.input_ids) > max_length:
            left_out["too_long"] += 1
        elif not example.trained:
            left_out["empty"] += 1
        else:
            examples.append(example)
    if not examples:
        raise DistillError(
            f"none of the {len(sessions)} sessions can be trained on: {left_out['too_long']} are longer than "
            f"train.max_length={max_length} tokens, {left_out['empty']} have no answer; raise it or collect more"
        )
    return examples, left_out


def _example(session: Session, template: str, tokenizer: Any) -> chat.Example:
    try:
        return chat.encode(session.messages, template, tokenizer, truncated=bool(session.meta.get("truncated")))
    except DistillError as error:
        raise type(error)(f"session {session.id}: {error}") from error


def _say_left_out(left_out: Counter[str], total: int, max_length: int, say: Callable[[str], None]) -> None:
    if left_out["too_long"]:
        say(f"{left_out['too_long']} of {total} sessions are longer than train.max_length={max_length} and left out")
    if left_out["empty"]:
        say(f"{left_out['empty']} of {total} sessions have an empty answer and are left out")


def _say_drift(sessions: Sequence[Session], template: str, tokenizer: Any, say: Callable[[str], None]) -> None:
    sample = sessions[:_DRIFT_SAMPLE]
    drifting = [session.id for session in sample if chat.drifts(session.messages, template, tokenizer)]
    if drifting:
        say(
            f"{len(drifting)} of the first {len(sample)} sessions (such as {drifting[0]}) are trained as other tokens "
            "than apply_chat_template gives: they mention special tokens, or an answer begins with what merges"
        )


def batches(lengths: Sequence[int], *, epochs: float, batch_tokens: int | None, micro: int) -> Batches:
    """Lay examples of these lengths (in tokens) into steps of about `batch_tokens`, at most `micro` a forward pass."""
    least, most = BATCH_TOKENS
    aimed = batch_tokens or min(max(math.ceil(sum(lengths) * epochs / AIMED_STEPS), least), most)
    longest = max(lengths)
    accumulation = math.ceil(aimed / max(micro, longest))
    return Batches(pack=max(math.ceil(aimed / accumulation), longest), accumulation=accumulation)


# Building TRL's trainer


class _Trainer(SFTTrainer):  # type: ignore[misc]  # the library has no types
    """TRL's trainer without its model cards and telemetry, and with an output head that skips prompts on a CPU."""

    tokens_seen = 0

    def _send_telemetry(self) -> None:
        """Send nothing."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: the export does, with the teacher's name."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The summed cross entropy of the trained tokens by `num_items_in_batch`, their number in the whole step.

        TRL's own scores every position on a CPU, prompts too, and computes an entropy for its log; doing without was
        measured to save a quarter of the time of a step.
        """
        self.tokens_seen += inputs["input_ids"].numel()
        trained = inputs["labels"][:, 1:] != chat.IGNORED
        if not _is_plain(model, int(trained.sum())):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")[:, 1:][trained]
        causal = model.get_base_model()
        hidden = causal.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1][trained]
        total = cross_entropy(causal.get_output_embeddings()(hidden).float(), labels, reduction="sum")
        return total / (num_items_in_batch if num_items_in_batch is not None else labels.numel())


def _is_plain(model: Any, trained: int) -> bool:
    config = model.get_base_model().config
    return model.device.type == "cpu" and trained <= FUSED_HEAD_TOKENS and not any(
        getattr(config, name, None) for name in SCALED_HEADS
    )  # fmt: skip


def _build(
    base: Path,
    kept: list[int] | None,
    tokenizer: Any,
    examples: Sequence[chat.Example],
    *,
    options: TrainOptions,
    seed: int,
    output: Path,
) -> _Trainer:
    device = models.default_device()
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = models.load_causal(base, layers=kept, quantise=options.method == "qlora", dtype=dtype, device=device)
    model.config.use_cache = False
    trainer = _Trainer(
        model=model,
        args=_arguments(examples, device, bf16, options=options, seed=seed, output=output),
        train_dataset=datasets.Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in examples]),
        processing_class=copy.deepcopy(tokenizer),  # TRL may set its pad token
        peft_config=LoraConfig(
            r=options.lora.r,
            lora_alpha=options.lora.alpha,
            lora_dropout=options.lora.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.remove_callback(PrinterCallback)
    _train_in_float32(trainer.model)
    return trainer


def _train_in_float32(model: Any) -> None:
    """Undo TRL's cast of the adapter to bfloat16.

    There a quarter and more of the weights do not move in a step at 2e-4, and a resumed run differs from the next step
    on. The second loop is for modules that the adapter has wrapped since `load_causal` saw to it.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _arguments(
    examples: Sequence[chat.Example],
    device: torch.device,
    bf16: bool,
    *,
    options: TrainOptions,
    seed: int,
    output: Path,
) -> Any:
    lengths = [len(example.input_ids) for example in examples]
    micro = MICRO_BATCH_TOKENS[device.type]
    layout = batches(lengths, epochs=options.epochs, batch_tokens=options.batch_tokens, micro=micro)
    arguments = SFTConfig(
        output_dir=str(output),
        max_length=layout.pack,
        packing=True,
        packing_strategy="bfd",
        eval_packing=False,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=layout.accumulation,
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=options.warmup,
        optim="adamw_torch_fused",
        max_grad_norm=options.max_grad_norm,
        bf16=bf16,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type != "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        data_seed=seed,
        **{_checkpointing_name(): False},
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several visible GPUs would make Trainer replicate the model
    return arguments


def _checkpointing_name() -> str:
    """Recomputing activations costs a third of the speed and saves little at this size; its name has changed."""
    fields = SFTConfig.__dataclass_fields__
    return "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"


# Checkpoints and the log


def _identity(examples: Sequence[chat.Example], told: dict[str, Any], options: TrainOptions, seed: int) -> str:
    """A hash of all that decides the weights of a run."""
    ids = [[example.input_ids, example.labels] for example in examples]
    settings = options.model_dump(exclude={"save_steps"})
    machine = [models.default_device().type, *(version(package) for package in _PACKAGES)]
    return json_sha256([ids, told, settings, seed, machine])


class _Run:
    """The checkpoints of one run, in the student's folder."""

    def __init__(self, student_folder: Path, identity: str, say: Callable[[str], None]) -> None:
        self.checkpoints = student_folder / "checkpoints"
        self.identity = identity
        self.checkpoint: Path | None = None
        self._say = say
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    def resume(self) -> int:
        """Find the last whole checkpoint and delete all others; returns its step, 0 without one."""
        found = sorted(self.checkpoints.glob("checkpoint-*"), key=_step, reverse=True)
        marks = [read_json(folder / _MARKER) for folder in found]
        if any(mark and mark["identity"] != self.identity for mark in marks):
            self._say("the data, the options or the base have changed since the last checkpoint: training starts over")
        for folder, mark in zip(found, marks, strict=True):
            if self.checkpoint is None and mark and mark["identity"] == self.identity and _is_whole(folder, mark):
                self.checkpoint = folder
            else:
                shutil.rmtree(folder)
        if self.checkpoint is None:
            return 0
        self._say(f"going on from step {_step(self.checkpoint)}")
        return _step(self.checkpoint)

    def mark(self, step: int) -> None:
        """Say that a checkpoint is completely written, and of which run it is."""
        folder = self.checkpoints / f"checkpoint-{step}"
        sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
        write_json(folder / _MARKER, {"identity": self.identity, "sizes": sizes})


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _is_whole(folder: Path, mark: dict[str, Any]) -> bool:
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != _MARKER}
    return bool(sizes == mark["sizes"])


class _Log(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Writes train_log.jsonl, reports progress, marks checkpoints, and stops a run whose loss is no number."""

    def __init__(self, path: Path, step: int, trainer: _Trainer, run: _Run, progress: Progress) -> None:
        self._path, self._trainer, self._run, self._progress = path, trainer, run, progress
        self.rows = [row for row in read_jsonl(path) if row["step"] <= step] if step and path.exists() else []
        write_rows(path, self.rows)
        last = self.rows[-1] if self.rows else {"tokens": 0, "seconds": 0.0}
        self._tokens, self._seconds = last["tokens"], last["seconds"]
        self._started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self._progress.update(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Take one step's figures. Raises `ModelError` when they are no numbers, before a checkpoint is written."""
        if not logs or "loss" not in logs:
            return
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ModelError(
                f"training stopped at step {state.global_step} of {state.max_steps}: the loss is {loss}, its gradient "
                f"{norm}; lower train.learning_rate (it is {args.learning_rate:g}) or look at the data"
            )
        row = {
            "step": state.global_step,
            "steps": state.max_steps,
            "epoch": state.epoch,
            "loss": loss,
            "learning_rate": float(logs["learning_rate"]),
            "grad_norm": norm,
            "tokens": self._tokens + self._trainer.tokens_seen,
            "seconds": round(self._seconds + time.monotonic() - self._started, 3),
        }
        self.rows.append(row)
        append_row(self._path, row)
        self._progress.update(state.global_step, state.max_steps, f"loss {loss:.3f}, {_speed(self.rows):.0f} tokens/s")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the checkpoint that has just been written."""
        self._run.mark(state.global_step)


def _speed(rows: Sequence[dict[str, Any]]) -> float:
    return float(rows[-1]["tokens"] / max(rows[-1]["seconds"], 1e-9)) if rows else 0.0


# The student's folder


def _kept_layers(base: Path, layers: int | None) -> list[int] | None:
    if layers is None:
        return None
    total = read_json(base / "config.json")["num_hidden_layers"]
    return list(models.kept_layers(total, layers))


def _save(trainer: _Trainer, tokenizer: Any, template: str, told: dict[str, Any], folder: Path) -> None:
    """Write the student beside and move it into place; base.json, without which nobody reads it, comes last."""
    new = folder / ".new"
    shutil.rmtree(new, ignore_errors=True)
    settings = trainer.model.peft_config["default"]
    settings.base_model_name_or_path = told["model"]  # not where it lies on this machine
    settings.target_modules = sorted(settings.target_modules)  # a set, in another order each time
    trainer.model.save_pretrained(new, save_embedding_layers=False)
    tokenizer.chat_template = chat.jinja(template, tokenizer)
    tokenizer.save_pretrained(new)
    (new / "README.md").unlink(missing_ok=True)
    (folder / "base.json").unlink(missing_ok=True)
    for file in new.iterdir():
        file.replace(folder / file.name)
    new.rmdir()
    write_json(folder / "base.json", told)


def _result(examples: Sequence[chat.Example], left_out: Counter[str], log: _Log) -> TrainResult:
    tail = log.rows[-max(1, len(log.rows) // 10) :]
    return TrainResult(
        rows=len(examples),
        too_long=left_out["too_long"],
        empty=left_out["empty"],
        tokens=sum(len(example.input_ids) for example in examples),
        trained_tokens=sum(example.trained for example in examples),
        steps=log.rows[-1]["step"],
        final_loss=sum(row["loss"] for row in tail) / len(tail),
        tokens_per_second=_speed(log.rows),
    )


@contextmanager
def _in_our_words(student_folder: Path) -> Iterator[None]:
    """Say of a full disk and a full GPU what to do about it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            "the GPU's memory is too small for training; lower train.max_length or train.batch_tokens, or train a "
            "smaller student"
        ) from error
    except OSError as error:
        raise RunFolderError(
            f"cannot write in {student_folder} ({error.strerror or error}); free some space or mend the permissions, "
            "and run again: training goes on from its last checkpoint"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep foreign progress bars, warnings and log lines off the terminal, and foreign code off the network."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    online = hub.HF_HUB_OFFLINE, hub.HF_HUB_DISABLE_TELEMETRY
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    hub.HF_HUB_OFFLINE = hub.HF_HUB_DISABLE_TELEMETRY = True
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub.HF_HUB_OFFLINE, hub.HF_HUB_DISABLE_TELEMETRY = online
        for name, old in levels.items():
            logging.getLogger(name).setLevel(old)
        transformers_logging.set_verbosity(level)
        datasets.enable_progress_bars()
        if bars:
            transformers_logging.enable_progress_bar()


def _nothing(line: str) -> None:
    """Say nothing."""
