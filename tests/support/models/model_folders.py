"""Changes to the files of a model's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def change(file: Path, **settings: Any) -> None:
    """Set keys of a JSON file, or take out those that are None."""
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({key: value for key, value in {**found, **settings}.items() if value is not None}))
