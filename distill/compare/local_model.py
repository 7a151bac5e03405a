"""A model in this process, asked in several runs of the engine, with progress within its batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from distill.compare.metrics import PAIR
from distill.compare.results import NAMES
from distill.core import console
from distill.core.console import Progress, Silent
from distill.engine import Outcome
from distill.engine.flows import Runs
from distill.engine.providers import Provider
from distill.types import Flow, Model

if TYPE_CHECKING:
    from distill.models.in_process import InProcess

NamedFlow: TypeAlias = tuple[str, Callable[[], Flow[Any]]]


class Engines(Protocol):
    """Makes the engine of one phase; the caller keeps all engines to account for their requests."""

    def __call__(self, providers: Mapping[str, Provider], *, progress: Progress, local: bool) -> Runs:
        """`local`: the model runs in this process, costs nothing, and needs 32 requests in flight for its batches."""


class LocalModel:
    """A model in this process, which is loaded when it is first asked, and released at the end."""

    def __init__(self, model: Model, role: Model, load: Callable[..., InProcess], engine: Engines) -> None:
        self._name, self._role, self._engine = NAMES[model], role, engine
        self._live = Live()
        self._provider = load(watch=self._live.watch)

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._provider.release()

    def ask(self, flows: Sequence[NamedFlow], teacher: InProcess | None = None) -> list[Outcome[Any]]:
        """Run the flows on the model, or on the pair of it and the teacher."""
        from distill.models.in_process import Pair

        if not flows:
            return []
        name = f"{self._name} beside the teacher" if teacher is not None else self._name
        providers: dict[str, Provider] = {self._role: self._provider}
        if teacher is not None:
            providers = {PAIR: Pair(teacher, self._provider, watch=self._live.watch)}
        with console.progress(f"asking {name}", len(flows)) as bar:
            self._live.show_on(bar)
            return list(self._engine(providers, progress=self._live, local=True).run(flows))


class Live:
    """Adds the progress within the running batch to the engine's."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.show_on(progress or Silent())

    def show_on(self, progress: Progress) -> None:
        """Begin anew, on another bar."""
        self._progress = progress
        self._finished, self._running, self._shown = 0.0, 0, 0.0
        self._total: float | None = None

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Show what the engine has seen, or what runs where that is more."""
        self._finished, self._total = done, total
        self._show("" if self._running else note)  # the engine sees no answer before the batch ends

    def watch(self, running: int, note: str) -> None:
        """Show the answered requests of the running batch too."""
        self._running = running
        self._show(note)

    def _show(self, note: str) -> None:
        self._shown = max(self._shown, self._finished + self._running)  # a batch has ended before its flows have
        self._progress.update(self._shown, self._total, note)
