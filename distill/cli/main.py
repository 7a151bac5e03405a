"""The command line: one function a command, each a thin door to the pipeline."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from distill.core import console, processes
from distill.errors import DistillError, Interrupted, RecipeError, disk_fault

app = typer.Typer(
    name="distill",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

UsageFault: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
"""The base of usage errors: click's, or that of the copy which newer typer brings."""

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="a recipe: a YAML file, or a shipped one's name")]
RecipeOrRun = Annotated[Path, typer.Argument(metavar="RECIPE_OR_RUN", help="a recipe, or a run folder")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, such as runs/quickstart")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="the run folder; by default runs/NAME")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="override a key of the recipe; may be given again"),
]
AllowParts = Annotated[
    list[str] | None,
    typer.Option("--allow-parts", metavar="PACKAGE", help="let the recipe run code of this package (module:thing)"),
]
AcceptPartial = Annotated[bool, typer.Option("--accept-partial", help="go on from a stage that is only partly done")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="with collect.mode batch: end while batches are open")]
NewJournal = Annotated[
    bool, typer.Option("--new-journal", help="go on where the journal lost what was bought; it stays spent")
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="ask permanently failed requests again")]


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
    version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
) -> None:
    """Train a small model to imitate a large one.

    One recipe (YAML) describes a run: grow tasks from seeds, collect a teacher's answers, curate them, train a
    student, compare it with its untrained base and the teacher, write a report.

    Start with: distill run quickstart
    """
    if debug:
        os.environ["DISTILL_DEBUG"] = "1"
    if version:
        import distill

        console.result(distill.__version__)
        raise typer.Exit


@app.command()
def run(
    recipe: RecipePath,
    run_dir: RunDir = None,
    set_: Set = None,
    stages: Annotated[str | None, typer.Option("--stages", metavar="A,B", help="only these stages")] = None,
    retry_failed: RetryFailed = False,
    accept_partial: AcceptPartial = False,
    no_wait: NoWait = False,
    new_journal: NewJournal = False,
    allow_parts: AllowParts = None,
) -> None:
    """Run a recipe from where it stands to its report.

    Finished stages are skipped; bought answers are never bought again.

    Example: distill run quickstart --set train.epochs=3
    """
    from distill.pipeline import runner

    names = [name.strip() for name in stages.split(",")] if stages else None
    runner.run_recipe(
        recipe,
        run_dir=run_dir,
        overrides=set_ or (),
        stages=names,
        retry_failed=retry_failed,
        accept_partial=accept_partial,
        new_journal=new_journal,
        allowed=allow_parts or (),
        wait=not no_wait,
    )


def _verb(name: str, help_text: str) -> None:
    """Add the command that runs one stage."""

    def command(
        recipe_or_run: RecipeOrRun,
        run_dir: RunDir = None,
        set_: Set = None,
        retry_failed: RetryFailed = False,
        accept_partial: AcceptPartial = False,
        new_journal: NewJournal = False,
        allow_parts: AllowParts = None,
    ) -> None:
        from distill.pipeline import runner

        runner.run_recipe(
            recipe_or_run,
            run_dir=run_dir,
            overrides=set_ or (),
            stages=[name],
            retry_failed=retry_failed,
            accept_partial=accept_partial,
            new_journal=new_journal,
            allowed=allow_parts or (),
        )

    app.command(name=name, help=f"{help_text}\n\nExample: distill {name} runs/quickstart")(command)


_verb("expand", "Grow tasks from the recipe's seeds: writes tasks.jsonl.")


@app.command()
def collect(
    recipe_or_run: RecipeOrRun,
    run_dir: RunDir = None,
    set_: Set = None,
    retry_failed: RetryFailed = False,
    accept_partial: AcceptPartial = False,
    no_wait: NoWait = False,
    cancel_batches: Annotated[
        bool, typer.Option("--cancel-batches", help="cancel what is open at the provider; keep what is finished")
    ] = False,
    new_journal: NewJournal = False,
    allow_parts: AllowParts = None,
) -> None:
    """Have the teachers answer the tasks: writes sessions.jsonl.

    Example: distill collect runs/quickstart
    """
    from distill.pipeline import runner

    if cancel_batches:
        runner.cancel_batches(
            recipe_or_run, run_dir=run_dir, overrides=set_ or (), wait=not no_wait, new_journal=new_journal
        )
        return
    runner.run_recipe(
        recipe_or_run,
        run_dir=run_dir,
        overrides=set_ or (),
        stages=["collect"],
        retry_failed=retry_failed,
        accept_partial=accept_partial,
        new_journal=new_journal,
        allowed=allow_parts or (),
        wait=not no_wait,
    )


_verb("curate", "Keep or drop each session, and say why.\n\nWrites kept.jsonl, dropped.jsonl and test.jsonl.")


