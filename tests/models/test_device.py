"""What a run computes in: bfloat16 where there is some, else one line and not another precision."""

from __future__ import annotations

import pytest

from distill.errors import ModelError
from tests.support import training

torch = pytest.importorskip("torch")

INTEL = "processor\t: 0\nflags\t\t: fpu avx2 avx512f {}\nbugs\t: spectre_v1\n"


@pytest.mark.parametrize(
    ("text", "has"),
    [
        (INTEL.format("avx512_bf16"), True),
        (INTEL.format("amx_bf16 amx_tile"), True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        (INTEL.format("avx512_vnni"), False),
        ("", False),
    ],
)
def test_a_cpu_has_bfloat16_when_its_flags_say_so(tmp_path, text, has):
    from distill.models import device

    (tmp_path / "cpuinfo").write_text(text)
    flags = device.cpu_flags(tmp_path / "cpuinfo")
    cpu = torch.device("cpu")
    assert device.has_bf16(cpu, flags) is has
    assert device.compute_dtype("auto", cpu, flags) == device.compute_dtype("fp32", cpu, flags) == torch.float32
    if has:
        assert device.compute_dtype("bf16", cpu, flags) == torch.bfloat16
    else:
        with pytest.raises(ModelError, match=r"train.dtype is bf16, and this CPU does not .* leave it out \(float32"):
            device.compute_dtype("bf16", cpu, flags)


@pytest.mark.model
@pytest.mark.parametrize("method", ["qlora", "full"])
def test_in_bfloat16_what_learns_stays_in_float32(tiny, tmp_path, method):
    from distill.models import device

    if not device.has_bf16(torch.device("cpu")):
        pytest.skip("this CPU has no bfloat16")
    plain = training.options(method=method, epochs=1)
    training.run(tmp_path / "fp32", tiny, options=plain)
    seen = {}

    from transformers import TrainerCallback

    class Seen(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            seen.update((p.dtype, p.requires_grad) for p in model.parameters() if p.requires_grad)
            layer = next(module for name, module in model.named_modules() if name.endswith("q_proj"))
            layer.register_forward_hook(lambda *hooked: seen.update(layer=hooked[2].dtype))

    training.run(tmp_path / "bf16", tiny, options=plain.model_copy(update={"dtype": "bf16"}), callbacks=[Seen()])
    assert seen == {torch.float32: True, "layer": torch.bfloat16}
    exact, coarse = (training.losses(tmp_path / name) for name in ("fp32", "bf16"))
    assert coarse != exact
    assert coarse == pytest.approx(exact, abs=0.05)


def test_apples_gpu_is_taken_only_when_asked_and_where_it_is():
    from distill.models import device

    assert device.training_device("auto").type in ("cuda", "cpu")
    assert device.compute_dtype("auto", torch.device("mps")) == torch.float32
    with pytest.raises(ModelError, match="this GPU does not compute in it"):
        device.compute_dtype("bf16", torch.device("mps"))
    if not torch.backends.mps.is_available():
        with pytest.raises(ModelError, match="torch does not find here"):
            device.training_device("mps")
