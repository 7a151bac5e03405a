"""What is seen of a student while it learns, and what is chosen by it."""

from __future__ import annotations

import pytest

from distill.core.jsonl import read_jsonl
from distill.errors import DistillError, MissingPackage
from distill.models import chat_template
from distill.train.dataset import hold_out, rows_to_hold
from distill.train.evaluation import badness, best_of, reason_to_stop
from distill.train.options import EarlyStopping
from distill.train.trackers import is_installed
from distill.types import Message, Session
from tests.support.training import SESSIONS, losses, options, run

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.model

NEAR = Session("near", (Message("user", "Number 3 ?"), Message("assistant", "I say it is 3.")))
WATCHED = {"eval_rows": 4, "eval_tokens": 8}


@pytest.fixture(scope="module")
def watched(tiny, tmp_path_factory):
    """A watched run over 24 sessions and one that asks what another asks; what it returned and said."""
    folder = tmp_path_factory.mktemp("watched") / "student"
    return folder, *run(folder, tiny, sessions=[*SESSIONS, NEAR], options=options(**WATCHED, best="nll"))


def evaluations(folder):
    return [row for row in read_jsonl(folder / "train_log.jsonl") if row.get("event") == "eval"]


def test_about_four_evaluations_a_run_are_logged_and_told_in_one_line_each(watched):
    folder, result, lines = watched
    rows = evaluations(folder)
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert result.steps == 12
    assert len(lines) == 4
    assert lines[0].startswith(
        f"step 3/12: held-out NLL {rows[0]['eval_loss']:.3f} nats per token, 0% of answers stop, "
    )
    assert len(losses(folder)) == result.steps


def test_held_out_sessions_and_their_near_ones_are_not_trained_on(watched):
    folder, result, _ = watched
    taught = {row["id"] for row in read_jsonl(folder / "example_losses.jsonl")}
    held, beside = hold_out([*SESSIONS, NEAR], 4, seed=1, eligible={session.id for session in [*SESSIONS, NEAR]})
    assert {session.id for session in held} == {row["id"] for row in evaluated(folder)} | {held[3].id}
    assert not taught & ({session.id for session in held} | beside)
    assert (len(taught), result.rows, result.held, result.near_held) == (21 - len(beside), len(taught), 4, len(beside))


def evaluated(folder):
    return list(read_jsonl(folder / "samples.jsonl"))


def test_the_last_evaluation_is_what_the_finished_student_says(watched):
    """Measured anew, on the student as it is loaded from its folder, dequantised and merged."""
    from distill.models.generation import answer
    from distill.models.loading import load_student
    from distill.types import Request, Sampling

    folder, result, _ = watched
    assert result.best_step == 12
    model, tokenizer = load_student(folder, adapter=True)
    sessions = {session.id: session for session in SESSIONS}
    held, _ = hold_out([*SESSIONS, NEAR], 4, seed=1, eligible=set(sessions))
    total = tokens = 0.0
    for session in held:
        example = chat_template.encode(session.messages, "chatml", tokenizer, truncated=True)
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([example.input_ids]), labels=torch.tensor([example.labels])).loss
        total, tokens = total + loss.item() * example.trained, tokens + example.trained
    last = evaluations(folder)[-1]
    assert last["eval_loss"] == pytest.approx(total / tokens, abs=1e-4)
    shown = [row for row in evaluated(folder) if row["step"] == 12]
    assert [row["id"] for row in shown] == [session.id for session in held[:3]]
    sampling = Sampling(temperature=0.0, max_tokens=8)
    asked = [Request(role="x", messages=session.messages[:1], sampling=sampling) for session in held]
    replies = answer(model, tokenizer, "chatml", asked)
    assert [row["student"] for row in shown] == [reply.text for reply in replies[:3]]
    assert [row["teacher"] for row in shown] == [session.messages[1].content for session in held[:3]]
    assert last["length_ratio"] == pytest.approx(
        sum(reply.usage.completion_tokens - (reply.finish == "stop") for reply in replies)
        / sum(min(8, chat_template.encode(s.messages, "chatml", tokenizer, truncated=True).trained) for s in held)
    )
    assert last["stop_rate"] == sum(reply.finish == "stop" for reply in replies) / 4


def test_training_ends_when_nothing_gets_better(tiny, tmp_path):
    stopping = {"watch": "nll", "patience": 1, "min_delta": 100}
    given = options(**WATCHED, eval_steps=2, save_steps=2, early_stopping=stopping)
    result, lines = run(tmp_path / "student", tiny, options=given)
    assert (result.steps, result.planned_steps) == (4, 12)
    assert lines[-1] == ("early stopping: no better nll since step 2, in 1 evaluations (train.early_stopping.patience)")
    assert [row["step"] for row in evaluations(tmp_path / "student")] == [2, 4]


