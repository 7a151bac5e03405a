"""Binds the recipe's teachers to endpoints: task assignment, rate limits and prices."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distill.core import credentials
from distill.core.hashing import hash_share
from distill.engine.budget import TokenPrice
from distill.engine.policy import BoundEndpoint
from distill.engine.rate_limits import Rates
from distill.recipe import Recipe, Teacher
from distill.run.decisive import flat
from distill.types import Task

ROLE = "teacher"
PLAYED_ROLES = ("user", "judge")
"""Roles that the main teacher plays where the recipe names no other model."""
OTHER_ROLES = (*PLAYED_ROLES, "weaker")
RESPONDENTS: tuple[Literal["student", "base"], ...] = ("student", "base")
"""Models that compare may ask at endpoints of their own."""


@dataclass(frozen=True, slots=True)
class RecipeEndpoint:
    """A teacher or another endpoint of the recipe, with its provider."""

    section: Teacher
    provider: Any
    name: str
    """Its name in the engine: `teacher`, or `teacher:NAME` among several, else its role."""

    def bound(self) -> BoundEndpoint:
        """The provider with the limits and the price of its section."""
        section = self.section
        rates = Rates(
            concurrency=section.concurrency,
            requests_per_minute=section.requests_per_minute,
            tokens_per_minute=section.tokens_per_minute,
        )
        price = section.price
        return BoundEndpoint(
            self.provider, rates, None if price is None else TokenPrice(input=price.input, output=price.output)
        )


@dataclass(frozen=True, slots=True)
class Teachers:
    """All teachers of a recipe, the main one first, and its other endpoints; both may be empty."""

    all: tuple[RecipeEndpoint, ...]
    seed: int
    others: tuple[RecipeEndpoint, ...] = ()
    """Endpoints of `OTHER_ROLES` where the recipe gives them and respondents."""

    @property
    def main(self) -> RecipeEndpoint:
        """The first teacher, which answers expand."""
        return self.all[0]

    def __iter__(self) -> Iterator[RecipeEndpoint]:
        return iter(self.all)

    @property
    def endpoints(self) -> dict[str, BoundEndpoint]:
        """By name in the engine; the main teacher plays `PLAYED_ROLES` without an endpoint of their own."""
        roles = dict.fromkeys((ROLE, *PLAYED_ROLES), self.main) if self.all else {}
        by_role = roles | {one.name: one for one in (*self.all, *self.others)}
        return {name: one.bound() for name, one in by_role.items()}

    def of_roles(self, roles: Collection[str]) -> dict[str, BoundEndpoint]:
        """The endpoints of the teachers and of the given roles."""
        absent = {*OTHER_ROLES, *RESPONDENTS}.difference(roles)
        return {name: endpoint for name, endpoint in self.endpoints.items() if name not in absent}

    def pick(self, task: Task) -> RecipeEndpoint:
        """The teacher of a task, drawn by weight from those with its kind in `kinds`, else from those without `kinds`.

        The choice is a hash of the seed and the task's id, so that it depends on no other task and on no load.
        """
        kind = task.meta.get("kind")
        specialised = [one for one in self.all if kind in one.section.kinds]
        candidates = specialised or [one for one in self.all if not one.section.kinds]
        return candidates[weighted_choice([one.section.weight for one in candidates], f"{self.seed}:{task.id}")]

    def stop(self) -> None:
        """Stop the servers that distill has started; each starts again at its next request."""
        for one in (*self.all, *self.others):
            if (stop := getattr(one.provider, "stop", None)) is not None:
                stop()

    def facts(self) -> list[dict[str, Any]]:
        """Their entries in run.json."""
        return [
            {
                "model": one.section.model,
                **({"name": one.section.display_name} if len(self.all) > 1 else {}),
                **({"role": one.name} if one in self.others else {}),
                "url": one.provider.endpoint.url,
                "fingerprint": one.provider.endpoint.fingerprint,
                "served_by": one.section.serve,
                "terms": one.section.terms,
                "sampling": credentials.without_literals(one.section.sampling.model_dump(exclude_defaults=True)),
            }
            for one in (*self.all, *self.others)
        ]

    def identity(self, roles: Collection[str] = OTHER_ROLES) -> dict[str, Any]:
        """The options of the teachers and roles that determine the answers: model, sampling, assignment."""
        decisive: dict[str, Any] = {}
        for one in self.all:
            key = ROLE if len(self.all) == 1 else f"{ROLE}.{one.section.display_name}"
            decisive |= _decisive(one, key)
            if len(self.all) > 1:
                decisive |= flat(one.section, key, only=("weight", "kinds"))
                decisive[ROLE] = [*decisive.get(ROLE, []), one.section.display_name]
        for one in self.others:
            if one.name in roles:
                decisive |= _decisive(one, one.name if one.name in OTHER_ROLES else f"compare.{one.name}")
        return decisive


def _decisive(one: RecipeEndpoint, key: str) -> dict[str, Any]:
    """Address or weights, and sampling."""
    return flat(one.provider.endpoint, key) | flat(one.section.sampling, f"{key}.sampling")


def weighted_choice(weights: Sequence[float], of: str) -> int:
    """An index drawn by weight from a hash of `of`: the same on every machine."""
    share = hash_share(of) * sum(weights)
    for index, weight in enumerate(weights):
        share -= weight
        if share < 0:
            return index
    return len(weights) - 1


def teachers_of(recipe: Recipe, folder: Path, *, to_ask: bool = True) -> Teachers:
    """The recipe's teachers and other endpoints; nothing is started or asked yet.

    `to_ask` reads their keys, and raises `RecipeError` for a variable that is not set.
    """
    several = len(recipe.teachers) > 1
    teachers = tuple(
        RecipeEndpoint(
            section, _provider(section, folder, to_ask), f"{ROLE}:{section.display_name}" if several else ROLE
        )
        for section in recipe.teachers
    )
    return Teachers(teachers, recipe.seed, tuple(_others(recipe, teachers, folder, to_ask)))


def _others(recipe: Recipe, teachers: Sequence[RecipeEndpoint], folder: Path, to_ask: bool) -> Iterator[RecipeEndpoint]:
    """The endpoints of the other roles; roles of the same model share one server."""
    servers: dict[tuple[str, str | None], Any] = {
        (one.section.model, one.section.serve): one.provider for one in teachers if one.section.serve is not None
    }
    for role, section in (recipe.roles | recipe.respondents).items():
        address = section.model, section.serve
        provider = servers[address] if address in servers else _provider(section, folder, to_ask, role)
        if section.serve is not None:
            servers[address] = provider
        yield RecipeEndpoint(section, provider, role)


def _provider(section: Teacher, folder: Path, to_ask: bool, role: str = ROLE) -> Any:
    if section.serve is not None:
        from distill.models.child_server import LocalTeacher

        return LocalTeacher(section.model, log=folder / f"{role}.log", server=section.serve)
    from distill.engine.providers.openai import OpenAIProvider

    if to_ask:
        for variable, key in section.variables.items():
            credentials.secret(variable, f"{role}.{key}")
    return OpenAIProvider(
        section.base_url or "",
        section.model,
        revision=section.revision,
        api_key=credentials.secret(section.api_key_env, f"{role}.api_key_env") if to_ask else None,
        headers=secret_headers(section.headers_env, role) if to_ask else None,
        timeout_seconds=section.timeout_seconds,
    )


def secret_headers(headers_env: Mapping[str, str], role: str = ROLE) -> dict[str, str]:
    """The values of the secret headers. Raises `RecipeError` for a variable that is not set."""
    options = {name: f"{role}.headers_env.{name}" for name in headers_env}
    return {name: credentials.secret(variable, options[name]) or "" for name, variable in headers_env.items()}
