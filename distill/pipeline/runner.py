"""Runs the stages of a recipe over one run folder; skips current stages and replays bought answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distill.core import console, interrupts, processes, registry, student_folder
from distill.core.redaction import strike
from distill.engine.batch.runner import StoppedPending
from distill.engine.journal.store import NAME, Journal
from distill.errors import BudgetStop, Interrupted, RecipeError, StageIncomplete
from distill.pipeline.consent import require_consent
from distill.pipeline.early_check import try_before_paying
from distill.pipeline.origins import load_addressed, origin_of
from distill.pipeline.parts import Overrides, Source, folder_of
from distill.pipeline.requirements import known_faults, reference_warnings, require, require_results
from distill.pipeline.stages import PIPELINE
from distill.pipeline.staleness import adopt, as_it_would_begin, few, revision_remarks
from distill.recipe import Recipe, reach_of
from distill.run.context import DEFAULTS, Context, RunOptions, passes, stop_teacher
from distill.run.endpoints import teachers_of
from distill.run.layout import STAGES, stages_of
from distill.run.measuring import measured
from distill.run.record import ACCEPTABLE, Run, is_finished, journal_of, opened, run_record
from distill.run.remarks import headline, student_remark
from distill.run.reuse import reused_runs

AGAIN = "run the same command again to go on"


def run_recipe(
    source: Source,
    *,
    run_dir: Path | None = None,
    overrides: Overrides = (),
    stages: Sequence[str] | None = None,
    options: RunOptions = DEFAULTS,
    farewell: bool = True,
) -> Path:
    """Run a recipe's stages that are not current; returns the run folder, and at the `farewell` prints its headline.

    Stages of `options.redo` run again although they are current: train starts over, and collect is answered from the
    journal. Raises `RecipeError` for a bad recipe; `ConsentNeeded` where finished stages would cost money or long
    once more; `BudgetStop` and `Interrupted`, with everything finished kept.
    """
    overrides = overrides if isinstance(overrides, (str, Mapping)) else [*overrides]
    recipe, folder = load_addressed(source, run_dir, overrides, options.allowed)
    names = _selection(recipe, stages)
    if names == ["report"]:
        require_results(folder)
    for name in options.redo:
        _require_known(name)
        if name not in names:
            raise RecipeError(f"redo: {name} is not a stage of this command; its stages are {', '.join(names)}")
    reuse = reused_runs(folder, recipe)
    if any(STAGES[name].asks_teacher for name in names):
        reached = recipe.model_copy(update={"reuse": [*map(str, reuse)]})
        for line in reach_of(reached, folder_of(source)).lines():
            console.say(line)
    require(recipe, names, options.allowed)
    teachers = teachers_of(recipe, folder)
    for line in [*known_faults(recipe), *reference_warnings(recipe)]:
        console.warn(line.removeprefix("warning: "))
    origin = origin_of(source, overrides)
    with (
        opened(folder, recipe, origin=origin, takeover=options.takeover) as run,
        _journal(run, reuse, options.new_journal) as journal,
    ):
        context = Context(folder, recipe, journal, teachers, options, run.lost_sends)
        try:
            finished_stages = _run_stages(context, run, names)
        finally:
            stop_teacher(context)
    for line in revision_remarks(folder, run_record(folder)):
        console.say(line)
    if farewell:
        _farewell(folder, finished_stages)
    return folder


def cancel_batches(
    path: Path, *, run_dir: Path | None = None, overrides: Iterable[str] = (), options: RunOptions = DEFAULTS
) -> None:
    """Cancel the run's open batches at the provider; answers that are finished are paid for, and kept.

    Raises `StoppedPending` where the provider has not cancelled them yet and `options.wait` is False.
    """
    recipe, folder = load_addressed(path, run_dir, overrides, ())
    with (
        opened(folder, recipe, origin=origin_of(path, ())) as run,
        _journal(run, reused_runs(folder, recipe), options.new_journal) as journal,
        console.progress("cancel") as bar,
    ):
        context = Context(folder, recipe, journal, teachers_of(recipe, folder), options, run.lost_sends)
        console.say(f"{folder}: {passes(context, 'collect', bar).cancel()} batches cancelled")


@contextmanager
def _journal(run: Run, reused: Sequence[Path], new_journal: bool) -> Iterator[Journal]:
    """The run's journal, with those of the runs that it reuses; an empty one in processes that may not write."""
    with ExitStack() as journals:
        reuse = [journals.enter_context(Journal.open(other / NAME, read_only=True)) for other in reused]
        if processes.is_first():
            yield journals.enter_context(journal_of(run, reuse=reuse, new_journal=new_journal))
        else:
            folder = Path(journals.enter_context(TemporaryDirectory()))
            yield journals.enter_context(Journal.open(folder / NAME, reuse=reuse))


