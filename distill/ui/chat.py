"""The page's one conversation: models load on a click, in a thread of their own, and answer side by side."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from distill.errors import DistillError
from distill.pipeline import chat
from distill.types import Model

T = TypeVar("T")

CLOSE_SECONDS = 2.0
"""Longest wait for the models to be released when the page's server ends."""


class ChatDesk:
    """Holds at most one open conversation; all that it does happens in one thread, in order."""

    def __init__(self) -> None:
        self._run: Path | None = None
        self._conversation: chat.Conversation | None = None
        self._models = ExitStack()
        self._spent_usd = defaultdict[Path, float](float)
        """By run, what its ended conversations have cost."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chat")

    def state(self, run: Path) -> dict[str, Any]:
        """The conversation with a run; where none is open, what opening one loads and costs, or why none can be."""
        conversation = self._conversation if self._run == run else None
        if conversation is None:
            try:
                return {"is_open": False, "outlook": chat.outlook(run, spent_usd=self._spent_usd[run])}
            except DistillError as error:
                return {"is_open": False, "fault": str(error)}
        turns = {side: [turn.content for turn in turns] for side, turns in conversation.turns.items()}
        return {
            "is_open": True,
            "sides": conversation.available,
            "turns": turns,
            "temperature": conversation.sampling.temperature,
            "system": conversation.system,
        }

    async def open(self, run: Path) -> None:
        """Begin a conversation with a run, in place of any other. Raises `DistillError`."""
        await self._do(self._open, run)

    async def close(self) -> None:
        """End the conversation and release its models."""
        await self._do(self._close)

    def answers(
        self, run: Path, line: str, *, sides: Collection[str], system: str, temperature: float
    ) -> AsyncIterator[tuple[str, str]]:
        """The answer of each side to a line as it comes; all are asked even where the reader goes away.

        Another `system` message begins the conversation anew. Raises `DistillError`, at once, where no conversation
        with the run is open.
        """
        conversation = self._conversation
        if conversation is None or self._run != run:
            raise DistillError("no conversation with this run is open; begin one first")
        conversation.sides = [side for side in conversation.available if side in sides]
        conversation.sampling = replace(conversation.sampling, temperature=temperature)
        if system != conversation.system:
            conversation.system = system
            conversation.turns.clear()
        return self._each(conversation.answers(line))

    async def _each(self, answers: Iterator[tuple[Model, str]]) -> AsyncIterator[tuple[str, str]]:
        try:
            while (one := await self._do(next, answers, None)) is not None:
                yield one
        finally:
            self._thread.submit(list, answers)

    async def _do(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _open(self, run: Path) -> None:
        from distill.formats.exporters.student.export import trained_system

        self._close()
        self._conversation = self._models.enter_context(chat.opened(run, spent_usd=self._spent_usd[run]))
        self._conversation.system = trained_system(run) or ""
        self._run = run

    def _close(self) -> None:
        if self._run is not None and self._conversation is not None:
            self._spent_usd[self._run] += self._conversation.budget.spent_usd
        self._run = self._conversation = None
        self._models.close()
