"""The `init` command, and differences between a recipe and the shipped one it came from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.core import assets
from distill.core.registry import suggest
from distill.errors import RecipeError, RunFolderError
from distill.pipeline import recipe_keys
from distill.pipeline.parts import load_recipe, shipped
from distill.recipe import Recipe
from distill.run.decisive import EMPTY, shown

STARTER = "quickstart"
MODELINE = f"# yaml-language-server: $schema={recipe_keys.SCHEMA}"
"""What the YAML language server of an editor reads: the schema beside the recipe."""
NOT_COMPARED = ("name", "files", "reuse")
"""Keys about where a run is, not what it does."""


def init(folder: Path, *, like: str | None = None, name: str | None = None) -> list[str]:
    """Copy a shipped recipe with its comments into a folder; returns lines about it and what to type next.

    The shipped seeds and prompts that it refers to are copied beside it, to be changed. So is the schema that its first
    line names to editors: an installed file's path would hold on one machine alone. Raises `RecipeError` for an unknown
    name, `RunFolderError` where the recipe exists already.
    """
    original = like or STARTER
    if original not in shipped():
        raise RecipeError(f'no shipped recipe "{original}"{suggest(original, shipped())}')
    name = name or like or "my-run"
    out = folder / f"{name}.yaml"
    if out.exists():
        raise RunFolderError(f"{out} is there already; give another --name, or remove it")
    source = assets.find(f"recipes/{original}.yaml")
    text = source.read_text(encoding="utf-8").replace(f"\nname: {original}\n", f"\nname: {name}\n", 1)
    folder.mkdir(parents=True, exist_ok=True)
    copies = list(_copies(load_recipe(source), folder))
    (folder / recipe_keys.SCHEMA).write_text(recipe_keys.schema_text(), encoding="utf-8")
    out.write_text(f"{MODELINE}\n{text}", encoding="utf-8")
    return [
        f"{out}: a copy of {original}",
        *(f"{file}: yours to change" for file in copies),
        f"{folder / recipe_keys.SCHEMA}: its keys, for editors",
        f"next: distill check {out}",
        f"      distill smoke {out}     # once through in seconds, with a tiny model",
        f"      distill run {out}",
    ]


def _copies(recipe: Recipe, folder: Path) -> Iterator[Path]:
    """The shipped files of a recipe, copied under the same relative path."""
    root = assets.root() / "prompts"
    for path in map(Path, recipe.files):
        if path.is_relative_to(root):
            out = folder / path.relative_to(root)
            if not out.exists():
                out.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, out)
                yield out


def departures(path: Path, like: str) -> list[str]:
    """Differences of a recipe from a shipped one, one line per key, including models and paths but not names."""
    if like not in shipped():
        raise RecipeError(f'--like: no shipped recipe "{like}"{suggest(like, shipped())}')
    ours, theirs = (
        {
            key: None if value in EMPTY else value
            for key, value in flat(load_recipe(one, importing=False).document()).items()
        }
        for one in (path, assets.find(f"recipes/{like}.yaml"))
    )
    keys = [key for key in dict.fromkeys((*theirs, *ours)) if key.split(".")[0] not in NOT_COMPARED]
    changes = [key for key in keys if theirs.get(key) != ours.get(key)]
    differences = [f"  {key}: {shown(theirs.get(key))} → {shown(ours.get(key))}" for key in changes]
    if not differences:
        return [f"{path} does what {like} does"]
    return [f"{path} departs from {like} in {len(differences)} of {len(keys)} keys ({like} → here):", *differences]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every value by its dotted key; items of a list by their name (`curate.length`), else by position."""
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        value = {
            item.get("filter") or item.get("metric") or item.get("name") or place: (
                {key: each for key, each in item.items() if key not in ("filter", "metric")} or True
            )
            for place, item in enumerate(value)
        }
    if not (isinstance(value, Mapping) and value):
        return {prefix: value}
    items = [(f"{prefix}.{key}" if prefix else str(key), each) for key, each in value.items()]
    return {path: leaf for key, each in items for path, leaf in flat(each, key).items()}
