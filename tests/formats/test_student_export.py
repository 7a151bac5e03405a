"""An exported student is the one that was trained, runs where distill is not, stops, and is never half of one."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest

from distill.core.extras import install
from distill.errors import MissingPackage, ModelError, RecipeError, RunFolderError
from distill.formats.export import MODELS, export
from tests.support.cli import here
from tests.support.exported import QUESTION, greedy
from tests.support.exporting import HELD_OUT, receipt_of, write_trained_run
from tests.support.models.loaded_process import LoadedProcess

torch = pytest.importorskip("torch")
constants = pytest.importorskip("huggingface_hub.constants")


pytestmark = pytest.mark.model


def run_card(folder: Path, *, tokens: int, then: str = "") -> str:
    """Run the code of an export's card, in a process that knows nothing of distill; its output."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = (code + then).replace("FOLDER", str(folder)).replace("What is a rainbow?", QUESTION["content"])
    code = code.replace("max_new_tokens=256", f"max_new_tokens={tokens}").replace('")\n', '", dtype="float32")\n', 1)
    code += "\nimport sys\nassert not any(name.startswith('distill') for name in sys.modules)\n"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False, env=environment, timeout=240
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout.strip("\n")


# What an export is


@pytest.mark.parametrize("form", ["adapter", "merged", "ollama"])
def test_an_export_is_the_trained_student_within_its_limits(exported, form):
    receipt = receipt_of(exported[form])
    assert (receipt["format"], receipt["dtype"], receipt["passed"]) == (form, "float16", True)
    assert receipt["remarks"] == []
    compared = receipt["compared"]
    assert (compared["rows"], compared["on"]) == (len(HELD_OUT), "held-out rows")
    assert 0 <= compared["mean_kl_nats"] < compared["limits"]["mean_kl_nats"] / 10
    assert compared["top1_agreement"] == 1.0
    assert receipt["train_serve"]["differences"] == []
    assert receipt["train_serve"]["dialogues"] == len(HELD_OUT) + 6


def test_the_receipt_has_the_hash_of_every_file_but_its_own_and_the_cards(exported):
    from distill.core.hashing import file_sha256

    for folder in exported.values():
        told = {name: entry["sha256"] for name, entry in receipt_of(folder)["files"].items()}
        there = {str(f.relative_to(folder)): file_sha256(f) for f in folder.rglob("*") if f.is_file()}
        assert told == {name: digest for name, digest in there.items() if name not in ("export.json", "README.md")}
        assert "model.safetensors" in " ".join(told) or "model.gguf" in told


def test_the_merged_student_runs_with_plain_transformers_and_stops(exported, whole_run):
    answer = run_card(exported["whole"], tokens=64)
    assert re.fullmatch(r"\d+ is \w+, I say\.", answer)
    assert answer == greedy(whole_run, 64)


def test_the_adapter_runs_with_plain_peft_and_a_moved_folder_still_names_its_base(exported, run_folder, tmp_path):
    moved = shutil.copytree(exported["adapter"], tmp_path / "moved")
    inside = (
        "import os\nfrom peft import AutoPeftModelForCausalLM\nos.chdir('FOLDER')\n"
        "print(type(AutoPeftModelForCausalLM.from_pretrained('.').base_model.model).__name__)\n"
    )
    assert run_card(moved, tokens=8, then=inside) == f"{greedy(run_folder, 8)}\nLlamaForCausalLM"
    assert json.loads((moved / "adapter_config.json").read_text())["base_model_name_or_path"] == "./base"
    card = (moved / "README.md").read_text()
    assert '`AutoPeftModelForCausalLM.from_pretrained(".")` works inside this folder' in card


