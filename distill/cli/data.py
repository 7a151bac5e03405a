"""Commands that import and export datasets and students."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distill.cli.app import AllowParts, RunFolder, app
from distill.core import console


@app.command(name="import")
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a file, a folder, or a Hub id (owner/name)")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="JSONL; of x.jsonl, rejects go to x.rejected.jsonl")
    ],
    from_: Annotated[
        str | None, typer.Option("--from", metavar="FORMAT", help="alpaca, sharegpt, openai …; guessed if left out")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="COLUMN", help="of a table: the column of the question")
    ] = None,
    answer: Annotated[
        str | None, typer.Option("--answer", metavar="COLUMN", help="with --prompt: the column of the answer")
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="COLUMN", help="with --prompt: that of the system message")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="COLUMN", help="the column of the right answer, to check by")
    ] = None,
    as_: Annotated[
        str | None,
        typer.Option("--as", metavar="ROWS", help="sessions, tasks (questions alone) or pairs; by row if left out"),
    ] = None,
    take: Annotated[int | None, typer.Option("--take", min=1, metavar="N", help="a sample of N rows")] = None,
    seed: Annotated[int, typer.Option("--seed", help="which sample")] = 7,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="DIR", help="smollm2, or a folder with a tokenizer.json")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=16, metavar="N", help="split what is longer, before a question"),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", metavar="NAME", help="of a dataset")] = None,
    revision: Annotated[str | None, typer.Option("--revision", metavar="NAME", help="of a Hub dataset")] = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="NAME", help="of a Hub dataset: a part of it")
    ] = None,
    licence: Annotated[str | None, typer.Option("--licence", metavar="TEXT", help="recorded in every row")] = None,
    allow_parts: AllowParts = None,
) -> None:
    """Import a foreign dataset as sessions, tasks or pairs.

    Writes them, and the rejected rows with reasons. Only malformed rows are repaired or rejected; filtering by words
    and removing duplicates is left to `curate`.

    Example: distill import sharegpt.json --from sharegpt --out sessions.jsonl

    Example: distill import rows.csv --prompt question --answer reply --out sessions.jsonl
    """
    from distill.formats import import_file
    from distill.formats.named_columns import named_columns

    for line in import_file.import_command(
        file, out, format=from_, columns=named_columns(prompt, answer, system, reference), kind=as_, take=take,
        seed=seed, tokenizer=tokenizer, max_tokens=max_tokens,
        split=split, revision=revision, config=config, licence=licence, allowed=allow_parts or (),
    ):  # fmt: skip
        console.result(line)


To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="FORMAT",
        help="rows: alpaca, sharegpt, openai, pairs, parquet, hub; the comparison: alpaca_eval, llm_comparator,"
        " inspect; the student: adapter, merged, gguf, ollama",
    ),
]


@app.command()
def export(
    run_folder: RunFolder,
    to: To,
    out: Annotated[Path, typer.Option("--out", metavar="PATH", help="a file; for hub and the student, a new folder")],
    which: Annotated[
        str | None, typer.Option("--which", metavar="ROWS", help="kept (the default), test or dropped")
    ] = None,
    no_system: Annotated[bool, typer.Option("--no-system", help="of rows: leave their system turn out")] = False,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="TYPE", help="of the student's weights: float16 (default), bfloat16, float32"),
    ] = None,
    quantise: Annotated[
        str | None,
        typer.Option(
            "--quantise",
            metavar="TYPE",
            help="of a GGUF: q8_0, q6_k, q5_k_m, q4_k_m; auto takes the smallest within"
            " 0.01 nats per token (or --max-kl) of the student",
        ),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option("--max-kl", min=0, metavar="NATS", help="another limit than the format's own, nats per token"),
    ] = None,
) -> None:
    """Write a run's rows, comparison or student for others.

    hub makes a folder ready to upload, with a dataset card. Rows that a format cannot hold are left out and counted.

    adapter (PEFT), merged (safetensors), gguf (llama.cpp) and ollama (with a Modelfile) are compared with the trained
    student on the held-out prompts. The export gets a receipt (export.json) and a model card; one that is over its
    limits ends with exit code 1 and lies at PATH.failed.

    Example: distill export runs/quickstart --to merged --out quickstart-student
    """
    from distill.formats import export as exporting

    for line in exporting.export(
        run_folder, to=to, out=out, which=which, dtype=quantise or dtype, max_kl=max_kl, system=not no_system
    ):
        console.result(line)
