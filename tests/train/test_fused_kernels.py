"""Compiled norms and gates give what the plain ones give; tried on a CPU, where training does not use them."""

from __future__ import annotations

import shutil
import threading

import pytest

from distill.train.options import TrainOptions
from tests.support.training import built, options

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # torch 2.13's own, where it compiles
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"),
]
CPU = torch.device("cpu")


@pytest.fixture
def fused():
    """The module, with nothing compiled afterwards."""
    from distill.train.kernels import fused

    yield fused
    fused._compiled.clear()


def gradients(trainer):
    """Loss of one pass over five sessions, and the gradients of the adapter."""
    trainer.model.train().zero_grad()
    loss = trainer.compute_loss(trainer.model, trainer.batch(range(5)))
    loss.backward()
    return loss.item(), {name: one.grad.clone() for name, one in trainer.model.named_parameters() if one.requires_grad}


def test_a_step_gives_the_same_compiled_whatever_is_computed_again(tiny, fused):
    trainer = built(tiny, options=options(checkpointing="selective"))
    expected, plain = gradients(trainer)
    assert fused.fuse(CPU, torch.float32, hidden=64, intermediate=128) is None
    found, compiled = gradients(trainer)
    assert len(fused._compiled) == len(fused._plain) == 6
    assert found == pytest.approx(expected, abs=1e-5)
    for name, gradient in plain.items():
        assert (gradient - compiled[name]).abs().max() <= 1e-4 * max(1.0, gradient.abs().max()), name


def test_a_part_is_compiled_for_any_length_thread_and_state_at_once(fused):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    assert fused.fuse(CPU, torch.float32, hidden=64, intermediate=128) is None
    assert counters["stats"]["unique_graphs"] == 2 * len(fused._plain)

    def use(rows):
        for name in fused._plain:
            given = fused._example(name, (1, rows, 64), (rows, 128), CPU, torch.float32)
            getattr(fused, name)(*(one.requires_grad_() if torch.is_tensor(one) else one for one in given))

    use(100)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        use(333)
    other = threading.Thread(target=use, args=(500,))
    other.start()
    other.join()
    assert counters["stats"]["unique_graphs"] == 2 * len(fused._plain)


def test_where_the_compiler_is_missing_nothing_is_compiled_and_the_reason_is_told(fused):
    from torch._inductor import config
    from torch._inductor.utils import fresh_cache

    torch._dynamo.reset()
    with config.patch({"cpp.cxx": ("/missing/compiler",)}), fresh_cache():
        reason = fused.fuse(CPU, torch.float32, hidden=32, intermediate=96)
    assert "compiler" in reason.lower()
    assert fused._compiled == {}


def test_a_part_that_gives_other_numbers_is_not_used(fused, monkeypatch):
    monkeypatch.setitem(fused._plain, "gated", lambda g, u: g * u + torch.rand(()))
    torch._dynamo.reset()
    assert (
        fused.fuse(CPU, torch.float32, hidden=64, intermediate=128) == "gated gives other numbers when it is compiled"
    )
    assert fused._compiled == {}


def test_nothing_is_compiled_on_a_cpu(tiny, fused):
    built(tiny, options=options(compiled=True))
    assert fused._compiled == {}


def test_it_changes_what_a_run_is_only_where_it_is_asked_for():
    assert "compiled" not in TrainOptions().deciding()
    assert TrainOptions(compiled=True).deciding()["compiled"] is True


def test_the_next_training_of_a_process_is_compiled_only_where_it_asks(tiny, fused):
    assert fused.fuse(CPU, torch.float32, hidden=64, intermediate=128) is None
    built(tiny)
    assert not fused._compiled
