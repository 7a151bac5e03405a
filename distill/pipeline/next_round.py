"""The `next` command: seeds and a recipe for another round, from the prompts on which the student does worst.

These are the prompts that it lost, or, where it beats its base on all of them, those on which it gained least.

Nothing held out goes into a seed: seeds are the training rows nearest to those prompts, and seeds of the run itself,
none with a ROUGE-L over 0.7 to a held-out prompt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from distill.compare.training_overlap import asked_of
from distill.core.files import to_json, write_atomically
from distill.core.jsonl import read_jsonl, read_sessions, write_rows
from distill.errors import RecipeError, RunFolderError
from distill.expand.seeds import load_seeds
from distill.pipeline.origins import say_which
from distill.pipeline.parts import load_recipe
from distill.recipe import Recipe
from distill.run.scores import require_scores
from distill.text.prompt_frames import PromptFrames, PromptIndex
from distill.text.tfidf import Weights, cosine
from distill.types import Session

SEEDED = ("self_instruct", "alpaca", "evol_instruct")
"""Strategies that grow tasks from seeds."""
ALIKE = 0.15
"""Least cosine similarity (TF-IDF) of two prompts of one cluster."""
NEAR = 0.7
"""ROUGE-L above which a row is too near to a held-out prompt to be a seed (Self-Instruct's novelty threshold)."""
FEWEST_SEEDS = 8
"""The examples in one prompt of Self-Instruct."""
UNTAUGHT = 1.5
"""Weight of a prompt without training rows nearby."""
WORDS = 4
"""Words in a cluster's name."""


@dataclass(slots=True)
class Cluster:
    """Similar prompts on which the student did badly."""

    leader: Mapping[str, float]
    """The vector of its worst prompt."""
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    name: str = ""

    @property
    def need(self) -> float:
        """Weight of the cluster: its prompts, those without training rows nearby counting more."""
        return sum(UNTAUGHT if _is_untaught(row) else 1.0 for row in self.rows)


def plan(run: Path, out: Path, *, tasks: int | None = None, clusters: int = 8, each: int = 6) -> list[str]:
    """Write NAME-next.yaml and NAME-next-seeds.jsonl into the folder `out`; returns lines about them.

    `each` is the most seeds per cluster. Raises `RunFolderError` where the run was not compared, lost no prompt, or a
    file exists already, `RecipeError` where its recipe has no teacher to collect from.
    """
    recipe = load_recipe(run)
    say_which(run, recipe)
    if recipe.main_teacher is None:
        raise RecipeError(f"{run}: its recipe has no `teacher` to collect from")
    rows, what = _prompts_to_train(run)
    rows_file = run / "kept.jsonl"
    selection = sorted(_clusters(rows), key=lambda one: -one.need)[:clusters]
    sessions = {session.id: session for session in read_sessions(rows_file)}
    seeds = list(_seeds(selection, sessions, [_question(row) for row in read_jsonl(run / "answers.jsonl")], each))
    seeds += _own_seeds(recipe, FEWEST_SEEDS - len(seeds))
    if not seeds:
        raise RunFolderError(
            f"{run}: no training row is near the lost prompts; write seeds by hand, like seeds/general.jsonl"
        )
    name = f"{recipe.name[:59]}-next"
    recipe_file, seeds_file = out / f"{name}.yaml", out / f"{name}-seeds.jsonl"
    for path in (recipe_file, seeds_file):
        if path.exists():
            raise RunFolderError(f"{path} is there already; remove it, or give another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_rows(seeds_file, seeds)
    write_atomically(recipe_file, [_head(run), _recipe(recipe, run.resolve(), name, seeds_file, tasks)])
    return [
        *(_line(cluster, what) for cluster in selection),
        f"{seeds_file}: {len(seeds)} seeds",
        f"next: distill run {recipe_file}",
    ]


def _prompts_to_train(run: Path) -> tuple[list[Mapping[str, Any]], str]:
    """The rows of answers.jsonl that call for more training, worst first, and a word for them.

    They are those that the student lost; where it beats its base on all of them and is still far from the teacher, the
    third on which it gained least.
    """
    path = run / "answers.jsonl"
    if not path.is_file() or not (run / "kept.jsonl").is_file():
        raise RunFolderError(f"{run} was not trained and compared yet; type: distill run {run}")
    rows: list[Mapping[str, Any]] = sorted(read_jsonl(path), key=lambda row: row.get("outcome", {}).get("margin", 0.0))
    if losses := [row for row in rows if row.get("coverage", {}).get("verdict", "fine") != "fine"]:
        return losses, "lost"
    gains = [row for row in rows if row.get("outcome", {}).get("against") == "base" and "coverage" in row]
    if not gains or not _is_behind(run):
        raise RunFolderError(f"{run}: the student loses on no prompt, so there is nothing to train on in another round")
    return gains[: math.ceil(len(gains) / 3)], "gained least"


def _is_behind(run: Path) -> bool:
    """Whether the leading measure shows a remaining gap to the teacher beyond noise."""
    lead = require_scores(run).leading
    gap = lead.gap_closed if lead is not None else None
    return gap is not None and gap.high is not None and gap.high < 1.0


def _is_untaught(row: Mapping[str, Any]) -> bool:
    return bool(row["coverage"]["verdict"] == "not taught")


def _question(row: Mapping[str, Any]) -> str:
    return "\n".join(message["content"] for message in row["messages"] if message["role"] == "user")


def _clusters(rows: Sequence[Mapping[str, Any]]) -> list[Cluster]:
    """Greedy clusters: each prompt joins the first one whose leader is similar, else leads a new one; worst first."""
    weights = Weights.of(map(_question, rows))
    clusters: list[Cluster] = []
    for row in rows:
        vector = weights.vector(_question(row))
        cluster = next((one for one in clusters if cosine(one.leader, vector) >= ALIKE), None)
        if cluster is None:
            clusters.append(cluster := Cluster(vector))
        cluster.rows.append(row)
    for cluster in clusters:
        cluster.name = _cluster_name(cluster, weights)
    return clusters


def _cluster_name(cluster: Cluster, weights: Weights) -> str:
    total: Counter[str] = Counter()
    for row in cluster.rows:
        total.update(weights.vector(_question(row)))
    return " ".join(word for word, _ in total.most_common(WORDS))


def _seeds(
    clusters: Iterable[Cluster], sessions: Mapping[str, Session], held_out: Sequence[str], each: int
) -> Iterator[dict[str, Any]]:
    """The training rows nearest to each cluster's prompts, each once, in the format of seeds."""
    frames = PromptFrames([*map(asked_of, sessions.values()), *held_out])
    index = PromptIndex(NEAR)
    for place, question in enumerate(held_out):
        index.add(str(place), frames.without(question))
    used_ids: set[str] = set()
    for number, cluster in enumerate(clusters, start=1):
        near = sorted(
            (one for row in cluster.rows for one in row["coverage"]["nearest"]), key=lambda one: -one["similarity"]
        )
        count = 0
        for session in filter(None, (sessions.get(one["id"]) for one in near)):
            seed = _seed(session, f"next-{number}-{count}")
            if count == each or seed is None or session.id in used_ids:
                continue
            if index.near(frames.without(asked_of(session))) is None:
                used_ids.add(session.id)
                count += 1
                yield {**seed, "name": cluster.name.replace(" ", "_")}


def _seed(session: Session, id: str) -> dict[str, Any] | None:
    """A session's first question and answer as a seed."""
    turns = {message.role: message.content for message in reversed(session.messages)}
    if not turns.get("user", "").strip() or not turns.get("assistant", "").strip():
        return None
    instances = [{"input": "", "output": turns["assistant"]}]
    return {"id": id, "name": id, "instruction": turns["user"], "instances": instances, "is_classification": False}


def _own_seeds(recipe: Recipe, count: int) -> list[dict[str, Any]]:
    """The first `count` of the run's own seeds, to fill up."""
    if count <= 0 or recipe.expand is None:
        return []
    return [to_json(seed) for seed in load_seeds(Path(recipe.expand.seeds))[:count]]


def _recipe(recipe: Recipe, run: Path, name: str, seeds: Path, tasks: int | None) -> str:
    """The run's recipe with new seeds, with the run's rows as a source, and with the same held-out prompts.

    These are the file of `compare.prompts`, where the recipe has it, else the rows that the run held out.
    """
    document = recipe.document()
    document.pop("files", None)
    same = recipe.expand is not None and recipe.expand.strategy in SEEDED
    before = document.get("expand", {}) if same else {"strategy": "self_instruct"}
    target = tasks or (recipe.expand.tasks if recipe.expand is not None else 100)
    rules = [rule for rule in document.get("curate", []) if rule["filter"] != "contamination"]
    file = document.get("compare", {}).get("prompts")
    held_out = [str(run / "test.jsonl"), *([file] if file is not None else [])]
    earlier = {"name": "earlier", "from": "distill", "path": str(run / "kept.jsonl")}
    collect = {key: value for key, value in document.get("collect", {}).items() if key != "tasks"}
    document |= {
        "name": name,
        "reuse": [*document.get("reuse", []), str(run)],
        "expand": {**before, "seeds": seeds.name, "tasks": target},
        "collect": {**collect, "test": 0},
        "sources": [*document.get("sources", []), earlier],
        "curate": [*rules, _contamination_rule(document.get("curate", []), held_out)],
    }
    document.pop("test", None)
    if "compare" in document:
        document["compare"] = {**document["compare"], "prompts": held_out[-1]}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


def _contamination_rule(rules: Iterable[Mapping[str, Any]], held_out: Sequence[str]) -> dict[str, Any]:
    """A rule that drops rows near held-out prompts: the recipe's own with more files, else a new one."""
    own = next(
        (rule for rule in rules if rule["filter"] == "contamination"), {"filter": "contamination", "on": "prompt"}
    )
    return {**own, "files": list(dict.fromkeys([*own.get("files", []), *held_out]))}


def _head(run: Path) -> str:
    return (
        f"# The round after {run.name}: seeds near the prompts that its student lost, its rows beside the\n"
        "# new ones, and the same held-out prompts, from which no seed was made. None of its answers is bought again.\n"
    )


def _line(cluster: Cluster, what: str) -> str:
    if what != "lost":
        return f"{cluster.name}: {len(cluster.rows)} of those on which the student {what}"
    untaught = sum(map(_is_untaught, cluster.rows))
    return f"{cluster.name}: {len(cluster.rows)} lost, {untaught} of them with nothing near in training"
