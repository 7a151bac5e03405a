"""Builds recipes/recipe.schema.json: the recipe's JSON Schema, with the options of every shipped part by its name.

Descriptions are the docstrings under the fields. Completion, `explain` and recipes/KEYS.md read that file alone.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from pydantic_core import core_schema, to_jsonable_python

from distill.collect.strategies import STRATEGIES as ANSWERING
from distill.compare.metrics import METRICS
from distill.core import registry
from distill.curate.filters import FILTERS
from distill.expand.strategies import STRATEGIES as GROWING
from distill.formats.importers import IMPORTERS
from distill.recipe import Recipe
from distill.train.objectives import OBJECTIVES
from distill.train.options import TrainOptions

Node = dict[str, Any]
SHELVES: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "Expand": ("strategy", "strategy", GROWING),
    "Collect": ("strategy", "strategy", ANSWERING),
    "Rule": ("filter", "filter", FILTERS),
    "Metric": ("metric", "metric", METRICS),
    "Objective": ("kind", "objective", OBJECTIVES),
}
"""Sections that name a part: the key that names it, what such a part is called, and the shelf."""
DRAFT = "http://json-schema.org/draft-07/schema#"
"""The newest that editors know whole."""
DOTTED: Node = {"type": "string", "pattern": ":"}
SHORTHANDS = {"HeldOut": "count", "Benchmarks": "tasks"}
"""Sections for which the value of one key may stand."""
_UNITS = {
    "tokens": "tokens length top_logprobs k",
    "words": "words",
    "characters": "chars",
    "UTF-8 bytes": "letters",
    "USD": "usd",
    "USD per million tokens": "input output",
    "seconds": "seconds",
    "requests per minute": "requests_per_minute",
    "tokens per minute": "tokens_per_minute",
    "share, 0 to 1": (
        "top_p max_failed plain_inputs dropout warmup share min_probability duplicate_lines duplicate_line_chars"
        " duplicate_paragraphs duplicate_paragraph_chars top_n_grams duplicate_n_grams"
    ),
    "similarity, 0 to 1": "rouge_l near jaccard cosine on_topic",
    "requests": "concurrency window topic_requests",
    "tasks": "tasks new_tasks",
    "topics": "topics_each",
    "seeds": "shown",
    "rows": "rows count take most common",
    "prompts": "retest",
    "examples": "shots show_masks",
    "documents": "limit",
    "items": "batch",
    "answers": "samples",
    "the reference's own unit": "tolerance",
    "exchanges": "exchanges min_rounds max_rounds",
    "rounds": "rounds",
    "times": "attempts loop",
    "epochs": "epochs",
    "steps": "steps",
    "evaluations": "patience",
    "layers": "layers",
    "number": (
        "seed temperature presence_penalty frequency_penalty weight stages learning_rate r alpha weight_decay"
        " max_grad_norm neftune_alpha min_delta highest min_score min max size drop_above"
        " margin ratio beta gamma"
    ),
}
"""Units, and the keys that have them, by the whole name or the last word of it."""
_UNIT_OF = {name: unit for unit, names in _UNITS.items() for name in names.split()}


def unit_of(key: str, node: Node) -> str | None:
    """The unit of a number, or of a mapping's numbers; `None` for other values. Raises `KeyError` for one without."""
    branches = [one for each in (node, *node.get("anyOf", ())) for one in (each, each.get("additionalProperties"))]
    if not any(isinstance(one, dict) and one.get("type") in ("integer", "number") for one in branches):
        return None
    return _UNIT_OF.get(key) or _UNIT_OF[key.rpartition("_")[2]]


class _Described(GenerateJsonSchema):
    """Adds the docstrings under fields, and defaults that a factory makes; leaves out titles."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> Node:
        cls: type[BaseModel] = schema["cls"]
        node = super().model_schema(schema)
        node.pop("title", None)
        node["description"] = one_line(inspect.getdoc(cls) or "")
        docs = field_docs(cls)
        for name, field in cls.model_fields.items():
            one = node["properties"][field.alias or name]
            if text := docs.get(name, field.description):
                one["description"] = text
            if field.default_factory is not None:
                one["default"] = to_jsonable_python(field.get_default(call_default_factory=True))
        return node


def one_line(text: str) -> str:
    """The first paragraph of a docstring as one line."""
    return " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())


def field_docs(cls: type[BaseModel]) -> dict[str, str]:
    """The docstring under each field of a model; of a field declared anew without one, that of its base class.

    pydantic's `use_attribute_docstrings` would read the sources at each start, 70 ms, and not those of base classes.
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            docs |= _own_docs(base)
    return docs


