"""The `next` command: a recipe for another round, with seeds where the student does worst.

That is where it lost; where it lost nothing, where it is farthest from its teacher; and where it is as near as the
teacher is to itself, more of the same. Nothing held out goes into a seed: seeds are the training rows nearest to those
prompts, and seeds of the run itself, none with a ROUGE-L over 0.7 to a held-out prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml

from distill.compare.training_overlap import asked_of
from distill.core.console import money
from distill.core.files import to_json, write_atomically
from distill.core.jsonl import read_jsonl, read_sessions, write_rows
from distill.errors import RunFolderError, one_line, visible
from distill.expand.seeds import load_seeds
from distill.pipeline.origins import say_which
from distill.pipeline.parts import load_recipe
from distill.recipe import Recipe
from distill.run.record import read_record, run_record
from distill.run.scores import Measured, read_scores
from distill.text.prompt_frames import PromptFrames, PromptIndex
from distill.text.tfidf import Weights, cosine
from distill.text.verdicts import UNPARSED
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
CHARACTERS = 60
"""Most characters of a cluster's worst prompt that are shown."""
TEACHER = """# It lacks a teacher, which writes the new tasks and their answers. Fill in:
# teacher:
#   model: NAME
#   base_url: https://HOST/v1     # or, for a model on this machine, serve: transformers
#   api_key_env: VARIABLE
#   terms: "what allows training on its answers"
"""
"""What the head of a recipe without a teacher says."""


Ground: TypeAlias = Literal["lost", "far", "more"]
_LINES: Mapping[Ground, str] = {
    "lost": 'like "{name}": {count} lost',
    "far": 'like "{name}": {count} of those on which the student is farthest from the reference answers',
    "more": "nothing says where the student is behind: {tasks} more tasks of the same",
}
_HEADS: Mapping[Ground, str] = {
    "lost": "seeds near the prompts that its student lost, its rows beside the\n# new ones",
    "far": "seeds near the prompts on which its student is farthest\n# from the reference answers, beside its rows",
    "more": "more of the same tasks",
}


@dataclass(slots=True)
class Cluster:
    """Similar prompts on which the student did badly."""

    leader: Mapping[str, float]
    """The vector of its worst prompt."""
    name: str = ""
    """The beginning of that prompt, or of what stands in its frame."""
    rows: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def need(self) -> float:
        """Weight of the cluster: its prompts, those without training rows nearby counting more."""
        return sum(UNTAUGHT if _is_untaught(row) else 1.0 for row in self.rows)


def plan(run: Path, out: Path, *, tasks: int | None = None, clusters: int = 8, each: int = 6) -> list[str]:
    """Write NAME-next.yaml, and NAME-next-seeds.jsonl where it has seeds of its own, into the folder `out`.

    Returns lines about them. The recipe of a run without a teacher says in its head how to add one. `each` is the most
    seeds per cluster. Raises `RunFolderError` where the run was not compared, has no row that may be a seed, or a file
    exists already.
    """
    read_record(run)
    recipe = load_recipe(run)
    say_which(run, recipe)
    rows, what = _prompts_to_train(run, recipe)
    sessions = {session.id: session for session in read_sessions(run / "kept.jsonl")}
    held_out = [_question(row) for row in read_jsonl(run / "answers.jsonl")]
    frames = PromptFrames([*map(asked_of, sessions.values()), *held_out])
    selection = sorted(_clusters(rows, frames), key=lambda one: -one.need)[:clusters]
    count = tasks or (recipe.expand.tasks if recipe.expand is not None else 100)
    lines = [_line(cluster, what) for cluster in selection] or [_LINES[what].format(tasks=count)]
    goes_on = not selection and recipe.expand is not None
    seeds = [] if goes_on else _all_seeds(run, recipe, _Rows(sessions, held_out, frames), selection, each)
    name = f"{recipe.name[:59]}-next"
    recipe_file, seeds_file = out / f"{name}.yaml", out / f"{name}-seeds.jsonl"
    for path in (recipe_file, seeds_file):
        if path.exists():
            raise RunFolderError(f"{path} is there already; remove it, or give another --out")
    document = _recipe(recipe, run.resolve(), name, None if goes_on else seeds_file, count)
    out.mkdir(parents=True, exist_ok=True)
    if seeds:
        write_rows(seeds_file, seeds)
        lines.append(f"{seeds_file}: {len(seeds)} seeds")
    if recipe.main_teacher is None:
        write_atomically(recipe_file, [_head(run, what), TEACHER, document])
        return [
            *lines,
            f"{recipe_file} lacks a `teacher` to write them: fill in the one that its head shows",
            f"next: distill run {recipe_file}, or add rows like those seeds to the data of {run} and run it again",
        ]
    write_atomically(recipe_file, [_head(run, what), document])
    return [*lines, _price(run, count), f"next: distill run {recipe_file}"]


