"""Soft targets: the loss beside dense autograd, the teacher's scores beside its own logits, the file, and training."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from distill.errors import RecipeError
from distill.train.objectives.soft import Soft, SoftOptions
from distill.types import Message
from tests.support import training
from tests.support.training import SESSIONS

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.model
TAUGHT = [replace(session, meta={"teacher": "tiny"}) for session in SESSIONS]


@given(st.integers(1, 20), st.sampled_from([0.1, 1.0, 10.0]), st.integers(0, 2**16), st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_tiles_have_the_loss_and_gradient_of_dense_autograd(k, sharpness, seed, keeps_all, is_short):
    """For any k and sharpness; rows whose report was no distribution have weight 0, short lists are filled up."""
    from distill.train.kernels import autograd, soft

    vocabulary = k if keeps_all else k + 30
    event(f"the entries hold {'all' if keeps_all else 'a part'} of the mass{', and padding' * is_short}")
    draw = torch.Generator().manual_seed(seed)
    hidden, head = (torch.randn(size, 8, generator=draw) for size in (13, vocabulary))
    labels = torch.randint(vocabulary, (13,), generator=draw)
    teacher = torch.log_softmax(torch.randn(13, vocabulary, generator=draw) * sharpness, -1)
    entries, ids = teacher.topk(k)
    if is_short:
        entries[3:6, 1:], ids[3:6, 1:] = soft.PADDING, ids[3:6, :1]
    tail = teacher.scatter(1, ids, -torch.inf).logsumexp(1)
    rows = soft.SoftRows(ids, entries, tail, torch.rand(13, generator=draw).round(decimals=1))
    mine, dense = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    ours = autograd.token_losses(mine, head, labels, rows)
    logs = torch.log_softmax(dense @ head.t(), -1)
    others = logs.scatter(1, ids, -torch.inf).logsumexp(1)
    divergence = (entries.exp() * (entries - logs.gather(1, ids))).sum(1)
    divergence = divergence + torch.where(tail.isfinite(), tail.exp() * (tail - others), 0.0).nan_to_num()
    expected = (1 - rows.weights) * -logs.gather(1, labels[:, None])[:, 0] + rows.weights * divergence
    ours.sum().backward(), expected.sum().backward()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert float((mine.grad - dense.grad).norm()) <= 1e-5 * float(dense.grad.norm()) + 1e-6


def test_the_whole_vocabulary_gives_the_divergence_itself():
    from distill.train.kernels import soft

    logits, teacher = torch.randn(5, 11), torch.log_softmax(torch.randn(5, 11), -1)
    ids = torch.arange(11).expand(5, 11)
    rows = soft.SoftRows(ids, teacher, torch.full((5,), -torch.inf), torch.ones(5))
    expected = (teacher.exp() * (teacher - torch.log_softmax(logits, -1))).sum(1)
    torch.testing.assert_close(rows.from_logits(logits, torch.zeros(5, dtype=torch.long)), expected)


@pytest.fixture(scope="module")
def teacher(tiny, tmp_path_factory):
    return training.confident(tiny, tmp_path_factory.mktemp("teacher") / "model")


@pytest.fixture(scope="module")
def scored(teacher):
    from distill.models import chat_template, loading
    from distill.train.objectives import teacher_scores

    tokenizer, model = loading.load_tokenizer(teacher), loading.load_causal(teacher)
    examples = [chat_template.encode(one.messages, "chatml", tokenizer) for one in SESSIONS[:5]]
    return model, examples, teacher_scores.score(model, examples, k=8, vocabulary=len(tokenizer))


def test_a_score_is_the_teachers_own_distribution_with_the_label_always_in_it(scored):
    model, examples, targets = scored
    for example, target in zip(examples, targets, strict=True):
        with torch.no_grad():
            logs = torch.log_softmax(model(input_ids=torch.tensor([example.input_ids])).logits[0].float(), -1)
        trained = [place for place, label in enumerate(example.labels) if label != -100]
        expected = logs[[place - 1 for place in trained]]
        entries = expected.gather(1, torch.from_numpy(target.ids).long())
        np.testing.assert_allclose(target.logprobs, entries.numpy(), atol=0.01)
        np.testing.assert_allclose(np.exp(target.tail.astype(float)), 1 - entries.exp().sum(1).numpy(), atol=2e-3)
        assert all(example.labels[place] in line for place, line in zip(trained, target.ids.tolist(), strict=True))
        best = expected.topk(7).indices
        assert all(set(few) <= set(line) for few, line in zip(best.tolist(), target.ids.tolist(), strict=True))


def test_rows_that_pad_a_vocabulary_are_cut(teacher, scored):
    """As Qwen2.5's 152,064 rows for 151,665 tokens: whatever they hold, no target names them."""
    from distill.models import loading
    from distill.train.objectives import teacher_scores

    model, size = loading.load_causal(teacher), len(loading.load_tokenizer(teacher))
    model.resize_token_embeddings(size + 64, mean_resizing=False)
    model.get_input_embeddings().weight.data[size:] = 9.0
    targets = teacher_scores.score(model, scored[1][:2], k=8, vocabulary=size)
    for found, expected in zip(targets, scored[2], strict=False):
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.tail, expected.tail, atol=1e-2)


