"""Sections of the recipe: keys, units and accepted values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic.functional_serializers import model_serializer

from distill.core import credentials
from distill.core.redaction import STRUCK
from distill.types import Sampling

NOT_EXTRA = {
    "stream": "answers are read whole; take it out",
    "n": "one answer per request is kept; take it out, strategies ask for several samples by themselves",
    "messages": "the strategy writes them; take it out",
    "prompt": "the strategy writes it; take it out",
    "model": "that is teacher.model; take it out",
}


class BaseOptions(BaseModel):
    """Base of every section's and every part's options: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=False)
    path_fields: ClassVar[tuple[str, ...]] = ()
    """Fields whose value is a path, a list or mapping of paths, or an embedded model's name; `load` makes the paths
    absolute and hashes their files."""


class Price(BaseOptions):
    """USD per million tokens."""

    input: Annotated[float, Field(ge=0)]
    """Price of the prompt."""
    output: Annotated[float, Field(ge=0)]
    """Price of the answer."""


class SamplingOptions(BaseOptions):
    """Sampling of answers; a key left out is the endpoint's default."""

    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    """Randomness of the answers: at 0 the likeliest token is taken each time."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Tokens are drawn from the likeliest ones that together have this probability (nucleus sampling)."""
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Longest answer; a longer one is cut and marked as truncated."""
    stop: list[str] = []
    """Texts at which an answer ends; they are not part of it."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Lowers the likelihood of tokens that have occurred; negative values raise it."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """The same, in proportion to the number of occurrences."""
    seed: int | None = None
    """Seed of the endpoint's sampling, where it has one."""
    response_format: dict[str, Any] | None = None
    """Such as `{type: json_object}`."""
    logprobs: bool | None = None
    """Log-probabilities of the answer's tokens; they stay in the journal."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Likeliest alternatives per token whose log-probabilities are recorded; needs `logprobs`."""
    reasoning_effort: str | None = None
    """How much a reasoning model thinks, such as `low`, in the words of its endpoint."""
    extra_body: dict[str, Any] = {}
    """Other fields of the request's body, such as `{top_k: 40}`; `null` removes a field, and a text `$NAME` is replaced
    by the environment variable's value."""

    @model_validator(mode="after")
    def _one_answer(self) -> SamplingOptions:
        for name, why in NOT_EXTRA.items():
            if self.extra_body.get(name):
                raise ValueError(f"extra_body.{name}: {why}")
        return self

    def sampling(self) -> Sampling:
        """The equivalent core value."""
        return Sampling(**{**self.model_dump(), "stop": tuple(self.stop)})


VariableName = Annotated[str, BeforeValidator(credentials.check_name)]


