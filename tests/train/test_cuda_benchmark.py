"""The script that measures training on a GPU runs without one, and with no package but those that training needs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.train.options import TrainOptions
from tests.benchmarks import train_cuda
from tests.benchmarks.arena import CONTENDERS, ROOT

pytestmark = pytest.mark.slow

HIDDEN = ("pydantic", "typer", "openai", "aiohttp", "rich", "httpx", "tenacity", "rapidfuzz", "re2", "gguf")
HIDE = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {HIDDEN!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
ALONE = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Where only the packages of training can be found, and no GPU."""
    place = tmp_path_factory.mktemp("hiding")
    (place / "sitecustomize.py").write_text(HIDE)
    paths = (str(place), str(ROOT), os.environ.get("PYTHONPATH", ""))
    return {**os.environ, **ALONE, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.fixture(scope="module")
def found(tmp_path_factory, environment):
    """What a run of all contenders said, and what it kept."""
    out = tmp_path_factory.mktemp("found") / "found.json"
    sizes = ("--shape", "tiny", "--steps", "1", "--warm-up", "1", "--rows", "1", "--profile")
    command = [sys.executable, "-m", "tests.benchmarks.train_cuda", *sizes, "--out", str(out)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout, json.loads(out.read_text())


@pytest.mark.parametrize("package", HIDDEN)
def test_what_training_does_not_need_is_hidden_from_the_run(environment, package):
    ended = subprocess.run(
        [sys.executable, "-c", f"import {package}"], env=environment, capture_output=True, check=False
    )
    assert b"ModuleNotFoundError" in ended.stderr


def test_all_contenders_train_without_the_packages_of_the_other_stages(found):
    assert [(name, ["failed" in one for one in results]) for name, results in found[1]["results"].items()] == [
        ("ours", [False]),
        ("trl", [False]),
        ("trl-best", [False]),
    ]


def test_they_start_from_the_same_weights_on_the_same_rows(found):
    results = [one for (one,) in found[1]["results"].values()]
    assert len({(*one["tokens"], *one["trained"]) for one in results}) == 1
    first = [one["losses"][0] for one in results]
    assert max(first) - min(first) < 1e-4


def test_ours_computes_by_its_own_functions_there(found):
    (ours,) = found[1]["results"]["ours"]
    assert ours["lean"] == {"linear": 14, "mlp": 2, "norm": 5, "attention": 1, "loss": 1}


def test_a_step_is_looked_into_after_those_that_are_measured(found):
    for (one,) in found[1]["results"].values():
        assert len(one["seconds"]) == len(one["tokens"]) == 1
        assert {"kernel", "ms", "calls"} == set(one["kernels"][0])
        assert [kernel["ms"] for kernel in one["kernels"]] == sorted((k["ms"] for k in one["kernels"]), reverse=True)


def test_nothing_is_judged_without_a_gpu(found):
    assert "device: CPU: no figure here is one to judge by" in found[0]
    assert [target["verdict"] for target in found[1]["targets"]] == ["not applicable"] * 3 + ["ok"]


def contenders():
    """The module that both import."""
    sys.path.insert(0, str(CONTENDERS))
    try:
        import cuda_ours
        import random_llama
    finally:
        sys.path.remove(str(CONTENDERS))
    return cuda_ours, random_llama


def given(random_llama, **changes):
    usual = {"shape": "tiny", "layers": None, "steps": 3, "warm_up": 1, "rows": 4, "length": 4096}
    return random_llama.Given(**{**usual, "sessions": "mixed", "room_gb": 24.0, **changes})


def test_rows_are_nearly_full_and_pass_as_they_are_packed():
    from distill.train.packing import passes

    _, random_llama = contenders()
    for step in random_llama.steps_of(given(random_llama)):
        lengths = [len(one.input_ids) for row in step for one in row]
        assert 0.97 * 4 * 4096 <= sum(lengths) <= 4 * 4096
        assert len(step) == len(passes(range(len(lengths)), lengths, tokens=4096, packed=True)) == 4


def test_a_whole_session_fills_its_row():
    _, random_llama = contenders()
    (step, *_) = random_llama.steps_of(given(random_llama, sessions="whole"))
    assert [[len(one.input_ids) for one in row] for row in step] == [[4096]] * 4


def test_its_options_are_those_of_a_recipe_that_says_no_more():
    ours, random_llama = contenders()
    asked = {"learning_rate": random_llama.LEARNING_RATE, "scheduler": "constant", "warmup": 0.0}
    recipe = TrainOptions.model_validate({**asked, "lora": {"r": random_llama.RANK, "alpha": random_llama.ALPHA}})
    told = recipe.model_dump()
    assert {name: told[name] for name in ours.OPTIONS} == ours.OPTIONS
    assert told["lora"] == ours.LORA


# What is made of the figures

ASKED = argparse.Namespace(
    shape="llama-3-8b", layers=None, length=4096, peak_tflops=None, rounds=1, steps=2, warm_up=1, rows=4,
    sessions="mixed", out=Path("none"),
)  # fmt: skip


def result(pace, **changes):
    memory = {"allocated": 20.0, "reserved": 22.0, "card": 22.5, "loading": 6.0}
    return {
        "device": "NVIDIA H200",
        "versions": {"torch": "2.11.0"},
        "python": "3.12.3",
        "tokens": [pace, pace],
        "trained": [pace // 2, pace // 2],
        "seconds": [1.0, 1.0],
        "flops_a_token": 31e9,
        "losses": [11.8],
        "memory": {**memory, **changes.pop("memory", {})},
        "recomputes": "4 of 32 layers",
        "all_recomputed": False,
        "pass_tokens": 4096,
        "attention": "FlashAttention",
        "said": [],
        **changes,
    }


def verdicts(**found):
    report = train_cuda._report(found, ASKED)
    return [target["verdict"] for target in report["targets"]], report


def test_a_run_within_its_targets_is_ok():
    told, report = verdicts(ours=[result(17_000)], trl=[result(9_000)])
    assert told == ["ok"] * 4
    assert report["rows"][0]["MFU %"] == f"{100 * 17_000 * 31e9 / 989e12:.1f}"
    assert report["rows"][1]["ours over it"] == pytest.approx(17 / 9)


def test_each_target_can_be_missed():
    ours = result(15_000, memory={"reserved": 30.0}, losses=[11.9])
    assert verdicts(ours=[ours], trl=[result(9_000)])[0] == ["MISSED"] * 4


def test_speed_with_every_layer_computed_again_is_not_what_is_asked():
    assert verdicts(ours=[result(17_000, all_recomputed=True)])[0] == ["MISSED", "ok"]


def test_a_slower_card_is_not_held_to_the_pace_of_a_faster_one():
    told, report = verdicts(ours=[result(5_000, device="NVIDIA A100-SXM4-80GB")])
    assert told == ["not applicable", "ok"]
    assert "312 TFLOP/s" in report["lines"][0]


def test_a_rival_without_memory_is_a_line_and_no_fault_of_ours():
    told, report = verdicts(ours=[result(17_000)], trl=[{"failed": "out of memory: 2 GiB", "out_of_memory": True}])
    assert told == ["ok", "ok"]
    assert not report["failed"]
    assert "TRL, its defaults: out of memory: 2 GiB" in report["lines"]


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA L40S", 362), ("NVIDIA L4", 121), ("X", None)],
)
def test_a_cards_arithmetic_is_known_by_its_name(name, tflops):
    assert train_cuda._card(name, ASKED).tflops == tflops


# Contenders that fail

STAND_IN = """
import json, sys
given = json.loads(sys.argv[1])
if given["recompute"] != "full":
    print(json.dumps({"failed": "out of memory: 2 GiB", "out_of_memory": True}))
elif given["best"]:
    print(json.dumps({"recomputes": given["recompute"]}))
else:
    raise ValueError("no such attention")
"""


def stand_in(tmp_path, monkeypatch):
    """Contenders that need memory, and one that breaks."""
    (tmp_path / "cuda_trl.py").write_text(STAND_IN)
    monkeypatch.setattr(train_cuda, "CONTENDERS", tmp_path)
    return argparse.Namespace(**vars(ASKED), room_gb=24.0, profile=False, timeout=60.0)


def test_a_rival_recomputes_as_little_as_memory_allows(tmp_path, monkeypatch, capsys):
    asked = stand_in(tmp_path, monkeypatch)
    assert train_cuda._contender("trl-best", asked) == {"recomputes": "full"}
    assert capsys.readouterr().out.splitlines() == [
        f"TRL, settings that suit it, recomputing {how}: out of memory: 2 GiB" for how in ("none", "selective")
    ]


def test_a_rival_that_breaks_is_told_by_its_error(tmp_path, monkeypatch):
    found = train_cuda._contender("trl", stand_in(tmp_path, monkeypatch))
    assert found["failed"] == "ValueError: no such attention"
    assert any("cuda_trl.py" in line for line in found["complaint"])


def test_memory_that_ends_is_told_as_such(capsys):
    torch = pytest.importorskip("torch")
    _, random_llama = contenders()
    random_llama.tell_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"))
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["failed"], told["out_of_memory"]) == (
        "out of memory: CUDA out of memory. Tried to allocate 2 GiB",
        True,
    )
