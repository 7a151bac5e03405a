"""Every rule that asks no model, over 100,000 sessions through the stage itself, beside datasketch's MinHashLSH.

The stage has every core, as in a run; MinHash alone and its rival have one each. That the order of the sessions decides
nothing but which of equal ones stays is checked on a fifth of them.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from distill.core import assets
from tests.benchmarks.arena import Check, Findings, finish, scratch, start
from tests.benchmarks.rivals import python

ROWS, QUICK_ROWS = 100_000, 4_000
SHARE = 5
"""A fifth of the rows is enough for the rival, whose time grows with them, and to see what each rule takes."""
ORDERS = (("other verdicts", "verdicts"), ("other texts kept", "kept"))
MOST_SECONDS, MOST_MB = 180.0, 2_000.0
ENDINGS = ("s", "er", "ing", "ed", "ly", "ness", "ful", "less", "ment", "able")
PLANTED = {"equal": 0.03, "near": 0.05, "loop": 0.01, "personal": 0.02, "refusal": 0.01, "empty": 0.005}
"""Shares of the rows."""


def run(*, quick: bool) -> Findings:
    """Seconds, memory and verdicts of the stage; then on a fifth of the rows the same by rule, in two orders, and
    MinHash alone, ours and the rival's."""
    rows = QUICK_ROWS if quick else ROWS
    with tempfile.TemporaryDirectory(dir=scratch()) as place:
        folder = Path(place)
        planted = write(folder / "sessions.jsonl", rows)
        whole = finish(start("curating", folder, "whole", alone=True), timeout_seconds=1_200)
        write(folder / "sessions.jsonl", rows // SHARE)
        by_rule = finish(start("curating", folder, "by_rule"), timeout_seconds=600)
        orders = finish(start("curating", folder, "orders", alone=True), timeout_seconds=600)
        alone = finish(start("curating", folder, "minhash"), timeout_seconds=600)
        rival = _rival(folder)
    findings = Findings([_row("all rules", whole), _row("minhash alone", alone)])
    findings.checks += [Check("seconds", whole["seconds"], MOST_SECONDS), Check("MB", whole["mb"], MOST_MB)]
    findings.checks += [
        Check(f"{what} of {orders['rows']} rows in another order", orders[key], 0) for what, key in ORDERS
    ]
    findings.notes += [f"seconds by rule, of {rows // SHARE} rows: {by_rule}"]
    findings.notes += [f"planted: {planted}", f"dropped: {whole['verdicts']}"]
    if rival is not None:
        findings.rows.append(_row("datasketch's MinHashLSH", rival))
        findings.checks.append(Check("times faster than datasketch", rival["cpu"] / alone["cpu"], 1, True))
    return findings


def _row(name: str, result: dict[str, Any]) -> dict[str, Any]:
    shown = {"rows": "rows", "seconds": "seconds", "CPU seconds": "cpu", "MB": "mb", "dropped": "dropped"}
    return {"": name, **{title: result[key] for title, key in shown.items()}}


def _rival(folder: Path) -> dict[str, Any] | None:
    interpreter = python("datasketch")
    if interpreter is None:
        return None
    return finish(start("datasketch_lsh", folder, python=interpreter), timeout_seconds=1_200)


def write(path: Path, rows: int) -> dict[str, int]:
    """Write sessions of random English-like words, of the lengths of Alpaca's; how many of each kind are planted."""
    rng = random.Random(7)
    text = _writer(rng)
    planted = dict.fromkeys(PLANTED, 0)
    earlier: list[tuple[str, str]] = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            kind = rng.choices((*PLANTED, "plain"), (*PLANTED.values(), 1 - sum(PLANTED.values())))[0]
            kind = "plain" if kind in ("equal", "near") and not earlier else kind
            prompt, answer = _texts(kind, earlier, rng, text)
            if kind == "plain":
                earlier.append((prompt, answer))
            else:
                planted[kind] += 1
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            meta = {"source": f"source{rng.randrange(20)}", "truncated": rng.random() < 0.02}
            file.write(f"{json.dumps({'id': f's{number:06}', 'messages': messages, 'meta': meta})}\n")
    return planted


def _writer(rng: random.Random) -> Any:
    """Draws so many words of 20,000, the k-th with a weight of 1/k: those of the seeds, and others made of them."""
    lines = assets.find("prompts/seeds/general.jsonl").read_text(encoding="utf-8").splitlines()
    known = [word for line in lines for word in json.loads(line)["instruction"].lower().split() if word.isalpha()]
    vocabulary = list(dict.fromkeys(known))
    made = (first + second + ending for first in vocabulary for second in vocabulary for ending in ENDINGS)
    vocabulary += [word for word in made if len(word) < 14 and rng.random() < 0.05][: 20_000 - len(vocabulary)]
    vocabulary[50:50] = ["12", "2021", "3.5"]  # about half of real texts have digits
    weights = list(accumulate(1 / rank for rank in range(1, len(vocabulary) + 1)))

    def text(words: int) -> str:
        return " ".join(_sentences(rng.choices(vocabulary, cum_weights=weights, k=words)))

    return text


def _sentences(words: list[str]) -> Iterator[str]:
    for first in range(0, len(words), 14):
        sentence = " ".join(words[first : first + 14])
        yield f"{sentence.capitalize()}."


def _texts(kind: str, earlier: list[tuple[str, str]], rng: random.Random, text: Any) -> tuple[str, str]:
    prompt, words = text(rng.randint(6, 24)), min(800, int(rng.lognormvariate(4.6, 0.8)) + 3)
    if kind == "equal":
        return rng.choice(earlier)
    if kind == "near":
        prompt, answer = rng.choice(earlier)
        changed = answer.split()
        changed[rng.randrange(len(changed))] = "otherwise"
        return prompt, " ".join(changed)
    if kind == "loop":
        return prompt, f"{text(20)} " * 12
    if kind == "personal":
        return prompt, f"{text(words)} Write to {rng.choice('abcdef')}.smith{rng.randrange(99)}@mail.net. {text(words)}"
    if kind == "refusal":
        return prompt, f"I'm sorry, but I cannot help with that. {text(words)}"
    return prompt, "..." if kind == "empty" else text(words)