@app.command()
def train(
    recipe_or_run: RecipeOrRun,
    run_dir: RunDir = None,
    set_: Set = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="make one pass and say what all will take: memory, time; write nothing")
    ] = False,
    show_masks: Annotated[
        int | None,
        typer.Option("--show-masks", min=1, metavar="N", help="show N examples with what is trained marked, and end"),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="start over, whatever checkpoints or student there are")
    ] = False,
    accept_partial: AcceptPartial = False,
    new_journal: NewJournal = False,
    allow_parts: AllowParts = None,
) -> None:
    """Fine-tune the student on the kept sessions: writes student/.

    A student that is there stays in use until the new one is finished; then it becomes student.previous, which
    `distill clean` removes.

    Before the first step the loss mask of every row is checked against the template; a fault stops with the row and
    the token. An interrupted training goes on where it stood when the same command is typed again, and says what has
    changed where it cannot; --fresh starts over.

    Example: distill train runs/quickstart --plan
    """
    from distill.pipeline import runner, training_plan

    given: dict[str, Any] = {"run_dir": run_dir, "overrides": set_ or (), "allowed": allow_parts or ()}
    if plan:
        for line in training_plan.plan(recipe_or_run, **given):
            console.result(line)
    if show_masks is not None:
        training_plan.show_masks(recipe_or_run, show_masks, **given)
    if not plan and show_masks is None:
        given |= {"accept_partial": accept_partial, "fresh": fresh, "new_journal": new_journal}
        runner.run_recipe(recipe_or_run, stages=["train"], **given)


_verb("compare", "Ask student, base and teacher the held-out prompts.\n\nWrites answers.jsonl and scores.json.")
_verb("report", "Write report.html from what the run folder holds.")


@app.command()
def check(
    recipe: RecipePath,
    set_: Set = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="ask the teacher's endpoint a dozen tiny questions: what does it honour?")
    ] = False,
    like: Annotated[
        str | None, typer.Option("--like", metavar="NAME", help="say where it departs from a shipped recipe")
    ] = None,
) -> None:
    """Validate a recipe offline, and forecast what it will take.

    That is requests, tokens, USD, memory and time, by formulas: no model is loaded and nobody is asked. With --probe,
    also ask the teacher's endpoint which parameters have any effect there, and say what of the recipe it ignores; the
    findings are kept, and later checks and runs read them.

    Example: distill check recipes/quickstart.yaml --probe
    """
    from distill.pipeline import forecast, parts

    if like is not None:
        from distill.pipeline import starter

        for line in starter.departures(recipe, like):
            console.result(line)
        return
    loaded = parts.load_recipe(recipe, overrides=set_ or (), importing=False)
    for line in forecast.lines(loaded, probed=not probe):
        console.result(line)
    if probe:
        from distill.pipeline import doctor

        doctor.examine_teachers(loaded)


@app.command()
def show(
    run_folder: RunFolder,
    funnel: Annotated[
        bool, typer.Option("--funnel", help="rows lost by each curation rule, overlaps of rules, examples")
    ] = False,
    worst: Annotated[
        int | None,
        typer.Option("--worst", metavar="N", min=1, help="page through the N prompts that the student does worst on"),
    ] = None,
) -> None:
    """Show a run's stages, rows, tokens and cost.

    With --funnel, what curation took; with --worst, where the student does worst, with what differs marked.

    Example: distill show runs/quickstart --worst 10
    """
    if worst is not None:
        from distill.cli import show as pairs

        console.page(pairs.worst_lines(run_folder, worst, console.painted))
        return
    from distill.cli import show as lost
    from distill.cli.show import status_lines

    for line in lost.funnel_lines(run_folder) if funnel else status_lines(run_folder):
        console.result(line)


@app.command()
def diff(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_A RUN_B …", help="two run folders, or more for a curve")],
    as_json: Annotated[bool, typer.Option("--json", help="everything as one JSON object")] = False,
) -> None:
    """Compare two runs on the prompts that both have.

    What got better or worse, and is it more than noise? Given three runs or more, each measure over how much the
    students were trained on, with the untrained base at 0.

    Example: distill diff runs/quickstart runs/quickstart-next
    """
    from distill.compare import diff as held
    from distill.core.jsonl import to_json
    from distill.errors import RecipeError

    if len(runs) < 2:
        raise RecipeError("diff: one run is given; name two, or more for a curve over data size")
    found = [held.read(folder) for folder in runs]
    told = held.diff(*found) if len(found) == 2 else held.curve(found)
    if as_json:
        console.result(json.dumps(to_json(told), ensure_ascii=False, indent=1))
        return
    for line in held.lines(told) if len(found) == 2 else held.curve_lines(told):
        console.result(line)


