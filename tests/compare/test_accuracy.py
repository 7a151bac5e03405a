"""Right answers in a comparison: accuracy, labels, samples, and what stands in where there is no reference."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from distill.compare.label_scores import label_scores
from distill.compare.metrics import ModelAnswer, Sample
from distill.compare.metrics.accuracy import Accuracy
from distill.compare.metrics.overlap import Overlap
from distill.compare.sampled import maj_at_k, majority, pass_at_k
from distill.engine.providers.scripted import Scripted
from distill.errors import RecipeError
from distill.report.stage import report
from distill.types import Message
from tests.support.comparing import compared, write

LABELS = ("refund", "delivery", "cancel")


def rows(references: list) -> list[dict]:
    return [{"id": f"q{n}", "instruction": f"Message {n}?", "reference": one} for n, one in enumerate(references)]


def said(folder: Path, name: str, answers: list) -> Path:
    return write(
        folder,
        f"{name}.jsonl",
        [
            {"id": f"q{n}", **({"samples": one} if isinstance(one, list) else {"text": one})}
            for n, one in enumerate(answers)
        ],
    )


RIGHT = ["refund", "delivery", "cancel"] * 4
STUDENT = [*RIGHT[:9], "refund", "a refund or a delivery", "no idea"]


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    """The folder, scores and rows of a comparison of labels."""
    folder = tmp_path_factory.mktemp("labels")
    recorded = {
        "base": said(folder, "base", ["It is a refund."] * 12),
        "student": said(folder, "student", STUDENT),
        "teacher": said(folder, "teacher", RIGHT),
    }
    metrics = (Accuracy(Accuracy.Options(labels=LABELS)), Overlap())
    prompts = write(folder, "prompts.jsonl", rows(RIGHT))
    return folder, *compared(folder, prompts=prompts, metrics=metrics, recorded=recorded)


def test_the_headline_begins_with_accuracy_and_its_paired_interval(classified):
    _, scores, answers = classified
    accuracy = scores["metrics"]["accuracy"]
    assert {model: round(one["mean"], 4) for model, one in accuracy["by"].items()} == {
        "base": 0.3333, "student": 0.8333, "teacher": 1.0,
    }  # fmt: skip
    assert accuracy["student_minus_base"]["excludes_zero"]
    assert scores["headline"].startswith("On 12 prompts: Accuracy 0.83 against the base's 0.33 (difference +0.50")
    assert "the teacher has 1.00)" in scores["headline"]
    assert [row["reference"] for row in answers] == RIGHT
    assert "field_f1" not in scores["metrics"]


def test_the_report_shows_the_confusion_of_labels(classified):
    folder, scores, _ = classified
    student = scores["labels"]["by"]["student"]
    assert scores["labels"]["labels"] == list(LABELS)
    assert student["matrix"] == [[4, 0, 0, 0], [0, 3, 0, 1], [0, 0, 3, 1]]
    (folder / "run.json").write_text('{"name": "labels", "stages": {}}')
    report(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Confusion of the student" in page
    assert "Reference: <bdi>delivery</bdi>" in page
    assert "by references, on 12 prompts" in page


@pytest.mark.parametrize(
    ("references", "options", "left_out"),
    [
        (["refund", None] * 6, {"labels": LABELS}, "accuracy leaves out 6 of 12 prompts, which have no reference"),
        (
            ["refnd", *RIGHT[1:]],
            {"labels": LABELS},
            'accuracy leaves out 1 of 12 prompts: the reference "refnd" is none',
        ),
        (
            [{"a": 1}, *RIGHT[1:]],
            {"check": "exact"},
            'accuracy leaves out 1 of 12 prompts: the reference {"a": 1} is JSON',
        ),
    ],
)
def test_references_that_some_prompts_lack_are_said_on_one_line(references, options, left_out):
    notes = list(Accuracy(Accuracy.Options(**options)).look([{"reference": one} for one in references]))
    assert [note[: len(left_out)] for note in notes] == [left_out]


@pytest.mark.parametrize("references", [[None] * 3, ["(?=a)"] * 3])
def test_nothing_is_asked_where_no_reference_can_be_checked(references, tmp_path):
    prompts = write(tmp_path, "prompts.jsonl", rows(references))
    with pytest.raises(RecipeError, match="accuracy: none of 3 prompts has a reference to check"):
        compared(tmp_path, prompts=prompts, metrics=(Accuracy(Accuracy.Options(check="regex")),))


# Labels

GIVEN = (*LABELS, None)


def drawn(seed: int, count: int = 60) -> dict[int, tuple[str, str | None]]:
    rng = random.Random(seed)
    return {n: (right := rng.choice(LABELS), right if rng.random() < 0.5 else rng.choice(GIVEN)) for n in range(count)}


def test_figures_of_labels_equal_a_case_worked_by_hand():
    pairs = [("refund", "refund"), ("refund", "delivery"), ("delivery", "delivery"), ("cancel", None)]
    scores = label_scores({"student": dict(enumerate(pairs))}, LABELS, seed=7)["by"]["student"]
    figures = [(one["precision"], one["recall"], one["f1"]) for one in scores["per_label"]]
    assert figures == [(1.0, 0.5, 2 / 3), (0.5, 1.0, 2 / 3), (0.0, 0.0, 0.0)]
    means = {name: round(scores[name].mean, 4) for name in ("macro_f1", "micro_precision", "micro_recall", "micro_f1")}
    assert means == {"macro_f1": 0.4444, "micro_precision": 0.6667, "micro_recall": 0.5, "micro_f1": 0.5714}


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_labels_equal_scikit_learns(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    pairs = drawn(seed)
    truth, given = zip(*((right, one or "none") for right, one in pairs.values()), strict=True)
    ours = label_scores({"student": pairs}, LABELS, seed=7)["by"]["student"]
    options = {"labels": list(LABELS), "zero_division": 0}
    assert ours["matrix"] == metrics.confusion_matrix(truth, given, labels=[*LABELS, "none"])[:-1].tolist()
    theirs = metrics.precision_recall_fscore_support(truth, given, **options)
    for name, values in zip(("precision", "recall", "f1", "support"), theirs, strict=True):
        assert [one[name] for one in ours["per_label"]] == pytest.approx(values.tolist())
    for average in ("macro", "micro"):
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(truth, given, average=average, **options)
        means = [ours[f"{average}_{name}"].mean for name in ("precision", "recall", "f1")]
        assert means == pytest.approx([precision, recall, f1])


# Samples


@pytest.mark.parametrize(
    ("n", "c", "k", "value"), [(4, 0, 2, 0.0), (4, 1, 2, 0.5), (4, 2, 2, 5 / 6), (4, 3, 2, 1.0), (1, 1, 1, 1)]
)
def test_pass_at_k_equals_cases_worked_by_hand(n, c, k, value):
    assert pass_at_k(n, c, k) == pytest.approx(value)


@pytest.mark.parametrize(
    ("votes", "k", "value"),
    [
        ("aab", 1, 2 / 3),
        ("aab", 2, (1 + 0.5 + 0.5) / 3),
        ("aab", 3, 1.0),
        ("abc", 3, 1 / 3),
        ("bbb", 2, 0.0),
        ("a..", 3, 1.0),
        ("...", 2, 0.0),
    ],
)
def test_maj_at_k_equals_cases_worked_by_hand(votes, k, value):
    """`a` is right; a dot is an answer that gives nothing."""
    assert maj_at_k([(None if one == "." else one, one == "a") for one in votes], k) == pytest.approx(value)


@pytest.mark.parametrize("seed", range(3))
def test_both_equal_brute_force(seed):
    rng = random.Random(seed)
    votes = [(one := rng.choice("aabbc"), one == "a") for _ in range(8)]
    for k in range(1, 9):
        subsets = list(combinations(votes, k))
        passed = sum(any(right for _, right in subset) for subset in subsets) / len(subsets)
        assert pass_at_k(8, sum(right for _, right in votes), k) == pytest.approx(passed)
        shares = []
        for subset in subsets:
            ranked = Counter(answer for answer, _ in subset).most_common()
            first = [answer for answer, count in ranked if count == ranked[0][1]]
            shares.append(("a" in first) / len(first))
        assert maj_at_k(votes, k) == pytest.approx(sum(shares) / len(shares))


def test_of_many_subsets_a_thousand_are_drawn_and_always_the_same_ones():
    votes = [(one, one == "a") for one in "aaaaaaaabbbbbbcc"]
    estimate = maj_at_k(votes, 5, seed="q1")
    exact = sum(
        sum(one == "a" for one in first) / len(first)
        for subset in combinations("aaaaaaaabbbbbbcc", 5)
        for ranked in [Counter(subset).most_common()]
        for first in [[answer for answer, count in ranked if count == ranked[0][1]]]
    )
    assert estimate == pytest.approx(exact / 4368, abs=0.04)
    assert maj_at_k(votes, 5, seed="q1") == estimate


def test_too_few_samples_are_refused():
    for chance in (lambda: pass_at_k(3, 1, 4), lambda: maj_at_k([("a", True)] * 3, 4)):
        with pytest.raises(ValueError, match="@4 needs 4 samples or more, found 3"):
            chance()
    with pytest.raises(ValueError, match="k 9 needs as many samples, found samples 8"):
        Accuracy.Options(samples=8, k=(1, 9))


def test_recorded_samples_have_pass_and_maj_at_k(tmp_path):
    recorded = {
        "base": said(tmp_path, "base", [["refund", "cancel", "cancel", "delivery"]] * 3),
        "student": said(tmp_path, "student", [["refund", "refund", "refund", "cancel"]] * 3),
    }
    metric = Accuracy(Accuracy.Options(labels=LABELS, samples=4, k=(1, 2, 4)))
    prompts = write(tmp_path, "prompts.jsonl", rows(["refund"] * 3))
    scores, answers = compared(tmp_path, prompts=prompts, metrics=(metric,), recorded=recorded)
    means = {
        name: [round(one["by"][model]["mean"], 4) for model in recorded] for name, one in scores["metrics"].items()
    }
    assert means == {
        "accuracy": [1.0, 1.0],
        "pass_at_1": [0.25, 0.75],
        "pass_at_2": [0.5, 1.0],
        "maj_at_2": [0.25, 0.75],
        "pass_at_4": [1.0, 1.0],
        "maj_at_4": [0.0, 1.0],
    }
    assert answers[0]["answers"]["student"]["samples"] == ["refund", "refund", "refund", "cancel"]


def test_samples_are_replicas_and_none_of_the_teachers_is_its_answer_or_its_second_one(tmp_path):
    asked: dict[str, list[int]] = {}

    def scripted(model: str) -> Scripted:
        asked[model] = []
        return Scripted(lambda request: asked[model].append(request.replica) or f"It is {request.replica}.")

    models = {name: scripted(name) for name in ("base", "student", "teacher")}
    prompts = write(tmp_path, "prompts.jsonl", rows([2, 2]))
    scores, answers = compared(
        tmp_path,
        prompts=prompts,
        metrics=(Accuracy(Accuracy.Options(samples=3)),),
        teachers={"teacher": models.pop("teacher")},
        endpoints=models,
    )
    replicas = {model: sorted({*each}) for model, each in asked.items()}
    assert replicas == {"base": [0, 1, 2], "student": [0, 1, 2], "teacher": [0, 1, 2, 3, 4]}
    assert {model: len(each) for model, each in asked.items()} == {"base": 6, "student": 6, "teacher": 10}
    said = answers[0]["answers"]
    assert said["teacher"]["samples"] == ["It is 2.", "It is 3.", "It is 4."]
    assert said["student"]["samples"] == ["It is 0.", "It is 1.", "It is 2."]
    assert "samples" not in said["teacher_again"]
    assert scores["metrics"]["pass_at_3"]["by"]["teacher"]["mean"] == 1


def sample(model: str, text: str, samples: tuple[str, ...] = ()) -> Sample:
    return Sample((Message("user", "Well?"),), model, ModelAnswer(text, "stop", samples=samples), None, prompt=3)


def test_the_teachers_majority_is_agreement_and_leaves_its_own_row_out():
    metric = Accuracy(Accuracy.Options(samples=3))
    samples = [sample("teacher", "7", ("7", "It is 7.", "8")), sample("student", "So 7"), sample("base", "9")]
    metric.prepare(Path(), samples)
    assert [one.name for one in metric.measures] == ["agreement"]
    assert [metric.score(one) for one in samples] == [{}, {"agreement": 1.0}, {"agreement": 0.0}]
    assert majority(["7", "8", None]) is None
