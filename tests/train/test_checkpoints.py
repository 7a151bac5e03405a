"""A run that was cut short goes on to the very weights of one that was not, or says why it does not."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from distill.core.hashing import json_sha256
from distill.core.jsonl import read_jsonl
from distill.errors import ModelError, RunFolderError
from tests.support.training import OPTIONS, SESSIONS, losses, run

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.model

WATCHED = OPTIONS.model_copy(update={"eval_rows": 4, "eval_steps": 3, "eval_tokens": 6})
"""With dropout, packing and evaluations."""


def weights(folder) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def assert_same(one, two):
    found, expected = weights(one), weights(two)
    assert found.keys() == expected.keys()
    assert max((found[name] - expected[name]).abs().max().item() for name in found) == 0.0
    assert losses(one) == losses(two)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A student trained without interruption, and what the run returned."""
    folder = tmp_path_factory.mktemp("whole") / "student"
    return folder, run(folder, tiny, options=WATCHED)[0]


KILLED = """
import os, shutil, signal, sys
from pathlib import Path

def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        os.write(2, b"tried the network")
        os._exit(3)
    if event == "open" and str(args[0]).endswith("checkpoint-6/trainer_state.json"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
from distill.train import loop
from tests.train.test_checkpoints import WATCHED
from tests.support.training import run

class Killer:
    def __init__(self, step):
        self.step = step
    def update(self, done, total=None, note=""):
        if done == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

def killed(folder, step):
    child = os.fork()
    if not child:
        run(folder, sys.argv[2], options=WATCHED, progress=Killer(step))
        os._exit(4)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL

killed(Path(sys.argv[1]), 5)
shutil.copytree(sys.argv[1], sys.argv[1] + "-between")
killed(Path(sys.argv[1]), 0.5)
"""


@pytest.fixture(scope="module")
def killed(tiny, tmp_path_factory) -> Path:
    """What is left of the same run, killed after its fifth step, resumed, and killed while the sixth was saved.

    Beside it, `student-between` is as the first kill left it. No process may use the network.
    """
    folder = tmp_path_factory.mktemp("killed") / "student"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    finished = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), tiny], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return folder


def test_a_killed_run_leaves_no_student_and_a_checkpoint_without_a_mark(killed):
    assert not (killed / "base.json").exists()
    assert not (killed / "adapter_model.safetensors").exists()
    marks = {path.parent.name for path in (killed / "checkpoints").glob("*/distill.json")}
    assert (marks, (killed / "checkpoints/checkpoint-6/optimizer.pt").is_file()) == (
        {"checkpoint-2", "checkpoint-4"},
        True,
    )
    assert [row["step"] for row in read_jsonl(killed / "train_log.jsonl")] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert [*killed.glob("checkpoints/*/tokenizer*"), *killed.glob("checkpoints/*/README.md")] == []


def test_a_run_killed_between_checkpoints_ends_with_the_very_weights_of_an_uninterrupted_one(whole, killed, tiny):
    folder = killed.with_name("student-between")
    result, lines = run(folder, tiny, options=WATCHED)
    assert lines[0] == "going on from step 4"
    assert_same(folder, whole[0])
    assert (result.steps, result.final_loss) == (whole[1].steps, whole[1].final_loss)


class Impatient:
    """Presses Ctrl-C, so often, while a step is shown."""

    def __init__(self, step: int, times: int = 1) -> None:
        self.step, self.times = step, times

    def update(self, done, total=None, note=""):
        while done == self.step and self.times:
            self.times -= 1
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("after", [4, 8], ids=["in the middle", "in the last step"])
def test_ctrl_c_saves_the_step_that_is_made_and_the_run_ends_with_the_same_weights(whole, tiny, tmp_path, after):
    folder = tmp_path / "student"
    with pytest.raises(KeyboardInterrupt):
        run(folder, tiny, options=WATCHED, progress=Impatient(after))
    assert not (folder / "base.json").exists()
    _, lines = run(folder, tiny, options=WATCHED)
    assert lines[0] == f"going on from step {after + 1}"
    assert_same(folder, whole[0])