@app.command(name="next")
def next_round(
    run_folder: RunFolder,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="where the recipe and its seeds go")] = Path(),
    tasks: Annotated[int | None, typer.Option("--tasks", min=1, help="tasks to grow; as many as before")] = None,
) -> None:
    """Plan another round from what the student does worst on.

    Writes seeds near what it loses and was taught little of, and a recipe that uses them. No held-out prompt becomes a
    seed.

    Example: distill next runs/quickstart --tasks 200
    """
    from distill.pipeline import next_round as next_round_module

    for line in next_round_module.plan(run_folder, out, tasks=tasks):
        console.result(line)


@app.command()
def smoke(
    recipe: RecipePath,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="keep the run there; by default it is gone")] = None,
) -> None:
    """Run a recipe through once in seconds, with a tiny model.

    A random model, few rows, every stage and part, real NF4 on a CPU. Prints the keys that it changes: models, sizes,
    paths and counts.

    Example: distill smoke alpaca-7b
    """
    import tempfile

    from distill.pipeline import smoke as smoking

    with tempfile.TemporaryDirectory(prefix="distill-smoke-") as temporary:
        for line in smoking.lines(smoking.smoke(recipe, run_dir or Path(temporary))):
            console.result(line)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="where the copy goes")] = Path(),
    like: Annotated[
        str | None, typer.Option("--like", metavar="NAME", help="a shipped recipe, such as alpaca-7b")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="what the copy is called")] = None,
) -> None:
    """Start a recipe of your own: a copy of a shipped one.

    The seeds and prompts that it names are copied beside it. Without --like it is a copy of quickstart.

    Example: distill init --like alpaca-7b
    """
    from distill.pipeline import starter

    for line in starter.init(folder, like=like, name=name):
        console.result(line)


@app.command()
def chat(run_folder: RunFolder) -> None:
    """Talk with a run's student and its teacher at once.

    Lines come from the terminal, or from a pipe. Nothing is written but what /save writes.

    Example: distill chat runs/quickstart
    """
    from distill.pipeline import chat as chat_module

    for line in chat_module.talk(run_folder, console.asked("you: ")):
        console.result(line)


@app.command(name="explain-miss")
def explain_miss(
    recipe_or_run: RecipeOrRun,
    run_dir: RunDir = None,
    set_: Set = None,
    task: Annotated[str | None, typer.Option("--task", metavar="ID", help="only this task")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="explain so many")] = 5,
    allow_parts: AllowParts = None,
) -> None:
    """Say why a run would ask again.

    Names the field in which a request differs from the nearest one in the journal. Asks nothing and writes nothing.

    Example: distill explain-miss runs/quickstart --set teacher.sampling.temperature=0.2
    """
    from distill.pipeline.explain_miss import misses

    for line in misses(
        recipe_or_run, run_dir=run_dir, overrides=set_ or (), task=task, limit=limit, allowed=allow_parts or ()
    ):
        console.result(line)


@app.command()
def clean(run_folder: RunFolder) -> None:
    """Make a run's folder smaller: what it needs stays.

    Removes the student before the present one (student.previous, which a retraining leaves), and what killed processes
    left behind; trims the journal. Answers, rows, the student and a training that is unfinished are never touched.

    Example: distill clean runs/quickstart
    """
    from distill.pipeline import explain_miss as explain_miss_module

    for line in explain_miss_module.clean(run_folder):
        console.result(line)


@app.command(name="import")
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a file, a folder, or a Hub id (owner/name)")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="JSONL; rejects go to FILE.rejected.jsonl")],
    from_: Annotated[
        str | None, typer.Option("--from", metavar="FORMAT", help="alpaca, sharegpt, openai …; guessed if left out")
    ] = None,
    as_: Annotated[
        str, typer.Option("--as", metavar="ROWS", help="sessions, or tasks: the questions alone")
    ] = "sessions",
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
    licence: Annotated[str | None, typer.Option("--licence", metavar="TEXT", help="noted in every row")] = None,
    allow_parts: AllowParts = None,
) -> None:
    """Read data that others made, as sessions or as tasks.

    Writes them, and what was rejected and why. What is malformed is repaired or rejected, nothing else; `curate` has
    the rules for words and duplicates.

    Example: distill import sharegpt.json --from sharegpt --out sessions.jsonl
    """
    from distill.formats import import_file

    for line in import_file.import_command(
        file, out, format=from_, wanted=as_, take=take, seed=seed, tokenizer=tokenizer, max_tokens=max_tokens,
        split=split, revision=revision, licence=licence, allowed=allow_parts or (),
    ):  # fmt: skip
        console.result(line)


