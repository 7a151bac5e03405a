"""Who plays user and judge: models of their own where the recipe names them, else the teacher; and several sessions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import yaml

from distill.collect.stage import TeacherChoice, choice_of, collect, model_of
from distill.collect.strategies import STRATEGIES
from distill.collect.strategies.best_of import BestOf
from distill.collect.strategies.instances import Instances
from distill.collect.strategies.user_simulator import UserSimulator
from distill.core.jsonl import read_jsonl, read_sessions
from distill.core.registry import part
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.mock_server import MockServer, question
from distill.engine.probe import Findings, Probe
from distill.engine.providers.scripted import Scripted
from distill.errors import RecipeError
from distill.expand.stage import growth_of
from distill.pipeline.forecast import lines
from distill.pipeline.parts import load_recipe
from distill.pipeline.requirements import ignored_options, serves_here
from distill.pipeline.runner import run_recipe
from distill.recipe import Collect
from distill.run.context import Context, RunOptions
from distill.run.endpoints import teachers_of
from distill.types import Endpoint, Pair, Request, Sampling, Session, Task
from tests.support.engine.engines import bound
from tests.support.flowing import well_formed

REMOTE = {"model": "big", "base_url": "http://127.0.0.1:1/v1", "terms": "ours", "sampling": {"max_tokens": 50}}
TASKS = [Task("t1", "Sort the mail."), Task("t2", "Sort the socks.")]


def recipe(folder: Path, **sections):
    (folder / "tasks.txt").write_text("Name a river.\nName a lake.\n")
    document = {"name": "roles", "teacher": REMOTE, "collect": {"tasks": "tasks.txt", "test": 0}, **sections}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return load_recipe(path)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.sqlite") as opened:
        yield opened


def collected(folder: Path, journal: Journal, providers: dict, strategy, tasks=TASKS, **more):
    return collect(
        folder,
        tasks=tasks,
        choose=lambda task: TeacherChoice("teacher", "big", strategy),
        strategy_name="some",
        seed=7,
        engine=Engine(journal, bound(**providers), attempts=1),
        **{"max_failed": 1.0, **more},
    )


# --- in the recipe


def test_the_teacher_plays_every_role_that_nobody_else_has(tmp_path):
    teachers = teachers_of(recipe(tmp_path), tmp_path)
    providers = {name: one.provider for name, one in teachers.endpoints.items()}
    assert set(providers) == {"teacher", "user", "judge"}
    assert providers["teacher"] is providers["user"] is providers["judge"]
    assert {key.partition(".")[0] for key in teachers.identity()} == {"teacher"}


def test_user_and_judge_may_be_models_of_their_own(tmp_path):
    loaded = recipe(
        tmp_path,
        judge={**REMOTE, "model": "critic", "price": {"input": 1, "output": 2}, "requests_per_minute": 9},
        user={**REMOTE, "model": "chatty", "concurrency": 3},
    )
    teachers = teachers_of(loaded, tmp_path)
    endpoints = teachers.endpoints
    models = {name: one.provider.endpoint.model for name, one in endpoints.items()}
    assert models == {"teacher": "big", "user": "chatty", "judge": "critic"}
    assert (endpoints["judge"].price.output, endpoints["user"].price) == (2, None)
    assert (endpoints["judge"].rates.requests_per_minute, endpoints["user"].rates.concurrency) == (9, 3)
    assert [fact.get("role") for fact in teachers.facts()] == [None, "user", "judge"]
    assert {key.partition(".")[0] for key in teachers.identity()} == {"teacher", "user", "judge"}


def test_a_model_that_is_served_anyway_is_not_served_twice(tmp_path):
    local = {"model": "smollm2", "serve": "transformers", "terms": "ours"}
    loaded = recipe(tmp_path, judge=local, user=local)
    providers = {name: one.provider for name, one in teachers_of(loaded, tmp_path).endpoints.items()}
    assert providers["user"] is providers["judge"] is not providers["teacher"]
    assert serves_here(loaded)


@pytest.mark.parametrize("role", ["user", "judge"])
def test_terms_are_required_of_every_role(tmp_path, role):
    with pytest.raises(RecipeError, match=f"`{role}.terms` is missing"):
        recipe(tmp_path, **{role: {key: value for key, value in REMOTE.items() if key != "terms"}})


def test_a_share_of_the_tasks_is_for_teachers_alone(tmp_path):
    with pytest.raises(RecipeError, match="judge: `kinds` and `weight` share tasks among teachers"):
        recipe(tmp_path, judge={**REMOTE, "kinds": ["hard"]})


def test_a_resolved_recipe_has_the_roles_and_reads_back_the_same(tmp_path):
    loaded = recipe(tmp_path, judge=REMOTE, collect={"strategy": "best_of", "tasks": "tasks.txt", "test": 0})
    (tmp_path / "resolved.yaml").write_text(loaded.to_yaml())
    assert load_recipe(tmp_path / "resolved.yaml").document() == loaded.document()


def strategy_of(loaded, folder: Path):
    context = Context(folder, loaded, None, teachers_of(loaded, folder))
    return choice_of(context)(Task("t", "Hm?")).strategy


def test_a_roles_own_sampling_counts_where_the_strategy_says_nothing(tmp_path):
    judge = {**REMOTE, "sampling": {"max_tokens": 7}}
    best_of = {"strategy": "best_of", "tasks": "tasks.txt", "test": 0}
    assert strategy_of(recipe(tmp_path, judge=judge, collect=best_of), tmp_path).options.judge_sampling.max_tokens == 7
    told = {**best_of, "judge_sampling": {"max_tokens": 8}}
    assert strategy_of(recipe(tmp_path, judge=judge, collect=told), tmp_path).options.judge_sampling.max_tokens == 8
    assert strategy_of(recipe(tmp_path, collect=best_of), tmp_path).options.judge_sampling is None


def test_a_judge_of_evolutions_is_asked_as_its_section_says(tmp_path):
    evol = {"strategy": "evol_instruct", "tasks": 4}
    judge = {**REMOTE, "sampling": {"max_tokens": 700}}
    asked = [
        growth_of(Context(tmp_path, loaded, None, None)).options.judge_sampling
        for loaded in (
            recipe(tmp_path, expand=evol, collect=None),
            recipe(tmp_path, expand=evol, collect=None, judge=judge),
        )
    ]
    assert (asked[0], asked[1].max_tokens) == (None, 700)


def test_roles_reach_their_own_models(tmp_path, journal):
    def said(name: str):
        return Scripted(lambda request: f"{name} on {len(request.messages)}", Endpoint(model=name))

    providers = {name: said(name) for name in ("teacher", "user", "judge")}
    strategy = UserSimulator(UserSimulator.Options(min_rounds=2, max_rounds=2), sampling=Sampling(max_tokens=9))
    collected(tmp_path, journal, providers, strategy)
    assert [len(providers[name].requests) for name in ("teacher", "user", "judge")] == [4, 2, 0]
    sessions = read_sessions(tmp_path / "sessions.jsonl")
    assert [session.messages[2].content for session in sessions] == ["user on 4"] * 2
    assert all(well_formed(session) for session in sessions)


def test_a_role_is_called_by_its_name_whoever_the_teacher_is():
    name = model_of(TASKS, lambda task: TeacherChoice("teacher:b", "b", None))
    assert [name("t1", role) for role in ("teacher", "judge", "user")] == ["teacher:b", "judge", "user"]


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ({"strategy": "answer"}, {"teacher"}),
        ({"strategy": "best_of", "pick": "longest"}, {"teacher"}),
        ({"strategy": "best_of"}, {"teacher", "judge"}),
        ({"strategy": "user_simulator"}, {"teacher", "user"}),
    ],
)
def test_a_strategy_is_given_the_roles_that_it_asks(tmp_path, section, names):
    loaded = recipe(tmp_path, collect={"tasks": "tasks.txt", "test": 0, **section})
    assert set(teachers_of(loaded, tmp_path).of_roles(loaded.collect.options.asks.roles)) == names


def said_by_all(body) -> str:
    """What satisfies whoever asks: a transcript for self-chat, a grade and a choice for the judge, else an answer."""
    if "[Visitor]" in question(body):
        return "[Visitor] Which river?\n[Helper] The Rhine."
    return "Better: A\nScore: 7" if "REPL" in question(body) else "Output: It flows."


ANSWERING = {
    "answer": {},
    "best_of": {"samples": 2},
    "explanations": {},
    "given": {},
    "instances": {},
    "self_chat": {},
    "user_simulator": {},
}
"""Every strategy that collects, with options that keep it small."""


def test_every_strategy_that_collects_is_listed_here():
    answering = {name for name in STRATEGIES if hasattr(part(STRATEGIES, name, kind="strategy"), "flow")}
    assert answering == {*ANSWERING, "pairs"}


def test_pairs_ask_the_weaker_model_by_its_section_and_replay(tmp_path):
    from distill.engine.mock_server.stand_in import answer

    asked = []

    def noted(body):
        asked.append((body["model"], body.get("max_tokens")))
        return answer(body)

    with MockServer(answer=noted) as server:
        teacher, collect = {**REMOTE, "base_url": server.url}, {"tasks": "tasks.txt", "test": 0, "strategy": "pairs"}
        with pytest.raises(RecipeError, match=r"pairs contrasts .* add a section `weaker`"):
            recipe(tmp_path, collect=collect)
        both = {"teacher": teacher, "weaker": {**teacher, "model": "small", "sampling": {"max_tokens": 40}}}
        loaded = recipe(tmp_path, collect={**collect, "prefer": "judge"}, **both)
        assert any(line.startswith("collect: at most 8 requests") for line in lines(loaded, probed=False))
        for redo in ((), ("collect",)):
            run_recipe(tmp_path / "recipe.yaml", run_dir=tmp_path / "run", options=RunOptions(redo=redo))
            sessions = read_sessions(tmp_path / "run/sessions.jsonl")
            assert [isinstance(one, Pair) for one in sessions] == [True, True]
            assert len({one.meta["rejected"]["role"] for one in sessions} & {"weaker", "teacher"}) >= 1
            assert sorted(asked) == sorted([("big", 50), ("small", 40), ("big", 512), ("big", 512)] * 2)


@pytest.mark.parametrize("name", ANSWERING)
def test_every_strategy_collects_from_a_recipe_that_names_a_teacher_only(tmp_path, name):
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"id": "t", "instruction": "Hm?", "meta": {"output": "Aha."}}))
    with MockServer(answer=said_by_all) as server:
        recipe(
            tmp_path,
            teacher={**REMOTE, "base_url": server.url},
            collect={"strategy": name, "tasks": "tasks.jsonl", "test": 0, "max_failed": 0, **ANSWERING[name]},
        )
        run_recipe(tmp_path / "recipe.yaml", run_dir=tmp_path / "run", stages=["collect"])
    sessions = read_sessions(tmp_path / "run/sessions.jsonl")
    assert [well_formed(session) for session in sessions] == [True]


# --- forecast


@pytest.mark.parametrize(
    ("collect_section", "requests"),
    [
        ({"strategy": "answer"}, 2),
        ({"strategy": "given"}, 0),
        ({"strategy": "instances"}, 4),
        ({"strategy": "self_chat"}, 2),
        ({"strategy": "best_of", "samples": 3}, 12),
        ({"strategy": "user_simulator", "max_rounds": 4}, 16),
        ({"strategy": "explanations"}, 2),
    ],
)
def test_check_forecasts_all_requests_of_a_strategy(tmp_path, collect_section, requests):
    told = lines(recipe(tmp_path, collect={"tasks": "tasks.txt", "test": 0, **collect_section}), probed=False)
    assert any(
        line.startswith(f"collect: at most {requests} requests, " if requests else "collect: no requests")
        for line in told
    )


def test_check_counts_answers_that_are_read_again(tmp_path):
    def prompt_tokens(rounds: int) -> int:
        section = {"strategy": "user_simulator", "min_rounds": 1, "max_rounds": rounds, "tasks": "tasks.txt", "test": 0}
        line = next(line for line in lines(recipe(tmp_path, collect=section), probed=False) if "at most" in line)
        return int(line.split("about ")[1].split()[0].replace(",", ""))

    assert prompt_tokens(8) > 4 * prompt_tokens(2)


@pytest.mark.parametrize(("ask", "told"), [("completion", 1), ("chat", 0)])
def test_check_tells_of_raw_prompts_that_an_endpoint_does_not_take(tmp_path, ask, told):
    loaded = recipe(tmp_path, collect={"strategy": "instances", "ask": ask, "tasks": "tasks.txt", "test": 0})
    findings = Findings(
        url=REMOTE["base_url"],
        model="big",
        date="2026-01-01T00:00:00Z",
        probes=(Probe("completions", "refused", "404"),),
        calls=1,
        prompt_tokens=0,
        completion_tokens=0,
    )
    lines_said = ignored_options(loaded, loaded.main_teacher, findings)
    assert sum("set collect.ask to chat" in line for line in lines_said) == told


# --- several sessions of one task


class Several:
    """As many sessions as the task's meta says, or none."""

    def flow(self, task: Task, rng: Random):
        yield from ()
        return tuple(Session(task.id, (), {"number": n}) for n in range(task.meta["count"]))


