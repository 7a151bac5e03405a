"""The recipe: one YAML file that describes one imitation run, validated whole before anything happens.

Sections that belong to interchangeable parts (a strategy, a filter, a metric, a training method) are validated by the
part's own options; the doors hand them in as `Parts`, so that this module knows no part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args
from urllib.parse import parse_qsl, urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from distill import assets
from distill.embedded import EMBEDDED
from distill.errors import RecipeError
from distill.fingerprints import tree_sha256
from distill.shelf import suggest
from distill.types import Sampling

PATH_KEYS = ("expand.seeds", "collect.tasks", "teacher.model", "user.model", "judge.model", "student.model")
"""Keys whose value is, or may be, a path."""
MAX_RECIPE_BYTES = 1_000_000
NOT_EXTRA = {
    "stream": "answers are read whole; take it out",
    "n": "one answer a request is kept; take it out, strategies ask for several samples by themselves",
    "messages": "the strategy writes them; take it out",
    "prompt": "the strategy writes it; take it out",
    "model": "that is teacher.model; take it out",
}


class Options(BaseModel):
    """Base of every section's and every part's options: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=False)
    path_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that hold a path, paths in a list or by name, or an embedded model's name: `load` resolves and hashes."""

    def paths(self) -> list[str]:
        """What those fields hold, embedded models left out."""
        held = [getattr(self, name) for name in self.path_fields]
        lists = [list(one.values()) if isinstance(one, Mapping) else one for one in held]
        named = [value for one in lists for value in (one if isinstance(one, (list, tuple)) else [one])]
        return [value for value in named if value and value not in EMBEDDED]


class Price(Options):
    """USD per million tokens."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]


class SamplingOptions(Options):
    """How answers are drawn; what is left out is the endpoint's own default."""

    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: list[str] = []
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: int | None = None
    response_format: dict[str, Any] | None = None
    """Such as `{type: json_object}`."""
    logprobs: bool | None = None
    """Log-probabilities of the answer's tokens; they stay in the journal."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    reasoning_effort: str | None = None
    extra_body: dict[str, Any] = {}
    """Anything else that the endpoint takes, such as `{top_k: 40}`; `null` takes a field out of the body."""

    @model_validator(mode="after")
    def _one_answer(self) -> SamplingOptions:
        for name, why in NOT_EXTRA.items():
            if self.extra_body.get(name):
                raise ValueError(f"extra_body.{name}: {why}")
        return self

    def sampling(self) -> Sampling:
        """The same as a core value."""
        return Sampling(**{**self.model_dump(), "stop": tuple(self.stop)})


class Teacher(Options):
    """The model to imitate: one that we serve ourselves, or an endpoint. A list of them shares the tasks."""

    name: Annotated[str, Field(pattern=r"^[^\s:]{1,100}$")] | None = None
    """What tells it from other teachers; its model's name when left out. It stands in each session's meta."""
    model: str
    """`smollm2` (embedded), a local folder, a `.gguf`, a Hub id, or the remote model's name."""
    serve: Literal["transformers", "vllm"] | None = None
    """Serve it on loopback while a stage needs it."""
    base_url: str | None = None
    """Talk to this OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself is written nowhere."""
    headers_env: dict[str, str] = {}
    """Secret headers: header name to the name of the variable that holds its value."""
    revision: str | None = None
    price: Price | None = None
    terms: Annotated[str, Field(min_length=1)]
    """What the teacher's licence or terms say of training on its answers."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Longest wait for one answer."""
    concurrency: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Requests in flight to this endpoint; collect.concurrency when left out."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    tokens_per_minute: Annotated[float, Field(gt=0)] | None = None
    """Of prompts and answers together. What the endpoint's headers say is obeyed besides."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its share of the tasks, among several teachers."""
    kinds: list[str] = []
    """The kinds of tasks (`meta.kind`) that it answers, among several teachers; empty: those that nobody else names."""
    sampling: SamplingOptions = SamplingOptions()

    @property
    def called(self) -> str:
        """Its name."""
        return self.name or self.model

    @model_validator(mode="after")
    def _one_address(self) -> Teacher:
        if (self.serve is None) == (self.base_url is None):
            raise ValueError("give either `serve: transformers` (or vllm), or `base_url`")
        if self.base_url is not None:
            _check_address(self.base_url)
        return self


