"""The comparison of 500 recorded prompts with every measure that needs no model, and the report of it."""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path

from distill.compare.metrics.copied import Copied
from distill.compare.metrics.diversity import Diversity
from distill.compare.metrics.instructions import Instructions
from distill.compare.metrics.overlap import Overlap
from distill.compare.metrics.style import Style
from distill.compare.stage import Sides, compare
from distill.core import assets
from distill.core.files import write_json
from distill.core.jsonl import read_jsonl, write_rows
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.report.stage import report
from distill.types import Message, Sampling, Session
from tests.benchmarks.arena import Check, Findings, scratch

PROMPTS, QUICK_PROMPTS, ROWS = 500, 60, 5_000
MODELS = ("base", "student", "teacher", "teacher_again")
MOST_SECONDS, MOST_REPORT_SECONDS, MOST_BYTES = 20.0, 5.0, 3_000_000.0
KINDS = ("writing", "maths", "coding", "facts", "roleplay", "plans", "opinions", "editing")


def run(*, quick: bool) -> Findings:
    """Seconds of the comparison and of the report, and the page's bytes."""
    prompts = QUICK_PROMPTS if quick else PROMPTS
    with tempfile.TemporaryDirectory(dir=scratch()) as place:
        folder = Path(place)
        recorded = write(folder, prompts)
        started = time.perf_counter()
        with Journal.open(folder / "journal.sqlite") as journal:
            compare(
                folder,
                engine=lambda providers, *, progress, local: Engine(journal, providers, progress=progress),
                journal=journal,
                metrics=(Overlap(), Style(), Diversity(), Copied(), Instructions(Instructions.Options(prompts=NONE))),
                sampling=Sampling(),
                seed=7,
                sides=Sides(recorded=recorded),
                prompts=folder / "questions.jsonl",
            )
        compared = time.perf_counter() - started
        write_tokens(folder / "answers.jsonl")
        started = time.perf_counter()
        written = report(folder)
        reported = time.perf_counter() - started
    findings = Findings([{"": "ours", "prompts": prompts, "compare s": compared, "report s": reported, **written}])
    findings.checks += [
        Check("seconds of the comparison", compared, MOST_SECONDS),
        Check("seconds of the report", reported, MOST_REPORT_SECONDS),
        Check("bytes of the report", written["bytes"], MOST_BYTES),
    ]
    return findings


NONE = "/dev/null"
"""No prompts of its own: there is nobody to ask them."""


def write(folder: Path, prompts: int) -> dict[str, Path]:
    """Questions, training rows and answers of some 150 words, as long as those of Vicuna's 80 questions."""
    seeds = assets.find("prompts/seeds/general.jsonl").read_text(encoding="utf-8")
    words = sorted({word for word in seeds.split() if word.isalpha()})

    def said(key: str, least: int, most: int) -> str:
        chance = random.Random(key)
        sentences = []
        for _ in range(chance.randint(least, most) // 12):
            sentences.append(" ".join(chance.choices(words, k=12)).capitalize() + ".")
        lists = "".join(f"\n- {' '.join(chance.choices(words, k=6))}" for _ in range(chance.randint(0, 4)))
        return " ".join(sentences) + lists

    write_json(folder / "run.json", {"name": "benchmark", "stages": {}})
    questions = [
        {"question_id": n, "category": KINDS[n % len(KINDS)], "turns": [said(f"q{n}", 12, 40)],
         "checks": [{"kind": "words_at_most", "count": 150}]}
        for n in range(prompts)
    ]  # fmt: skip
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions), encoding="utf-8")
    write_rows(folder / "kept.jsonl", (
        Session(f"row-{n}", (Message("user", said(f"k{n}", 12, 40)), Message("assistant", said(f"a{n}", 60, 240))))
        for n in range(ROWS)
    ))  # fmt: skip
    files = {model: folder / f"{model}.jsonl" for model in MODELS}
    for model, file in files.items():
        rows = ({"question_id": n, "text": said(f"{model}{n}", 60, 240), "finish": "stop"} for n in range(prompts))
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return dict(files)


def write_tokens(path: Path) -> None:
    """Give each prompt the figures of its tokens, of four characters each, as models in this process would."""
    rows = list(read_jsonl(path))
    for row in rows:
        text = row["answers"]["teacher"]["text"]
        widths = [len(text[start : start + 4]) for start in range(0, len(text), 4)]
        row["surprise"] = {"widths": widths, "nats": {model: [2.5] * len(widths) for model in MODELS[:2]}}
    write_rows(path, rows)
