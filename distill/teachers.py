"""The recipe's teachers as the stages meet them: who answers which task, under which limits, at what price."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from distill import probe
from distill.engine.budget import Price
from distill.engine.limits import Rates
from distill.recipe import Recipe, Teacher
from distill.types import Task

ROLE = "teacher"


@dataclass(frozen=True, slots=True)
class Hired:
    """One teacher and the provider that reaches it."""

    section: Teacher
    provider: Any
    name: str
    """What the engine calls it: `teacher`, or `teacher:NAME` among several."""


@dataclass(frozen=True, slots=True)
class Teachers:
    """All teachers of a recipe, the main one first."""

    hired: tuple[Hired, ...]
    seed: int

    @property
    def main(self) -> Hired:
        """The one that expands."""
        return self.hired[0]

    def __iter__(self) -> Iterator[Hired]:
        return iter(self.hired)

    @property
    def providers(self) -> dict[str, Any]:
        """By the engine's name; the main one also under the role's."""
        return {ROLE: self.main.provider, **{one.name: one.provider for one in self.hired}}

    def rates(self) -> dict[str, Rates]:
        """The limits that the recipe sets, by the engine's name."""
        return {
            name: Rates(
                concurrency=section.concurrency,
                requests_per_minute=section.requests_per_minute,
                tokens_per_minute=section.tokens_per_minute,
            )
            for name, section in self._sections()
        }

    def prices(self) -> dict[str, Price]:
        """By the engine's name, for those that have one."""
        return {
            name: Price(input=section.price.input, output=section.price.output)
            for name, section in self._sections()
            if section.price is not None
        }

    def _sections(self) -> list[tuple[str, Teacher]]:
        return [(ROLE, self.main.section), *((one.name, one.section) for one in self.hired)]

    def pick(self, task: Task) -> Hired:
        """Who answers a task: those that name its kind, else those that name none; of these by weight.

        The choice is a hash of the seed and the task's id, so that it depends on no other task and on no load.
        """
        kind = task.meta.get("kind")
        named = [one for one in self.hired if kind in one.section.kinds]
        candidates = named or [one for one in self.hired if not one.section.kinds]
        return candidates[weighted([one.section.weight for one in candidates], f"{self.seed}:{task.id}")]

    def stop(self) -> None:
        """Stop servers of ours; they start again at the next request."""
        for one in self.hired:
            if (stop := getattr(one.provider, "stop", None)) is not None:
                stop()

    def facts(self) -> list[dict[str, Any]]:
        """What run.json says of them."""
        return [
            {
                "model": one.section.model,
                **({"name": one.section.called} if len(self.hired) > 1 else {}),
                "url": one.provider.endpoint.url,
                "fingerprint": one.provider.endpoint.fingerprint,
                "served_by": one.section.serve,
                "terms": one.section.terms,
                "sampling": one.section.sampling.model_dump(exclude_defaults=True),
            }
            for one in self.hired
        ]

    def identity(self) -> list[Any]:
        """What of them decides the answers: address or weights, sampling, and who is asked what."""
        sections = [[one.provider.endpoint, one.section.sampling.model_dump()] for one in self.hired]
        if len(self.hired) == 1:
            return sections[0]
        return [*sections, [[one.section.called, one.section.weight, one.section.kinds] for one in self.hired]]


def weighted(weights: Sequence[float], of: str) -> int:
    """An index drawn by weight, from a hash: the same for the same text, on every machine."""
    share = int.from_bytes(sha256(of.encode()).digest()[:8], "big") / 2**64 * sum(weights)
    for index, weight in enumerate(weights):
        share -= weight
        if share < 0:
            return index
    return len(weights) - 1


def hire(loaded: Recipe, folder: Path, *, to_ask: bool = True) -> Teachers | None:
    """The recipe's teachers; nothing is started or asked yet.

    `to_ask` reads their keys, and raises `RecipeError` for a variable that is not set.
    """
    if not loaded.teachers:
        return None
    several = len(loaded.teachers) > 1
    return Teachers(
        tuple(
            Hired(section, _provider(section, folder, to_ask), f"{ROLE}:{section.called}" if several else ROLE)
            for section in loaded.teachers
        ),
        loaded.seed,
    )


def _provider(section: Teacher, folder: Path, to_ask: bool) -> Any:
    if section.serve is not None:
        from distill.providers.local import LocalTeacher

        return LocalTeacher(section.model, log=folder / "teacher.log", server=section.serve)
    from distill.providers.openai import OpenAIProvider

    return OpenAIProvider(
        section.base_url or "",
        section.model,
        revision=section.revision,
        api_key=probe.secret(section.api_key_env, "teacher.api_key_env") if to_ask else None,
        headers=secret_headers(section.headers_env) if to_ask else None,
        timeout_seconds=section.timeout_seconds,
    )


def secret_headers(headers_env: Mapping[str, str]) -> dict[str, str]:
    """The values of the secret headers. Raises `RecipeError` for a variable that is not set."""
    return {name: probe.secret(variable, f"teacher.headers_env.{name}") or "" for name, variable in headers_env.items()}
