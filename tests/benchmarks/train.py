"""Trained tokens per second, memory of a step and losses: ours beside TRL's SFTTrainer with its defaults, on a CPU.

Same rows, model, adapter and rows in a step; each in a process of its own, in turns.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from distill.core import assets
from distill.models import chat_template, loading
from tests.benchmarks.arena import Check, Findings, finish, scratch, start
from tests.support.tiny import save_tiny_model

RIVALS = {"TRL, its defaults": (), "TRL, float32": ("bf16=false",)}
"""What is changed of SFTConfig. On a CPU it computes in bfloat16 unless told otherwise."""
BATCH, STEPS, ROUNDS = 8, 4, 3
SAME_STEPS, SAME_BATCH = 20, 4
LEAST_TIMES, MOST_LOSS = 1.5, 1e-3
LONGEST_SECONDS = 3_600.0


def run(*, quick: bool) -> Findings:
    """Rounds of all contenders, then one of both with the same arithmetic; `quick`: a tiny model."""
    steps, rounds = (2, 1) if quick else (STEPS, ROUNDS)
    with tempfile.TemporaryDirectory(dir=scratch()) as place:
        folder = Path(place)
        prepare(folder, max(BATCH * steps, SAME_BATCH * SAME_STEPS), tiny=quick)
        given = (folder, "--rows", BATCH * steps, "--batch", BATCH)
        found = [_round(given) for _ in range(rounds)]
        ours, theirs = _same(folder)
    findings = Findings([_row(name, found) for name in found[0]])
    fastest = max(median(_pace(one[name]) for one in found) for name in RIVALS)
    defaults = next(iter(RIVALS))
    times = median(_pace(one["ours"]) / _pace(one[defaults]) for one in found)
    peak = median(one["ours"]["peak_mb"] for one in found)
    apart = max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True))
    findings.checks = [
        Check("trained tokens/s over TRL with its defaults", times, LEAST_TIMES, at_least=True),
        Check("over the faster TRL", median(_pace(one["ours"]) for one in found) / fastest, LEAST_TIMES, at_least=True),
        Check("MB of a step", peak, min(median(one[name]["peak_mb"] for one in found) for name in RIVALS)),
        Check("trained tokens apart", abs(found[0]["ours"]["trained"] - found[0][defaults]["trained"]), 0),
        Check(f"losses of {len(ours['losses'])} steps apart", apart, MOST_LOSS),
    ]
    findings.notes = [f"last of these losses: {ours['losses'][-1]:.5f} and {theirs['losses'][-1]:.5f}"]
    return findings


def _round(given: tuple[Any, ...]) -> dict[str, dict[str, Any]]:
    found = {"ours": _finished("train_ours", *given)}
    for name, changed in RIVALS.items():
        found[name] = _finished("train_trl", *given, "--set", *changed)
    return found


def _same(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ours, then TRL on ours's order of rows, with the adapter in float32 as well."""
    given = (folder, "--rows", SAME_BATCH * SAME_STEPS, "--batch", SAME_BATCH, "--same")
    return _finished("train_ours", *given), _finished("train_trl", *given)


def _finished(script: str, *options: Any) -> dict[str, Any]:
    return finish(start(script, *options, alone=True), timeout_seconds=LONGEST_SECONDS)


def _pace(result: dict[str, Any]) -> float:
    """Trained tokens per second."""
    return float(result["trained"] / result["seconds"])


def _row(name: str, found: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    results = [one[name] for one in found]
    return {
        "": name,
        "trained tokens": results[0]["trained"],
        "trained tokens/s": median(map(_pace, results)),
        "trained tokens/CPU s": median(one["trained"] / one["cpu_seconds"] for one in results),
        "MB of a step": median(one["peak_mb"] for one in results),
        "MB before": median(one["before_mb"] for one in results),
        "ours over it": median(_pace(one["ours"]) / _pace(one[name]) for one in found),
    }


def prepare(folder: Path, rows: int, *, tiny: bool) -> None:
    """Write model/ (the embedded model, or a tiny one, with our chat template) and rows.jsonl."""
    if tiny:
        save_tiny_model(folder / "model")
    else:
        shutil.copytree(loading.materialise("smollm2"), folder / "model")
    tokenizer = loading.load_tokenizer(folder / "model")
    tokenizer.chat_template = chat_template.jinja("chatml", tokenizer)
    tokenizer.save_pretrained(folder / "model")
    write_rows(folder / "rows.jsonl", rows)


def write_rows(path: Path, rows: int, *, seed: int = 0) -> None:
    """Sessions of lengths like Alpaca's: questions of 8 to 60 words, answers of 3 to 350, log-normal."""
    draw = random.Random(seed)
    words = _words()
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            lengths = (_clipped(draw, 2.9, 0.45, 8, 60), _clipped(draw, 4.2, 1.1, 3, 350))
            question, answer = (_run(words, draw, length) for length in lengths)
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"id": f"row-{number}", "messages": turns}) + "\n")


def _clipped(draw: random.Random, mean: float, deviation: float, least: int, most: int) -> int:
    return min(max(round(draw.lognormvariate(mean, deviation)), least), most)


def _run(words: list[str], draw: random.Random, length: int) -> str:
    first = draw.randrange(len(words) - length)
    return " ".join(words[first : first + length])


def _words() -> list[str]:
    with assets.find("prompts/seeds/general.jsonl").open(encoding="utf-8") as lines:
        tasks = [json.loads(line) for line in lines]
    texts = [text for task in tasks for text in (task["instruction"], task["instances"][0]["output"])]
    return " ".join(texts).split()