def test_the_file_gives_back_what_it_was_given_and_a_damaged_one_nothing(scored, tmp_path):
    from distill.train.mask_check import MaskRow
    from distill.train.objectives import soft_file, soft_source

    path, targets = tmp_path / "soft_targets.arrow", dict(zip("abcde", scored[2], strict=True))
    rows = [MaskRow(one.id, one.messages, example) for one, example in zip(SESSIONS, scored[1], strict=False)]
    origins = {key: soft_source.origin_of(row, "tiny", "all") for key, row in zip(targets, rows, strict=True)}
    soft_file.write(path, targets, origins)
    back = soft_file.read(path, {"b", "absent"})
    assert list(back) == ["b"]
    for name in ("ids", "logprobs", "tail"):
        np.testing.assert_array_equal(getattr(back["b"], name), getattr(targets["b"], name))
    tokens = sum(len(target.tail) for target in targets.values())
    assert path.stat().st_size < tokens * (8 * 6 + 2 + 6) + 5 * 200 + 2500
    path.write_bytes(path.read_bytes()[:-40])
    assert soft_file.read(path, {"b"}) == {}


def test_tokenizers_are_compared_by_bytes_and_splits_and_not_by_size(tiny, tmp_path):
    from pathlib import Path

    from distill.models import loading
    from distill.models.tokenizer_identity import FromFile, difference

    one, other = loading.load_tokenizer(tiny), loading.load_tokenizer(tiny)
    assert difference(one, other) == difference(FromFile(Path(tiny) / "tokenizer.json"), other) == ""
    other.add_tokens(["<new>"])
    assert difference(one, other) == f"{len(one):,} tokens against {len(one) + 1:,}"
    one.add_tokens(["<another>"])
    assert difference(one, other) == f"token {len(one) - 1} is b'<another>' against b'<new>'"
    state = json.loads((Path(tiny) / "tokenizer.json").read_text())
    unsplit = {**state["pre_tokenizer"]["pretokenizers"][1], "use_regex": False}
    changed = {"merges": dict(state, model={**state["model"], "merges": state["model"]["merges"][:-10_000]}),
               "splits": dict(state, pre_tokenizer=unsplit)}  # fmt: skip
    for name, each in changed.items():
        (tmp_path / name).write_text(json.dumps(each))
    parts = {name: difference(FromFile(tmp_path / name), loading.load_tokenizer(tiny)) for name in changed}
    assert parts == {
        "merges": "the same tokens, split by other rules (38,900 against 48,900)",
        "splits": "the same tokens, but other splits of a text",
    }


@pytest.fixture(scope="module")
def trained(tiny, teacher, tmp_path_factory):
    """A run folder with a student of soft targets, and what was said."""
    folder = tmp_path_factory.mktemp("soft")
    _, lines = train(folder, tiny, teacher)
    return folder, lines


