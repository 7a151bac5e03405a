"""Every method and kind of adapter trains on real weights, and what is saved is what was trained."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from distill.core.weights import student_fingerprint
from distill.errors import ModelError, RecipeError
from tests.support.training import SESSIONS, losses, options, run

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.model

IDS = torch.arange(1000, 1040)[None]


def probe():
    """A callback that keeps the trained model's logits, and its weights that learn by name."""
    from transformers import TrainerCallback

    class Probe(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            self.before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

        def on_train_end(self, args, state, control, model=None, **kwargs):
            self.after = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
            with torch.no_grad():
                self.logits = model.eval()(IDS).logits

    return Probe()


def trained(tiny, folder, *, layers=3, **changes):
    callback = probe()
    chosen = options(epochs=1, batch_tokens=40, **changes)
    run(folder, tiny, sessions=SESSIONS[:8], options=chosen, layers=layers, callbacks=[callback])
    return callback


def read_again(folder):
    from distill.models.loading import load_student

    with torch.no_grad():
        return load_student(folder, adapter=True)[0](IDS).logits


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "qlora", "lora": {"rslora": True}},
        {"method": "qlora", "lora": {"dora": True}},
        {"method": "qlora", "lora": {"init": "gaussian"}},
        {"method": "lora", "lora": {"init": "pissa"}},
        {"method": "lora", "lora": {"init": "pissa", "rslora": True}},
        {"method": "lora", "lora": {"init": "pissa", "dora": True}},
        {"method": "lora", "lora": {"init": "olora"}},
        {"method": "full"},
    ],
    ids=str,
)
def test_what_is_read_on_the_base_as_it_was_is_what_was_trained(tiny, tmp_path, changes):
    callback = trained(tiny, tmp_path, **changes)
    assert all(weight.dtype == torch.float32 for weight in callback.after.values())
    assert all(not torch.equal(weight, callback.before[name]) for name, weight in callback.after.items())
    torch.testing.assert_close(read_again(tmp_path), callback.logits, atol=1e-4, rtol=1e-4)
    found = losses(tmp_path)
    assert found[-1] < found[0]


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_took_from_the_base_begins_as_the_base(tiny, tmp_path, init):
    chosen = options(method="lora", epochs=1, batch_tokens=None, batch_rows=8, learning_rate=1e-12, lora={"init": init})
    run(tmp_path, tiny, sessions=SESSIONS[:8], options=chosen, layers=None)
    from distill.models.loading import load_causal

    with torch.no_grad():
        torch.testing.assert_close(read_again(tmp_path), load_causal(tiny)(IDS).logits, atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 16


def test_adapters_sit_on_the_layers_that_are_named(tiny, tmp_path):
    callback = trained(tiny, tmp_path, lora={"target_modules": ["v_proj", "q_proj"]})
    assert {name.split(".")[-4] for name in callback.after} == {"q_proj", "v_proj"}
    torch.testing.assert_close(read_again(tmp_path), callback.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["lm_head", "c_attn"])
def test_a_layer_that_can_have_no_adapter_is_told_with_those_that_can(tiny, tmp_path, name):
    expected = rf"{name} is no linear layer .* this model has down_proj, gate_proj, k_proj, o_proj"
    with pytest.raises(RecipeError, match=expected):
        trained(tiny, tmp_path, lora={"target_modules": ["q_proj", name]})


def test_an_adapter_that_takes_from_the_base_is_refused_in_4_bits_with_the_reason():
    with pytest.raises(ValidationError, match=r"in 4 bits the rest would be rounded .* use method: lora"):
        options(method="qlora", lora={"init": "pissa"})


def test_a_fully_trained_student_replaces_an_adapter_and_needs_its_base_no_longer(tiny, tmp_path):
    import shutil

    from distill.models.loading import load_student

    model = shutil.copytree(tiny, tmp_path / "model")
    student = tmp_path / "student"
    trained(str(model), student)
    shutil.rmtree(student / "checkpoints")
    before = student_fingerprint(student)
    callback = trained(str(model), student, method="full")
    assert student_fingerprint(student) != before
    assert not list(student.glob("adapter*"))
    told = json.loads((student / "base.json").read_text())
    assert (told["method"], told["quantised"], told["layers"]) == ("full", False, [0, 2, 3])
    config = json.loads((student / "config.json").read_text())
    assert (config["num_hidden_layers"], config["use_cache"]) == (3, True)
    base = load_student(student, adapter=False)[0](IDS).logits
    assert (base - callback.logits).abs().max() > 0.1
    shutil.rmtree(model)
    torch.testing.assert_close(read_again(student), callback.logits)


def test_a_base_that_is_stored_quantised_is_refused(tiny, tmp_path):
    import shutil

    from distill.core.files import write_json

    model = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", {**config, "quantization_config": {"quant_method": "bitsandbytes"}})
    with pytest.raises(ModelError, match="holds weights quantised by bitsandbytes; train on the unquantised model"):
        trained(str(model), tmp_path / "student", method="full")


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "adafactor"])
def test_other_optimizers_train_too(tiny, tmp_path, optimizer):
    chosen = options(epochs=2, optimizer=optimizer, weight_decay=0.1, scheduler="constant", warmup=0.0)
    run(tmp_path, tiny, options=chosen)
    found = losses(tmp_path)
    assert found[-1] < found[0] - 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "full", "neftune_alpha": 5.0, "packing": "none"},
        {"method": "lora", "lora": {"init": "pissa", "dora": True, "dropout": 0.1}},
        {"method": "qlora", "optimizer": "adamw_8bit", "checkpointing": "selective"},
    ],
    ids=str,
)
def test_stopped_and_resumed_it_ends_as_if_it_had_not_been(tiny, tmp_path, changes):
    from transformers import TrainerCallback

    class Stopped(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    chosen = options(epochs=1, **changes)
    run(tmp_path / "whole", tiny, options=chosen)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", tiny, options=chosen, callbacks=[Stopped()])
    _, lines = run(tmp_path / "cut", tiny, options=chosen)
    assert lines == ["going on from step 4"]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert torch.equal(read_again(tmp_path / "cut"), read_again(tmp_path / "whole"))


def test_a_paged_optimizer_needs_a_gpu(tiny, tmp_path):
    with pytest.raises(RecipeError, match="paged_adamw_8bit moves its state out of a GPU's memory, and there is none"):
        trained(tiny, tmp_path, optimizer="paged_adamw_8bit")