def test_the_student_has_the_weights_of_the_best_evaluation(tiny, tmp_path):
    """The last steps ruin it, and what it had before is what is saved."""
    from transformers import TrainerCallback

    from distill.models.loading import load_student

    class Ruin(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 8:
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.data.normal_(std=3.0)

    given = options(**WATCHED, best="nll", eval_steps=3, save_steps=4)
    result, _ = run(tmp_path / "student", tiny, options=given, callbacks=[Ruin()])
    found = {row["step"]: row["eval_loss"] for row in evaluations(tmp_path / "student")}
    assert result.best_step == 6 == min(found, key=found.get)
    assert found[12] > found[6] + 0.3
    held, _ = hold_out(SESSIONS, 4, seed=1, eligible={session.id for session in SESSIONS})
    model, tokenizer = load_student(tmp_path / "student", adapter=True)
    examples = [chat_template.encode(session.messages, "chatml", tokenizer, truncated=True) for session in held]
    with torch.no_grad():
        total = sum(
            model(input_ids=torch.tensor([one.input_ids]), labels=torch.tensor([one.labels])).loss.item() * one.trained
            for one in examples
        )
    assert total / sum(one.trained for one in examples) == pytest.approx(found[6], abs=1e-4)


def test_questions_of_one_template_do_not_keep_each_other_from_training():
    questions = [Message("user", f"Translate the word below into Greek: w{number}") for number in range(40)]
    sessions = [Session(str(at), (question, Message("assistant", "..."))) for at, question in enumerate(questions)]
    held, beside = hold_out(sessions, 6, seed=1, eligible={session.id for session in sessions})
    assert (len(held), beside) == (6, set())


def rows(*values):
    return [
        {"event": "eval", "step": 10 * n, "eval_loss": v, "stop_rate": v, "length_ratio": v}
        for n, v in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("watch", "values", "best"),
    [
        ("nll", (3.0, 2.0, 2.5), 1),
        ("stop_rate", (0.1, 0.9, 0.5), 1),
        ("length_ratio", (3.0, 0.5, 1.8), 2),
        ("nll", (3.0, float("nan"), None), 0),
        ("nll", (None,), None),
    ],
)
def test_what_is_better_depends_on_what_is_watched(watch, values, best):
    assert best_of(rows(*values), watch) == best


def test_a_length_is_as_bad_twice_as_it_is_half():
    two, half = rows(2.0, 0.5)
    assert badness(two, "length_ratio") == pytest.approx(badness(half, "length_ratio"))


def test_a_gain_below_min_delta_is_none():
    stopping = EarlyStopping(watch="nll", patience=2, min_delta=0.1)
    assert reason_to_stop(stopping, rows(3.0, 2.95)) == ""
    assert reason_to_stop(stopping, rows(3.0, 2.95, 2.85)) == ""
    assert "no better nll since step 0, in 2 evaluations" in reason_to_stop(stopping, rows(3.0, 2.95, 2.92))


@pytest.mark.parametrize(
    ("asked", "sessions", "held"),
    [(None, 39, 0), (None, 40, 4), (None, 200, 10), (None, 9999, 64), (7, 20, 7), (0, 999, 0)],
)
def test_a_twentieth_is_held_out_of_a_set_that_is_not_small(asked, sessions, held):
    assert rows_to_hold(asked, sessions) == held


def test_the_choice_depends_on_questions_and_seed_alone_and_spares_crowds():
    crowd = [
        Session(f"c{i}", (Message("user", "Name a river of France please"), Message("assistant", str(i))))
        for i in range(9)
    ]
    alone = [
        Session(f"a{i}", (Message("user", f"{word} {word}s"), Message("assistant", "x")))
        for i, word in enumerate(["cat", "dog", "sun", "sea", "map"])
    ]
    ids = {session.id for session in crowd + alone}
    held, beside = hold_out(crowd + alone, 3, seed=1, eligible=ids)
    assert {session.id for session in held} <= {session.id for session in alone}
    assert beside == set()
    again, _ = hold_out((crowd + alone)[::-1], 3, seed=1, eligible=ids)
    assert {session.id for session in again} == {session.id for session in held}
    everything, beside = hold_out(crowd + alone, 6, seed=1, eligible=ids)
    assert len(everything) == 6
    assert len(beside) == 8


def test_watching_nothing_is_one_line(tiny, tmp_path):
    with pytest.raises(
        DistillError, match=r"train.best goes by held-out rows, and none are held out of 24; set train.eval_rows"
    ):
        run(tmp_path / "student", tiny, options=options(best="nll"))
    with pytest.raises(DistillError, match=r"train.eval_rows=24 leaves none of 24 sessions to train on"):
        run(tmp_path / "student", tiny, options=options(eval_rows=24))
    with pytest.raises(ValueError, match="early_stopping needs evaluations"):
        options(early_stopping={}, eval_steps=0)


def test_figures_go_to_tensorboard_where_it_is_asked_for(tiny, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path / "student", tiny, options=options(**WATCHED, report_to=["tensorboard"]))
    events = accumulator.EventAccumulator(str(tmp_path / "student/tensorboard"))
    events.Reload()
    told = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert [step for step, _ in told] == list(range(1, 13))
    assert [value for _, value in told] == pytest.approx(losses(tmp_path / "student"), abs=1e-5)
    found = [(event.step, event.value) for event in events.Scalars("eval/nll")]
    expected = [(row["step"], row["eval_loss"]) for row in evaluations(tmp_path / "student")]
    assert found == [(step, pytest.approx(value, abs=1e-5)) for step, value in expected]
    epochs = {event.step: event.value for event in events.Scalars("train/epoch")}
    rows = [row for row in read_jsonl(tmp_path / "student/train_log.jsonl") if "event" not in row]
    assert epochs == {row["step"]: pytest.approx(row["epoch"], abs=1e-5) for row in rows}
    assert epochs[12] == 2


@pytest.mark.skipif(is_installed("trackio"), reason="trackio is installed")
def test_a_service_that_is_not_installed_is_one_line_before_anything_begins(tiny, tmp_path):
    with pytest.raises(
        MissingPackage, match=r"train.report_to names trackio, which is not installed; type: pip install"
    ):
        run(tmp_path / "student", tiny, options=options(report_to=["trackio"]))
    assert not (tmp_path / "student").exists()
