"""The `smoke` command: runs every stage and part of a recipe in seconds, with a tiny random model and few rows.

Only models and their addresses, sizes, paths and counts are changed, so that a recipe that passes does at full size
what it did at this one. The teacher is `mock_server.stand_in` behind a real server on loopback; the student is a random
model of three layers, trained in real NF4 where the recipe says qlora.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill.core import console
from distill.core.files import cache_dir, flatten
from distill.engine.mock_server import MockServer
from distill.engine.mock_server.stand_in import NAME, reply
from distill.pipeline.origins import say_which
from distill.pipeline.parts import load_recipe
from distill.pipeline.requirements import require_training_packages
from distill.pipeline.runner import run_recipe
from distill.pipeline.smoke_rows import write_stand_in
from distill.run.context import RunOptions
from distill.run.decisive import shown

MODEL_LAYERS, KEPT_LAYERS = 3, 2
ROWS, TASKS, TEST = 24, 24, 4
MOST: Mapping[str, int] = {
    "expand.tasks": TASKS,
    "expand.new_tasks": 5,
    "expand.topic_requests": 2,
    "expand.topics_each": 8,
    "expand.rounds": 2,
    "expand.batch": 8,
    "collect.test": TEST,
    "collect.test.count": TEST,
    "collect.samples": 2,
    "collect.exchanges": 2,
    "collect.min_rounds": 1,
    "collect.max_rounds": 2,
    "test": TEST,
    "test.count": TEST,
    "train.epochs": 1,
    "train.max_length": 256,
    "train.batch_rows": 4,
    "train.batch_tokens": 512,
    "train.micro_batch_tokens": 512,
    "train.lora.r": 4,
    "train.eval_rows": 2,
    "train.eval_tokens": 8,
    "train.objective.max_tokens": 8,
    "compare.judge.retest": 2,
    "compare.sampling.max_tokens": 16,
}
"""The most of each count and size; what a recipe does not set stays unset."""


@dataclass(frozen=True, slots=True)
class RecipeChange:
    """A recipe key that the smoke run overrides."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class SmokeResult:
    """Result of a smoke run."""

    name: str
    seconds: float
    changes: tuple[RecipeChange, ...]
    folder: Path


def smoke(path: Path, folder: Path) -> SmokeResult:
    """Run the recipe in a new `folder`; raises what a run of the recipe would raise."""
    require_training_packages("distill smoke")
    started = time.monotonic()
    recipe = load_recipe(path)
    say_which(path, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    document = recipe.document()
    document.pop("files", None)
    if _objective(document) == "on_policy":
        document["teacher"] = [document["teacher"]]
    before = flatten(document, lists=True)
    with MockServer(answer=reply) as server:
        _replace_models(document, server.url, tiny_model())
        _show_probabilities(document)
        _reduce_sizes(document)
        _replace_sources(document, folder)
        _replace_instructions(document.get("compare") or {}, folder)
        file = folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), "utf-8")
        run_recipe(
            file, run_dir=folder / "run", options=RunOptions(yes=True, takeover=True, stand_in=True), farewell=False
        )
    changes = tuple(_changes(before, flatten(document, lists=True)))
    return SmokeResult(recipe.name, time.monotonic() - started, changes, folder / "run")


def lines(result: SmokeResult) -> Iterator[str]:
    """The changed keys with both values, and how long it took."""
    for change in result.changes:
        yield f"  {change.key}: {shown(change.before)} → {shown(change.after)}"
    yield f"{result.name}: smoke passed in {result.seconds:.1f} s"


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[RecipeChange]:
    for key in {**before, **after}:
        if before.get(key) != after.get(key):
            dotted_key = key.replace("[", ".").replace("]", "")
            yield RecipeChange(dotted_key, before.get(key), after.get(key))


# What is changed in the document of a recipe


