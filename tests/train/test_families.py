"""Families of models are trained on their own loss and answer as `generate` does, or are refused in one line."""

from __future__ import annotations

import json

import pytest

from distill.errors import DistillError
from distill.types import Message, Request, Sampling, Session
from tests.support.models.archs import save_arch
from tests.support.training import SESSIONS, built, losses, options, run

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),  # of slow paths and PEFT
]

ROWS = SESSIONS[:6]
ONE_STEP = {"epochs": 1, "batch_rows": 128, "batch_tokens": None, "eval_steps": 0}
QUESTION = (Message("user", "Number 7?"),)
PADDED, ALONE = "packed sessions see each other", "answers are generated one by one"

TRAINED = {
    "gemma2": ("qlora", ("as assumed",)),
    "gpt_oss": ("lora", (PADDED, "adapters reach 11%", "GptOssExperts")),
    "falcon": ("lora", (PADDED,)),
    "bloom": ("full", (PADDED,)),
    "modernbert_decoder": ("lora", ("the loss is that of the model's own forward",)),
    "qwen3_5": ("qlora", (PADDED, ALONE)),
    "falcon_h1": ("lora", (PADDED, ALONE, "adapters reach 86%")),
    "granitemoe": ("lora", ("adapters reach 11%", "GraniteMoeExperts")),
    "mistral3-vl": ("lora", ("as assumed",)),
}
"""By family: the method, and parts of the self-check's line."""


def mean_loss(model, trainer_rows) -> float:
    """Nats per trained token by the model's own forward, row by row."""
    total, count = 0.0, 0
    for example in trainer_rows:
        ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum"))
        count += example.trained
    return total / count


def examples(tokenizer):
    from distill.models import chat_template

    return [chat_template.encode(one.messages, "chatml", tokenizer) for one in ROWS]


@pytest.mark.parametrize("name", TRAINED)
def test_a_family_learns_from_its_own_loss_in_one_step_and_answers_as_generate_does(name, tmp_path):
    from distill.models import chat_template, loading
    from distill.models.generation import answer

    method, parts = TRAINED[name]
    model = save_arch(name, tmp_path / "model")
    chosen = options(method=method, **ONE_STEP)
    result, _ = run(tmp_path / "student", str(model), sessions=ROWS, options=chosen, layers=None)
    line = json.loads((tmp_path / "student/checks.json").read_text())["line"]
    assert [part for part in parts if part not in line] == []
    assert result.checks["line"] == line
    base, tokenizer = loading.load_student(tmp_path / "student", adapter=False)
    if method == "full":
        base = loading.load_causal(model)
    assert losses(tmp_path / "student") == pytest.approx([mean_loss(base, examples(tokenizer))], abs=2e-3)
    student, _ = loading.load_student(tmp_path / "student", adapter=True)
    assert mean_loss(student, examples(tokenizer)) < mean_loss(base, examples(tokenizer))
    sampling = Sampling(temperature=0.0, max_tokens=4)
    (reply,) = answer(student, tokenizer, "chatml", [Request(role="student", messages=QUESTION, sampling=sampling)])
    ids = torch.tensor([chat_template.prompt_ids(QUESTION, "chatml", tokenizer)])
    whole = student.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4)
    assert reply.text == tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)


LONG = (Session("long", (Message("user", "Count."), Message("assistant", "one and two and " * 80))), *ROWS)

REFUSED = {
    "falcon": ({"method": "qlora"}, ROWS, "none of the weights of a falcon model can be held in 4 bits here"),
    "opt": ({"method": "lora", "max_length": 512}, LONG, "has 256 positions; set train.max_length: 256"),
    "gpt2": ({"method": "lora", "lora": {"target_modules": ["q_proj"]}}, ROWS, "this model has c_attn, c_fc, c_proj"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_family_cannot_do_is_one_line_with_a_way_out(name, tmp_path):
    changes, sessions, part = REFUSED[name]
    model = save_arch(name, tmp_path / "model")
    with pytest.raises(DistillError) as caught:
        run(tmp_path / "student", str(model), sessions=sessions, options=options(**changes), layers=None)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_routers_loss_counts_once_whatever_the_passes(tmp_path):
    trainer = built(str(save_arch("mixtral", tmp_path / "model")), sessions=ROWS, options=options(method="full"))
    router = next(weight for name, weight in trainer.model.named_parameters() if name.endswith("gate.weight"))
    results = []
    for micro_tokens in (1000, 1):
        trainer.micro_tokens = micro_tokens
        trainer.model.zero_grad()
        loss = trainer.training_step(trainer.model, {"rows": tuple(range(len(ROWS)))})
        results.append((float(loss), router.grad.clone()))
        assert len(trainer.row_losses) == len(ROWS)
    (loss, gradient), (other, other_gradient) = results
    assert other == pytest.approx(loss, abs=1e-5)
    assert torch.nn.functional.cosine_similarity(gradient.flatten(), other_gradient.flatten(), dim=0) > 0.999
    assert trainer.model.config.router_aux_loss_coef > 0


@pytest.mark.parametrize(("name", "method"), [("gpt2", "qlora"), ("gemma3-vl", "lora")])
def test_layers_are_pruned_in_families_that_name_them_otherwise_and_read_again_when_merged(name, method, tmp_path):
    from distill.models.loading import load_causal, load_student, load_tokenizer

    model = save_arch(name, tmp_path / "model")
    run(tmp_path / "student", str(model), sessions=ROWS, options=options(method=method, **ONE_STEP), layers=2)
    student, _ = load_student(tmp_path / "student", adapter=True)
    assert student.config.get_text_config().num_hidden_layers == 2
    student.save_pretrained(tmp_path / "student")
    rows = examples(load_tokenizer(model))
    (tmp_path / "student/adapter_config.json").unlink()
    assert mean_loss(load_causal(tmp_path / "student"), rows) == pytest.approx(mean_loss(student, rows), abs=1e-4)
