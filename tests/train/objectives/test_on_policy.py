"""On-policy distillation: the loss beside TRL's, the teacher beside its own forward, rollouts, guards, and training."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.core.jsonl import read_jsonl
from distill.errors import DistillError, RecipeError
from distill.pipeline.parts import load_recipe
from distill.train.objectives.on_policy import OnPolicy, OnPolicyOptions
from distill.types import Message, Session
from tests.support import training

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.model


def tokens_of(teacher, *, width=40, ends=(3, 3), betas=(1.0,)):
    """Targets from teacher states (N × H) under a random head of `width` rows."""
    from distill.train.kernels.divergence import Distributions, Divergence

    states, head = teacher
    each = torch.tensor([betas[place % len(betas)] for place in range(len(states))])
    return Divergence(Distributions(states, lambda rows: rows @ head.t(), width, ends), each)


@given(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.sampled_from([0.5, 3.0]), st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_a_tile_has_the_divergence_and_gradient_of_trls_kernel(beta, sharpness, seed):
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    from distill.train.kernels import autograd

    draw = torch.Generator().manual_seed(seed)
    states, head, mine, weight = (torch.randn(size, generator=draw) for size in ((9, 6), (40, 6), (9, 8), (40, 8)))
    head, labels = head * sharpness, torch.zeros(9, dtype=torch.long)
    ours, its = mine.clone().requires_grad_(), mine.clone().requires_grad_()
    found = autograd.token_losses(ours, weight, labels, tokens_of((states, head), betas=(beta,)))
    expected, _ = ChunkedDivergenceFunction.apply(its, weight, None, states, head, None, beta)
    found.sum().backward(), expected.sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.grad, its.grad, rtol=1e-4, atol=1e-5)


def test_a_tile_has_the_gradient_of_dense_autograd_for_mixed_rows_cut_vocabularies_and_other_end_tokens():
    draw = torch.Generator().manual_seed(1)
    teacher = torch.randn(8, 6, generator=draw), torch.randn(50, 6, generator=draw)
    targets = tokens_of(teacher, width=40, ends=(3, 5), betas=(0.0, 0.3, 1.0))
    logits = (3 * torch.randn(8, 44, generator=draw)).requires_grad_()
    labels = torch.zeros(8, dtype=torch.long)
    dense = targets.from_logits(logits, labels)
    dense.sum().backward()
    losses, gradient = targets.tile(torch.log_softmax(logits.detach(), -1), labels, needs_gradient=True)
    torch.testing.assert_close(losses, dense.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-4, atol=1e-6)
    swapped = (teacher[0] @ teacher[1].t())[:, :40]
    swapped[:, [3, 5]] = swapped[:, [5, 3]]
    expected = torch.log_softmax(swapped, -1)
    own = torch.log_softmax(logits.detach()[:, :40], -1)
    torch.testing.assert_close(losses[0], (expected[0].exp() * (expected[0] - own[0])).sum())
    torch.testing.assert_close(losses[2], (own[2].exp() * (own[2] - expected[2])).sum())


@pytest.fixture(autouse=True, scope="module")
def few_prompts():
    """Four rollouts an evaluation are enough for tests."""
    from distill.train.objectives import rollout_watch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout_watch, "PROMPTS", 4)
        yield


@pytest.fixture(scope="module")
def teacher(tiny, tmp_path_factory):
    return training.confident(tiny, tmp_path_factory.mktemp("teacher") / "model")


def train(folder, tiny, teacher, *, sessions=training.SESSIONS, callbacks=(), options=None, **changes):
    """Train on policy; returns the result, what was said, and the log's events."""
    values = {"epochs": 0.7, "eval_rows": 4, "eval_tokens": 2, "eval_steps": 2, "lora": {"dropout": 0.1}, **changes}
    result, lines = training.run(
        folder / "student", tiny, sessions=sessions, options=training.options(**values), teachers={"tiny": teacher},
        callbacks=callbacks, objective=OnPolicy(options or OnPolicyOptions(temperature=0.7, teacher_share=0.3)),
    )  # fmt: skip
    return (
        result,
        lines,
        [row for row in read_jsonl(folder / "student" / "train_log.jsonl") if row.get("event") not in (None, "eval")],
    )


@pytest.fixture(scope="module")
def trained(tiny, teacher, tmp_path_factory):
    """A run folder with an on-policy student, with what `train` returns."""
    folder = tmp_path_factory.mktemp("on_policy")
    return folder, *train(folder, tiny, teacher)