def _prompts_to_train(run: Path, recipe: Recipe) -> tuple[list[Mapping[str, Any]], Ground]:
    """The rows of answers.jsonl that call for more training, worst first, and why they do; none for more of the same.

    Where a judge's verdict cannot be read, the leading measure says whether the student lost, to its base.
    """
    path = run / "answers.jsonl"
    if not path.is_file() or not (run / "kept.jsonl").is_file():
        lacks = [f"`{name}`" for name in ("train", "compare") if getattr(recipe, name) is None]
        remedy = f"its recipe has no {' and no '.join(lacks)}" if lacks else f"type: distill run {run}"
        raise RunFolderError(f"{run} was not trained and compared yet; {remedy}")
    rows: list[Mapping[str, Any]] = [row for row in read_jsonl(path) if "coverage" in row]
    rows.sort(key=lambda row: row.get("outcome", {}).get("margin", 0.0))
    if losses := [row for row in rows if row["coverage"]["verdict"] != "fine"]:
        return losses, "lost"
    scores = read_scores(run)
    lead = scores.leading if scores is not None else None
    if scores is None or scores.lead is None or lead is None:
        return [], "more"
    unread = [row for row in rows if row.get("outcome", {}).get("value") == UNPARSED]
    if losses := _behind(unread, scores.lead, lead, ("base",)):
        return losses, "lost"
    if (gap := lead.gap_closed) is not None and gap.high is not None and gap.high >= 1.0:
        return [], "more"
    far = _behind(rows, scores.lead, lead, ("teacher", "teacher_again"))
    return far[: math.ceil(len(rows) / 3)], "far" if far else "more"


def _behind(
    rows: Iterable[Mapping[str, Any]], name: str, measure: Measured, others: Sequence[str]
) -> list[Mapping[str, Any]]:
    """The rows on which the student does worse than the first of the others that has the measure, worst first.

    Where none of them has it on any row, the rows on which the student does worse than on its best.
    """
    sign = -1.0 if measure.better == "lower" else 1.0
    scored = [(row, {model: one.get(name) for model, one in row.get("scores", {}).items()}) for row in rows]
    scored = [(row, scores) for row, scores in scored if scores.get("student") is not None]
    aims = [next((scores[one] for one in others if scores.get(one) is not None), None) for _, scores in scored]
    if scored and not any(aim is not None for aim in aims):
        aims = [sign * max(sign * scores["student"] for _, scores in scored)] * len(scored)
    behind = [
        (sign * (scores["student"] - aim), place, row)
        for place, ((row, scores), aim) in enumerate(zip(scored, aims, strict=True))
        if aim is not None
    ]
    return [row for margin, _, row in sorted(behind, key=lambda one: one[:2]) if margin < 0]


def _is_untaught(row: Mapping[str, Any]) -> bool:
    return bool(row["coverage"]["verdict"] == "not taught")


@dataclass(frozen=True, slots=True)
class _Rows:
    """What a run was trained and compared on."""

    sessions: Mapping[str, Session]
    """The training rows, by id."""
    held_out: Sequence[str]
    """The questions of the held-out prompts."""
    frames: PromptFrames


def _all_seeds(run: Path, recipe: Recipe, rows: _Rows, selection: Sequence[Cluster], each: int) -> list[dict[str, Any]]:
    """Seeds for the clusters, then the run's own, then any training rows, until there are enough for a prompt."""
    seeds = list(_seeds(selection, rows, each))
    seeds += _own_seeds(recipe, FEWEST_SEEDS - len(seeds))
    if not seeds:
        every: list[Mapping[str, Any]] = [
            {"coverage": {"nearest": [{"id": id, "similarity": 0.0} for id in rows.sessions]}}
        ]
        seeds = list(_seeds([Cluster({}, "any", every)], rows, FEWEST_SEEDS))
    if not seeds:
        raise RunFolderError(
            f"{run}: every training row is near a held-out prompt; write seeds like seeds/general.jsonl"
        )
    return seeds


def _question(row: Mapping[str, Any]) -> str:
    return "\n".join(message["content"] for message in row["messages"] if message["role"] == "user")