def _selection(recipe: Recipe, stages: Sequence[str] | None) -> list[str]:
    available = stages_of(recipe)
    for name in stages or ():
        _require_known(name)
        if name not in available:
            raise RecipeError(f"the recipe has no section `{name}`; add one, or leave the stage out")
    return [name for name in available if stages is None or name in stages]


def _require_known(name: str) -> None:
    if name not in STAGES:
        raise RecipeError(f'unknown stage "{name}"{registry.suggest(name, STAGES)}')


def _run_stages(context: Context, run: Run, names: Sequence[str]) -> list[str]:
    """Run those of the stages that are not current, in order; returns the names of those that ran."""
    adopt(run, context)
    require_consent(context, run, names)
    run.describe(context.teachers.facts())
    if "train" not in names and {"compare", "report"} & set(names):
        for line in filter(None, [student_remark(context.folder)]):
            console.warn(line)
    try_before_paying(context, run, names)
    finished_stages = []
    for name in names:
        _require_earlier(context, run, name)
        if _run_stage(context, run, name):
            finished_stages.append(name)
    return finished_stages


def _require_earlier(context: Context, run: Run, name: str) -> None:
    """The stages before this one must be done, or partly done within what the recipe or the user accepts."""
    for earlier in stages_of(context.recipe):
        if name in (earlier, "report"):
            return
        entry = run.stage(earlier)
        if (
            entry is not None
            and earlier == "train"
            and student_folder.is_student(student_folder.current(context.folder))
        ):
            continue  # a finished student stays in use until the next one is finished
        if entry is None or entry["status"] in ("running", "failed") or (earlier == "train" and not is_finished(entry)):
            raise StageIncomplete(f"`{name}` needs a finished `{earlier}`; type: distill {earlier} {context.folder}")
        if entry["status"] == "partial" and not (context.options.accept_partial or is_finished(entry)):
            raise StageIncomplete(
                f"`{earlier}` is only partly done; run it again, or add --accept-partial to go on with what there is"
            )


def _run_stage(context: Context, run: Run, name: str) -> bool:
    record, options = as_it_would_begin(context, name), context.options
    changes = run.changes(name, record)
    if changes == [] and name not in options.redo and not (options.retry_failed and STAGES[name].asks_teacher):
        return False
    if options.hint:
        console.hint(options.hint)
    console.say(_beginning(context, name, changes))
    interrupts.check()
    run.begin(name, record)
    try:
        with measured(record):
            record.counts = dict(PIPELINE[name].run(context, record))
        record.status = "partial" if record.detail == ACCEPTABLE else "done"
    except (BudgetStop, Interrupted, StoppedPending) as stop:
        record.status, record.detail = "partial", strike(str(stop))
        if not (context.options.accept_partial and isinstance(stop, BudgetStop)):
            raise
        console.warn(f"{stop}; going on with what there is")
    except KeyboardInterrupt:
        record.status = "partial" if name == "train" else "failed"
        record.detail = f"interrupted; {AGAIN}"
        raise Interrupted(f"interrupted in {name}; what was finished is kept: {AGAIN}") from None
    except BaseException as error:
        record.status, record.detail = "failed", strike(str(error)) or type(error).__name__
        raise
    finally:
        run.save(name, record, STAGES[name].outputs)
    console.say(f"{name}: {record.status} in {record.seconds:.1f} s{_brief(record.counts)}")
    return True


def _beginning(context: Context, name: str, changes: Sequence[str] | None) -> str:
    if changes is None:
        return f"{name}: started"
    why = few(changes) or ("--redo" if name in context.options.redo else "--retry-failed")
    keeps = name == "train" and student_folder.is_student(context.folder / student_folder.STUDENT)
    return f"{name} runs again: {why}" + (f"; the student of before stays in {student_folder.PREVIOUS}" * keeps)


def _brief(counts: Mapping[str, Any]) -> str:
    pieces = [f"{key.replace('_', ' ')} {value:,}" for key, value in counts.items() if isinstance(value, int)]
    return f" ({', '.join(pieces)})" if pieces else ""


def _farewell(folder: Path, finished_stages: Sequence[str]) -> None:
    if not finished_stages:
        console.say(f"{folder}: nothing to do, every stage is current")
    for line in headline(folder):
        console.result(line)
    if (folder / "report.html").exists():
        console.result(f"report: {(folder / 'report.html').resolve()}")