def test_a_student_comes_nearer_to_its_teacher_on_held_out_answers_and_on_its_own(trained):
    _, result, lines, events = trained
    before, *_, after = [row for row in events if row["event"] == "on_policy"]
    assert (before["step"], after["step"]) == (0, result.steps)
    assert after["kl"] < before["kl"] - 0.05
    assert after["divergence"] < before["divergence"]
    assert after["overlap"] > before["overlap"]
    assert events[-1] == {"event": "kept", "step": result.steps, "which": "end", "before": before["kl"],
                          "after": after["kl"]}  # fmt: skip
    assert lines[0] == "on_policy: tiny scores beside the student"
    assert re.fullmatch(r"step 0/4: held-out KL 8\.\d+; sampled answers: divergence .* 20 top tokens shared", lines[1])
    steps = [row for row in events if row["event"] == "rollouts"]
    assert [row["step"] for row in steps] == list(range(1, result.steps + 1))
    assert all(row["tokens"] <= 9 for row in steps if row["rollouts"])  # those of the longest answer


def test_an_interrupted_training_ends_with_the_same_weights(trained, tiny, teacher, tmp_path):
    from transformers import TrainerCallback

    class Stopped(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, tiny, teacher, callbacks=[Stopped()])
    _, lines, events = train(tmp_path, tiny, teacher)
    files = [(one / "student" / "adapter_model.safetensors").read_bytes() for one in (tmp_path, trained[0])]
    assert files[0] == files[1]
    assert events == trained[3]
    assert not any("step 0/" in line for line in lines)


def adapter_of(folder):
    """The weights of a run's student."""
    from safetensors.torch import load_file

    return load_file(folder / "student" / "adapter_model.safetensors")


EVALUATION = {"cut": 0.1, "length_ratio": 1.1}


@pytest.mark.parametrize(
    ("start", "now", "reason"),
    [
        ({}, {"cut": 0.29, "length_ratio": 1.9}, ""),
        ({}, {"cut": 0.3125}, "31% of the sampled answers do not end, against 10% at the start"),
        ({}, {"length_ratio": 2.1}, "sampled answers are 2.1 times as long as the teacher's"),
        ({"length_ratio": 3.0}, {"length_ratio": 2.9}, ""),
    ],
    ids=["as before", "cut", "long", "long from the start"],
)
def test_answers_that_run_away_end_the_training(start, now, reason):
    from distill.train.objectives.rollout_watch import reason_to_stop

    assert reason_to_stop(EVALUATION | start, EVALUATION, EVALUATION | now) == reason


def test_the_better_by_held_out_divergence_is_kept():
    from distill.train.objectives.rollout_watch import kept

    pairs = [(0.8, 0.7), (0.8, 0.8), (0.8, 0.9), (0.8, float("nan"))]
    assert [kept(*pair) for pair in pairs] == ["end", "start", "start", "start"]


@pytest.fixture(scope="module")
def live(teacher):
    """The teacher in this process, and the tokenizer."""
    from pathlib import Path

    from distill.models import loading
    from distill.train.objectives.live_teacher import LiveTeacher

    tokenizer = loading.load_tokenizer(teacher)
    options = {"quantise": False, "dtype": torch.float32, "device": torch.device("cpu")}
    return LiveTeacher(Path(teacher), "chatml", tokenizer, **options), tokenizer


def row_of(session, tokenizer):
    """A session as the mask gate has it."""
    from distill.models import chat_template
    from distill.train.mask_check import MaskRow

    return MaskRow(session.id, session.messages, chat_template.encode(session.messages, "chatml", tokenizer))


TWICE = Session("twice", (Message("user", "One?"), Message("assistant", "Yes, one."),
                          Message("user", "Two?"), Message("assistant", "Two.")))  # fmt: skip


def test_each_answer_of_a_conversation_has_a_prompt_in_both_templates(live):
    from distill.train.objectives.rollouts import prompts_of

    reading = live[0].read(row_of(TWICE, live[1]), "all")
    prompts = prompts_of(reading, limit=50, context=512)
    texts = [[live[1].decode(ids) for ids in (one.ours, one.theirs, one.answer)] for one in prompts]
    assert [text[2] for text in texts] == ["Yes, one.<|im_end|>", "Two.<|im_end|>"]
    assert all(text[0].endswith("<|im_start|>assistant\n") for text in texts)
    assert texts[1][0] == texts[0][0] + "Yes, one.<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
    assert all(text[1].endswith(text[0]) and "helpful AI assistant" in text[1] for text in texts)  # its own template's


