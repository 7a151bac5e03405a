"""Consent to doing finished stages again that cost money, or that took over ten minutes.

First runs, and stages that were partly done or failed, need none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from distill.core import console
from distill.core.jsonl import read_jsonl, write_rows
from distill.errors import ConsentNeeded, DistillError, Interrupted
from distill.pipeline import forecast
from distill.pipeline.rehearsal import PREFIX, Miss, rehearse
from distill.pipeline.staleness import as_it_would_begin, few
from distill.run import students
from distill.run.context import Context
from distill.run.layout import STAGES
from distill.run.record import Run, is_finished

LONG_SECONDS = 600.0
"""A finished stage that took longer is done again only with consent."""
NOT_ASKED_ABOUT = {"student", "kept.jsonl"}
"""Inputs of compare that no question to the teacher depends on."""
REPLAYED = ("expand", "collect")
"""Stages that take no time where the journal has every answer."""


def require_consent(context: Context, run: Run, names: Sequence[str]) -> None:
    """Ask once about all finished stages among `names` that would be done again at a cost; nothing has run yet.

    `--redo` is consent for its stages and what follows from them, `--new-journal` for all. Raises `ConsentNeeded` where
    the answer is no, and where `options.confirm` cannot ask.
    """
    options = context.options
    if options.yes or options.new_journal or not (repeats := list(_Plan(context, run, names).repeats())):
        return
    line = f"finished work would be done again: {'; '.join(repeats)}"
    if options.confirm is None:
        raise ConsentNeeded(f"{line}; nothing has run: to go on, type the same command with --yes (Python: yes=True)")
    if not options.confirm(f"{line}; go on?"):
        raise ConsentNeeded("nothing has run, and finished work stays as it is; with --yes the command does not ask")


@dataclass(slots=True)
class _Plan:
    """What a command would do, in the order of its stages."""

    context: Context
    run: Run
    names: Sequence[str]
    touched: dict[str, str] = field(default_factory=dict)
    """Files that a finished stage would write anew, each with that stage."""
    unknown: set[str] = field(default_factory=set)
    """Files whose new content is not known before."""

    def repeats(self) -> Iterator[str]:
        """One text per finished stage that needs consent: why it would be done again, and what that costs."""
        costly = [name for name in self.names if self._is_finished(name) and self._may_cost(name)]
        if not costly:
            return
        with TemporaryDirectory(prefix=PREFIX, dir=self.context.folder) as folder:
            for place, name in enumerate(self.names):
                if not set(costly) & set(self.names[place:]):
                    return
                if (text := self._repeat(name, Path(folder))) is not None:
                    yield text

    def _is_finished(self, name: str) -> bool:
        entry = self.run.stage(name)
        return entry is not None and is_finished(entry)

    def _seconds(self, name: str) -> float:
        return float((self.run.stage(name) or {}).get("seconds", 0.0))

    def _may_cost(self, name: str) -> bool:
        asks = STAGES[name].asks_teacher and any(map(forecast.is_paid, self.context.recipe.models.values()))
        return asks or self._seconds(name) > LONG_SECONDS

    def _repeat(self, name: str, folder: Path) -> str | None:
        inputs, options = set(STAGES[name].inputs), self.context.options
        changes = self.run.changes(name, as_it_would_begin(self.context, name))
        after = dict.fromkeys(self.touched[each] for each in STAGES[name].inputs if each in self.touched)
        is_wanted = name in options.redo or (changes == [] and options.retry_failed and STAGES[name].asks_teacher)
        if changes == [] and not after and not is_wanted and not inputs & self.unknown:
            return None
        if is_wanted or not self._is_finished(name) or not (after or (changes and not self._is_resumed(name))):
            self.unknown |= set(STAGES[name].outputs)
            return None
        misses = None if inputs & self.unknown - NOT_ASKED_ABOUT else self._rehearsed(name, folder)
        cost = self._cost(name, misses)
        self._note_outputs(name, folder, is_known=misses == [] and not inputs & self.unknown)
        why = few(changes) if changes else f"after {' and '.join(after)}"
        return None if cost is None else f"{name} ({why}): {cost}"

    def _is_resumed(self, name: str) -> bool:
        """Whether an earlier stage has been begun since, and not finished: what it began goes on."""
        started = (self.run.stage(name) or {})["started"]
        earlier = [each for each in list(STAGES)[: list(STAGES).index(name)] if not self._is_finished(each)]
        return any((self.run.stage(each) or {}).get("started", "") > started for each in earlier)

    def _rehearsed(self, name: str, folder: Path) -> list[Miss] | None:
        """The questions of a stage that the journal cannot answer; `None` where that is not known."""
        if not STAGES[name].asks_teacher:
            return None
        try:
            return rehearse(name, self.context, folder, answers=self._answers(folder) if name == "compare" else None)
        except Interrupted:
            raise
        except DistillError:  # the stage itself will say it
            return None

    def _answers(self, folder: Path) -> dict[str, str]:
        """Files of the answers that the models of this process gave when they were last compared."""
        compare, path, files = self.context.recipe.compare, self.context.folder / "answers.jsonl", {}
        for model in ("base", "student"):
            if compare is not None and model not in compare.answers and getattr(compare, model) is None:
                rows = read_jsonl(path) if path.is_file() else []
                texts = ((row["id"], (row["answers"].get(model) or {}).get("text")) for row in rows)
                write_rows(folder / f"{model}.jsonl", ({"id": id, "text": text} for id, text in texts if text))
                files[model] = str(folder / f"{model}.jsonl")
        return files

    def _note_outputs(self, name: str, folder: Path, *, is_known: bool) -> None:
        is_known = is_known and not (name == "collect" and self.context.recipe.sources)
        for output in STAGES[name].outputs:
            if not is_known:
                self.unknown.add(output)
            if not is_known or students.sha256(folder, output) != students.sha256(self.context.folder, output):
                self.touched[output] = name

    def _cost(self, name: str, misses: list[Miss] | None) -> str | None:
        """Requests and USD, and the time; `None` where it costs neither money nor long."""
        recipe, plans = self.context.recipe, forecast.paid(self.context.recipe, name)
        is_long = self._seconds(name) > LONG_SECONDS and not (misses == [] and name in REPLAYED)
        judging = [plan for plan in plans if plan.stage == forecast.JUDGING]
        texts = []
        if misses is None:
            texts += [forecast.cost(plans, recipe)] if plans else []
        elif count := self._paid(misses):  # of expand and a judge, the later questions are not known
            texts.append(forecast.cost(plans, recipe, flows=None if name == "expand" or judging else count))
        elif judging and "student" in self.unknown:
            texts.append(forecast.cost(judging, recipe))
        return ", ".join([*texts, *([f"it took {console.duration(self._seconds(name))}"] if is_long else [])]) or None

    def _paid(self, misses: Sequence[Miss]) -> int:
        """How many of the questions go to models that may cost money."""
        teachers = self.context.teachers
        models = [one for one in (*teachers.all, *teachers.others) if forecast.is_paid(one.section)]
        endpoints = {one.provider.endpoint for one in models}
        return sum(question.endpoint in endpoints for _, _, question in misses)
