"""`python -m tests.benchmarks.families [NAME …]`: trains tiny random models of every family and prints the outcome.

Per family and method: one step on a few rows through the whole training; the logged loss against the model's own
forward, row by row; the student, read again, against `generate`; the likelihood of an answer against the forward; and
the merged weights, read by plain transformers, against the adapter. The table stands in distill/train/README.md.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.types import Request, Sampling
from tests.support.models.archs import ARCHS, save_arch
from tests.support.training import SESSIONS, losses, options, run

ROWS, TOKENS, NEAR = SESSIONS[:6], 4, 2e-3
METHODS = ("lora", "qlora", "full")


def main(names: Sequence[str]) -> None:
    """Print the table as Markdown, a row a family as it is done."""
    warnings.simplefilter("ignore")
    sys.stdout.write(f"| family | {' | '.join(METHODS)} | the self-check says |\n|{' --- |' * (len(METHODS) + 2)}\n")
    for name in names or ARCHS:
        folder = Path(tempfile.mkdtemp())
        try:
            sys.stdout.write(_row(name, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        sys.stdout.flush()


def _row(name: str, folder: Path) -> str:
    model = save_arch(name, folder / "model")
    cells, said = [], ""
    for method in METHODS:
        faults, line = tried(model, folder / method, method)
        cells.append(", ".join(faults) or "ok")
        said = line if method == "lora" or not said else said
    return f"| {name} | {' | '.join(cells)} | {said.removeprefix('self-check: ')} |\n"


def tried(model: Path, student: Path, method: str) -> tuple[list[str], str]:
    """What went wrong with one training, and the line of its self-check; a refusal counts as its own line."""
    chosen = options(
        method=method, epochs=1, batch_rows=128, batch_tokens=None, eval_rows=1, eval_steps=1, eval_tokens=4
    )
    try:
        run(student, str(model), sessions=ROWS, options=chosen, layers=None)
        return list(_faults(model, student, method)), json.loads((student / "checks.json").read_text())["line"]
    except DistillError as error:
        return [f"refused: {str(error).replace(str(model), 'MODEL')}"], ""


def _faults(model: Path, folder: Path, method: str) -> Iterator[str]:
    import torch

    from distill.models import chat_template, loading, pretrained
    from distill.models.generation import answer
    from distill.models.likelihood import ContinuationScores, loglikelihoods

    tokenizer = loading.load_tokenizer(folder)
    base = loading.load_causal(model) if method == "full" else loading.load_student(folder, adapter=False)[0]
    trained = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])["id"]
    sessions = [one for one in ROWS if one.id != trained]
    rows = [chat_template.encode(one.messages, "chatml", tokenizer) for one in sessions]
    if abs(losses(folder)[0] - _loss(base, rows)) > NEAR:
        yield "another loss than the model's own"
    student, _ = loading.load_student(folder, adapter=True)
    if _loss(student, rows) >= _loss(base, rows):
        yield "has not learnt"
    prompt = ROWS[0].messages[:1]
    request = Request(role="student", messages=prompt, sampling=Sampling(temperature=0.0, max_tokens=TOKENS))
    (reply,) = answer(student, tokenizer, "chatml", [request])
    ids = torch.tensor([chat_template.prompt_ids(prompt, "chatml", tokenizer)])
    whole = student.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS)
    if getattr(reply, "text", reply) != tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True):
        yield f"another answer than `generate` ({reply})"
    (score,) = loglikelihoods(student, tokenizer, "chatml", [(prompt, ROWS[0].messages[1].content)])
    example = chat_template.encode(ROWS[0].messages, "chatml", tokenizer, truncated=True)
    own = -_loss(student, [example]) * example.trained
    if not isinstance(score, ContinuationScores) or abs(score.total - own) > 10 * NEAR:
        yield f"another likelihood than the forward's ({score})"
    student.save_pretrained(folder / "merged")
    again = pretrained.load_model(folder / "merged", pretrained.kind_of(folder / "merged"), dtype=torch.float32)
    if abs(_loss(again.eval(), rows) - _loss(student, rows)) > NEAR:
        yield "the merged weights are another model"


def _loss(model: Any, rows: Sequence[Any]) -> float:
    """Nats per trained token by the model's own forward, row by row."""
    import torch

    total = 0.0
    for row in rows:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum"))
    return total / sum(row.trained for row in rows)


if __name__ == "__main__":
    main(sys.argv[1:])