class Teacher(BaseOptions):
    """The model to imitate: one served by this run, or an endpoint. Several teachers share the tasks."""

    name: Annotated[str, Field(pattern=r"^[^\s:]{1,100}$")] | None = None
    """Distinguishes it from other teachers, and is written into each session's meta; the model's name when left out."""
    model: str
    """`smollm2` (embedded), a local folder, a `.gguf`, a Hub id, or the remote model's name."""
    serve: Literal["transformers", "vllm"] | None = None
    """Serve it on loopback while a stage needs it."""
    base_url: str | None = None
    """An OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1; `$NAME` in its path or query is replaced by the
    environment variable's value."""
    api_key_env: VariableName | None = None
    """Name of the environment variable that holds the key; the key itself is never written to a file."""
    headers_env: dict[str, VariableName] = {}
    """Secret headers: by header name, the environment variable that holds the value."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model; or any text that tells versions of a remote model apart."""
    price: Price | None = None
    """USD per million tokens; needed for a budget."""
    terms: Annotated[str, Field(min_length=1)]
    """What the teacher's licence or terms say about training on its answers."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Longest wait for one answer."""
    concurrency: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Requests in flight to this endpoint; collect.concurrency when left out."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    """Most requests sent per minute. Limits in the endpoint's response headers are obeyed as well."""
    tokens_per_minute: Annotated[float, Field(gt=0)] | None = None
    """Prompt and answer tokens together. Limits in the endpoint's response headers are obeyed as well."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its share of the tasks, among several teachers."""
    kinds: list[str] = []
    """Kinds of tasks (`meta.kind`) that it answers, among several teachers; empty: kinds that no other one names."""
    sampling: SamplingOptions = SamplingOptions()
    """Sampling of the answers that are collected."""

    @property
    def display_name(self) -> str:
        """Its name, else the model's."""
        return self.name or self.model

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that it names, each with the key that names it."""
        names = {} if self.api_key_env is None else {self.api_key_env: "api_key_env"}
        names |= {variable: f"headers_env.{header}" for header, variable in self.headers_env.items()}
        others = credentials.variables(self.base_url, self.sampling.extra_body)
        return names | {variable: "base_url or extra_body" for variable in others if variable not in names}

    @property
    def literals(self) -> list[tuple[str, str]]:
        """Name and value of each secret written in the section itself instead of in an environment variable."""
        return credentials.literals(self.base_url, self.sampling.extra_body)

    @model_validator(mode="after")
    def _one_address(self) -> Teacher:
        if (self.serve is None) == (self.base_url is None):
            raise ValueError("give either `serve: transformers` (or vllm), or `base_url`")
        if self.base_url is not None:
            _check_address(self.base_url)
        if struck := [name for name, value in self.literals if value == STRUCK]:
            raise ValueError(
                f'the secret "{struck[0]}" was struck out of this copy of the recipe; run the recipe itself, or put '
                f"the secret into an environment variable and write ${struck[0].upper().replace('-', '_')} here"
            )
        return self


def _check_address(base_url: str) -> None:
    """Raise `ValueError` for a malformed address, and for a user, password or variable in its host."""
    if not re.match(r"https?://[^/]+", base_url):
        raise ValueError("base_url is no http(s) address, such as http://127.0.0.1:8000/v1")
    host = urlsplit(base_url).netloc
    if "@" in host:
        raise ValueError(
            "base_url holds a user or a password, and a recipe is written into the run folder; put it into an "
            "environment variable, and name that in api_key_env or headers_env"
        )
    if "$" in host:
        raise ValueError("base_url names a variable in its host; only its path and query may, as in …/v1?key=$API_KEY")


OneOrMore = Annotated[
    Annotated[Teacher, Tag("one")] | Annotated[list[Teacher], Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list) else "one"),
]
"""A teacher or a list of them; discriminated by the value, so that a fault is reported once."""


@dataclass(frozen=True, slots=True)
class Asks:
    """Upper bound of a strategy's requests per task, for the forecast of `check`; the options' property `asks`."""

    requests: int = 1
    prompt_tokens: int = 0
    """Approximate sum over all requests, without the task itself."""
    answers_read: int = 0
    """Number of whole answers in the prompts of later requests."""
    roles: tuple[str, ...] = ()
    """Roles asked beside the teacher: `user`, `judge`, `weaker`."""
    samplings: tuple[Sampling, ...] = ()
    """Of requests without the teacher's own sampling."""


class PartSection(BaseModel):
    """A section that names a part and holds that part's options beside its own keys."""

    model_config = ConfigDict(extra="allow", frozen=True)
    path_fields: ClassVar[tuple[str, ...]] = ()
    options: Annotated[Any, Field(exclude=True)] = None
    """The part's validated options; filled by `load`."""


class Expand(PartSection):
    """Grow tasks from seeds."""

    path_fields = ("seeds",)
    strategy: str = "self_instruct"
    """How tasks are grown: a shipped strategy, or `package.module:thing` of your own."""
    seeds: str = "seeds/general.jsonl"
    """A file of seed tasks: rows of any format, or text with one prompt per line."""
    tasks: Annotated[int, Field(ge=1)]
    """Number of tasks to grow; raising it extends the same list."""


class HeldOut(BaseOptions):
    """The rule `test_split`: prompts held out for compare, and the rows that are too near them to train on.

    `test: 32` stands for `test: {count: 32}`.
    """

    count: Annotated[int, Field(ge=0)] = 32
    """Prompts held out, never trained on."""
    near: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Rows whose prompt has a greater ROUGE-L F-measure with a held-out one are dropped; frames that ten prompts share,
    such as a template, do not count. At 1, equal prompts are dropped alone."""

    @model_validator(mode="before")
    @classmethod
    def _of_a_count(cls, value: Any) -> Any:
        return value if isinstance(value, Mapping | HeldOut) else {"count": value}

    @model_serializer
    def _as_count(self) -> int | dict[str, Any]:
        """As a recipe of an older version has it, where it could."""
        return self.count if self.near == HeldOut.model_fields["near"].default else dict(self)


class Collect(PartSection):
    """Ask the teacher to answer the tasks."""

    path_fields = ("tasks",)
    strategy: str = "answer"
    """How tasks are answered: a shipped strategy, or `package.module:thing` of your own."""
    tasks: str | None = None
    """A file of tasks (rows of any format, or text with one prompt per line) in place of `expand`."""
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 32
    """Most requests in flight; a served model takes what its memory holds."""
    budget_usd: Annotated[float, Field(gt=0)] | None = None
    """Most USD that this stage may spend, over all invocations; needs prices. No cap when left out."""
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of tasks that may fail before the stage counts as failed."""
    attempts: Annotated[int, Field(ge=1)] = 10
    """Most times that one request is sent."""
    mode: Literal["live", "batch"] = "live"
    """`batch`: through the provider's batch interface (/v1/batches), for half the price and within a day."""
    test: HeldOut = HeldOut()
    """Prompts held out for compare: their number, or `{count: 32, near: 0.7}`."""