def _clusters(rows: Sequence[Mapping[str, Any]], frames: PromptFrames) -> list[Cluster]:
    """Greedy clusters: each prompt joins the first one whose leader is similar, else leads a new one; worst first."""
    questions = [frames.without(_question(row)).text for row in rows]
    weights = Weights.of(questions)
    clusters: list[Cluster] = []
    for row, question in zip(rows, questions, strict=True):
        vector = weights.vector(question)
        cluster = next((one for one in clusters if cosine(one.leader, vector) >= ALIKE), None)
        if cluster is None:
            clusters.append(cluster := Cluster(vector, visible(one_line(question, CHARACTERS))))
        cluster.rows.append(row)
    return clusters


def _seeds(clusters: Iterable[Cluster], rows: _Rows, each: int) -> Iterator[dict[str, Any]]:
    """The training rows nearest to each cluster's prompts, each once, in the format of seeds."""
    index = PromptIndex(NEAR)
    for place, question in enumerate(rows.held_out):
        index.add(str(place), rows.frames.without(question))
    used_ids: set[str] = set()
    for number, cluster in enumerate(clusters, start=1):
        near = sorted(
            (one for row in cluster.rows for one in row["coverage"]["nearest"]), key=lambda one: -one["similarity"]
        )
        count = 0
        for session in filter(None, (rows.sessions.get(one["id"]) for one in near)):
            seed = _seed(session, f"next-{number}-{count}")
            if count == each or seed is None or session.id in used_ids:
                continue
            if index.near(rows.frames.without(asked_of(session))) is None:
                used_ids.add(session.id)
                count += 1
                yield seed


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


def _recipe(recipe: Recipe, run: Path, name: str, seeds: Path | None, tasks: int) -> str:
    """The run's recipe with new seeds, with the run's rows in place of its sources, and with the same held-out prompts.

    Without seeds, its expansion goes on for more tasks: those of the run are replayed. The held-out prompts are the
    file of `compare.prompts`, where the recipe has it, else the rows that the run held out.
    """
    document = recipe.document()
    document.pop("files", None)
    same = recipe.expand is not None and recipe.expand.strategy in SEEDED
    own: dict[str, Any] = document.get("expand", {})
    before = own if same or seeds is None else {"strategy": "self_instruct"}
    target = tasks if seeds is not None else own["tasks"] + tasks
    own_seeds = {"seeds": seeds.name} if seeds is not None else {}
    rules = [rule for rule in document.get("curate", []) if rule["filter"] != "contamination"]
    file = document.get("compare", {}).get("prompts")
    held_out = [str(run / "test.jsonl"), *([file] if file is not None else [])]
    earlier = {"name": "earlier", "from": "distill", "path": str(run / "kept.jsonl")}
    collect = {key: value for key, value in document.get("collect", {}).items() if key != "tasks"}
    document |= {
        "name": name,
        "reuse": [*document.get("reuse", []), str(run)],
        "expand": {**before, **own_seeds, "tasks": target},
        "collect": {**collect, "test": 0},
        "curate": [*rules, _contamination_rule(document.get("curate", []), held_out)],
    }
    if seeds is not None:
        document["sources"] = [earlier]
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


def _price(run: Path, tasks: int) -> str:
    """What as many tasks cost in this run, in USD or else in tokens."""
    record = run_record(run)
    costs = [cost for stage in ("expand", "collect") if stage in record.stages for cost in record.stages[stage].costs]
    share = tasks / max(1, record.counts("collect").get("tasks", 0) or record.counts("expand").get("tasks", tasks))
    tokens = f"{round(share * sum(cost.get('completion_tokens') or 0 for cost in costs)):,} answer tokens"
    prices = [cost["usd"] for cost in costs if cost.get("usd") is not None]
    usd = f", {money(share * sum(prices))}" if prices else ""
    return f"{tasks:,} more tasks: about {tokens}{usd}, as in this run"


def _head(run: Path, what: Ground) -> str:
    return (
        f"# The round after {run.name}: {_HEADS[what]}, and the same held-out prompts,\n"
        "# from which no seed was made. None of its answers is bought again.\n"
    )


def _line(cluster: Cluster, what: Ground) -> str:
    text = _LINES[what].format(name=cluster.name, count=len(cluster.rows))
    untaught = sum(map(_is_untaught, cluster.rows))
    return f"{text}, {untaught} of them with nothing near in training" if what == "lost" else text