_SECRET_NAME = re.compile(r"key|token|secret|sig|passw|auth|code", re.IGNORECASE)


def _check_address(base_url: str) -> None:
    """Raise for what is no address, and for secrets in it: a recipe is written into the run folder."""
    if not re.match(r"https?://[^/]+", base_url):
        raise ValueError("base_url is no http(s) address, such as http://127.0.0.1:8000/v1")
    parts = urlsplit(base_url)
    secret = next(
        (name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if _SECRET_NAME.search(name)), None
    )
    if "@" in parts.netloc or secret:
        what = f'a value for "{secret}"' if secret else "a user or a password"
        raise ValueError(
            f"base_url holds {what}, and a recipe is written into the run folder; put it into an environment variable,"
            " and name that in api_key_env or headers_env"
        )


def _how_many(value: Any) -> str:
    return "several" if isinstance(value, list) else "one"


OneOrMore = Annotated[
    Annotated[Teacher, Tag("one")] | Annotated[list[Teacher], Tag("several")], Discriminator(_how_many)
]
"""A teacher, or a list of them; told apart by the value, so that a fault is told once."""


@dataclass(frozen=True, slots=True)
class Asks:
    """What a strategy asks for one task, at most; `check` forecasts with it. The `asks` of a strategy's options."""

    requests: int = 1
    prompt_tokens: int = 0
    """Of all requests together, beyond the task itself in each, about."""
    answers_read: int = 0
    """Whole answers that stand in the prompts of later requests."""
    roles: tuple[str, ...] = ()
    """Whom it asks beside the teacher: `user`, `judge`."""


class PartSection(BaseModel):
    """A section that names a part and carries that part's options beside its own keys."""

    model_config = ConfigDict(extra="allow", frozen=True)
    options: Annotated[Any, Field(exclude=True)] = None
    """The part's validated options; filled by `load`."""


class Expand(PartSection):
    """Grow tasks from seeds."""

    strategy: str = "self_instruct"
    seeds: str = "seeds/general.jsonl"
    tasks: Annotated[int, Field(ge=1)]


class Collect(PartSection):
    """Have the teacher answer the tasks."""

    strategy: str = "answer"
    tasks: str | None = None
    """A file of tasks (our JSONL, or text with a prompt a line) in place of `expand`."""
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 32
    budget_usd: Annotated[float, Field(gt=0)] | None = None
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of tasks that may fail before the stage counts as failed."""
    attempts: Annotated[int, Field(ge=1)] = 10
    """Sends of one request, the first included."""
    hedge: Annotated[float, Field(ge=1)] | None = None
    """Send a request a second time when it takes so many times the 95th percentile; the first answer counts."""
    mode: Literal["live", "batch"] = "live"
    """`batch`: through the provider's batch interface (/v1/batches), for half the price and within a day."""
    test: Annotated[int, Field(ge=0)] = 32
    """Prompts held out for compare, never trained on."""


