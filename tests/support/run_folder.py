"""Writes run folders as the stages leave them, for tests of what reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

from distill.core.hashing import tree_sha256

MODELS = ("base", "student", "teacher", "teacher_again")
SUBJECTS = ("a rainbow", "a suspension bridge", "sourdough bread", "a tax return", "photosynthesis", "a haiku", "tides")
ASKS = (
    "Explain {} to a child of eight in three sentences.",
    "List four common mistakes people make with {}, and say how to avoid each.",
    "Write a short letter to a friend that mentions {}.",
    "What would change in a town of 10,000 people without {}?",
    "Give me a table of facts about {}.",
)
SENTENCES = (
    "It begins with something small that most people overlook.",
    "First, gather what you need and read the instructions once from start to end.",
    "The reason is simple: light, water and time each do a part of the work.",
    "1. Do not rush the first step.\n2. Measure twice.\n3. Write down what you changed.",
    "Imagine a long rope held by two friends on either side of a river.",
    "In short, the effect is real, but smaller than most descriptions make it sound.",
    "A good way to check is to ask somebody who has never seen it before.",
    "As an example, consider a morning in April when the ground is still cold.",
)
RECIPE = """\
name: quickstart
seed: 7
teacher:
  model: smollm2
  serve: transformers
  terms: Apache-2.0
  sampling: {temperature: 0.7, top_p: 0.9, max_tokens: 128}
