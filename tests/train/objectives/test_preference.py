"""Preferences: the losses beside TRL's on the same batch, the reference's receipt, and trainings that go astray."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from distill.core.hashing import file_sha256
from distill.core.jsonl import read_jsonl, write_rows
from distill.errors import DistillError
from distill.pipeline.parts import load_recipe
from distill.train.objectives.preference import BETAS, Preference, PreferenceOptions
from distill.train.objectives.sft import NoOptions, Sft
from distill.types import Message, Pair
from tests.support import training
from tests.support.training import SESSIONS

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.model
PAIRS = [
    Pair(one.id, one.messages, {}, rejected=Message("assistant", f"{'no ' * (number % 5)}idea"))
    for number, one in enumerate(SESSIONS[:12])
]
ROWS = (0, 3, 4, 8, 11)


def options(**changes):
    usual = {"train_on": "last", "epochs": 1, "learning_rate": 2e-3, "eval_rows": 0, "batch_rows": 3, "method": "lora"}
    return training.options(**{**usual, "batch_tokens": None, **changes})


def objective(**changes) -> Preference:
    return Preference(PreferenceOptions(**changes))


def train(run, model, *, pairs=PAIRS, goal=None, callbacks=(), **changes):
    """What was said by a training on the pairs."""
    goal = goal or objective()
    folder = run / "student"
    return training.run(
        folder, model, sessions=pairs, options=options(**changes), objective=goal, callbacks=callbacks, layers=None
    )[1]


WATCHED = {"eval_rows": 3, "eval_steps": 2, "eval_tokens": 2, "save_steps": 1}


def weights_of(run) -> str:
    return file_sha256(run / "student" / "adapter_model.safetensors")


def events(run, kind) -> list[dict]:
    return [row for row in read_jsonl(run / "student" / "train_log.jsonl") if row.get("event") == kind]


def built(model, run, goal, *, pairs=PAIRS, start=None, **changes):
    """A trainer with the pairs' two halves and their reference, as a run has it before its first step."""
    from distill.models import loading, third_party
    from distill.train import build, dataset
    from distill.train.objectives import Collected, TrainingData
    from distill.train.options import TrainSettings

    chosen, tokenizer = options(**changes), loading.load_tokenizer(Path(model))
    settings = TrainSettings(str(model), "chatml", chosen, 1, None, objective=goal, start=start)
    rows = goal.select(pairs, settings, tokenizer, print)
    examples = dataset.examples_of(rows, "chatml", tokenizer, chosen)
    goal.prepare(TrainingData(run, examples, examples, {}, (), settings, None, tokenizer, Collected(), print))
    with third_party.quiet():
        trainer = build.build(
            Path(model), None, tokenizer, examples, options=chosen, seed=1, output=run / "no", say=print,
            objective=goal, start=start,
        )  # fmt: skip
    goal.start(trainer)
    return trainer


def moved(trainer):
    """The trainer, its weights no longer those of the reference."""
    draw = torch.Generator().manual_seed(5)
    for weight in trainer.model.parameters():
        if weight.requires_grad:
            weight.data += torch.randn(weight.shape, generator=draw) * 0.02
    return trainer


def stepped(trainer):
    """The loss of a step of `ROWS`, and its gradients by name."""
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, {"rows": ROWS})
    found = {name: one.grad.clone() for name, one in trainer.model.named_parameters() if one.grad is not None}
    return float(loss), found


def trl_inputs(pairs, tokenizer):
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    rows = []
    for pair in pairs:
        prompt = [one for one, label in zip(pair.chosen.input_ids, pair.chosen.labels, strict=True) if label == -100]
        answers = [[one for one in half.labels if one != -100] for half in pair.both]
        assert [list(half.input_ids) for half in pair.both] == [[*prompt, *one] for one in answers]
        rows.append({"prompt_ids": prompt, "chosen_ids": answers[0], "rejected_ids": answers[1]})
    return dict(DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)(rows))