def test_a_second_ctrl_c_leaves_without_saving(tiny, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tiny, options=WATCHED, progress=Impatient(4, times=2))
    assert (tmp_path / "checkpoints/checkpoint-2").exists()
    assert not (tmp_path / "checkpoints/checkpoint-4").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_half_written_and_damaged_checkpoints_are_passed_over_for_the_one_before(whole, killed, tiny, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "student")
    damaged = shutil.copytree(folder / "checkpoints/checkpoint-4", folder / "checkpoints/checkpoint-8")
    state = bytearray((damaged / "optimizer.pt").read_bytes())
    state[len(state) // 2] ^= 1
    (damaged / "optimizer.pt").write_bytes(state)
    with (folder / "train_log.jsonl").open("a") as log:
        log.write('{"step": 7, "los')
    _, lines = run(folder, tiny, options=WATCHED)
    assert lines[0] == "going on from step 4"
    assert_same(folder, whole[0])
    evaluations = [
        [{**row, "seconds": 0} for row in read_jsonl(path / "train_log.jsonl") if row.get("event") == "eval"]
        for path in (folder, whole[0])
    ]
    assert evaluations[0] == evaluations[1]
    for name in "example_losses.jsonl", "samples.jsonl":
        assert (folder / name).read_text() == (whole[0] / name).read_text()


def test_evaluations_change_nothing_of_the_training(whole, tiny, tmp_path):
    run(tmp_path / "student", tiny, options=WATCHED.model_copy(update={"eval_steps": 0}))
    assert not (tmp_path / "student/samples.jsonl").exists()
    assert_same(tmp_path / "student", whole[0])


def test_a_run_that_failed_while_saving_is_finished_from_its_last_checkpoint(whole, tiny, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "student")
    (folder / "base.json").unlink()
    (folder / "base.json").mkdir()
    with pytest.raises(RunFolderError, match=r"cannot write in .* training goes on from its last checkpoint"):
        run(folder, tiny, options=WATCHED)
    (folder / "base.json").rmdir()
    result, lines = run(folder, tiny, options=WATCHED)
    assert lines == [f"going on from step {result.steps}"]
    assert (folder / "base.json").read_text() == (whole[0] / "base.json").read_text()
    assert_same(folder, whole[0])


CHANGED = [*SESSIONS[1:], SESSIONS[0].__class__("new", SESSIONS[0].messages)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"options": WATCHED.model_copy(update={"learning_rate": 5e-4})}, "train.learning_rate 0.005 → 0.0005"),
        (
            {"options": WATCHED.model_copy(update={"epochs": 3, "scheduler": "linear"})},
            "train.epochs 2 → 3; train.scheduler cosine → linear",
        ),
        ({"sessions": CHANGED}, "1 row added (new); 1 row removed (s0)"),
        ({"sessions": SESSIONS[::-1]}, "the rows are in another order"),
        ({"seed": 2}, "seed 1 → 2"),
        ({"layers": 2}, "student.layers [0, 2, 3] → [0, 3]"),
    ],
)
def test_what_has_changed_is_said_field_by_field_and_nothing_is_lost(killed, tiny, change, told):
    before = sorted(path.relative_to(killed) for path in killed.rglob("*"))
    with pytest.raises(RunFolderError) as caught:
        run(killed, tiny, **{"options": WATCHED, **change})
    message = str(caught.value)
    assert f"was begun with something else: {told}" in message
    assert message.endswith(f"to start over, type: distill train {killed.parent} --redo train")
    assert "\n" not in message
    assert sorted(path.relative_to(killed) for path in killed.rglob("*")) == before


def test_options_that_change_no_weight_may_be_others_and_another_version_is_told(whole, killed, tiny, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "student")
    identity = json.loads((folder / "checkpoints/identity.json").read_text())
    identity["machine"]["torch"] = "1.0"
    (folder / "checkpoints/identity.json").write_text(json.dumps(identity))
    others = {"save_steps": 5, "eval_steps": 0, "show_masks": 0}
    _, lines = run(folder, tiny, options=WATCHED.model_copy(update=others))
    assert lines[0].startswith("resuming, but not bit-for-bit: torch 1.0 → ")
    assert lines[1] == "going on from step 4"
    assert_same(folder, whole[0])


