"""What the numbers are, and what they leave out."""

from __future__ import annotations

import pytest

from distill.compare.metrics import METRICS, ModelAnswer, Sample
from distill.compare.metrics.copied import Copied
from distill.compare.metrics.diversity import Diversity
from distill.compare.metrics.likelihood import Likelihood
from distill.compare.metrics.overlap import Overlap
from distill.compare.metrics.similarity import Similarity
from distill.compare.metrics.style import Style, features, repetition
from distill.core import registry
from distill.core.jsonl import write_rows
from distill.types import Completion, Failure, Message, Session
from tests.support.tiny import save_tiny_model

PROMPT = (Message("user", "Tell me about the sea."),)


def sample(text: str, reference: str, *, model: str = "student", finish: str = "stop") -> Sample:
    return Sample(PROMPT, model, ModelAnswer(text, finish), ModelAnswer(reference, "stop"))


def run(flow, answer):
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send(answer)
    return end.value.value


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_on_the_shelf_has_options_and_explains_its_measures(name):
    part = registry.part(METRICS, name, kind="metric")
    needed = {"model": "folder"} if name == "similarity" else {}
    metric = part(part.Options(**needed))
    assert metric.scope in ("text", "model", "pair")
    assert metric.measures
    assert all(measure.title and measure.explanation.endswith(".") for measure in metric.measures)


def test_measures_have_names_of_their_own():
    names = [m.name for part in METRICS for m in registry.part(METRICS, part, kind="metric").measures]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("The sea is blue; the sea is wide!", "A wide sea is blue."),
        ("Le café où je vais 😀", "Un café où il va 😀 × 2"),
    ],
)
def test_overlap_equals_the_reference_implementation_of_rouge_l(said, wanted):
    from rouge_score.rouge_scorer import RougeScorer

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
    scores = Style().score(sample("", "a b"))
    assert set(scores) == {"stopped", "length_ratio", "style_distance"}
    assert (scores["stopped"], scores["length_ratio"]) == (1.0, 0.0)


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
    request = next(Likelihood().score(PROMPT, "base", ModelAnswer("Deep.", "stop")))
    assert (request.role, request.kind, request.messages, request.continuation) == (
        "base",
        "likelihood",
        PROMPT,
        "Deep.",
    )


def test_likelihood_is_counted_by_the_byte_and_not_by_the_character():
    flow = Likelihood().score(PROMPT, "student", ModelAnswer("größer", "stop"))
    assert run(flow, Completion(key="k", text="", finish="stop", loglikelihood=-16.0)) == {"nll_per_byte": 2.0}


def test_a_failed_likelihood_is_left_out():
    flow = Likelihood().score(PROMPT, "student", ModelAnswer("Deep.", "stop"))
    assert run(flow, Failure(key="k", reason="context_length", detail="", transient=False)) == {}


def test_nothing_is_asked_about_an_empty_answer():
    with pytest.raises(StopIteration) as end:
        next(Likelihood().score(PROMPT, "base", ModelAnswer("", "stop")))
    assert end.value.value == {}


def scored(metric, *samples: Sample, folder=None):
    """Each sample's scores, after the metric has seen them all."""
    metric.prepare(folder, samples)
    return [metric.score(one) for one in samples]


TEACHER_STYLE = "Sure! Here are two:\n\n- **Oak** is hard.\n- **Elm** may bend.\n\nWould you like more?"


def test_the_teachers_own_second_answers_are_about_one_unit_from_its_style():
    texts = [("Short answer. It is so.", "A long answer, " * (n + 2) + "it may be so.") for n in range(8)]
    samples = [
        Sample(PROMPT, "teacher_again", ModelAnswer(said, "stop"), ModelAnswer(first, "stop"), prompt=n)
        for n, (said, first) in enumerate(texts)
    ]
    distances = [scores["style_distance"] for scores in scored(Style(), *samples)]
    present = sum(distances) / len(distances)
    assert 0.2 < present <= 1.0  # features that no answer has are at 0, all others at 1 on average


def test_the_same_manner_with_other_words_is_near_and_another_manner_far():
    same = TEACHER_STYLE.replace("Oak", "Ash").replace("Elm", "Fir")
    near, far = (
        scored(Style(), sample(text, TEACHER_STYLE))[0]["style_distance"]
        for text in (same, "Oak is hard and elm bends in the wind as far as anybody knows")
    )
    assert near == 0.0
    assert far > 1.0