def test_the_sessions_of_a_task_are_numbered_and_in_task_order(tmp_path, journal):
    tasks = [Task("b", "", meta={"count": 3}), Task("a", "", meta={"count": 1}), Task("c", "", meta={"count": 2})]
    status, counts = collected(tmp_path, journal, {"teacher": Scripted([])}, Several(), tasks)
    sessions = read_sessions(tmp_path / "sessions.jsonl")
    assert [session.id for session in sessions] == ["b", "b.2", "b.3", "a", "c", "c.2"]
    assert [session.meta["number"] for session in sessions] == [0, 1, 2, 0, 0, 1]
    assert {(session.meta["strategy"], session.meta["teacher"]) for session in sessions} == {("some", "big")}
    assert (status, counts) == ("done", {"tasks": 3, "sessions": 6, "failed": 0, "truncated": 0})


def test_no_session_is_called_like_another_task(tmp_path, journal):
    tasks = [Task("a", "", meta={"count": 2}), Task("a.2", "", meta={"count": 2})]
    collected(tmp_path, journal, {"teacher": Scripted([])}, Several(), tasks)
    assert [session.id for session in read_sessions(tmp_path / "sessions.jsonl")] == ["a", "a..2", "a.2", "a.2.2"]


def test_a_task_without_a_session_is_a_failure_that_says_so(tmp_path, journal):
    status, counts = collected(
        tmp_path, journal, {"teacher": Scripted([])}, Several(), [Task("a", "", meta={"count": 0})]
    )
    (failed,) = read_jsonl(tmp_path / "failures.jsonl")
    assert failed["failures"][0]["reason"] == "no_session"
    assert (status, counts["sessions"], counts["failed"]) == ("done", 0, 1)