class Source(Options):
    """Answered sessions that others made; they join collect's, or take their place."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    name: Annotated[str, Field(pattern=r"^[^\s/]{1,100}$")] | None = None
    """Stands before the ids of its sessions; from the file's name when left out."""
    format: Annotated[str | None, Field(alias="from")] = None
    """Which format it has, such as `sharegpt`; needed with `path`."""
    path: str | None = None
    """A file, or a folder, as the format has it …"""
    hub: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")] | None = None
    """… or a dataset of the Hub: owner/name."""
    split: str | None = None
    revision: str | None = None
    """Of a Hub dataset: a branch, a tag, or, so that it is always the same, a commit."""
    licence: str | None = None
    """What its licence says of training on it; stands in each session's meta."""
    take: Annotated[int, Field(ge=1)] | None = None
    """A sample of so many rows, by a hash of seed and id."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """How often each of its sessions counts: 0.5 takes about half of them, 2 takes each twice."""
    max_tokens: Annotated[int, Field(ge=16)] | None = None
    """Split longer conversations before a question; a single pair that is longer stays whole and is marked."""
    tokenizer: str | None = None
    """Counts the tokens: `smollm2`, or a model's folder; that of student.model when left out."""

    @property
    def called(self) -> str:
        """Its name."""
        return self.name or re.sub(r"[\s/]+", "-", self.hub or Path(self.path or "").stem)

    @property
    def importer(self) -> str:
        """The name of its format."""
        return self.format or "hub"

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either `path` (with `from`), or `hub: owner/name`")
        if self.path is not None and self.format is None:
            raise ValueError("`from` is missing: the format of the file, such as alpaca or sharegpt")
        if self.hub is not None and self.format not in (None, "hub"):
            raise ValueError(f"`from: {self.format}` is for a `path`; a `hub` dataset tells its format itself")
        return self


class Rule(PartSection):
    """One curation rule."""

    filter: str


class Prune(Options):
    """Make the student from its model by leaving layers out."""

    layers: Annotated[int, Field(ge=1)]


class Student(Options):
    """The model that learns."""

    model: str
    prune: Prune | None = None
    template: Literal["chatml", "alpaca", "vicuna", "own"] = "chatml"


class Train(PartSection):
    """Fine-tune the student on the kept sessions."""


class Compare(Options):
    """Ask student, base and teacher the held-out prompts."""

    metrics: list[str] = ["likelihood", "overlap", "style"]
    judge: None = None
    """Reserved: a judge is not available in this version."""
    sampling: SamplingOptions | None = None
    """The teacher's own sampling when left out."""


