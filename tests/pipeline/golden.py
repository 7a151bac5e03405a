"""A tiny run of each stage, and what it writes in figures that are the same on every machine.

`python -m tests.pipeline.golden` writes golden.json anew, after a stage's `REVISION` was raised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distill.api import run_recipe
from distill.core.files import to_json
from distill.core.hashing import json_sha256
from distill.core.jsonl import read_jsonl, read_sessions
from distill.engine.mock_server import MockServer
from distill.engine.mock_server.stand_in import answer
from distill.pipeline.stages import PIPELINE
from tests.support.tiny import save_tiny_model

GOLDEN = Path(__file__).with_name("golden.json")
TRAIN = {"method": "lora", "epochs": 1, "learning_rate": 5e-3, "lora": {"r": 8}, "batch_rows": 4, "eval_rows": 0}


LEFT_OUT = ("key", "keys", "seconds")
"""Journal keys hold the server's port."""


def recipe(url: str, model: Path) -> dict[str, Any]:
    """Every stage, with a teacher that says the same to the same question."""
    return {
        "name": "golden",
        "teacher": {"model": "stand-in", "base_url": url, "terms": "ours", "sampling": {"max_tokens": 48}},
        "expand": {"strategy": "self_instruct", "tasks": 20, "window": 4},
        "collect": {"test": 4},
        "curate": [{"filter": "empty"}, {"filter": "length", "min_words": 3}, {"filter": "near_duplicate"}],
        "student": {"model": model, "prune": {"layers": 3}},
        "train": TRAIN,
        "compare": {"metrics": ["likelihood", "overlap", "style"], "sampling": {"max_tokens": 8}},
    }


def figures(folder: Path) -> dict[str, Any]:
    """Run it in `folder`; by stage, what it wrote."""
    model = save_tiny_model(folder / "model")
    with MockServer(answer=answer) as server:
        run_recipe(recipe(server.url, model), run_dir=folder / "run", quiet=True)
    run = folder / "run"
    return {
        "expand": {name: _sha256(run / f"{name}.jsonl") for name in ("tasks", "refused")},
        "collect": {name: _sha256(run / f"{name}.jsonl") for name in ("sessions", "failures")},
        "curate": {name: _sha256(run / f"{name}.jsonl") for name in ("kept", "dropped", "test")},
        "train": _of_training(run, model),
        "compare": _of_comparison(run),
        "report": _of_report(run),
    }


def _sha256(path: Path) -> str:
    """Of the rows without `LEFT_OUT`."""
    return json_sha256([_stable(row) for row in read_jsonl(path)])


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stable(one) for key, one in value.items() if key not in LEFT_OUT}
    return [_stable(one) for one in value] if isinstance(value, list) else value


def _of_training(run: Path, model: Path) -> dict[str, Any]:
    from distill.models.loading import load_tokenizer
    from distill.train.dataset import examples_of
    from distill.train.options import TrainOptions

    options = TrainOptions.model_validate(TRAIN)
    found = examples_of(read_sessions(run / "kept.jsonl"), "chatml", load_tokenizer(model), options)
    steps = [row for row in read_jsonl(run / "student/train_log.jsonl") if "event" not in row]
    return {
        "tokens": json_sha256([(list(one.input_ids), list(one.labels)) for one in found.examples]),
        "packing": [[row[key] for key in sorted(row) if key in ("step", "tokens", "rows", "passes")] for row in steps],
        "losses": [row[key] for row in steps for key in ("loss", "eval_loss") if key in row],
    }


def _of_comparison(run: Path) -> dict[str, Any]:
    """The student's own words are left out: one rounding makes another word, and then another text."""
    scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    means = {
        f"{name} of {model}": value["mean"]
        for name, entry in scores["metrics"].items()
        for model, value in entry["by"].items()
        if model != "student" or name == "nll_per_byte"
    }
    return {"prompts": [row["id"] for row in read_jsonl(run / "answers.jsonl")], "means": means}


SHOWN = ("left_out", "prompts", "dropped", "dropped_total", "funnel", "rules", "mask", "curve", "coverage")
"""What the page shows that depends on no clock, no machine and no word of the student's."""


def _of_report(run: Path) -> dict[str, Any]:
    from distill.report.stage import shape

    page = shape(run)
    titles = [metric.title for metric in page["metrics"]]
    return {**{key: _stable(to_json(page[key])) for key in SHOWN}, "metrics": titles, "parts": sorted(page)}


def difference(old: Any, new: Any, at: str = "") -> str | None:
    """Where two values first differ, numbers by more than a thousandth."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        pairs = [(old[key], new[key], f"{at}.{key}") for key in old]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(one, other, f"{at}.{place}") for place, (one, other) in enumerate(zip(old, new, strict=True))]
    elif isinstance(old, float) or isinstance(new, float):
        return None if isinstance(old, (int, float)) and abs(old - new) <= 1e-3 else f"{at}: {old} → {new}"
    else:
        return None if old == new else f"{at}: {str(old)[:80]} → {str(new)[:80]}"
    return next((found for pair in pairs if (found := difference(*pair)) is not None), None)


def written(found: Mapping[str, Any]) -> dict[str, Any]:
    """What golden.json holds: the figures of each stage with its revision."""
    return {name: {"revision": PIPELINE[name].revision, "figures": found[name]} for name in PIPELINE}


def verdict(golden: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What is wrong with the first stage that writes something else; those after it only follow."""
    for name, entry in now.items():
        if (where := difference(golden[name]["figures"], entry["figures"])) is not None:
            is_raised = entry["revision"] != golden[name]["revision"]
            first = "" if is_raised else f"raise REVISION in distill/{name}/stage.py, and "
            return (
                f"{name} writes something else than before ({where.lstrip('.')}): if that is meant, {first}type: "
                "python -m tests.pipeline.golden"
            )
        if entry["revision"] != golden[name]["revision"]:
            return f"{name} writes what it wrote before, at another REVISION; type: python -m tests.pipeline.golden"
    return None


def main() -> None:
    """Write golden.json anew."""
    with TemporaryDirectory() as folder:
        found = written(figures(Path(folder)))
    GOLDEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
