"""What the numbers are, and what they leave out."""

from __future__ import annotations

import pytest

from distill import shelf
from distill.metrics import METRICS, Answered, Sample
from distill.metrics.likelihood import Likelihood
from distill.metrics.overlap import Overlap
from distill.metrics.style import Style, repetition
from distill.types import Completion, Failure, Message

PROMPT = (Message("user", "Tell me about the sea."),)


def sample(text: str, reference: str, *, model: str = "student", finish: str = "stop") -> Sample:
    return Sample(PROMPT, model, Answered(text, finish), Answered(reference, "stop"))


def run(flow, answer):
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send(answer)
    return end.value.value


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_on_the_shelf_has_options_and_explains_its_measures(name):
    part = shelf.part(METRICS, name, kind="metric")
    metric = part(part.Options())
    assert metric.scope in ("text", "model")
    assert metric.measures
    assert all(measure.title and measure.explanation.endswith(".") for measure in metric.measures)


def test_measures_have_names_of_their_own():
    names = [m.name for part in METRICS for m in shelf.part(METRICS, part, kind="metric").measures]
    assert sorted(set(names)) == sorted(names)


def test_overlap_equals_the_reference_implementation_of_rouge_l():
    from rouge_score.rouge_scorer import RougeScorer

    said, wanted = "The sea is blue; the sea is wide!", "A wide sea is blue."
    expected = RougeScorer(["rougeL"]).score(wanted, said)["rougeL"].fmeasure
    assert Overlap().score(sample(said, wanted)) == {"rouge_l": expected}


def test_the_teacher_has_no_overlap_with_itself_but_its_second_answer_has():
    assert Overlap().score(sample("blue", "blue", model="teacher")) == {}
    assert Overlap().score(sample("blue", "blue", model="teacher_again")) == {"rouge_l": 1.0}


def test_an_empty_answer_overlaps_nothing_and_an_empty_teacher_has_no_overlap():
    assert Overlap().score(sample("", "blue")) == {"rouge_l": 0.0}
    assert Overlap().score(sample("blue", "")) == {}


def test_length_is_counted_in_words_of_the_teachers():
    assert Style().score(sample("one two three", "a b c d e f"))["length_ratio"] == 0.5


def test_an_empty_answer_has_a_length_of_nothing_and_no_repetition():
    assert Style().score(sample("", "a b")) == {"stopped": 1.0, "length_ratio": 0.0}


def test_against_an_empty_teacher_there_is_no_length_ratio():
    assert "length_ratio" not in Style().score(sample("one two three four", ""))


@pytest.mark.parametrize(("finish", "stopped"), [("stop", 1.0), ("length", 0.0), ("filtered", 0.0)])
def test_only_an_answer_that_ended_by_itself_stopped(finish, stopped):
    assert Style().score(sample("one", "two", finish=finish))["stopped"] == stopped


def test_a_student_that_goes_round_in_circles_is_caught():
    looping = "the sea is blue and " * 20
    assert Style().score(sample(looping, "x"))["repetition"] > 0.9
    assert Style().score(sample("the sea is wide and deep and cold", "x"))["repetition"] == 0.0


def test_repetition_counts_the_four_word_sequences_that_came_before():
    assert repetition(list("abcdabcd")) == pytest.approx(1 / 5)


def test_likelihood_asks_for_the_teachers_answer_after_the_same_prompt():
    request = next(Likelihood().score(PROMPT, "base", Answered("Deep.", "stop")))
    assert (request.role, request.kind, request.messages, request.continuation) == (
        "base",
        "likelihood",
        PROMPT,
        "Deep.",
    )


def test_likelihood_is_counted_by_the_byte_and_not_by_the_character():
    flow = Likelihood().score(PROMPT, "student", Answered("größer", "stop"))
    assert run(flow, Completion(key="k", text="", finish="stop", loglikelihood=-16.0)) == {"nll_per_byte": 2.0}


def test_a_failed_likelihood_is_left_out():
    flow = Likelihood().score(PROMPT, "student", Answered("Deep.", "stop"))
    assert run(flow, Failure(key="k", reason="context_length", detail="", transient=False)) == {}


def test_nothing_is_asked_about_an_empty_answer():
    with pytest.raises(StopIteration) as end:
        next(Likelihood().score(PROMPT, "base", Answered("", "stop")))
    assert end.value.value == {}
