"""The command that installs an optional dependency group, for the way this copy was installed.

Never by the bare name `distill`: on the package index it is another project's.
Stdlib only.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from shlex import quote
from typing import Literal, TypeAlias
from urllib.parse import unquote, urlsplit

Extra: TypeAlias = Literal["train", "data", "lm-eval"]

PACKAGE = Path(__file__).resolve().parents[1]
_REQUIREMENT = re.compile(r"""([^;]+?)\s*;.*\bextra\s*==\s*['"]([^'"]+)['"]""")


def install(extra: Extra) -> str:
    """The command: by path for an editable checkout, otherwise with the packages and their bounds."""
    own = next((copy for copy in distributions(name="distill") if _is_own(copy)), None)
    if own is not None and _editable(own) is not None:
        return f"pip install -e {quote(f'{PACKAGE.parent}[{extra}]')}"
    packages = _declared(extra) if own is None else _required(own.requires or (), extra)
    names = " ".join(map(quote, packages))
    return f"pip install {names or f'PACKAGE …, those of the extra `{extra}` in pyproject.toml'}"


def _is_own(copy: Distribution) -> bool:
    """Whether metadata belong to this copy, and not to another that is installed too."""
    return _editable(copy) == PACKAGE.parent or Path(str(copy.locate_file("distill"))).resolve() == PACKAGE


def _editable(copy: Distribution) -> Path | None:
    """The folder of an editable installation (PEP 610)."""
    try:
        origin = json.loads(copy.read_text("direct_url.json") or "{}")
        folder = origin["url"] if origin.get("dir_info", {}).get("editable") else ""
    except (ValueError, KeyError, AttributeError):
        return None  # written by no installer
    return Path(unquote(urlsplit(folder).path)).resolve() if folder else None


def _required(requirements: Iterable[str], extra: str) -> list[str]:
    """An extra's packages in the metadata of a wheel, such as `torch>=2.6; extra == 'train'`."""
    matches = (_REQUIREMENT.fullmatch(requirement) for requirement in requirements)
    return [match[1] for match in matches if match and match[2] == extra]


def _declared(extra: str) -> list[str]:
    """An extra's packages in a source tree that is not installed."""
    try:
        project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return list(project["optional-dependencies"][extra])
    except (OSError, ValueError, KeyError):
        return []  # a bare copy of the package