def test_keys_that_an_upgrade_adds_or_removes_do_not_part_an_older_checkpoint_from_its_run(
    whole, killed, tiny, tmp_path
):
    folder = shutil.copytree(killed, tmp_path / "student")
    path = folder / "checkpoints/identity.json"
    identity = json.loads(path.read_text())
    del identity["settings"]["train.weight_decay"], identity["settings"]["train.kernels"]
    identity["settings"] |= {"train.guard.spike": 9.0, "train.guard.max_quarantined": None, "train.compiled": True}
    path.write_text(json.dumps(identity))
    old = json_sha256([identity["rows"], identity["settings"]])
    for mark in folder.glob("checkpoints/*/distill.json"):
        mark.write_text(json.dumps({**json.loads(mark.read_text()), "identity": old}))
    with pytest.raises(RunFolderError, match=r"train\.weight_decay 0 → 0\.1"):
        run(folder, tiny, options=WATCHED.model_copy(update={"weight_decay": 0.1}))
    _, lines = run(folder, tiny, options=WATCHED)
    assert lines[0] == "going on from step 4"
    assert_same(folder, whole[0])


def test_a_fresh_run_forgets_the_checkpoints(killed, tiny, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "student")
    (folder / "quarantined.jsonl").write_text('{"id": "s1"}\n')
    options = WATCHED.model_copy(update={"epochs": 0.5, "eval_steps": 0})
    result, lines = run(folder, tiny, options=options, fresh=True)
    assert lines == []
    assert [row["step"] for row in read_jsonl(folder / "train_log.jsonl")] == list(range(1, result.steps + 1))
    assert not (folder / "quarantined.jsonl").exists()


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_from_elsewhere_is_refused_and_not_read(killed, tiny, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "student")
    foreign = folder / "checkpoints/checkpoint-99"
    foreign.mkdir()
    (foreign / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ModelError, match=r"checkpoint-99 was not written by distill: adapter_model.bin is a pickle"):
        run(folder, tiny, options=WATCHED)
    assert not (tmp_path / "exploded").exists()
    assert foreign.exists()


def test_a_pickle_put_in_place_of_ours_is_not_read(whole, killed, tiny, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "student")
    newer = shutil.copytree(folder / "checkpoints/checkpoint-4", folder / "checkpoints/checkpoint-5")
    for name in "optimizer.pt", "rng_state.pth", "training_args.bin":
        (newer / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert run(folder, tiny, options=WATCHED)[1][0] == "going on from step 4"
    assert not (tmp_path / "exploded").exists()
    assert_same(folder, whole[0])


@contextmanager
def full_disk(folder):
    """A disk with room for a student of the tests and its checkpoints; yields what makes it larger."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "distill-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_its_state_kept(whole, tiny, tmp_path):
    from transformers import TrainerCallback

    class Others(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                free = shutil.disk_usage(tmp_path / "disk").free
                (tmp_path / "disk/theirs").write_bytes(b"0" * (free - 100_000))

    with full_disk(tmp_path / "disk") as enlarge:
        folder = tmp_path / "disk/student"
        with pytest.raises(RunFolderError) as caught:
            run(folder, tiny, options=WATCHED, callbacks=[Others()])
        assert "the checkpoint of step 6 cannot be written in" in str(caught.value)
        assert "the state of step 4 is kept, and training goes on from it: free some space" in str(caught.value)
        assert "\n" not in str(caught.value)
        enlarge()
        assert run(folder, tiny, options=WATCHED)[1][0] == "going on from step 4"
        assert_same(folder, whole[0])


def test_a_file_that_may_not_grow_ends_the_run_with_its_state_kept(whole, tiny, tmp_path):
    """The same where a quota, and not the disk, is the limit; PyTorch's own writer meets it."""
    from transformers import TrainerCallback

    class Quota(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 6:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(RunFolderError, match=r"the checkpoint of step 6 .* the state of step 4 is kept"):
            run(tmp_path / "student", tiny, options=WATCHED, callbacks=[Quota()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert not (tmp_path / "student/checkpoints/checkpoint-6").exists()
    assert run(tmp_path / "student", tiny, options=WATCHED)[1][0] == "going on from step 4"
    assert_same(tmp_path / "student", whole[0])