def test_the_teachers_distributions_are_its_own_at_each_trained_token(live):
    readings = [live[0].read(row_of(session, live[1]), "all") for session in (TWICE, *training.SESSIONS[:3])]
    found = live[0].distributions([one.theirs for one in readings]).logs()
    expected = []
    for example in (one.theirs for one in readings):
        with torch.no_grad():
            logits = live[0]._model(input_ids=torch.tensor([example.input_ids])).logits[0]
        trained = [place - 1 for place, label in enumerate(example.labels) if label != -100]
        expected.append(torch.log_softmax(logits[trained], -1))
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_batch_has_the_loss_and_gradient_of_trls_distillation(beta, live, tiny):
    from torch.nn.utils.rnn import pad_sequence
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    from distill.models import loading
    from distill.models.pruning import backbone_of
    from distill.train.kernels.divergence import Divergence
    from distill.train.kernels.losses import head_losses

    student = loading.load_causal(tiny).requires_grad_(False)
    examples = [row_of(session, live[1]).example for session in (TWICE, *training.SESSIONS[:2])]

    def hidden(model, example):
        trained = torch.tensor([place - 1 for place, label in enumerate(example.labels) if label != -100])
        with torch.no_grad():
            return backbone_of(model)(input_ids=torch.tensor([example.input_ids])).last_hidden_state[0, trained]

    ours, its = ([hidden(model, one) for one in examples] for model in (student, live[0]._model))
    mine, theirs = (torch.cat(ours).requires_grad_(), pad_sequence(ours, batch_first=True).requires_grad_())
    tokens = len(mine)
    targets = Divergence(live[0].distributions(examples), torch.full((tokens,), beta))
    loss = head_losses(mine, student.lm_head, torch.zeros(tokens, dtype=torch.long), targets).sum() / tokens
    mask = pad_sequence([torch.ones(len(one)) for one in ours], batch_first=True)
    heads = (student.lm_head.weight, live[0]._model.lm_head.weight)
    expected, _, counted = _chunked_divergence_loss(
        theirs, pad_sequence(its, batch_first=True), *heads, mask, beta, num_items_in_batch=tokens
    )
    loss.backward(), expected.backward()
    assert counted == tokens
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine.grad, theirs.grad[mask.bool()], rtol=1e-4, atol=1e-5)


def test_a_head_with_a_soft_cap_goes_through_the_models_own_forward(tiny, tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from distill.models import loading
    from distill.train.objectives.live_teacher import LiveTeacher

    shutil.copytree(tiny, tmp_path / "capped")
    config = Gemma2Config(
        vocab_size=49_152, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.5, eos_token_id=2,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "capped")
    tokenizer = loading.load_tokenizer(tmp_path / "capped")
    options = {"quantise": False, "dtype": torch.float32, "device": torch.device("cpu")}
    capped = LiveTeacher(tmp_path / "capped", "chatml", tokenizer, **options)
    reading = capped.read(row_of(training.SESSIONS[0], tokenizer), "all")
    with torch.no_grad():
        logits = capped._model(input_ids=torch.tensor([reading.theirs.input_ids])).logits[0]
    trained = [place - 1 for place, label in enumerate(reading.theirs.labels) if label != -100]
    assert logits.abs().max() <= 0.5
    torch.testing.assert_close(capped.distributions([reading.theirs]).logs(), torch.log_softmax(logits[trained], -1))


def test_a_rollout_ends_with_its_first_end_token_and_a_cut_one_with_none(live, tiny):
    from distill.models import loading
    from distill.train.objectives.rollouts import figures, prompts_of, repetition, sampled

    model, tokenizer = loading.load_causal(tiny), live[1]
    model.generation_config.eos_token_id = ends = list(range(0, len(tokenizer), 6))
    readings = [live[0].read(row_of(session, tokenizer), "all") for session in training.SESSIONS]
    prompts = [one for reading in readings for one in prompts_of(reading, limit=6, context=512)]
    rollouts = sampled(model, tokenizer, "chatml", [(str(n), one) for n, one in enumerate(prompts)], temperature=1.0)
    stops = {*ends, 2}
    assert {one.is_cut for one in rollouts} == {True, False}
    for one in rollouts:
        assert [place for place, id_ in enumerate(one.tokens) if id_ in stops] == (
            [] if one.is_cut else [len(one.tokens) - 1]
        )
        assert [label for label in one.reading.ours.labels if label != -100] == one.tokens
        assert one.reading.theirs.input_ids == one.prompt.theirs + one.tokens
    again = sampled(model, tokenizer, "chatml", [("3", prompts[3])], temperature=1.0)
    assert again == [rollouts[3]]
    assert figures(rollouts)["cut"] == sum(one.is_cut for one in rollouts) / len(rollouts)
    assert [repetition(one) for one in ([1, 2, 3], [1, 2, 3, 4] * 3, range(9))] == [0.0, pytest.approx(5 / 9), 0.0]


def test_a_teacher_of_another_tokenizer_is_one_line(tiny, teacher, tmp_path):
    from distill.models import loading

    shutil.copytree(teacher, tmp_path / "other")
    tokenizer = loading.load_tokenizer(teacher)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "other")
    expected = r"tiny has another tokenizer than the student \(49,153 tokens against 49,152\).* or `kind: soft`"
    with pytest.raises(RecipeError, match=expected):
        train(tmp_path, tiny, str(tmp_path / "other"))