@pytest.fixture(scope="module")
def both(tiny, tmp_path_factory):
    """Our trainer with weights that are not the reference's, its objective, and TRL's two trainers on equal weights."""
    import datasets
    from trl import DPOConfig, DPOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    from distill.models import loading, third_party

    run, goal = tmp_path_factory.mktemp("trl"), objective()
    ours = moved(built(tiny, run, goal, method="full", micro_batch_tokens=128))
    model, tokenizer = loading.load_causal(Path(tiny)), loading.load_tokenizer(Path(tiny))
    model.load_state_dict(ours.model.state_dict())
    usual = {"output_dir": str(run), "use_cpu": True, "bf16": False, "report_to": "none"}
    given = {"train_dataset": datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])}
    given["processing_class"] = tokenizer
    with third_party.quiet():
        simpo = CPOConfig(loss_type="simpo", simpo_gamma=1.375, cpo_alpha=0.0, beta=2.5, **usual)
        theirs = DPOTrainer(model, args=DPOConfig(**usual), **given), CPOTrainer(model, args=simpo, **given)
    model.requires_grad_(True)
    return ours, goal, *theirs, trl_inputs([goal._pairs[row] for row in ROWS], tokenizer)


def trl_loss(loss, goal, dpo, cpo, inputs):
    """TRL's loss of the same pairs, on the same weights and reference."""
    if loss == "simpo":
        labels, batch = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100), {}
        for side, part in (("chosen", slice(None, len(ROWS))), ("rejected", slice(len(ROWS), None))):
            batch[f"{side}_input_ids"], batch[f"{side}_labels"] = inputs["input_ids"][part], labels[part]
            batch[f"{side}_attention_mask"] = inputs["attention_mask"][part]
        return cpo.get_batch_loss_metrics(cpo.model, batch)[0]
    dpo.loss_types = loss if isinstance(loss, list) else [loss]
    dpo.loss_weights, dpo.beta, dpo.precompute_ref_logps = [1.0] * len(dpo.loss_types), goal._beta, True
    chosen, rejected = goal._reference[list(ROWS)].float().unbind(1)
    return dpo._compute_loss(dpo.model, {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}, False)


@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "ipo", ["sigmoid", "sft"], "simpo"])
def test_loss_and_gradients_are_trls_on_the_same_batch(loss, both):
    ours, goal, dpo, cpo, inputs = both
    goal.options = PreferenceOptions(loss=loss)
    mine, gradients = stepped(ours)
    assert len(ours._passes(ROWS)) > 1
    dpo.model.zero_grad()
    expected = trl_loss(loss, goal, dpo, cpo, inputs)
    expected.backward()
    assert mine == pytest.approx(float(expected.detach()), rel=1e-4)
    theirs = {name: one.grad for name, one in dpo.model.named_parameters() if one.grad is not None}
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-4 * float(theirs[name].abs().max()))