def test_the_manner_of_a_text_is_counted():
    found = features(TEACHER_STYLE)
    count = len(TEACHER_STYLE.split())
    assert found["opening"] == 1.0
    assert found["lists"] == pytest.approx(100 * 2 / count)
    assert found["bold"] == pytest.approx(100 * 2 / count)
    assert found["hedges"] == pytest.approx(100 * 1 / count)
    assert (found["headings"], found["code"]) == (0.0, 0.0)
    assert features("# Title\n\n```\nx = 1\n```")["headings"] > 0
    assert features("")["words"] == 0.0


def test_an_end_that_nobody_recorded_is_not_scored():
    assert "stopped" not in Style().score(sample("Said.", "Said.", finish="unknown"))


def test_overlap_counts_words_of_other_scripts_than_latin():
    assert Overlap().score(sample("Море широкое и синее.", "Море широкое и старое."))["rouge_l"] == pytest.approx(0.75)
    assert Overlap().score(sample("湖很大。", "湖很大。"))["rouge_l"] == 1.0
    assert Overlap().score(sample("The sea.", "湖很大。"))["rouge_l"] == 0.0


def test_a_phrase_in_answers_to_two_prompts_is_stock():
    said = (
        "I am happy to help you with trees.",
        "I am happy to help you with birds.",
        "Oaks grow slowly in the shade.",
    )
    samples = [Sample(PROMPT, "student", ModelAnswer(text, "stop"), None, prompt=n) for n, text in enumerate(said)]
    first, second, third = (scores["stock_phrases"] for scores in scored(Diversity(), *samples))
    assert first == second == pytest.approx(4 / 5)
    assert third == 0.0


def test_another_models_phrases_are_not_stock():
    pair = [Sample(PROMPT, model, ModelAnswer("I am happy to help.", "stop"), None) for model in ("base", "student")]
    assert [scores["stock_phrases"] for scores in scored(Diversity(), *pair)] == [0.0, 0.0]


TRAINED = "the quick brown fox jumps over the lazy dog near the old mill"


@pytest.mark.parametrize(
    ("said", "reference", "expected"),
    [
        (f"They say {TRAINED} every day.", "Other words.", 13),
        (f"They say {TRAINED} every day.", f"It is said: {TRAINED}.", 0),
        ("The quick brown fox jumps over the cat.", "Other words.", 0),
        ("The Quick, Brown: fox jumps over THE lazy cat.", "Other words.", 8),
    ],
)
def test_what_is_copied_from_training_is_measured_in_words(tmp_path, said, reference, expected):
    write_rows(
        tmp_path / "kept.jsonl", [Session("a", (Message("user", "Hi."), Message("assistant", f"So {TRAINED}.")))]
    )
    found = scored(Copied(), sample(said, reference), folder=tmp_path)
    assert found == [{"copied_words": float(expected)}]


def test_without_training_rows_nothing_is_called_copied(tmp_path):
    assert scored(Copied(), sample(TRAINED, "x"), folder=tmp_path) == [{}]


@pytest.mark.model
def test_similarity_of_a_text_with_itself_is_one_and_less_with_another(tmp_path):
    model = save_tiny_model(tmp_path)
    metric = Similarity(Similarity.Options(model=str(model)))
    same, other, empty = scored(
        metric, sample("The sea is wide.", "The sea is wide."), sample("Bread.", "The sea is wide."), sample("", "Sea.")
    )
    assert same["similarity"] == pytest.approx(1.0, abs=1e-5)
    assert other["similarity"] < 0.999
    assert empty == {}


def test_token_agreement_is_the_share_of_the_teachers_tokens_that_were_the_models_choice():
    answer = Completion(
        key="k", text="", finish="stop", loglikelihood=-6.0, raw={"logprobs": [-1, -2, -3], "agrees": 2}
    )
    scores = run(Likelihood().score(PROMPT, "student", ModelAnswer("Wide.", "stop")), answer)
    assert scores == {"nll_per_byte": pytest.approx(6 / 5), "token_agreement": pytest.approx(2 / 3)}