expand: {strategy: self_instruct, seeds: seeds/general.jsonl, tasks: 160}
collect: {strategy: answer, concurrency: 32, test: 32}
curate:
- {filter: length, min_words: 3}
- {filter: near_duplicate, rouge_l: 0.7}
student: {model: smollm2, prune: {layers: 24}, template: chatml}
train: {method: qlora, epochs: 2, learning_rate: 0.0005, lora: {r: 16, alpha: 32}}
compare: {metrics: [likelihood, overlap, style]}
"""


def write_run(folder: Path, *, prompts: int = 32, train: bool = True, compare: bool = True) -> Path:
    """A finished run; without `train` or `compare` it stops before those stages. The same arguments, the same bytes."""
    random = Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    _lines(folder / "dropped.jsonl", (_dropped(random, index) for index in range(23)))
    if train:
        (folder / "student").mkdir(exist_ok=True)
        _lines(folder / "student" / "train_log.jsonl", _train_log(random))
        _json(folder / "student" / "base.json", _base())
    if compare:
        _lines(folder / "answers.jsonl", (_answers(random, index) for index in range(prompts)))
        _json(folder / "scores.json", _scores(prompts))
    _json(folder / "run.json", _record(prompts, tree_sha256(folder / "student") if train else None, compare))
    return folder


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    """Rewrite a JSON or JSONL file with `edit` applied to each of its values."""
    lines = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        _json(path, edit(json.loads(lines)))
    else:
        _lines(path, [edit(json.loads(line)) for line in lines.splitlines()])


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _lines(path: Path, rows: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _task(index: int) -> str:
    return ASKS[index % len(ASKS)].format(SUBJECTS[index % len(SUBJECTS)])


def _speech(random: Random, sentences: int) -> str:
    return " ".join(random.choice(SENTENCES) for _ in range(sentences))


def _answers(random: Random, index: int) -> dict[str, Any]:
    answers = {
        "base": {"text": "The the answer is the answer is " * 9, "finish": "length", "tokens": 128},
        "student": {"text": _speech(random, 4), "finish": "stop" if index % 8 else "length", "tokens": 74},
        "teacher": {"text": _speech(random, 5), "finish": "stop", "tokens": 91},
        "teacher_again": {"text": _speech(random, 5), "finish": "stop", "tokens": 88},
    }
    rouge = {"base": 0.11, "student": 0.29, "teacher_again": 0.36}
    scores: dict[str, dict[str, float]] = {
        model: {"stopped": int(answer["finish"] == "stop"), "repetition": random.random() / 9, "length_ratio": 0.9}
        for model, answer in answers.items()
    }
    for model, mean in rouge.items():
        scores[model]["rouge_l"] = min(1.0, max(0.0, random.gauss(mean, 0.08)))
    for model, mean in {"base": 0.93, "student": 0.52, "teacher": 0.31}.items():
        scores[model]["nll_per_byte"] = random.gauss(mean, 0.06)
    scores["base"]["repetition"] = 0.71
    messages = [{"role": "user", "content": _task(index)}]
    return {"id": f"t{index:04d}", "messages": messages, "answers": answers, "scores": scores}


def _mean(mean: float, half: float, n: int) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def _metric(title: str, unit: str, better: str, why: str, by: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"title": title, "unit": unit, "better": better, "explanation": why, "note": None, "by": by, **rest}


def _scores(prompts: int) -> dict[str, Any]:
    n = prompts

    def by(*values: tuple[float, float] | None) -> dict[str, dict[str, float]]:
        return {model: _mean(*value, n) for model, value in zip(MODELS, values, strict=True) if value}

    def difference(mean: float, half: float) -> dict[str, Any]:
        return {"mean": mean, "low": mean - half, "high": mean + half, "excludes_zero": abs(mean) > half}

    metrics = {
        "nll_per_byte": _metric(
            "Surprise at the teacher's answers", "nats per byte", "lower", "Mean negative log-likelihood.",
            by((0.934, 0.041), (0.522, 0.036), (0.308, 0.022), None),
            student_minus_base=difference(-0.412, 0.03), gap_closed={"share": 0.66, "low": 0.59, "high": 0.72},
        ),
        "rouge_l": _metric(
            "ROUGE-L", "F1 against the teacher's first answer", "higher", "Longest common subsequence of words.",
            by((0.112, 0.02), (0.287, 0.031), None, (0.361, 0.03)),
            student_minus_base=difference(0.175, 0.033), gap_closed={"share": 0.70, "low": 0.55, "high": 0.88},
        ),
        "length_ratio": _metric(
            "Length", "ratio to the teacher's", "near 1", "Words, divided by the teacher's words.",
            by((1.64, 0.3), (0.91, 0.09), (1.0, 0.0), (1.02, 0.08)),
            student_minus_base=difference(-0.73, 0.3), gap_closed=None,
        ),
        "stopped": _metric(
            "Ends by itself", "share of answers", "higher", "Not cut at the token limit.",
            by((0.03, 0.04), (0.88, 0.11), (0.97, 0.05), (0.97, 0.05)),
            student_minus_base=difference(0.85, 0.12), gap_closed={"share": 0.90, "low": 0.78, "high": 1.02},
        ),
        "repetition": _metric(
            "Repetition", "share of repeated 4-grams", "lower", "Of all word 4-grams of an answer.",
            by((0.09, 0.05), (0.06, 0.03), (0.05, 0.02), (0.05, 0.02)),
            student_minus_base=difference(-0.03, 0.05), gap_closed=None,
        ),
        "preference": {
            **_metric("Preference", "share of wins", "higher", "", {}, student_minus_base=None, gap_closed=None),
            "note": "No judge in this recipe: set compare.judge to measure it.",
        },
    }  # fmt: skip
    return {
        "prompts": n,
        "method": "95% percentile bootstrap over prompts, 10,000 draws, paired",
        "models": {
            "base": {"model": "smollm2", "description": "SmolLM2-135M, 24 of 30 layers, untrained"},
            "student": {"model": "smollm2", "description": "the same with its adapter"},
            "teacher": {"model": "smollm2", "description": "SmolLM2-135M-Instruct, Q4_1"},
            "teacher_again": {"model": "smollm2", "description": "the teacher asked a second time"},
        },
        "notes": ["ROUGE-L of the teacher with itself is 1 by definition and is left out."],
        "metrics": metrics,
        "cut_share": {"teacher": 0.03, "student": 0.125, "base": 0.97, "teacher_again": 0.03},
        "headline": f"The student closed 66% of the gap to its teacher on {n} held-out prompts (95% interval 59–72%).",
    }


def _dropped(random: Random, index: int) -> dict[str, Any]:
    rules = [
        ("length", "too_short", 2, 3, None),
        ("near_duplicate", "near_duplicate", 0.8137254, 0.7, "t0031"),
        ("test", "held_out", 0.74, 0.7, "t0007"),
    ]
    rule, reason, value, threshold, neighbour = rules[0 if index < 12 else 1 + index % 2]
    failing = {"rule": rule, "keep": False, "reason": reason, "value": value, "threshold": threshold}
    passed = {"rule": "refusal", "keep": True, "reason": "ok", "value": None, "threshold": None, "neighbour": None}
    return {
        "id": f"d{index}",
        "messages": [
            {"role": "user", "content": _task(index + 3)},
            {"role": "assistant", "content": "Yes, sure." if rule == "length" else _speech(random, 3)},
        ],
        "meta": {"task": f"d{index}"},
        "verdicts": [{**failing, "neighbour": neighbour}, passed],
    }


def _train_log(random: Random) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, 73):
        loss = 1.05 + 2.6 * math.exp(-step / 14) + random.gauss(0, 0.07)
        rate = 5e-4 * min(1, step / 4) * (1 - step / 80)
        rows.append(
            {"step": step, "steps": 72, "epoch": step / 36, "loss": loss, "learning_rate": rate, "grad_norm": 1.2}
            | {"tokens": step * 1_900, "seconds": step * 6.9}
        )
        if step % 18 == 0:
            rows.append({"step": step, "eval_loss": 1.22 + 2.4 * math.exp(-step / 14)})
    return rows


def _base() -> dict[str, Any]:
    layers = [*range(12), *range(18, 30)]
    return {"model": "smollm2", "fingerprint": "5ab1" * 16, "layers": layers, "template": "chatml", "quantised": True}


def _stage(seconds: float, counts: dict[str, Any], asked: int = 0, tokens: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    return {
        "status": "done", "started": "2026-03-02T09:00:00+00:00", "seconds": seconds, "revision": 1, "options": {},
        "counts": counts, "tokens": {"prompt": tokens[0], "completion": tokens[1]} if asked else {},
        "requests": {"asked": asked, "replayed": 0, "failed": 0} if asked else {}, "usd": None,
        "peak_memory_bytes": 3_412_000_000, "inputs": {}, "outputs": {}, "detail": None,
    }  # fmt: skip


def _record(prompts: int, student: str | None, compare: bool) -> dict[str, Any]:
    rejected = {"too_similar": 61, "too_short": 22, "not_ascii": 5, "malformed": 14}
    by_rule = {"length/too_short": 12, "near_duplicate/near_duplicate": 6, "test/held_out": 5}
    also = {
        "against": {
            "length/too_short": 12,
            "near_duplicate/near_duplicate": 6,
            "test/held_out": 5,
            "refusal/refusal": 4,
        },
        "measured": {"length": 158, "refusal": 158, "near_duplicate": 146},
        "overlaps": {"length": {"refusal": 4}},
        "examples": {
            "length/too_short": ["d0", "d1"],
            "near_duplicate/near_duplicate": ["d12"],
            "test/held_out": ["d13"],
        },
        "labels": {"truncated": 9},
        "mended": {"pii": 2},
    }
    expand = {"seeds": 24, "requests": 40, "candidates": 262, "rejected": rejected, "tasks": 160}
    collect = {"tasks": 160, "sessions": 158, "failed": 2, "truncated": 9}
    curate = {"rows": 158, "kept": 103, "dropped": 23, "test": 32, "labelled": 3, "by_rule": by_rule, **also}
    stages = {
        "expand": _stage(412.7, expand, 40, (22_410, 9_733)),
        "collect": _stage(655.2, collect, 160, (6_400, 14_190)),
        "curate": _stage(1.9, curate),
    }
    if student is not None:
        stages["train"] = _stage(498.0, {"rows": 103, "tokens": 13_680, "steps": 72, "final_loss": 1.06})
        stages["train"]["outputs"] = {"student": student}
    if compare:
        stages["compare"] = _stage(301.4, {"prompts": prompts}, 128, (4_800, 11_040))
        stages["compare"]["inputs"] = {"student": student} if student is not None else {}
        stages["compare"]["outputs"] = {"answers.jsonl": "9e" * 32, "scores.json": "77" * 32}
    return {
        "name": "quickstart",
        "version": "0.1.0",
        "recipe_sha256": "e3b0c442" * 8,
        "created": "2026-03-02T08:59:58+00:00",
        "teacher": {"model": "smollm2", "serve": "transformers", "terms": "Apache-2.0", "fingerprint": "ab" * 32},
        "versions": {"torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0", "peft": "0.21.2"},
        "stages": stages,
    }


HOSTILE = (
    "<script>document.title = 'stolen'; window.stolen = true</script>",
    "</script></style></title></textarea></div></details><img src=x onerror=alert(1)>",
    "\"><svg onload=alert(1)><a href='javascript:alert(1)' style='position:fixed'>' onmouseover='alert(1)",
    "<!--<iframe srcdoc='<b>'></iframe>]]><base href=//example.org/><meta http-equiv=refresh content=0>",
    "\u202e\u2066txt.exe\u2069 \x00\x1b[31m\u200b {{ 7 * 7 }} {% include '/etc/hostname' %} ${7}",
)
"""What a teacher may say, or a model may be called, and a page must only show."""
POISONED_KEYS = (
    "by_rule",
    "against",
    "overlaps",
    "length",
    "examples",
    "labels",
    "mended",
    "rejected",
    "versions",
    "outputs",
    "metrics",
)


def poison(folder: Path, payload: str) -> Path:
    """Put `payload` at the end of every text in every file of a run, and of the keys that a page shows."""
    for path in folder.rglob("*.json*"):
        change(path, lambda value: _poisoned(value, payload))
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8") + payload, encoding="utf-8")
    return folder


def _poisoned(value: Any, payload: str) -> Any:
    if isinstance(value, str):
        return value + payload
    if isinstance(value, list):
        return [_poisoned(item, payload) for item in value]
    if isinstance(value, dict):
        renamed = {key: _keys(item, payload) if key in POISONED_KEYS else item for key, item in value.items()}
        return {key: _poisoned(item, payload) for key, item in renamed.items()}
    return value


def _keys(value: Any, payload: str) -> Any:
    return {key + payload: item for key, item in value.items()} if isinstance(value, dict) else value