@app.command()
def export(
    run_folder: RunFolder,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="rows: alpaca, sharegpt, openai, parquet, hub; the comparison: alpaca_eval, llm_comparator, inspect;"
            " the student: adapter, merged, gguf, ollama",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="PATH", help="a file; for hub and the student, a new folder")],
    which: Annotated[
        str | None, typer.Option("--which", metavar="ROWS", help="kept (unless you say otherwise), test or dropped")
    ] = None,
    no_system: Annotated[bool, typer.Option("--no-system", help="of rows: leave their system turn out")] = False,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="TYPE", help="of the student's weights: float16 (default), float32, q8_0 …"),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option("--max-kl", min=0, metavar="NATS", help="another limit than the format's own, nats a token"),
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
        run_folder, to=to, out=out, which=which, dtype=dtype, max_kl=max_kl, system=not no_system
    ):
        console.result(line)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", help="smollm2, a folder, a .gguf, a Hub id, a run")],
    port: Annotated[int, typer.Option(help="0 takes a free one")] = 8000,
    host: Annotated[
        str,
        typer.Option(
            help="the address to listen on; 0.0.0.0 is every address of this machine. Requests must name a loopback"
            " name, this, or the address that they came to: no other DNS name"
        ),
    ] = "127.0.0.1",
    api_key_env: Annotated[
        str | None,
        typer.Option("--api-key-env", metavar="VAR", help="ask for the key that this environment variable holds"),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            metavar="URL",
            help="let web pages of this origin use it, such as http://localhost:3000; may be given again",
        ),
    ] = None,
    parent_pipe: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve a local model, or a run's student.

    The endpoint is OpenAI-compatible (/v1/chat/completions and /v1/completions). Web pages cannot use it, but those
    of --allow-origin. With --api-key-env every request but /health needs that key, as OpenAI's clients send it.

    Example: distill serve smollm2 --port 8000
    """
    from distill.core import credentials
    from distill.pipeline.requirements import require_training_packages

    require_training_packages("serve")
    from distill.models import server
    from distill.run.record import student_remark

    if (line := student_remark(Path(model).expanduser())) is not None:
        console.say(line)
    server.serve(
        model,
        host=host,
        port=port,
        origins=allow_origin or (),
        api_key=credentials.secret(api_key_env, "--api-key-env"),
        parent_pipe=parent_pipe,
        say=console.say,
    )


@app.command()
def doctor(
    url: Annotated[
        str | None, typer.Argument(metavar="[URL_OR_RUN]", help="an endpoint, such as …/v1; or a run, or an export")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="the model to ask, where the endpoint has several")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="VAR", help="the environment variable that holds the key")
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="URL", help="of a run: the server that runs its student already")
    ] = None,
) -> None:
    """Look at this machine, an endpoint or a run: what is missing?

    An endpoint is asked a dozen tiny questions, to show which parameters (temperature, seed, stop, logprobs …) it
    honours, ignores or refuses; the findings are kept, and later checks and runs read them.

    Of a run's student, or of an export with whole weights: is it asked in the very tokens that it was trained on, by
    its saved chat template and when it is served? The first differing token is shown, and the exit code is 1.

    Example: distill doctor http://127.0.0.1:8000/v1 --model smollm2

    Example: distill doctor runs/quickstart
    """
    from distill.pipeline import doctor as examine

    if url is not None and Path(url).is_dir():
        from distill.pipeline.doctor import examine_student

        if not examine_student(Path(url), at=at, api_key_env=api_key_env):
            raise typer.Exit(1)
        return
    if at is not None:
        raise RecipeError("--at is about a run: give its folder as well")
    if not examine.examine(url, model=model, api_key_env=api_key_env):
        raise typer.Exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; a `DistillError` becomes one line."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    signal.signal(signal.SIGTERM, _as_interrupt)
    sys.excepthook = console.crashed
    processes.share_cores()
    with processes.current_folder_off_path():
        sys.exit(_code(arguments))


def _as_interrupt(*_: Any) -> None:
    """SIGTERM stops a run as Ctrl-C does: what is finished is kept, servers of ours are stopped."""
    signal.raise_signal(signal.SIGINT)


def _code(arguments: list[str] | None) -> int:
    try:
        outcome = app(args=arguments, standalone_mode=False)
        if outcome == Interrupted.exit_code:  # newer typer makes an exit of Ctrl-C and says nothing
            raise KeyboardInterrupt
        return outcome if isinstance(outcome, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except UsageFault as error:
        error.show()
        return 2
    except (KeyboardInterrupt, typer.Abort):
        console.error("interrupted; what was finished is kept: run the same command again to go on")
        return Interrupted.exit_code
    except DistillError as error:
        _raise_when_debugging(error)
        for line in str(error).splitlines():
            (console.error if error.exit_code else console.say)(line)
        return error.exit_code
    except OSError as error:
        _raise_when_debugging(error)
        if (fault := disk_fault(error)) is None:
            raise
        console.error(str(fault))
        return fault.exit_code


def _raise_when_debugging(error: BaseException) -> None:
    if os.environ.get("DISTILL_DEBUG"):
        raise error
