"""A student that continues another run's: what is taken over, what is refused, and what becomes of it afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from distill.cli.main import _code
from distill.core.weights import student_fingerprint
from distill.errors import RecipeError
from distill.models.in_process import base_fingerprint
from distill.pipeline.parts import load_recipe
from distill.train.options import TrainSettings
from tests.support.training import SESSIONS, options
from tests.train.test_fresh import write_curated
from tests.train.test_methods import probe, read_again

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.model


def trained(folder: Path, tiny: str, *, start: Path | None = None, **changes):
    """Train one step of 8 rows into `folder/student`; returns the probe."""
    from distill.train import loop

    chosen = options(epochs=1, batch_tokens=None, batch_rows=8, **changes)
    callback = probe()
    settings = TrainSettings(tiny, "chatml", chosen, 1, 3, start=start)
    loop.train(SESSIONS[:8], folder / "student", settings, callbacks=[callback])
    return callback


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"method": "qlora", "lora": {"dora": True}}, {}),
        ({"method": "lora", "lora": {"init": "pissa"}}, {"lora": {"r": 16, "alpha": 64, "init": "default"}}),
        ({"method": "full"}, {}),
    ],
    ids=lambda changes: str(changes.get("method", "")),
)
def test_training_begins_with_the_weights_of_the_student_before_and_keeps_its_base(tiny, tmp_path, first, then):
    a = trained(tmp_path / "a", tiny, **first)
    then = {**first, **then, "learning_rate": 1e-12}
    b = trained(tmp_path / "b", tiny, start=tmp_path / "a/student", **then)
    identity = json.loads((tmp_path / "b/student/checkpoints/identity.json").read_text())
    assert identity["settings"]["student.continues"] == student_fingerprint(tmp_path / "a/student")

    if "init" not in then.get("lora", {}):
        assert all(torch.equal(weight, b.before[name]) for name, weight in a.after.items())
    logits = [read_again(tmp_path / name / "student") for name in "ab"]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-6, rtol=1e-6)


@pytest.fixture(scope="module")
def first(tiny, tmp_path_factory) -> Path:
    """The folder of a run with a student, beside which others are made."""
    run = write_curated(tmp_path_factory.mktemp("first"), tiny)
    assert _code(["train", str(run), "--set", "train.epochs=1", "--set", "student.prune.layers=3"]) == 0
    return run


@pytest.fixture
def pair(first, tmp_path, monkeypatch) -> Path:
    """A folder with a finished run, runs/a, and the recipe of one that continues it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(first, tmp_path / "runs/a")
    recipe = yaml.safe_load((first / "recipe.yaml").read_text())
    train = {key: value for key, value in recipe["train"].items() if key not in ("method", "lora")}
    changes = {"name": "b", "student": {"model": "runs/a"}, "train": {**train, "epochs": 1}, "files": {}}
    (tmp_path / "b.yaml").write_text(yaml.safe_dump({**recipe, **changes}))
    return tmp_path


def test_what_the_recipe_leaves_out_is_that_of_the_student_before(pair):
    student, train = (load_recipe("b.yaml").document()[section] for section in ("student", "train"))
    before = yaml.safe_load((pair / "runs/a/recipe.yaml").read_text())
    assert student == {**before["student"], "continues": str(pair / "runs/a")}
    assert (train["method"], train["lora"]) == (before["train"]["method"], {**before["train"]["lora"]})


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("student.template=alpaca", "student.template: found alpaca, and the student of .* has chatml; leave it out"),
        ("student.prune.layers=2", "student.prune.layers: found 2, .* has 3"),
        ("train.method=lora", "train.method: found lora, .* has qlora"),
        ("train.lora.r=4", "train.lora.r: found 4, .* has 8"),
        ("train.lora.target_modules=[q_proj]", "target_modules: found .'q_proj'., .* has all-linear"),
        ("student.model=runs/none", "student.model: no run runs/none; looked in runs/none"),
        ("student.model=runs/begun", "runs/begun has no finished student .* distill run .*runs/begun"),
    ],
)
def test_a_recipe_that_says_something_else_is_refused_in_one_line(pair, setting, expected):
    shutil.copytree(pair / "runs/a", pair / "runs/begun", ignore=shutil.ignore_patterns("student"))
    with pytest.raises(RecipeError, match=expected) as error:
        load_recipe("b.yaml", overrides=[setting])
    assert "\n" not in str(error.value)


def test_a_run_does_not_continue_itself(pair, capsys):
    assert _code(["check", "b.yaml", "--set", "name=a"]) == 2
    assert "is this run's own folder" in capsys.readouterr().err


def test_a_chain_goes_stale_with_its_first_student_and_outlives_it(pair, capsys):
    from distill.models.loading import load_student

    students = [pair / f"runs/{name}/student" for name in "abc"]
    start = shutil.copytree(students[0], pair / "start")
    assert _code(["run", "b.yaml"]) == 0
    prints = [student_fingerprint(folder) for folder in students[:2]]
    assert "continues the student of" in capsys.readouterr().err
    (students[0] / "base.json").write_text(json.dumps({**json.loads((start / "base.json").read_text()), "new": 1}))
    assert _code(["show", "runs/b"]) == 0
    assert f"another student in {pair}/runs/a" in capsys.readouterr().out
    assert _code(["check", "runs/b"]) == 0
    shutil.rmtree(pair / "runs/a")
    assert _code(["run", "runs/b"]) == 0
    assert "nothing to do" in capsys.readouterr().err
    load_student(pair / "runs/b/student", adapter=True)
    changes = ["--set", "name=c", "--set", "student.model=runs/b"]
    assert _code(["run", "b.yaml", *changes, "--stages", "collect,curate,train"]) == 0
    a, b, c = (json.loads((folder / "base.json").read_text()) for folder in (start, *students[1:]))
    assert [one.pop("previous")["fingerprint"] for one in (b, c)] == prints
    assert a == b == c
    assert base_fingerprint(students[1]) == base_fingerprint(students[2]) == base_fingerprint(start)
    assert _code(["train", "runs/b", "--set", "train.epochs=2"]) == 2
    assert "is gone, whose student is continued; put it back" in capsys.readouterr().err