class Recipe(BaseModel):
    """A whole run. Sections left out are stages that do not run."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    seed: int = 7
    budget_usd: Annotated[float, Field(gt=0)] | None = None
    teacher: OneOrMore | None = None
    user: Teacher | None = None
    """Who plays the user in strategies that simulate one; the teacher when left out."""
    judge: Teacher | None = None
    """Who rates answers for strategies that ask so; the (first) teacher when left out."""
    reuse: list[str] = []
    """Other runs, whose bought answers serve this one too."""
    expand: Expand | None = None
    collect: Collect | None = None
    sources: list[Source] = []
    """Data of others, whose sessions stand before collect's in sessions.jsonl."""
    test: Annotated[int, Field(ge=0)] | None = None
    """Prompts held out where there are sources and no `collect`: 32 with `compare`, else none. See collect.test."""
    curate: list[Rule] | None = None
    student: Student | None = None
    train: Train | None = None
    compare: Compare | None = None
    files: dict[str, str] = {}
    """SHA-256 of every file that the recipe names, in a resolved recipe; a change since is an error."""

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """All teachers, the main one first: the one that expands."""
        if self.teacher is None:
            return ()
        return tuple(self.teacher) if isinstance(self.teacher, list) else (self.teacher,)

    @property
    def held_out(self) -> int:
        """Prompts held out for compare."""
        if self.collect is not None:
            return self.collect.test
        default = 32 if self.compare is not None and self.sources else 0
        return default if self.test is None else self.test

    @property
    def roles(self) -> dict[str, Teacher]:
        """The other models that a strategy may ask, by role: those of `user` and `judge` that are given."""
        return {name: one for name, one in (("user", self.user), ("judge", self.judge)) if one is not None}

    @property
    def main_teacher(self) -> Teacher | None:
        """The first teacher."""
        return self.teachers[0] if self.teachers else None

    @model_validator(mode="after")
    def _teachers_fit(self) -> Recipe:
        names = [teacher.called for teacher in self.teachers]
        if self.teacher is not None and not names:
            raise ValueError("teacher: the list is empty")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f'teacher: two are called "{twice}"; give each a `name`')
        if len(names) > 1 and all(teacher.kinds for teacher in self.teachers):
            raise ValueError("teacher: each names its kinds, so that other tasks have none; leave one without `kinds`")
        if self.collect is not None and self.collect.mode == "batch":
            self._batch_fits()
        return self

    def _batch_fits(self) -> None:
        if self.expand is not None:
            raise ValueError(
                "collect.mode: batch: a batch takes up to a day, and expand asks what it learns from the answer before;"
                " expand in another run, and give its tasks.jsonl as collect.tasks"
            )
        if any(one.base_url is None for one in (*self.teachers, *self.roles.values())):
            raise ValueError("collect.mode: batch: needs endpoints with /v1/batches: give each model a base_url")
        if len(self.teachers) > 1:
            raise ValueError("collect.mode: batch: takes one teacher; make a run for each, and join them by `reuse`")

    @model_validator(mode="after")
    def _roles_fit(self) -> Recipe:
        for role, one in self.roles.items():
            if one.kinds or one.weight != 1:
                raise ValueError(f"{role}: `kinds` and `weight` share tasks among teachers; take them out")
        return self

    @model_validator(mode="after")
    def _sections_fit(self) -> Recipe:
        for name in ("expand", "collect"):
            if getattr(self, name) is not None and self.teacher is None:
                raise ValueError(f"`{name}` needs a `teacher` section")
        if self.collect is not None and self.collect.tasks is None and self.expand is None:
            raise ValueError("`collect` has no tasks: add an `expand` section, or `collect: {tasks: FILE}`")
        if (self.train is None) != (self.student is None):
            raise ValueError("`train` and `student` belong together: one of them is missing")
        if self.compare is not None and (self.train is None or self.teacher is None):
            raise ValueError("`compare` needs the sections `teacher`, `student` and `train`")
        if self.collect is not None and self.compare is not None and self.collect.test == 0:
            raise ValueError("`compare` needs held-out prompts: set `collect.test` to 32 or more")
        return self

    @model_validator(mode="after")
    def _sources_fit(self) -> Recipe:
        names = [source.called for source in self.sources]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f'sources: two are called "{twice}"; give each a `name`')
        if self.test is not None and (self.collect is not None or not self.sources):
            raise ValueError("test: is for a recipe with sources and without `collect`; use collect.test")
        if self.sources and self.compare is not None and self.held_out == 0:
            raise ValueError("`compare` needs held-out prompts: set `test` to 32 or more")
        unique = [rule.filter for rule in self.curate or () if rule.filter in ("exact_duplicate", "near_duplicate")]
        for source in self.sources:
            if source.weight > 1 and unique:
                raise ValueError(
                    f"sources: {source.called}: weight {source.weight:g} repeats sessions, which {unique[0]} drops"
                    " again; take that rule out, or lower the weights of the others instead"
                )
            if source.max_tokens is not None and source.tokenizer is None and self.student is None:
                raise ValueError(f"sources: {source.called}: max_tokens needs a `tokenizer`, such as smollm2")
        return self

    def document(self) -> dict[str, Any]:
        """The recipe as plain values, the parts' options resolved among them."""
        document = self.model_dump(exclude_none=True)
        for name in ("expand", "collect", "train"):
            if (section := getattr(self, name)) is not None:
                document[name] = _plain(section)
        if self.curate is not None:
            document["curate"] = [_plain(rule) for rule in self.curate]
        document["sources"] = [source.model_dump(by_alias=True, exclude_none=True) for source in self.sources]
        if not self.sources:
            del document["sources"]
        return document

    def to_yaml(self) -> str:
        """The recipe as a file that `load` reads back as the same."""
        return yaml.safe_dump(self.document(), sort_keys=False, allow_unicode=True, width=120)


def _plain(section: PartSection) -> dict[str, Any]:
    options = section.options.model_dump(exclude_none=True) if section.options is not None else {}
    return {**section.model_dump(exclude_none=True), **options}


@dataclass(frozen=True, slots=True)
class Parts:
    """What the doors tell this module of the shelves: option models by part name. Each raises `RecipeError`."""

    expand: Callable[[str], type[Options]]
    collect: Callable[[str], type[Options]]
    filter: Callable[[str], type[Options]]
    metric: Callable[[str], type[Options]]
    train: type[Options]
    source: Callable[[str], Any]


