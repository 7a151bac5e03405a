"""`python -m tests.benchmarks.train_cuda`: QLoRA of an 8B Llama on one GPU beside TRL's SFTTrainer.

Tokens/s, share of the card's arithmetic, and memory of our trainer and of TRL's, with its defaults and with settings
that suit it: the same random weights, packed rows, adapter and examples a step, each in a process of its own, in turns.

It needs torch, transformers, trl, peft, datasets, accelerate and bitsandbytes, and nothing else. Where there is no GPU
it runs with `--shape tiny`, to see that it runs; no figure is then one to judge by.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from distill.core.processes import grow_in_place
from tests.benchmarks.arena import CONTENDERS, ROOT, table
from tests.benchmarks.rivals import folder

PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "4090": 165.2,
    "3090": 71.2,
}
"""Dense bf16 with float32 sums, by the vendor's data sheets and by a part of the card's name; the first that fits."""
TOKENS_A_SECOND, MOST_GB, TIMES = 16_000.0, 24.0, 1.8
"""The targets; the first is for cards of `FAST`."""
FAST = 989.0
LLAMA_3_8B_LAYERS = 32
APART = 0.05
"""Nats between the losses of the first step, which no training has changed yet. They are computed in bf16."""
NAMES = {
    "ours": "ours",
    "trl": "TRL, its defaults",
    "trl-best": "TRL, settings that suit it",
}
RECOMPUTE = ("none", "selective", "full")
"""What TRL with settings that suit it tries, until memory is enough."""


def main() -> int:
    """Run the contenders in turns, print and keep what was found; 1 if a target is missed or a contender fails."""
    asked = _asked()
    out = asked.out or folder() / "results" / f"train-cuda-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in asked.only}
    for _ in range(asked.rounds):
        for name in asked.only:
            started = time.monotonic()
            found[name].append(one := _contender(name, asked))
            told = one["failed"] if "failed" in one else f"{_pace(one):,.0f} tokens/s"
            _tell(f"{NAMES[name]}: {told} ({time.monotonic() - started:.0f} s)")
            report = _report(found, asked)
            _keep(report, out)  # a run that is cut short loses nothing
    _tell("\n".join(report["lines"]))
    _tell(str(out))
    return int(any(target["verdict"] == "MISSED" for target in report["targets"]) or report["failed"])


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.train_cuda", description=__doc__)
    parser.add_argument("--shape", choices=("llama-3-8b", "tiny"), default="llama-3-8b")
    parser.add_argument("--layers", type=int, help="fewer than the shape has, for a small card or little time")
    parser.add_argument("--only", nargs="+", choices=tuple(NAMES), default=list(NAMES))
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps that are measured")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them")
    parser.add_argument("--rounds", type=int, default=1, help="of all contenders, in turns")
    parser.add_argument("--rows", type=int, default=4, help="packed rows in an optimizer step")
    parser.add_argument("--length", type=int, help="tokens of a row: 4,096, and 256 with the tiny shape")
    parser.add_argument(
        "--sessions", choices=("mixed", "whole"), default="mixed", help="many in a row, or one that fills it"
    )
    parser.add_argument(
        "--room-gb", type=float, default=MOST_GB, help="memory that ours may plan with; 0: all that the card has free"
    )
    parser.add_argument(
        "--peak-tflops", type=float, help="the card's dense bf16 arithmetic, where it is not known here"
    )
    parser.add_argument("--profile", action="store_true", help="look into one step more: its longest kernels")
    parser.add_argument("--timeout", type=float, default=1_800.0, help="seconds for one contender")
    parser.add_argument("--out", type=Path, help="the JSON; in the benchmarks' results when left out")
    asked = parser.parse_args()
    asked.length = asked.length or (256 if asked.shape == "tiny" else 4096)
    return asked


# Contenders


def _contender(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """What it says of itself; `failed` says why where it came to no end."""
    if name != "trl-best":
        return _run(name, asked)
    for how in RECOMPUTE:
        found = _run(name, asked, recompute=how)
        if not found.get("out_of_memory"):
            break
        _tell(f"{NAMES[name]}, recomputing {how}: {found['failed']}")
    return found


def _run(name: str, asked: argparse.Namespace, *, recompute: str = "full") -> dict[str, Any]:
    given = {
        "shape": asked.shape,
        "layers": asked.layers,
        "steps": asked.steps,
        "warm_up": asked.warm_up,
        "rows": asked.rows,
        "length": asked.length,
        "sessions": asked.sessions,
        "room_gb": asked.room_gb or None,
        "profile": asked.profile,
        "best": name == "trl-best",
        "recompute": recompute,
    }
    script = CONTENDERS / ("cuda_ours.py" if name.startswith("ours") else "cuda_trl.py")
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    if name != "trl":
        grow_in_place(environment)
    environment.setdefault("CUDA_VISIBLE_DEVICES", "0")
    try:
        ended = subprocess.run(
            [sys.executable, script, json.dumps(given)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=asked.timeout,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"did not end in {asked.timeout:g} s"}
    if ended.returncode:
        complaint = ended.stderr.strip().splitlines() or [f"ended with {ended.returncode}"]
        errors = [line for line in complaint if re.match(r"[\w.]+(Error|Exception): ", line)]
        return {"failed": (errors or complaint)[-1][:300], "complaint": complaint[-40:]}
    return dict(json.loads(ended.stdout.splitlines()[-1]))


# What they found


@dataclass(frozen=True, slots=True)
class Card:
    """What a figure is judged against."""

    name: str
    tflops: float | None
    """Its dense bf16 arithmetic; None where it is not known."""
    whole: bool
    """Whether it is a GPU, and the model the one of the targets, with all its layers and its rows."""


def _report(found: Mapping[str, list[dict[str, Any]]], asked: argparse.Namespace) -> dict[str, Any]:
    whole = [one for results in found.values() for one in results if "failed" not in one]
    card = _card(whole[0]["device"] if whole else "none", asked)
    rows = [_row(name, results, card, found) for name, results in found.items()]
    targets = [dict(zip(("verdict", "what"), target, strict=True)) for target in _targets(found, card)]
    lines = [*_head(whole, card, asked), table(rows), *_notes(found)]
    lines += [f"{target['verdict']:<14} {target['what']}" for target in targets]
    failed = any("failed" in one and not one.get("out_of_memory") for results in found.values() for one in results)
    settings = {name: value for name, value in vars(asked).items() if name != "out"}
    return {
        "at": datetime.now(UTC).isoformat(),
        "device": card.name,
        "settings": settings,
        "rows": rows,
        "targets": targets,
        "failed": failed,
        "lines": lines,
        "results": found,
    }


def _card(device: str, asked: argparse.Namespace) -> Card:
    known = next((tflops for part, tflops in PEAK_TFLOPS.items() if part in device), None)
    targeted = asked.shape == "llama-3-8b" and asked.layers in (None, LLAMA_3_8B_LAYERS) and asked.length == 4096
    return Card(device, asked.peak_tflops or known, targeted and device not in ("CPU", "none"))


def _head(whole: list[dict[str, Any]], card: Card, asked: argparse.Namespace) -> Iterator[str]:
    peak = f", {card.tflops:g} TFLOP/s of dense bf16" if card.tflops else ", its arithmetic not known"
    yield f"device: {card.name}{peak if card.name != 'CPU' else ': no figure here is one to judge by'}"
    if whole:
        versions = ", ".join(f"{name} {version}" for name, version in whole[0]["versions"].items())
        yield f"Python {whole[0]['python']}, {versions}"
    layers = f", layers: {asked.layers}" if asked.layers else ""
    yield (
        f"{asked.shape}{layers}, NF4 with double quantisation, LoRA r 64 on all linear layers; rows a step: "
        f"{asked.rows}, of {asked.length:,} tokens ({asked.sessions} sessions); median of {asked.steps} steps, after "
        f"{asked.warm_up} to warm up; rounds: {asked.rounds}"
    )


def _row(
    name: str,
    results: list[dict[str, Any]],
    card: Card,
    found: Mapping[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    done = [one for one in results if "failed" not in one]
    empty = dict.fromkeys(
        ("tokens/s", "trained tokens/s", "MFU %", "GB allocated", "GB reserved", "GB by formula"), "–"
    )
    row: dict[str, Any] = {"": NAMES[name], **empty, "recomputes": "–", "loss of step 1": "–", "ours over it": "–"}
    if not done:
        return row
    pace = median(map(_pace, done))
    row |= {"tokens/s": f"{pace:,.0f}", "trained tokens/s": f"{median(_pace(one, 'trained') for one in done):,.0f}"}
    if card.tflops:
        row["MFU %"] = f"{pace * done[0]['flops_a_token'] / card.tflops / 1e10:.1f}"
    row |= {f"GB {kind}": max(one["memory"][kind] for one in done) for kind in ("allocated", "reserved")}
    if "formula" in done[0]:
        row["GB by formula"] = sum(done[0]["formula"].values())
    row |= {"recomputes": done[0]["recomputes"], "loss of step 1": f"{done[0]['losses'][0]:.4f}"}
    if times := _times(found, name):
        row["ours over it"] = median(times)
    return row


def _pace(result: Mapping[str, Any], kind: str = "tokens") -> float:
    """Tokens a second: the median of the steps."""
    return median(tokens / seconds for tokens, seconds in zip(result[kind], result["seconds"], strict=True))


def _times(found: Mapping[str, list[dict[str, Any]]], name: str) -> list[float]:
    """How many times as fast ours was, in each round in which both came to an end."""
    pairs = zip(found.get("ours", []), found[name], strict=False)
    return [_pace(ours) / _pace(theirs) for ours, theirs in pairs if "failed" not in ours and "failed" not in theirs]


def _notes(found: Mapping[str, list[dict[str, Any]]]) -> Iterator[str]:
    for name, results in found.items():
        for one in results[:1]:
            if "failed" in one:
                yield f"{NAMES[name]}: {one['failed']}"
                continue
            liger = ", Liger's kernels" if one.get("liger") else ""
            by_parts = {part: f"{size:.2f}" for part, size in one.get("formula", {}).items()}
            formula = f"; by formula, GB: {', '.join(f'{part} {size}' for part, size in by_parts.items())}"
            yield (
                f"{NAMES[name]}: passes of {one['pass_tokens']:,} tokens, attention {one['attention']}{liger}; "
                f"{one['memory']['card']:.2f} GB of the card taken at most, {one['memory']['loading']:.2f} GB "
                f"allocated while the model was made{formula if by_parts else ''}"
            )
            if own := one.get("lean"):
                counts = ", ".join(f"{kind} {count}" for kind, count in own.items())
                yield f"{NAMES[name]}: modules that compute by its own functions: {counts}"
            yield from (f"{NAMES[name]} said: {line}" for line in one["said"])
            if one.get("kernels"):
                yield table([{**kernel, "ms": f"{kernel['ms']:.2f}"} for kernel in one["kernels"]])


def _targets(found: Mapping[str, list[dict[str, Any]]], card: Card) -> Iterator[tuple[str, str]]:
    """Verdict and what is judged."""
    if ours := [one for one in found.get("ours", []) if "failed" not in one]:
        pace, memory = median(map(_pace, ours)), max(one["memory"]["reserved"] for one in ours)
        partly = not any(one["all_recomputed"] for one in ours)
        fast = card.whole and card.tflops == FAST
        goal = f"{pace:,.0f} tokens/s without recomputing every layer (at least {TOKENS_A_SECOND:,.0f} on an H100 SXM)"
        yield _verdict(fast, pace >= TOKENS_A_SECOND and partly), f"ours: {goal}"
        yield _verdict(card.whole, memory <= MOST_GB), f"ours: {memory:.2f} GB reserved (at most {MOST_GB:g})"
    if times := _times(found, "trl") if "trl" in found else []:
        yield (
            _verdict(card.whole, median(times) >= TIMES),
            f"ours: {median(times):.2f} times as fast as TRL with its defaults (at least {TIMES:g})",
        )
    first = [one["losses"][0] for results in found.values() for one in results if "failed" not in one]
    if len(first) > 1:
        apart = max(first) - min(first)
        yield _verdict(True, apart <= APART), f"losses of the first step {apart:.4f} apart (at most {APART:g})"


def _verdict(applies: bool, good: bool) -> str:
    return ("ok" if good else "MISSED") if applies else "not applicable"


def _keep(report: Mapping[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