def test_the_merged_student_has_no_trace_of_quantisation_of_pickles_or_of_this_machine(exported, run_folder):
    for folder in exported.values():
        names = [file.name for file in folder.rglob("*")]
        assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".partial"))]
        for file in folder.rglob("*.json"):
            text = file.read_text()
            assert "quantization_config" not in text
            assert "/pytest-" not in text
    config = json.loads((exported["merged"] / "config.json").read_text())
    assert (config["num_hidden_layers"], config["dtype"], config["torch_dtype"]) == (2, "float16", "float16")
    generation = json.loads((exported["merged"] / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (2, 0)


def test_anybody_may_read_an_export(exported):
    modes = {
        file.stat().st_mode & 0o777 for folder in exported.values() for file in folder.rglob("*") if file.is_file()
    }
    assert modes == {0o644}


def test_a_modelfile_stops_where_the_student_does(exported):
    text = (exported["ollama"] / "Modelfile").read_text()
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "SYSTEM" not in text


def test_llama_cpp_reads_the_exported_students_own_tokens(exported, run_folder):
    from distill.models import chat_template
    from distill.models.loading import load_student
    from distill.types import Message
    from tests.support import llama_cpp

    model, tokenizer = load_student(run_folder / "student", adapter=True, dtype=torch.float32)
    prompts = [chat_template.prompt_ids([Message("user", f"Number {n}?")], "chatml", tokenizer) for n in range(4)]
    expected = [
        model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
        for ids in prompts
    ]
    assert llama_cpp.ask(exported["ollama"] / "model.gguf", prompts=prompts)["greedy"] == expected


def test_auto_takes_the_smallest_type_that_is_close_to_the_student(run_folder, tmp_path):
    from distill.formats.exporters.student.export import SMALLER
    from tests.support import llama_cpp

    llama_cpp.require()
    export(run_folder, to="gguf", dtype="auto", out=tmp_path / "auto")
    receipt = receipt_of(tmp_path / "auto")
    assert receipt["compared"]["mean_kl_nats"] <= 0.01 == receipt["compared"]["limits"]["mean_kl_nats"]
    smaller = SMALLER[: SMALLER.index(receipt["dtype"])]
    for dtype in smaller[-1:]:
        with pytest.raises(ModelError, match="over its limit"):
            export(run_folder, to="gguf", dtype=dtype, out=tmp_path / "less", max_kl=0.01)


def test_without_llama_cpp_a_k_quant_is_refused_in_one_line_before_any_work(run_folder, tmp_path, monkeypatch):
    from distill.models.gguf import quantising

    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    quantising.quantiser.cache_clear()
    with pytest.raises(MissingPackage, match=r"made by llama\.cpp's own quantiser.*or use --quantise q8_0"):
        export(run_folder, to="gguf", dtype="q4_k_m", out=tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


# What the limits catch


def test_an_adapter_merged_into_the_weights_before_quantisation_is_over_the_limit(run_folder, tmp_path):
    from distill.formats.exporters.student.export import FORMS
    from distill.formats.exporters.student.receipt import Reference, rows_of
    from distill.formats.exporters.student.source import read_student
    from distill.models import loading

    student = read_student(run_folder / "student", name="tiny")
    rows = rows_of(HELD_OUT, student.template, student.tokenizer, context=student.context)
    reference = Reference(tmp_path / "kept", rows)
    reference.record(student.trained(), lambda done, total: None)
    limits = FORMS["merged"].limits
    right = reference.compare(student.merged(), lambda done, total: None)
    assert right.within(limits["float32"])
    base = loading.load_causal(Path(student.info["model"]), layers=student.info["layers"], dtype=torch.float32)
    found = reference.compare(loading.adapted(base, run_folder / "student", merge=True), lambda done, total: None)
    assert not found.within(limits["float16"])
    reference.close()
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_that_is_no_number_is_over_every_limit():
    from distill.formats.exporters.student.receipt import ExportDeviation, Limits

    assert not ExportDeviation(1, 10, float("nan"), float("nan"), 1.0).within(Limits(kl=1e9, disagree=1.0))
    assert ExportDeviation(1, 10, 0.0, 0.0, 0.9).within(Limits(kl=0, disagree=0.0))
    assert not ExportDeviation(1, 10, 0.0, 0.0, 0.8).within(Limits(kl=0, disagree=0.1))


def test_divergence_is_that_of_torch():
    from distill.formats.exporters.student.receipt import divergence

    torch.manual_seed(0)
    p, q = (torch.randn(5, 40).log_softmax(-1) for _ in range(2))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(divergence(p, q).float(), expected)


def test_an_export_over_its_limit_ends_in_exit_1_and_never_lies_where_it_was_wanted(run_folder, tmp_path):
    out = tmp_path / "coarse"
    command = ("export", str(run_folder), "--to", "merged", "--dtype", "bfloat16", "--out", str(out), "--max-kl", "0")
    finished = here(tmp_path, *command)
    assert finished.returncode == 1
    assert re.search(
        r"error: KL to the trained student \S+ nats per token \(limit 0\).*coarse\.failed", finished.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["coarse.failed"]
    assert receipt_of(tmp_path / "coarse.failed")["passed"] is False


# Half-written exports


def test_a_killed_export_leaves_nothing_that_looks_finished_and_the_next_one_clears_it_away(run_folder, tmp_path):
    out = tmp_path / "merged"
    command = ["export", str(run_folder), "--to", "merged", "--out", str(out)]
    with TemporaryFile() as said:
        process = LoadedProcess(command, stdout=said.fileno(), stderr=said.fileno())
        _wait_for(lambda: list(tmp_path.glob(".merged.*.partial")))
        process.kill()
        assert process.wait(20) == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    export(run_folder, to="merged", out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert receipt_of(out)["passed"]


def _wait_for(there: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def small_disk():
    """No file may be larger than 12 MB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("form", ["merged", "gguf"])
@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_is_one_line_and_leaves_nothing(run_folder, tmp_path, form):
    command = ["export", str(run_folder), "--to", form, "--dtype", "float32", "--out", str(tmp_path / "x")]
    finished = here(tmp_path, *command)
    assert finished.returncode == 1
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, finished.stderr
    assert re.search(r"cannot write .*x: .*(File too large|requested and).*free some space", errors[0])
    assert "Traceback" not in finished.stderr
    assert list(tmp_path.iterdir()) == []


# Other students


def test_a_base_that_is_on_the_hub_is_named_and_not_copied(base, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub/models--owner--tiny/snapshots/0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(base, snapshot)
    (tmp_path / "hub/models--owner--tiny/refs").mkdir()
    (tmp_path / "hub/models--owner--tiny/refs/main").write_text(snapshot.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert constants.HF_HUB_OFFLINE
    run = write_trained_run(tmp_path / "run", "owner/tiny", epochs=2)
    export(run, to="adapter", out=tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "owner/tiny"
    assert not (tmp_path / "adapter" / "base").exists()
    receipt = receipt_of(tmp_path / "adapter")
    assert (receipt["base"], receipt["quantised"], receipt["passed"]) == ("owner/tiny", True, True)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "base_model: owner/tiny" in card
    assert 'from_pretrained("owner/tiny", quantization_config=settings)' in card


def test_a_student_that_was_trained_whole_has_no_adapter(whole_run, tmp_path):
    with pytest.raises(ModelError, match="was trained whole and has no adapter; use --to merged"):
        export(whole_run, to="adapter", out=tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_another_kind_of_adapter_comes_out_whole(base, tmp_path):
    run = write_trained_run(tmp_path / "run", base, epochs=2, method="lora", lora={"dora": True})
    export(run, to="merged", out=tmp_path / "merged")
    assert receipt_of(tmp_path / "merged")["compared"]["mean_kl_nats"] < 1e-5


@pytest.mark.parametrize(
    ("options", "error", "line"),
    [
        ({"to": "gguf", "out": "x.gguf"}, RecipeError, "is the folder to make, with the file model.gguf in it"),
        ({"to": "merged", "dtype": "q8_0"}, RecipeError, "merged is written in float16, bfloat16, float32"),
        ({"to": "gguf", "dtype": "q4"}, RecipeError, "gguf is written in float16, float32, q8_0, q6_k, q5_k_m, q4_k_m"),
        ({"to": "merged", "which": "test"}, RecipeError, "--which chooses rows"),
        (
            {"to": "openai", "dtype": "float32"},
            RecipeError,
            "--dtype and --max-kl are for adapter, merged, gguf, ollama",
        ),
        ({"to": "merge"}, RecipeError, 'did you mean "merged"'),
        ({"to": "merged", "out": "run/student/merged"}, RunFolderError, "lies in the student's own folder"),
        ({"to": "merged", "out": "full/mine/x"}, RunFolderError, "its folder cannot be made"),
        ({"to": "merged", "out": "full"}, RunFolderError, "is there already"),
    ],
)
def test_what_cannot_be_exported_is_one_line_before_any_work(run_folder, tmp_path, options, error, line):
    (tmp_path / "run").symlink_to(run_folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    out = tmp_path / options.pop("out", "x")
    with pytest.raises(error) as raised:
        export(tmp_path / "run", out=out, **options)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "run"]


def test_a_student_that_is_a_pickle_or_not_there_is_refused(run_folder, tmp_path):
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    (run / "student" / "adapter_model.safetensors").rename(run / "student" / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model\.bin, a pickle that can run code"):
        export(run, to="merged", out=tmp_path / "x")
    (run / "student" / "base.json").unlink()
    with pytest.raises(ModelError, match="train the student first"):
        export(run, to="merged", out=tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_forms_of_the_door_are_those_behind_it():
    from distill.formats.exporters.student.export import FORMS

    assert list(FORMS) == list(MODELS)


def test_without_torch_the_error_says_what_to_install(run_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distill.formats.exporters.student.export", None)
    with pytest.raises(MissingPackage, match=re.escape(install("train"))):
        export(run_folder, to="merged", out=tmp_path / "x")
