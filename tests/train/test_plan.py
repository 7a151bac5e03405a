"""The plan of a training: counted from the rows, measured by one real pass in a child, and nothing left behind."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from distill.core.jsonl import read_sessions, write_rows
from distill.models import chat_template
from distill.train import plan
from distill.train.dataset import Examples
from distill.train.dry_run import StepMeasurement
from distill.train.options import TrainOptions, TrainSettings
from distill.train.packing import PackingPlan
from distill.train.plan import Work, seconds_of, work_of
from distill.types import Message, Session
from tests.support.models.archs import save_arch
from tests.support.training import SESSIONS, run

pytest.importorskip("torch")
pytestmark = pytest.mark.model

LONG = Session("long", (*SESSIONS[0].messages, Message("user", "Go on."), Message("assistant", "word " * 200)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    from tests.support.tiny import save_tiny_model

    return str(save_tiny_model(tmp_path_factory.mktemp("tiny") / "model"))


def planned_lines(folder: Path, settings: TrainSettings) -> list[str]:
    return list(plan.plan(read_sessions(folder / "kept.jsonl"), settings, say=lambda line: None))


@pytest.fixture(scope="module")
def planned(tiny, tmp_path_factory) -> tuple[list[str], list[str]]:
    """The lines of a plan on a run folder, and the folder's files afterwards."""
    folder = tmp_path_factory.mktemp("run")
    write_rows(folder / "kept.jsonl", [*SESSIONS, LONG])
    options = TrainOptions.model_validate({"max_length": 100, "batch_tokens": 80, "micro_batch_tokens": 60})
    lines = planned_lines(folder, TrainSettings(tiny, "chatml", options, seed=1, layers=2))
    return lines, [path.name for path in folder.rglob("*")]


def test_a_plan_counts_rows_tokens_and_steps(planned, tiny):
    from distill.models.loading import load_tokenizer

    lines, _ = planned
    tokenizer = load_tokenizer(Path(tiny))
    examples = [chat_template.encode(session.messages, "chatml", tokenizer) for session in SESSIONS]
    tokens, trained = sum(len(one.input_ids) for one in examples), sum(one.trained for one in examples)
    longest = max(len(one.input_ids) for one in examples)
    assert lines[0] == "rows: 24 of 25 sessions; left out: 1 too long"
    assert lines[1] == (
        f"tokens: {tokens} an epoch, {trained} of them trained ({trained / tokens:.0%}), no padding; the longest row "
        f"has {longest}"
    )
    assert lines[2].startswith(f"steps: {2 * round(tokens / 80)} over 2 epochs, ")


def test_a_plan_counts_what_training_takes_from_rows_held_out_and_from_a_model_that_cannot_pack(tmp_path):
    model, options = str(save_arch("bloom", tmp_path / "model")), {"batch_rows": 4, "epochs": 1, "eval_rows": 8}
    options = TrainOptions.model_validate({**options, "eval_steps": 0, "method": "lora"})
    write_rows(tmp_path / "kept.jsonl", SESSIONS)
    lines = planned_lines(tmp_path, TrainSettings(model, "chatml", options, seed=1))
    result, _ = run(tmp_path / "student", model, layers=None, options=options, seed=1)
    near = f"; {result.near_held} near to those left out" if result.near_held else ""
    assert lines[0] == f"rows: 24 of 24 sessions; 8 of them held out to watch by{near}"
    assert lines[1].startswith(f"tokens: {result.tokens} an epoch, {result.trained_tokens} of them trained ")
    assert "% more for padding; the longest row " in lines[1]
    assert lines[2].startswith(f"steps: {result.planned_steps} over 1 epochs, ")
    assert any(line.startswith("self-check: packed sessions see each other") for line in lines)
    assert not any("best_fit would spare the padding" in line for line in lines)


def test_a_plan_measures_a_pass_of_the_largest_batch(planned):
    (line,) = [line for line in planned[0] if line.startswith("measured on ")]
    found = re.fullmatch(
        r"measured on \d+ CPU threads?: (\d+) tokens forward and backward in (\d+\.\d+) s \(([\d,]+) tokens/s\); peak "
        r"memory (\d+\.\d+) GB, (\d+\.\d+) GB of it for the pass, of \d+\.\d+ GB",
        line,
    )
    assert found
    assert 40 <= int(found[1]) <= 60
    assert 0 <= float(found[5]) < float(found[4])
    assert any(
        re.fullmatch(r"time to finish: about (\d+ min )?[\d.]+ s, reading the base not counted", line)
        for line in planned[0]
    )


def test_a_plans_formula_is_that_of_the_pass_that_is_tried(planned):
    (line,) = [line for line in planned[0] if line.startswith("memory by formula: ")]
    total, *parts = (float(size) for size in re.findall(r"(\d+\.\d+) GB", line))
    assert total == pytest.approx(sum(parts), abs=0.03)
    (measured,) = [line for line in planned[0] if line.startswith("measured on ")]
    (peak,) = re.findall(r"peak memory (\d+\.\d+) GB", measured)
    assert total == pytest.approx(float(peak), rel=0.25)


def test_a_plan_says_what_becomes_of_long_rows_and_what_would_keep_them(planned):
    assert (
        "advice: train.over_length: split would keep pairs of 1 sessions that are left out for their length"
        in (planned[0])
    )
    assert any(re.match(r"advice: train.max_length: \d+ would keep all sessions", line) for line in planned[0])