def load(path: Path, parts: Parts, *, overrides: Iterable[str] = ()) -> Recipe:
    """Read, override, validate and resolve a recipe. Raises `RecipeError` with one line for each fault found.

    `overrides` are `a.b=c` texts; the value is YAML, and a path in it is relative to the current folder. Other paths
    are relative to the recipe's folder, then to the shipped prompts/.
    """
    document = _read(path)
    for text in overrides:
        _override(document, text, parts)
    recipe, faults = _validate(document)
    if recipe is not None:
        recipe, faults = _with_options(recipe, parts)
    if not faults and recipe is not None:
        recipe, faults = _resolved(recipe, path.resolve().parent)
    if faults or recipe is None:
        raise RecipeError("\n".join(f"{path}: {fault}" for fault in faults))
    return recipe


class _Loader(yaml.SafeLoader):
    """Booleans as in YAML 1.2: `on: answer` has a key of two letters, and `no` is Norwegian."""


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(f"{path}: over {MAX_RECIPE_BYTES} bytes; expected a recipe")
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}; check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: found {type(document).__name__}, expected a mapping of sections (name, teacher …)")
    return document


def _override(document: dict[str, Any], text: str, parts: Parts) -> None:
    key, equals, written = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {text}: expected KEY=VALUE, such as --set train.epochs=3")
    try:
        value = yaml.safe_load(written)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {text}: the value is no YAML: {' '.join(str(error).split())}") from error
    if key in PATH_KEYS or _is_rule_path(key, parts):
        value = [_from_here(each) for each in value] if isinstance(value, list) else _from_here(value)
    _assign(document, key.split("."), value, text)


def _is_rule_path(key: str, parts: Parts) -> bool:
    """Whether a key such as `curate.contamination.files` is one of its filter's paths."""
    section, _, rest = key.partition(".")
    name, _, field = rest.rpartition(".")
    try:
        return section == "curate" and field in parts.filter(name).path_fields
    except RecipeError:
        return False


def _from_here(value: Any) -> Any:
    """An absolute path, for what exists in the current folder."""
    if isinstance(value, str) and value not in EMBEDDED and Path(value).exists():
        return str(Path(value).resolve())
    return value


def _assign(node: Any, keys: list[str], value: Any, text: str) -> None:
    for index, key in enumerate(keys[:-1]):
        if isinstance(node, dict):
            if node.get(key) is None:
                node[key] = {}
            node = node[key]
        elif isinstance(node, list):
            node = _rule_named(node, key, text)
        else:
            raise RecipeError(f"--set {text}: {'.'.join(keys[:index])} is a value, not a section")
    if not isinstance(node, dict):
        raise RecipeError(f"--set {text}: {'.'.join(keys[:-1])} is no section")
    node[keys[-1]] = value


def _rule_named(items: list[Any], name: str, text: str) -> Any:
    """The rule of a filter, or the teacher of a name, in a list of them."""
    names = [str(item.get("filter") or item.get("name") or item.get("model") or item.get("from")) for item in items]
    if name not in names:
        raise RecipeError(f'--set {text}: no "{name}" in the recipe\'s list{suggest(name, names)}')
    return items[names.index(name)]


def _validate(document: dict[str, Any]) -> tuple[Recipe | None, list[str]]:
    try:
        return Recipe.model_validate(document), []
    except ValidationError as error:
        return None, [_fault(item, Recipe, ()) for item in error.errors()]