@cache
def _own_docs(cls: type[BaseModel]) -> dict[str, str]:
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, text in pairwise(definition.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                docs[name] = " ".join(words.split())
    return docs


def build() -> Node:
    """The JSON Schema (draft 7) of a recipe, with a branch per shipped part and one for dotted paths.

    Constraints between keys are left to `check`.
    """
    parts = {name: _parts(kind, shelf) for name, (_, kind, shelf) in SHELVES.items()}
    models = dict.fromkeys([Recipe, TrainOptions, *(part.Options for of in parts.values() for part in of.values())])
    refs, top = models_json_schema([(model, "validation") for model in models], schema_generator=_Described)
    defs: dict[str, Node] = top["$defs"]
    own = {model: defs.pop(str(refs[model, "validation"]["$ref"]).rpartition("/")[2]) for model in models}
    for name, (key, kind, _) in SHELVES.items():
        branches = {part: (one_line(cls.__doc__), own[cls.Options]) for part, cls in parts[name].items()}
        defs[name] = _by_part(defs[name], key, kind, branches)
    defs["Train"] = _joined(defs["Train"], own[TrainOptions])
    defs["Metric"]["oneOf"].insert(0, _bare_names(defs["Metric"]))
    defs["Source"] = _by_format(defs["Source"])
    for name, key in SHORTHANDS.items():
        short = {word: value for word, value in defs[name]["properties"][key].items() if word != "default"}
        defs[name] = {"anyOf": [defs[name], short]}
    return _finished({"$schema": DRAFT, "title": "distill recipe", **own[Recipe], "$defs": defs})


def _parts(kind: str, shelf: Mapping[str, str]) -> dict[str, Any]:
    return {name: registry.part(shelf, name, kind=kind) for name in shelf}


def _joined(section: Node, options: Node) -> Node:
    """A section whose part's options stand beside its own keys."""
    own = {key: node for key, node in section["properties"].items() if key != "options"}
    return {
        "type": "object",
        "description": section["description"],
        "properties": own | options.get("properties", {}),
        "required": [*section.get("required", ()), *options.get("required", ())],
        "additionalProperties": False,
    }


def _by_part(section: Node, key: str, kind: str, branches: Mapping[str, tuple[str, Node]]) -> Node:
    """A section with a branch per part's name; the default part may be left unnamed."""
    default = section["properties"][key].get("default")
    nodes = []
    for name, (description, options) in branches.items():
        node = _joined(section, options)
        node["description"] = description
        node["properties"][key] = {"const": name, "description": description}
        if name == default:
            node["properties"][key]["default"] = name
        node["required"] = list(dict.fromkeys([*([] if name == default else [key]), *node["required"]]))
        nodes.append(node)
    foreign = _joined(section, {}) | {"additionalProperties": True, "description": f"A {kind} of your own."}
    foreign["properties"][key] = DOTTED | {"description": section["properties"][key]["description"]}
    foreign["required"] = list(dict.fromkeys([key, *foreign["required"]]))
    return {"description": section["description"], "oneOf": [*nodes, foreign]}


def _bare_names(metric: Node) -> Node:
    """The metrics that may be given as a name alone: those without a required option."""
    names = [node["properties"]["metric"]["const"] for node in metric["oneOf"][:-1] if node["required"] == ["metric"]]
    return {"anyOf": [{"enum": names}, DOTTED]}


def _by_format(source: Node) -> Node:
    """A source with a branch per set of formats with equal options, one for dotted paths and one without a format."""
    takes = {name: registry.part(IMPORTERS, name, kind="format")().takes for name in IMPORTERS}
    optional = frozenset().union(*takes.values())
    formats = {some: [name for name in takes if takes[name] == some] for some in takes.values()}
    branches = [_source(source, optional - some, {"enum": names}) for some, names in formats.items()]
    return {
        "description": source["description"],
        "oneOf": [*branches, _source(source, (), DOTTED), _source(source, ("from",), None)],
    }


def _source(source: Node, without: Collection[str], names: Node | None) -> Node:
    properties = {key: node for key, node in source["properties"].items() if key not in without}
    if names is not None:
        properties["from"] = {"description": properties["from"]["description"], **names}
    return {**source, "properties": properties, "required": [] if names is None else ["from"]}


def _finished(schema: Node) -> Node:
    """The schema with a unit for each number, and whole numbers as such."""
    for node in _nodes(schema):
        if isinstance(node.get("default"), float) and node["default"].is_integer():
            node["default"] = int(node["default"])
        for key, one in node.get("properties", {}).items():
            if unit := unit_of(key, one):
                one["x-unit"] = unit
    return schema


def _nodes(value: Any) -> Iterator[Node]:
    """All mappings in a value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    for each in value if isinstance(value, list) else ():
        yield from _nodes(each)