def test_a_plan_leaves_nothing_in_the_run_folder(planned):
    assert planned[1] == ["kept.jsonl"]


def test_a_pass_that_cannot_be_tried_is_one_line_and_not_the_end(tiny, tmp_path):
    options = TrainOptions.model_validate({"lora": {"target_modules": ["no_such_layer"]}})
    write_rows(tmp_path / "kept.jsonl", SESSIONS)
    lines = planned_lines(tmp_path, TrainSettings(tiny, "chatml", options, seed=1))
    assert lines[-1].startswith("not measured: ")
    assert "no_such_layer" in lines[-1]


KILLED = """
import resource, sys
from pathlib import Path
from distill.models.chat_template import Example
from distill.train.options import TrainOptions
from distill.train.dry_run import measured_pass
resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
measured_pass(Path(sys.argv[1]), None, [Example([1, 2, 3], [-100, 2, 3])], TrainOptions(), 1)
"""


def test_a_pass_that_the_system_kills_is_told_as_that(tiny):
    ended = subprocess.run([sys.executable, "-c", KILLED, tiny], capture_output=True, text=True, check=False)
    assert "ModelError: a pass of 3 tokens was killed by the system (signal " in ended.stderr
    assert "lower train.micro_batch_tokens or train.max_length" in ended.stderr


# Counting and advising


@pytest.mark.parametrize(
    ("packed", "expected"),
    [(True, Work(2, 3, 110, 0, (1, 3), (0,))), (False, Work(2, 3, 110, 10, (1, 3), (1, 2)))],
)
def test_work_counts_passes_padding_and_the_largest_pass(packed, expected):
    lengths = [50, 30, 20, 10]
    work = work_of(PackingPlan(((1, 2, 3), (0,)), 1.0), lengths, micro_tokens=60 if not packed else 50, packed=packed)
    assert work == expected


def measured(**changes) -> StepMeasurement:
    gigabyte = 10**9
    usual = {
        "device": "a card",
        "tokens": 4096,
        "seconds": 0.5,
        "optimizer_seconds": 0.1,
        "before_bytes": 6 * gigabyte,
        "peak_bytes": 10 * gigabyte,
        "room_bytes": 40 * gigabyte,
        "micro_tokens": 4096,
    }
    return StepMeasurement(**{**usual, **changes})


WORK = Work(steps=100, passes=400, tokens=1_600_000, padding=38_400, examples=(8, 20), largest=(0, 1))


def test_the_time_is_that_of_all_tokens_with_padding_and_of_the_optimizers_steps():
    assert seconds_of(WORK, measured()) == pytest.approx(1_638_400 / 8192 + 100 * 0.1)


@pytest.mark.parametrize(
    ("changes", "whole_bytes", "gpu", "expected"),
    [
        ({"peak_bytes": 22 * 10**9}, None, True, []),
        ({}, None, True, ["train.micro_batch_tokens: 28672 fits, and larger passes keep a GPU busier"]),
        (
            {"micro_tokens": 2048},
            None,
            True,
            ["train.micro_batch_tokens: 2048 is what memory holds; 4096 was too much"],
        ),
        (
            {"peak_bytes": 36 * 10**9},
            None,
            False,
            ["memory is almost full: train.micro_batch_tokens: 2048 would be safer"],
        ),
        (
            {"peak_bytes": 22 * 10**9},
            20e9,
            True,
            [
                "train.method: lora needs about 20.0 GB here, which fits: with the base in 16 bits it is faster than "
                "QLoRA, which unpacks 4-bit weights in every pass"
            ],
        ),
        ({"peak_bytes": 22 * 10**9}, 36e9, True, []),
        ({"peak_bytes": 22 * 10**9}, 20e9, False, []),
    ],
)
def test_advice_of_memory(changes, whole_bytes, gpu, expected):
    options = TrainOptions(micro_batch_tokens=4096)
    advice = plan.of_memory(WORK, options, measured(**changes), whole_bytes=whole_bytes, gpu=gpu)
    assert list(advice) == expected


def rows(*lengths: int, too_long: list[tuple[int, int]] | None = None) -> Examples:
    examples = [chat_template.Example([1] * length, [1] * length) for length in lengths]
    return Examples([str(length) for length in lengths], examples, Counter(), too_long=too_long or [])


@pytest.mark.parametrize(
    ("found", "work", "expected"),
    [
        (rows(10, 20), WORK, []),
        (
            rows(10, 20),
            Work(100, 400, 1000, 500, (1, 2), (0,)),
            ["train.packing: best_fit would spare the padding, 33% of what is computed now"],
        ),
        (
            rows(10, 20),
            Work(4, 4, 7200, 0, (1, 2), (0,)),
            ["only 4 steps: train.batch_tokens: 200 would make about 36"],
        ),
        (rows(10, 20, too_long=[(900, 1)]), WORK, ["train.max_length: 900 would keep all sessions"]),
        (
            rows(*[10] * 100, too_long=[(600, 1), (700, 1), (900, 3)]),
            WORK,
            [
                "train.max_length: 900 would keep all sessions, 700 99% of them",
                "train.over_length: split would keep pairs of 1 sessions that are left out for their length",
            ],
        ),
    ],
)
def test_advice_of_rows(found, work, expected):
    assert list(plan.of_rows(found, work, TrainOptions(packing="none"))) == expected