def _fault(item: Mapping[str, Any], model: type[BaseModel], prefix: tuple[str, ...]) -> str:
    """One line for one pydantic error, with a suggestion for an unknown key."""
    where = ".".join([*prefix, *(str(part) for part in item["loc"] if part not in {"one", "several"})])
    if item["type"] == "extra_forbidden":
        return f'unknown key "{where}"{suggest(str(item["loc"][-1]), _known_keys(model, item["loc"][:-1]))}'
    if item["type"] == "missing":
        return f"`{where}` is missing"
    message = str(item["msg"]).removeprefix("Value error, ").replace("\n", " ")
    if not where:
        return message
    if item["type"] == "value_error":
        return f"{where}: {message}"
    return f"{where}: {message[0].lower() + message[1:]}, found {_shown(item.get('input'))}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _known_keys(model: type[BaseModel], location: Iterable[Any]) -> list[str]:
    for key in location:
        if isinstance(key, str) and key in model.model_fields:
            model = next(iter(_models(model.model_fields[key].annotation)), model)
    return [field.alias or name for name, field in model.model_fields.items() if name != "options"]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _with_options(recipe: Recipe, parts: Parts) -> tuple[Recipe, list[str]]:
    """The recipe with every part's options validated and filled in."""
    faults: list[str] = []
    changed: dict[str, Any] = {}
    for name, lookup in (("expand", parts.expand), ("collect", parts.collect)):
        section = getattr(recipe, name)
        if section is not None:
            changed[name] = _filled(section, partial(lookup, section.strategy), (name,), faults)
    if recipe.train is not None:
        changed["train"] = _filled(recipe.train, lambda: parts.train, ("train",), faults)
    if recipe.curate is not None:
        rules = [
            _filled(rule, partial(parts.filter, rule.filter), ("curate", rule.filter), faults) for rule in recipe.curate
        ]
        changed["curate"] = rules
    for source in recipe.sources:
        try:
            parts.source(source.importer)
        except RecipeError as error:
            faults.append(f"sources.{source.called}.from: {error}")
    for metric in recipe.compare.metrics if recipe.compare is not None else ():
        try:
            parts.metric(metric)
        except RecipeError as error:
            faults.append(f"compare.metrics: {error}")
    return recipe.model_copy(update=changed), faults


def _filled(
    section: PartSection, model_of: Callable[[], type[Options]], prefix: tuple[str, ...], faults: list[str]
) -> PartSection:
    extra = dict(section.model_extra or {})
    try:
        model = model_of()
        options = model.model_validate(extra)
    except RecipeError as error:
        faults.append(f"{'.'.join(prefix)}: {error}")
        return section
    except ValidationError as error:
        faults.extend(_part_fault(item, model, type(section), prefix) for item in error.errors())
        return section
    return section.model_copy(update={"options": options})


def _part_fault(
    item: Mapping[str, Any], model: type[Options], section: type[BaseModel], prefix: tuple[str, ...]
) -> str:
    if item["type"] == "extra_forbidden" and len(item["loc"]) == 1:
        known = [name for name in (*model.model_fields, *section.model_fields) if name != "options"]
        return f'unknown key "{".".join([*prefix, str(item["loc"][0])])}"{suggest(str(item["loc"][0]), known)}'
    return _fault(item, model, prefix)


def _resolved(recipe: Recipe, folder: Path) -> tuple[Recipe, list[str]]:
    """The recipe with absolute paths and the SHA-256 of each file it names."""
    faults: list[str] = []
    files: dict[str, str] = {}

    def file(key: str, value: str) -> str:
        path = _found(value, folder, folders=key.startswith("curate."))
        if path is None:
            faults.append(f"{key}: no file {value}; looked in {folder} and in the shipped prompts/")
            return value
        files[str(path)] = tree_sha256(path)
        return str(path)

    def options(key: str, section: Any) -> Any:
        held = section.options
        if not isinstance(held, Options) or not held.paths():
            return section
        found = {name: _each_path(getattr(held, name), partial(file, f"{key}.{name}")) for name in held.path_fields}
        return section.model_copy(update={"options": held.model_copy(update=found)})

    changed: dict[str, Any] = {}
    if recipe.curate is not None:
        changed["curate"] = [options(f"curate.{rule.filter}", rule) for rule in recipe.curate]
    if recipe.expand is not None:
        expand = recipe.expand.model_copy(update={"seeds": file("expand.seeds", recipe.expand.seeds)})
        changed["expand"] = options("expand", expand)
    if recipe.collect is not None and recipe.collect.tasks is not None:
        tasks = file("collect.tasks", recipe.collect.tasks)
        changed["collect"] = recipe.collect.model_copy(update={"tasks": tasks})
    if recipe.sources:
        changed["sources"] = [_source_found(source, folder, files, faults) for source in recipe.sources]
    if recipe.teacher is not None:
        teachers = [_with_model(teacher, "teacher", folder, faults) for teacher in recipe.teachers]
        changed["teacher"] = teachers if isinstance(recipe.teacher, list) else teachers[0]
    changed |= {role: _with_model(one, role, folder, faults) for role, one in recipe.roles.items()}
    if recipe.student is not None:
        changed["student"] = _with_model(recipe.student, "student", folder, faults)
    changed["reuse"] = [_run_folder(value, folder, faults) for value in recipe.reuse]
    faults += [
        f"files: {path} has changed since this recipe was resolved; restore it, or start from the original recipe"
        for path, digest in recipe.files.items()
        if files.get(path, digest) != digest
    ]
    return recipe.model_copy(update={**changed, "files": files}), faults


