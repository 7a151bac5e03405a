"""Gradients of 4-bit layers are right after an evaluation too."""

from __future__ import annotations

import pytest

from distill.errors import ModelError
from tests.support.training import built, options

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.model


def gradients(model, inputs):
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_after_an_evaluation_they_equal_those_of_the_plain_weights(tiny):
    from pathlib import Path

    from peft import get_peft_model

    from distill.models import loading, third_party
    from distill.models.generation import answer
    from distill.models.quantization import unpacked
    from distill.train.evaluation import aside
    from distill.train.lora import adapter_of
    from distill.types import Message, Request, Sampling

    given = options()
    trainer = built(tiny, options=given)
    example = trainer.examples[0]
    inputs = {"input_ids": torch.tensor([example.input_ids]), "labels": torch.tensor([example.labels])}
    ask = Request(role="x", messages=(Message("user", "Hi"),), sampling=Sampling(temperature=0.0, max_tokens=3))
    with aside(trainer.model), torch.no_grad():
        trainer.model(**inputs)
        answer(trainer.model, trainer.processing_class, "chatml", [ask])
        with unpacked(trainer.model):
            answer(trainer.model, trainer.processing_class, "chatml", [ask])
    found = gradients(trainer.model, inputs)

    base = loading.load_causal(Path(tiny), quantise=True).dequantize()
    with third_party.quiet():
        reference = get_peft_model(base, adapter_of(given.lora, base))
    learnt = {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}
    for name, parameter in reference.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(learnt.pop(name))
    assert not learnt
    expected = gradients(reference, inputs)
    assert found.keys() == expected.keys()
    assert len(found) == 4 * 7 * 2
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], atol=1e-6), name


def test_answers_are_the_same_with_unpacked_weights_and_the_layers_are_as_before(tiny):
    from distill.models.quantization import packed_layers, unpacked

    model = built(tiny).model.eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        packed = model(input_ids=ids).logits
        with unpacked(model):
            assert all("forward" in vars(layer) for layer in packed_layers(model))
            plain = model(input_ids=ids).logits
    assert len(packed_layers(model)) == 4 * 7
    assert torch.equal(packed, plain)
    assert not any("forward" in vars(layer) for layer in packed_layers(model))


def test_a_layer_that_loses_its_gradient_in_an_evaluation_is_found_at_the_start(tiny):
    """The fault itself, where the CPU has it: bitsandbytes' packed kernel for AVX512-BF16."""
    from bitsandbytes.functional import has_avx512bf16

    from distill.models.quantization import packed_layers, require_right_gradients

    if not has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16, and so not the fault")
    model = built(tiny).model
    require_right_gradients(model)
    packed_layers(model)[0].support_avx512bf16_for_cpu = True
    with pytest.warns(UserWarning, match="autograd kernel"), pytest.raises(ModelError) as caught:
        require_right_gradients(model)
    assert str(caught.value).startswith(
        "4-bit layers have wrong gradients after an evaluation on this machine, a fault of"
    )
    assert "\n" not in str(caught.value)
