"""The `smoke` command: runs every stage and part of a recipe in seconds, with a tiny random model and few rows.

What is changed of the recipe are models and where they are, sizes, paths and counts; nothing else, so that a recipe
which passes does in the large what it did in the small. The teacher is `mock_server.stand_in` behind a real server on
loopback; the student is a random model of three layers, trained in real NF4 where the recipe says qlora.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill.core import console
from distill.core.files import cache_dir
from distill.engine.mock_server import MockServer
from distill.engine.mock_server.stand_in import answer, task
from distill.errors import shorten
from distill.pipeline.parts import load_recipe
from distill.pipeline.requirements import require_training_packages
from distill.pipeline.runner import run_recipe
from distill.recipe import Recipe

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
    "collect.samples": 2,
    "collect.exchanges": 2,
    "collect.min_rounds": 1,
    "collect.max_rounds": 2,
    "test": TEST,
    "train.epochs": 1,
    "train.max_length": 256,
    "train.batch_rows": 4,
    "train.batch_tokens": 512,
    "train.micro_batch_tokens": 512,
    "train.lora.r": 4,
    "train.eval_rows": 2,
    "train.eval_tokens": 8,
    "compare.judge.retest": 2,
    "compare.sampling.max_tokens": 16,
}
"""The most of each count and size; what a recipe does not set stays unset."""
SOURCE_FORMATS = ("alpaca", "sharegpt", "openai")


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
    """Run the recipe in a new `folder`; what it raises is what a run of the recipe would raise."""
    require_training_packages("distill smoke")
    started = time.monotonic()
    loaded = load_recipe(path)
    folder.mkdir(parents=True, exist_ok=True)
    with MockServer(answer=answer) as server:
        changes = tuple(_changes(loaded, folder, server.url, tiny_model()))
        file = folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(_changed(loaded, changes), sort_keys=False, allow_unicode=True), "utf-8")
        run_recipe(file, run_dir=folder / "run")
    return SmokeResult(loaded.name, time.monotonic() - started, changes, folder / "run")


def lines(smoked: SmokeResult) -> Iterator[str]:
    """What was changed, and that it went through."""
    for change in smoked.changes:
        yield f"  {change.key}: {_short(change.before)} → {_short(change.after)}"
    yield f"{smoked.name}: smoke passed in {smoked.seconds:.1f} s"


def _short(value: Any) -> str:
    return shorten("unset" if value is None else str(value), 60)


# What is changed


def _changed(loaded: Recipe, changes: tuple[RecipeChange, ...]) -> dict[str, Any]:
    document = loaded.document()
    document.pop("files", None)
    for change in changes:
        _set(document, change.key.split("."), change.after)
    return document


def _set(node: Any, keys: list[str], value: Any) -> None:
    """Set a dotted key, a number of which is a place in a list; None takes it out."""
    for key in keys[:-1]:
        node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
    if value is None:
        node.pop(keys[-1], None)
    else:
        node[keys[-1]] = value


def _changes(loaded: Recipe, folder: Path, url: str, model: Path) -> Iterator[RecipeChange]:
    document = loaded.document()
    for key, before, after in (
        *_models(document, url, model),
        *_sizes(document),
        *_sources(document, folder),
        *_rules(document),
        *_metrics(document, folder),
    ):
        if before != after:
            yield RecipeChange(key, before, after)


Overrides = Iterator[tuple[str, Any, Any]]


def _models(document: Mapping[str, Any], url: str, model: Path) -> Overrides:
    """Every endpoint becomes the stand-in, and the student a tiny model."""
    teachers = document.get("teacher")
    several = teachers if isinstance(teachers, list) else [teachers] if teachers else []
    for place, section in enumerate(several):
        yield from _stand_in(f"teacher.{place}" if isinstance(teachers, list) else "teacher", section, url)
    for role in ("user", "judge"):
        if section := document.get(role):
            yield from _stand_in(role, section, url)
    for side in ("student", "base"):
        if section := (document.get("compare") or {}).get(side):
            yield from _stand_in(f"compare.{side}", section, url)
    if student := document.get("student"):
        yield "student.model", student["model"], str(model)
        if student.get("prune"):
            yield "student.prune.layers", student["prune"]["layers"], KEPT_LAYERS


def _stand_in(key: str, section: Mapping[str, Any], url: str) -> Overrides:
    yield f"{key}.model", section["model"], "stand-in"
    yield f"{key}.base_url", section.get("base_url"), url
    for gone in ("serve", "api_key_env", "headers_env", "revision"):
        if section.get(gone):
            yield f"{key}.{gone}", section[gone], None


def _sizes(document: Mapping[str, Any]) -> Overrides:
    for key, most in MOST.items():
        before = _get(document, key)
        if isinstance(before, (int, float)) and not isinstance(before, bool):
            yield key, before, min(before, most)
    if document.get("compare") and _get(document, "compare.sampling.max_tokens") is None:
        yield "compare.sampling.max_tokens", None, MOST["compare.sampling.max_tokens"]
    collect = document.get("collect") or {}
    if collect.get("mode") == "batch":
        yield "collect.mode", "batch", "live"


def _get(document: Any, key: str) -> Any:
    for part in key.split("."):
        document = document.get(part) if isinstance(document, Mapping) else None
    return document


def _sources(document: Mapping[str, Any], folder: Path) -> Overrides:
    """A few rows of our own in the place of data that lies elsewhere, and fewer of what lies here."""
    for place, source in enumerate(document.get("sources") or []):
        key = f"sources.{place}"
        if hub := source.get("hub"):
            file = folder / f"source-{place}.jsonl"
            _write_rows(file, source.get("from") if source.get("from") in SOURCE_FORMATS else "openai", place)
            yield f"{key}.hub", hub, None
            yield f"{key}.from", source.get("from"), "openai" if source.get("from") in (None, "hub") else source["from"]
            yield f"{key}.path", None, str(file)
            for gone in ("split", "revision"):
                if source.get(gone):
                    yield f"{key}.{gone}", source[gone], None
        if (take := source.get("take")) is not None:
            yield f"{key}.take", take, min(take, ROWS)


def _write_rows(path: Path, form: str | None, place: int) -> None:
    shapes: Mapping[str | None, Callable[[str, str], dict[str, Any]]] = {
        "alpaca": lambda questions, reply: {"instruction": questions, "input": "", "output": reply},
        "sharegpt": lambda questions, reply: {
            "conversations": [{"from": "human", "value": questions}, {"from": "gpt", "value": reply}]
        },
    }
    shape = shapes.get(form, _messages)
    questions = (task(random.Random(f"{place}:{number}")) for number in range(2 * ROWS))
    rows = (shape(text, answer({"messages": [{"content": text}], "seed": text})) for text in questions)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _messages(question: str, reply: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]}


def _rules(document: Mapping[str, Any]) -> Overrides:
    """Fewer rows where a rule counts rows."""
    for place, rule in enumerate(document.get("curate") or []):
        for name in ("count", "most"):
            if (before := rule.get(name)) is not None:
                yield f"curate.{place}.{name}", before, min(before, ROWS // 2)
        for name in ("min_chars",):
            if rule["filter"] == "selection" and (before := rule.get(name)) is not None:
                yield f"curate.{place}.{name}", before, min(before, 20)


def _metrics(document: Mapping[str, Any], folder: Path) -> Overrides:
    """Two of the instructions in place of all, and no tasks whose documents lie elsewhere."""
    if tasks := _get(document, "compare.lm_eval"):
        yield "compare.lm_eval", tasks, None
    metrics = (document.get("compare") or {}).get("metrics") or []
    for place, metric in enumerate(metrics):
        name = metric if isinstance(metric, str) else metric["metric"]
        if name == "instructions":
            file = folder / "instructions.jsonl"
            file.write_text(_TWO_INSTRUCTIONS, encoding="utf-8")
            yield "compare.metrics", metrics, [
                *metrics[:place], {"metric": name, "prompts": str(file)}, *metrics[place + 1 :]
            ]  # fmt: skip


_TWO_INSTRUCTIONS = (
    '{"id": "one", "turns": ["Say a word in lowercase."], "checks": [{"kind": "lowercase"}]}\n'
    '{"id": "two", "turns": ["Say three words."], "checks": [{"kind": "words_at_most", "count": 3}]}\n'
)


# The tiny model


def tiny_model() -> Path:
    """A random Llama of three layers with the embedded model's tokenizer, made once and kept in the cache."""
    folder = cache_dir() / "models" / f"tiny-random-{MODEL_LAYERS}"
    if (folder / "manifest").is_file():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from distill.models import loading

    source = loading.materialise("smollm2", say=console.say)
    tokenizer = loading.load_tokenizer(source)
    torch.manual_seed(0)
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