LONG = Session("long", (Message("user", "one two " * 20), Message("assistant", "Yes.")))


@pytest.fixture
def short_teacher(teacher, tmp_path):
    """A teacher whose context is 60 tokens, which `LONG` fills."""
    shutil.copytree(teacher, tmp_path / "short")
    config = tmp_path / "short" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 60}))
    return str(tmp_path / "short")


def test_a_training_that_runs_away_stops_at_its_evaluation_and_keeps_the_start(
    tiny, short_teacher, tmp_path, monkeypatch
):
    """And a prompt at the context limit is left out, and without held-out rows it is watched by its own."""
    from safetensors.torch import load_file

    from distill.train.objectives import rollout_watch

    monkeypatch.setattr(rollout_watch, "MOST_CUT", 0.0)
    result, lines, events = train(tmp_path, tiny, short_teacher, sessions=[LONG, *training.SESSIONS], eval_rows=0)
    assert (result.steps, result.planned_steps) == (2, 5)
    assert [row["event"] for row in events[-2:]] == ["stopped", "kept"]
    assert lines[-1].endswith(": the starting student is kept")
    adapter = load_file(tmp_path / "student" / "adapter_model.safetensors")
    assert all(not weight.any() for name, weight in adapter.items() if "lora_B" in name)
    assert any(line.startswith("on_policy: 1 rows are left out (long): in tiny's template") for line in lines)
    assert any("no rows are held out (train.eval_rows)" in line for line in lines)
    assert "long" not in {row["id"] for row in read_jsonl(tmp_path / "student" / "example_losses.jsonl")}


def test_no_row_that_the_teacher_can_read_is_one_line(tiny, short_teacher, tmp_path):
    with pytest.raises(DistillError, match="tiny can read none of the 1 rows"):
        train(tmp_path, tiny, short_teacher, sessions=[LONG], eval_rows=0)


def test_check_says_what_on_policy_training_costs(tmp_path):
    from distill.pipeline.student_forecast import training_lines

    (tmp_path / "own.yaml").write_text(RECIPE)
    (tmp_path / "tasks.jsonl").write_text('{"instruction": "a"}\n')
    lines = training_lines(load_recipe(tmp_path / "own.yaml"))
    assert any(line.startswith("train: on_policy holds smollm2 beside the student") for line in lines)


RECIPE = """
name: own
teacher: {model: smollm2, serve: transformers, terms: t}
collect: {tasks: tasks.jsonl}
student: {model: smollm2, prune: {layers: 24}}
train: {objective: {kind: on_policy, from_untrained: true}}
"""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"teacher.serve": None, "teacher.base_url": "http://127.0.0.1:1/v1"}, "the teacher is behind base_url; give"),
        ({"train.objective.from_untrained": False}, "name a run that trained one by `kind: sft` or `soft`"),
        ({"train.best": "nll"}, "leave train.best out"),
    ],
    ids=["right", "teacher elsewhere", "untrained", "best"],
)
def test_a_recipe_that_cannot_be_trained_so_is_one_line_before_anything_is_paid(change, reason, tmp_path):
    (tmp_path / "own.yaml").write_text(RECIPE)
    (tmp_path / "tasks.jsonl").write_text('{"instruction": "a"}\n')
    with pytest.raises(RecipeError, match=reason) if reason else nullcontext():
        load_recipe(tmp_path / "own.yaml", overrides=change)