def test_the_reference_is_the_student_with_its_adapter_in_4_bits_too(tiny, tmp_path):
    """Not the base, which PEFT's `disable_adapter` would give; adapters stay in float32."""
    goal = objective()
    trainer = built(tiny, tmp_path, goal, method="qlora")
    assert stepped(trainer)[0] == pytest.approx(math.log(2), abs=1e-4)
    assert {one.dtype for one in trainer.model.parameters() if one.requires_grad} == {torch.float32}
    base = goal._reference
    goal.start(moved(trainer))
    assert (goal._reference - base).abs().min() > 1e-3
    assert stepped(trainer)[0] == pytest.approx(math.log(2), abs=1e-4)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A run trained on pairs with some held out, and what it said."""
    run = tmp_path_factory.mktemp("preference")
    return run, train(run, tiny, **WATCHED)


def test_training_sets_the_chosen_answer_off_and_watches_held_out_pairs(trained):
    run, lines = trained
    assert training.losses(run / "student")[0] == pytest.approx(math.log(2), abs=1e-3)
    watched = events(run, "pairs")
    assert watched[-1]["margin"] > watched[0]["margin"] > 0
    assert (watched[-1]["preferred"], watched[-1]["pairs"]) == (1.0, 3)
    assert [row["step"] for row in events(run, "eval")][:2] == [0, 2]
    assert sum(re.match(r"step \d+: 100% of 3 held-out pairs preferred, margin \+", line) is not None for line in lines)
    assert len({row["key"] for row in read_jsonl(run / "reference.jsonl")}) == len(PAIRS) - 3


def test_the_reference_of_a_continued_student_is_its_own(trained, tiny, tmp_path):
    from distill.models.loading import load_student

    start, goal = trained[0] / "student", objective()
    trainer = built(tiny, tmp_path, goal, start=start)
    assert stepped(trainer)[0] == pytest.approx(math.log(2), abs=1e-4)
    student, _ = load_student(start, adapter=True, merge=False)
    for half, expected in zip(goal._pairs[0].both, goal._reference[0].tolist(), strict=True):
        ids, labels = torch.tensor([half.input_ids]), torch.tensor(half.labels)
        with torch.no_grad():
            logits = student(input_ids=ids, use_cache=False).logits[0, :-1].float()
        own = -torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
        assert float(own) == pytest.approx(expected, rel=1e-4)
    base = {row["key"] for row in read_jsonl(trained[0] / "reference.jsonl")}
    assert not base & {row["key"] for row in read_jsonl(tmp_path / "reference.jsonl")}


def test_an_interrupted_training_ends_with_the_same_weights(trained, tiny, tmp_path):
    from transformers import TrainerCallback

    class Stopped(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, tiny, callbacks=[Stopped()], **WATCHED)
    rows = (tmp_path / "reference.jsonl").read_bytes()
    (tmp_path / "reference.jsonl").write_bytes(rows[:-20])  # as if it had been killed before
    train(tmp_path, tiny, **WATCHED)
    assert weights_of(tmp_path) == weights_of(trained[0])
    assert [row["step"] for row in events(tmp_path, "eval")] == [row["step"] for row in events(trained[0], "eval")]


def test_a_reference_of_another_student_is_not_used_and_a_false_one_refused(tiny, tmp_path):
    goal = objective()
    trainer = built(tiny, tmp_path, goal)
    first = list(read_jsonl(tmp_path / "reference.jsonl"))
    goal.start(trainer)
    assert list(read_jsonl(tmp_path / "reference.jsonl")) == first
    write_rows(tmp_path / "reference.jsonl", [{**row, "chosen": row["chosen"] - 1} for row in first])
    with pytest.raises(DistillError, match=r"the reference is not the starting student: of s\d+ it has") as raised:
        goal.start(trainer)
    assert "\n" not in str(raised.value)
    said: list[str] = []
    goal._source = replace(goal._source, say=said.append)
    goal.start(moved(trainer))
    assert said == ["reference.jsonl: 12 rows are of another student or of other answers, and not used"]
    assert len({row["key"] for row in first} & {row["key"] for row in read_jsonl(tmp_path / "reference.jsonl")}) == 0


USABLE = PAIRS[:2]
ODD = {
    "without a rejected answer": SESSIONS[2],
    "whose answers are the same but for white space": replace(
        PAIRS[3], rejected=Message("assistant", f" {PAIRS[3].messages[-1].content}\n")
    ),
    "whose answers end in different roles": replace(PAIRS[4], rejected=Message("user", "And?")),
    "whose rejected answer is too long, empty or not spelt": replace(PAIRS[5], rejected=Message("assistant", " ")),
}


def test_rows_that_are_no_pairs_are_left_out_and_counted(tiny):
    from distill.models import loading
    from distill.train.options import TrainSettings

    said, settings = [], TrainSettings(tiny, "chatml", options(), 1)
    tokenizer = loading.load_tokenizer(Path(tiny))
    assert objective().select([*USABLE, *ODD.values()], settings, tokenizer, said.append) == USABLE
    reasons = ", ".join(f"1 {reason}" for reason in ODD)
    assert said == [f"2 of 6 rows are pairs to learn from; left out: {reasons}"]


@pytest.mark.parametrize("reason", ODD)
def test_no_pair_at_all_is_one_line_and_nothing_is_written(reason, tiny, tmp_path):
    expected = rf"objective preference: none of 1 rows is a usable pair \(1 {reason}\); collect with `strategy: pairs`"
    with pytest.raises(DistillError, match=expected):
        train(tmp_path, tiny, pairs=[ODD[reason]])
    assert not (tmp_path / "student").exists()


def test_cross_entropy_learns_the_chosen_answers_of_pairs_and_says_so():
    said: list[str] = []
    assert Sft(NoOptions()).select(PAIRS, None, None, said.append) == PAIRS
    assert [line.startswith("12 of 12 rows are pairs: their chosen answers are learnt") for line in said] == [True]
    assert Sft(NoOptions()).select(SESSIONS, None, None, pytest.fail) == SESSIONS


@pytest.mark.parametrize(
    ("first", "last", "nats", "expected"),
    [
        (1.0, 1.0, 0.4, ""),
        (1.0, 1.0, 0.6, "chosen answers have lost 0.60 nats per token"),
        (1.0, 1.0, math.nan, "chosen answers have lost nan nats"),
        (1.0, 0.875, 0.0, ""),  # one of eight answers
        (1.0, 0.75, 0.0, "75% of answers end, 100% did at the start"),
        (None, None, 0.0, ""),
    ],
)
def test_what_ends_a_training(first, last, nats, expected):
    from distill.train.objectives.preference_watch import reason_to_stop

    rows = [{"stop_rate": rate, "answers": 8} for rate in (first, last)]
    found = reason_to_stop(rows, {"reference": -1.0, "chosen": -1.0 - nats})
    assert found.startswith(expected)
    assert bool(found) == bool(expected)


def test_a_training_that_goes_astray_ends_as_early_stopping_does_and_says_so(tiny, tmp_path, monkeypatch):
    from distill.train.objectives import preference_watch

    monkeypatch.setattr(preference_watch, "MOST_LOST", -1.0)  # any loss, and any gain below one nat
    lines = train(tmp_path, tiny, **{**WATCHED, "eval_steps": 1})
    assert "training ends at step 1 of 3: chosen answers have lost -0." in " ".join(lines)
    assert len(training.losses(tmp_path / "student")) == 1


TEACHER = {"model": "m", "base_url": "http://127.0.0.1:1/v1", "terms": "ours"}
RECIPE = {
    "name": "p",
    "sources": [{"path": "rows.jsonl", "from": "preference"}],
    "student": {"model": "smollm2"},
    "train": {"objective": {"kind": "preference"}},
}


@pytest.mark.parametrize(
    ("train", "fault"),
    [
        ({"train_on": "all"}, "the answers of a pair differ in the last turn alone"),
        ({"over_length": "split"}, "a pair is not split"),
        ({"lora": {"dropout": 0.1}}, "the reference has neither dropout nor noise"),
        ({"objective": {"kind": "preference", "loss": "sft"}}, "give one of sigmoid"),
        ({}, "nothing in the recipe makes pairs"),
        ({"objective": {"kind": "preference", "loss": ["ipo", "simpo"]}}, "give one of sigmoid"),
        ({"objective": {"kind": "preference", "gamma": 1}}, "gamma is of `loss: simpo`"),
    ],
)
def test_a_recipe_that_cannot_be_right_is_one_line(train, fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    made = {"collect": {"tasks": "rows.jsonl"}, "sources": [], "teacher": TEACHER} if not train else {}
    with pytest.raises(DistillError, match=fault):
        load_recipe({**RECIPE, **made, "train": {**RECIPE["train"], **train}})


def test_the_usual_settings_of_train_are_those_of_preferences(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    kind = RECIPE["train"]
    for given, expected in (({}, (1e-5, 1)), ({"method": "full"}, (5e-7, 1)), ({"epochs": 3}, (1e-5, 3))):
        found = load_recipe({**RECIPE, "train": {**kind, **given}}).train.options
        assert (found.learning_rate, found.epochs, found.train_on) == (*expected, "last")
    assert load_recipe({**RECIPE, "train": {}}).train.options.learning_rate == 5e-4
    assert {one: Preference(PreferenceOptions(loss=one))._beta for one in BETAS} == BETAS