def _replace_models(document: Mapping[str, Any], url: str, model: Path) -> None:
    """Every endpoint becomes the stand-in at `url`, and the student the tiny `model`."""
    teachers, compare = document.get("teacher") or [], document.get("compare") or {}
    sections = [*map(document.get, ("user", "judge", "weaker")), compare.get("student"), compare.get("base")]
    for section in filter(None, [*(teachers if isinstance(teachers, list) else [teachers]), *sections]):
        for name in ("serve", "api_key_env", "headers_env", "revision"):
            section.pop(name, None)
        section |= {"model": NAME, "base_url": url}
    if weaker := document.get("weaker"):
        weaker["model"] = f"{NAME} of less strength"
    if student := document.get("student"):
        student["model"] = str(model)
        student.pop("continues", None)
        if "prune" in student:
            student["prune"]["layers"] = KEPT_LAYERS


def _show_probabilities(document: dict[str, Any]) -> None:
    """The stand-in reports log-probabilities for `soft`; for `on_policy`, another tiny model teaches beside it."""
    if _objective(document) == "soft":
        document["teacher"].setdefault("sampling", {}).update(logprobs=True, top_logprobs=2)
    if _objective(document) == "on_policy":
        scorer = {"name": "tiny", "model": str(tiny_model(seed=1)), "serve": "transformers", "terms": "ours"}
        document["teacher"].append({**scorer, "kinds": ["none"]})


def _objective(document: Mapping[str, Any]) -> str:
    return str(((document.get("train") or {}).get("objective") or {}).get("kind", "sft"))


def _reduce_sizes(document: dict[str, Any]) -> None:
    for key, most in MOST.items():
        *path, name = key.split(".")
        section = document
        for part in path:
            section = value if isinstance(value := section.get(part), dict) else {}
        if isinstance(section.get(name), (int, float)):
            section[name] = min(section[name], most)
    if compare := document.get("compare"):
        compare.setdefault("sampling", {}).setdefault("max_tokens", MOST["compare.sampling.max_tokens"])
    if collect := document.get("collect"):
        collect["mode"] = "live"
    for rule in document.get("curate") or []:
        _reduce(rule, count=ROWS // 2, most=ROWS // 2)
        if rule["filter"] == "selection":
            _reduce(rule, min_chars=20)


def _reduce(section: dict[str, Any], **most: int) -> None:
    section |= {name: min(section[name], bound) for name, bound in most.items() if name in section}


def _replace_sources(document: Mapping[str, Any], folder: Path) -> None:
    """Data of the Hub becomes a folder of generated rows in its columns; of local files fewer rows are taken."""
    for place, source in enumerate(document.get("sources") or []):
        if (hub := source.pop("hub", None)) is not None:
            path, split = folder / f"source-{place}", source.get("split")
            write_stand_in(path, hub, split=split, rows=2 * ROWS, seed=place)
            source |= {"from": "hub", "path": str(path)}
            for name in ("revision", "config", "prompt", "answer", "system"):
                source.pop(name, None)
        _reduce(source, take=ROWS)


def _replace_instructions(compare: dict[str, Any], folder: Path) -> None:
    """Two instructions in place of all, and no tasks of lm-eval, whose documents must be downloaded."""
    compare.pop("lm_eval", None)
    metrics = compare.get("metrics", [])
    for place, metric in enumerate(metrics):
        if metric == "instructions" or (isinstance(metric, dict) and metric["metric"] == "instructions"):
            file = folder / "instructions.jsonl"
            file.write_text(_TWO_INSTRUCTIONS, encoding="utf-8")
            metrics[place] = {"metric": "instructions", "prompts": str(file)}


_TWO_INSTRUCTIONS = (
    '{"id": "one", "turns": ["Say a word in lowercase."], "checks": [{"kind": "lowercase"}]}\n'
    '{"id": "two", "turns": ["Say three words."], "checks": [{"kind": "words_at_most", "count": 3}]}\n'
)


# The tiny model


def tiny_model(seed: int = 0) -> Path:
    """A random Llama of three layers with the embedded model's tokenizer, made once and kept in the cache."""
    folder = cache_dir() / "models" / f"tiny-random-{MODEL_LAYERS}{f'-{seed}' if seed else ''}"
    if (folder / "manifest").is_file():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from distill.models import loading

    source = loading.materialise("smollm2", say=console.say)
    tokenizer = loading.load_tokenizer(source)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=MODEL_LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in source.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template", "vocab", "merges")):
            shutil.copy(file, folder / file.name)
    (folder / "manifest").write_text("whole\n", encoding="utf-8")
    return folder