def train(folder, tiny, teacher, *, sessions=TAUGHT, callbacks=(), **changes):
    """Train on soft targets of a teacher; returns the result and the lines."""
    options, teachers = training.options(**changes), {"tiny": teacher}
    return training.run(
        folder / "student", tiny, sessions=sessions, options=options, teachers=teachers, callbacks=callbacks,
        objective=Soft(SoftOptions(k=8)),
    )  # fmt: skip


def weights_of(student):
    """The adapter as bytes."""
    return (student / "adapter_model.safetensors").read_bytes()


def test_a_student_of_soft_targets_is_nearer_to_its_teachers_distribution(trained, tiny, tmp_path, scored):
    from distill.models.loading import load_student

    model, examples, _ = scored
    training.run(tmp_path / "student", tiny, options=training.options())
    students = [load_student(folder / "student", adapter=True)[0] for folder in (trained[0], tmp_path)]

    def divergence(student) -> float:
        with torch.no_grad():
            pairs = [[one(input_ids=torch.tensor([example.input_ids])).logits[0] for one in (model, student)]
                     for example in examples]  # fmt: skip
        logs = [[torch.log_softmax(logits, -1) for logits in pair] for pair in pairs]
        return sum(float((ours.exp() * (ours - its)).sum(-1).mean()) for ours, its in logs) / len(logs)

    soft, sft = map(divergence, students)
    assert soft < sft - 0.3
    assert "soft targets: tiny scores 24 rows; 0 are in soft_targets.arrow" in trained[1]
    assert any(line.startswith("soft targets: 100% of the trained tokens have one") for line in trained[1])


def test_targets_are_computed_once_and_again_where_a_row_has_changed(trained, tiny, teacher, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(trained[0], folder)
    shutil.rmtree(folder / "student")
    _, lines = train(folder, tiny, teacher)
    assert not any("scores" in line for line in lines)
    assert weights_of(folder / "student") == weights_of(trained[0] / "student")
    shutil.rmtree(folder / "student")
    changed = [*TAUGHT[:-1], replace(TAUGHT[-1], messages=OTHER)]
    _, lines = train(folder, tiny, teacher, sessions=changed, epochs=0.5)
    assert "soft targets: tiny scores 1 rows; 23 are in soft_targets.arrow" in lines


OTHER = (Message("user", "Number 99?"), Message("assistant", "It is grey."))


def test_a_killed_scoring_goes_on_with_what_is_missing(tiny, teacher, tmp_path, monkeypatch):
    from distill.train.objectives import teacher_scores

    monkeypatch.setattr(teacher_scores, "ROWS_AT_ONCE", 10)
    own = teacher_scores.score

    def breaks(model, examples, **options):
        if len(examples) < 10:
            raise KeyboardInterrupt
        return own(model, examples, **options)

    monkeypatch.setattr(teacher_scores, "score", breaks)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, tiny, teacher)
    monkeypatch.setattr(teacher_scores, "score", own)
    _, lines = train(tmp_path, tiny, teacher, epochs=0.5)
    assert "soft targets: tiny scores 4 rows; 20 are in soft_targets.arrow" in lines
    assert not (tmp_path / "soft_targets.arrow.parts").exists()


def test_an_interrupted_training_ends_with_the_same_weights(trained, tiny, teacher, tmp_path):
    from transformers import TrainerCallback

    class Stopped(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, tiny, teacher, callbacks=[Stopped()])
    train(tmp_path, tiny, teacher)
    assert weights_of(tmp_path / "student") == weights_of(trained[0] / "student")


def test_rows_without_a_teacher_here_are_one_line(tiny, tmp_path):
    expected = r"objective soft: no row has soft targets \(24 rows whose answer came without top_logprobs\)"
    with pytest.raises(RecipeError, match=expected):
        train(tmp_path, tiny, tiny, sessions=SESSIONS)


