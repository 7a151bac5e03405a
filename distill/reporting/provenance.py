"""Where the run comes from."""

from __future__ import annotations

import re

from distill.reporting.comparison import MODELS, described
from distill.reporting.figures import Row, shown


def facts(record: Row, base: Row, scores: Row, recipe: str) -> list[tuple[str, str]]:
    """What a reader needs in order to name, cite and repeat the run."""
    seed = re.search(r"^seed:\s*(\S+)", recipe, re.MULTILINE)
    facts = {
        "Run": record.get("name"),
        "Started": record.get("created"),
        "distill": record.get("version"),
        **{f"Teacher: {key.replace('_', ' ')}": value for key, value in (record.get("teacher") or {}).items()},
        **{f"Student: {key.replace('_', ' ')}": value for key, value in base.items()},
        **{f"Compared as {title.lower()}": described(scores, model) for model, title in MODELS.items()},
        "Seed": seed[1] if seed else None,
        "Recipe SHA-256": record.get("recipe_sha256"),
    }
    return [(term, text) for term, value in facts.items() if (text := shown(value)) not in (None, "", "{}", "[]")]