def _source_found(source: Source, folder: Path, files: dict[str, str], faults: list[str]) -> Source:
    """The source with the absolute paths of its file or folder and its tokenizer, and the SHA-256 of the first."""
    changed = {}
    for key, value in (("path", source.path), ("tokenizer", source.tokenizer)):
        local = None if value is None or value in EMBEDDED else folder / Path(value).expanduser()
        if local is not None and not local.exists():
            faults.append(f"sources.{source.called}.{key}: no file or folder {value}; looked in {folder}")
        elif local is not None:
            changed[key] = str(local.resolve())
    if "path" in changed:
        files[changed["path"]] = tree_sha256(Path(changed["path"]))
    return source.model_copy(update={"name": source.called, **changed})


Section = TypeVar("Section", Teacher, Student)


def _with_model(section: Section, key: str, folder: Path, faults: list[str]) -> Section:
    """The section with its model's absolute path, where it is a path."""
    if getattr(section, "base_url", None):
        return section
    model, fault = _model_address(section.model, folder)
    faults += [f"{key}.model: {fault}"] if fault else []
    return section.model_copy(update={"model": model})


def _run_folder(value: str, folder: Path, faults: list[str]) -> str:
    """The absolute path of another run: as it stands here, beside the recipe, or by its name in runs/."""
    candidates = [Path(value).expanduser(), folder / value, Path("runs") / value]
    for path in candidates:
        if (path / "journal.sqlite").is_file():
            return str(path.resolve())
    faults.append(f"reuse: {value} is no run with a journal; looked in {', '.join(map(str, candidates))}")
    return value


def _found(value: str, folder: Path, *, folders: bool = False) -> Path | None:
    candidates = [Path(value)] if Path(value).is_absolute() else [folder / value, assets.root() / "prompts" / value]
    return next((path.resolve() for path in candidates if path.is_file() or (folders and path.is_dir())), None)


def _each_path(value: Any, resolve: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _each_path(one, resolve) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_each_path(one, resolve) for one in value)
    return resolve(value) if value and value not in EMBEDDED else value


_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


def _model_address(value: str, folder: Path) -> tuple[str, str | None]:
    """An absolute path for a local model, the value itself for an embedded name or a Hub id; or a fault."""
    if value in EMBEDDED:
        return value, None
    local = Path(value).expanduser()
    path = local if local.is_absolute() else folder / local
    if path.exists():
        return str(path.resolve()), None
    if value.startswith((".", "/", "~")) or value.endswith((".gguf", ".safetensors")):
        return value, f"no such file or folder {value}; looked in {folder}"
    if not _HUB_ID.match(value):
        return value, f"{value!r} is neither an embedded model, a local path nor a Hub id (owner/name)"
    if "/" not in value:
        return value, f'unknown model "{value}"{suggest(value, EMBEDDED)} (or a path, or a Hub id owner/name)'
    return value, None