def test_a_local_teacher_of_another_tokenizer_is_mapped_by_bytes(tiny, teacher, tmp_path):
    from distill.models import loading

    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    state = json.loads((other / "tokenizer.json").read_text())
    state["model"]["merges"] = state["model"]["merges"][:-20_000]  # ids keep their embeddings, splits differ
    (other / "tokenizer.json").write_text(json.dumps(state))
    tokenizer = loading.load_tokenizer(other)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(other)
    _, lines = train(tmp_path, tiny, str(other), epochs=0.5)
    assert any("has another tokenizer than the student (49,153 tokens against 49,152): mapped by bytes" in line
               for line in lines)  # fmt: skip
    assert re.search(
        r"soft targets: \d+% of the trained tokens have one, .* is spelt by the student's tokens", lines[-1]
    )


HEADS = {"gemma2": "qlora", "phi": "lora", "cohere": "full", "granitemoe": "full"}
"""By family the method: a head with a soft cap, with a bias, with scaled logits, and a mixture of experts."""


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of slow paths and PEFT
@pytest.mark.parametrize("family", HEADS)
def test_the_gradients_of_each_head_and_method_are_those_of_dense_autograd(family, tmp_path):
    from distill.train.objectives import soft_file
    from distill.train.objectives.soft import Soft, SoftOptions
    from distill.train.objectives.soft_targets import SoftTargets
    from tests.support.models.archs import save_arch

    objective, draw = Soft(SoftOptions(k=4)), np.random.default_rng(0)
    model = str(save_arch(family, tmp_path / "model"))
    options = training.options(method=HEADS[family], batch_rows=128, batch_tokens=None)
    trainer = training.built(model, sessions=SESSIONS[:4], options=options, objective=objective)
    trainer.router = None  # its loss is not the objective's
    examples = trainer.examples
    rows = [[dict(zip(draw.choice(90, 4, replace=False).tolist(), np.log(draw.dirichlet(np.ones(5))[:4]), strict=True))
             if draw.random() < 0.8 else {} for _ in range(one.trained)] for one in examples]  # fmt: skip
    targets = [soft_file.target_of(row, 4) for row in rows]
    objective._targets = SoftTargets(targets, [one.trained for one in examples], 0.5, 4, "", {})
    trainer.micro_tokens = 60  # several passes
    loss = trainer.training_step(trainer.model, {"rows": tuple(range(4))})
    learning = {name: one for name, one in trainer.model.named_parameters() if one.requires_grad}
    found = {name: one.grad.clone() for name, one in learning.items()}
    trainer.model.zero_grad()
    expected = dense_loss(trainer.model, examples, objective._targets)
    expected.backward()
    exact = 1e-3 if HEADS[family] == "qlora" else 1e-5  # products of 4-bit weights are less exact
    assert float(loss) == pytest.approx(float(expected), rel=exact)
    whole = torch.cat([one.grad.flatten() for one in learning.values()])
    difference = torch.cat([(found[name] - one.grad).flatten() for name, one in learning.items()])
    assert float(difference.norm() / whole.norm()) < exact


def dense_loss(model, examples, targets):
    """The mean loss by plain autograd over the whole vocabulary, row by row."""
    total = torch.zeros(())
    for place, example in enumerate(examples):
        logits = model(input_ids=torch.tensor([example.input_ids])).logits[0].float()
        trained = [at for at, label in enumerate(example.labels) if label != -100]
        logs = torch.log_softmax(logits[[at - 1 for at in trained]], -1)
        target = targets.rows[place]
        for line, (at, log) in enumerate(zip(trained, logs, strict=True)):
            entropy = -log[example.labels[at]]
            if np.isnan(target.tail[line]):
                total = total + entropy
                continue
            ids, p = torch.tensor(target.ids[line]).long(), torch.tensor(target.logprobs[line]).float()
            tail, rest = torch.tensor(target.tail[line]).float(), torch.ones_like(log)
            rest[ids] = 0
            others = (log.exp() * rest).sum().log()
            divergence = (p.exp() * (p - log[ids])).sum() + tail.exp() * (tail - others)
            total = total + 0.5 * entropy + 0.5 * divergence
    return total / sum(targets.trained)