class Source(BaseOptions):
    """Existing conversations, in addition to collect's sessions or in their place."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    name: Annotated[str, Field(pattern=r"^[^\s/]{1,100}$")] | None = None
    """Prefix of its sessions' ids; the file's name when left out."""
    format: Annotated[str | None, Field(alias="from")] = None
    """Its format, such as `sharegpt`; guessed from the file when left out."""
    prompt: str | None = None
    """Column of the question, where no known format has its name."""
    answer: str | None = None
    """Column of the answer; with `prompt`."""
    system: str | None = None
    """Column of the system message; with `prompt`."""
    reference: str | None = None
    """Column of the right answer, by which answers are checked."""
    path: str | None = None
    """A file or folder of that format …"""
    hub: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")] | None = None
    """… or a dataset of the Hub: owner/name."""
    split: str | None = None
    """Split of a dataset, such as `train`."""
    revision: str | None = None
    """Branch or tag of a Hub dataset; or a commit, which never changes."""
    config: str | None = None
    """Part of a Hub dataset, such as `en` of one in several languages."""
    licence: str | None = None
    """What its licence says about training on it; written into each session's meta."""
    take: Annotated[int, Field(ge=1)] | None = None
    """Size of a sample, drawn by a hash of seed and id."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Copies of each session: 0.5 takes about half of them, 2 takes each twice."""
    max_tokens: Annotated[int, Field(ge=16)] | None = None
    """Longer conversations are split before a question; a single longer pair stays whole and is labelled."""
    tokenizer: str | None = None
    """Tokenizer for `max_tokens`: `smollm2` or a model's folder; that of student.model when left out."""

    @property
    def display_name(self) -> str:
        """Its name, else that of its dataset or file."""
        return self.name or re.sub(r"[\s/]+", "-", self.hub or Path(self.path or "").stem)

    @property
    def importer(self) -> str:
        """The name of its format."""
        return self.format or "hub"

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either `path`, or `hub: owner/name`")
        if self.hub is not None and self.format not in (None, "hub"):
            raise ValueError(f"`from: {self.format}` is for a `path`; a `hub` dataset states its format itself")
        return self


class Rule(PartSection):
    """One curation rule."""

    filter: str
    """What decides: a shipped filter, or `package.module:thing` of your own."""


class Prune(BaseOptions):
    """Make the student from its model by removing layers."""

    layers: Annotated[int, Field(ge=1)]
    """Number of layers to keep."""
    by: Literal["uniform", "block"] = "uniform"
    """`uniform` keeps layers evenly spaced over the depth; `block` removes the consecutive layers that change the
    hidden states least, measured on kept sessions."""


class Student(BaseOptions):
    """The model to train."""

    model: str
    """`smollm2` (embedded), a local folder, or a Hub id; or another run, `runs/NAME`, whose student is continued: the
    same base and the same adapter (with `full`, its weights), and its template, pruning and method."""
    continues: str | None = None
    """In a resolved recipe whose `model` named a run: that run; `model` is then the base of its student."""
    prune: Prune | None = None
    """Remove layers before training."""
    template: Literal["chatml", "alpaca", "vicuna", "own"] = "chatml"
    """The chat template that the student learns; `own` is that of its model."""


class Objective(PartSection):
    """What the student learns from."""

    kind: str = "sft"
    """A shipped objective, or `package.module:thing` of your own."""


class Train(PartSection):
    """Fine-tune the student on the kept sessions."""

    objective: Objective = Objective()
    """What the student learns from, and how."""