def test_instances_are_collected_and_replayed_the_same(tmp_path, journal):
    def script(request: Request) -> str:
        if request.sampling.max_tokens == 3:
            return "No"
        return "".join(f"Example {n}\nin {n}\nOutput: out {n}\n" for n in range(1, 9))

    strategy = Instances(Instances.Options())
    _, counts = collected(tmp_path, journal, {"teacher": Scripted(script)}, strategy)
    before = (tmp_path / "sessions.jsonl").read_bytes()
    silent = Scripted([])
    collected(tmp_path, journal, {"teacher": silent}, strategy)
    assert (counts["sessions"], silent.requests) == (10, [])
    assert (tmp_path / "sessions.jsonl").read_bytes() == before


def test_samples_and_verdicts_go_through_the_engine(tmp_path, journal):
    judge = Scripted(lambda request: f"Score: {3 + ('number 1' in request.messages[0].content)}")
    teacher = Scripted(lambda request: f"number {request.replica}")
    strategy = BestOf(BestOf.Options(samples=3), sampling=Sampling(temperature=1.0))
    collected(tmp_path, journal, {"teacher": teacher, "judge": judge}, strategy)
    sessions = read_sessions(tmp_path / "sessions.jsonl")
    assert [session.messages[-1].content for session in sessions] == ["number 1"] * 2
    assert [len(session.meta["keys"]) for session in sessions] == [6, 6]


def test_a_judge_that_decides_nothing_is_told(tmp_path, journal, capsys):
    teacher = Scripted(lambda request: f"number {request.replica}")
    strategy = BestOf(BestOf.Options(samples=2), sampling=Sampling(temperature=1.0))
    _, counts = collected(tmp_path, journal, {"teacher": teacher, "judge": Scripted(lambda _: "Fine.")}, strategy)
    assert counts["unjudged"] == 2
    assert "2 of 2 sessions have no readable verdict of the judge" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", [name for name in STRATEGIES if hasattr(part(STRATEGIES, name, kind="strategy"), "flow")]
)
def test_no_option_of_a_strategy_is_called_like_a_key_of_its_section(name):
    options = part(STRATEGIES, name, kind="strategy").Options.model_fields
    assert set(options) & set(Collect.model_fields) == set()
