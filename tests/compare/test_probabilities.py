"""A student's probabilities beside its teacher's: by hand, by brute force, and with real models of one tokenizer."""

from __future__ import annotations

import itertools
import math
import random
import shutil
from pathlib import Path

import pytest

from distill.compare.metrics import PAIR
from distill.compare.metrics.likelihood import Likelihood
from distill.compare.metrics.probabilities import DRAFT, Probabilities, draft_tokens
from distill.core.files import read_json, write_json
from distill.core.weights import student_fingerprint
from distill.types import Completion, Failure, Message
from tests.compare.test_compare import SESSIONS, Bench, save_student
from tests.support.tiny import save_tiny_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21


def simulated(acceptance: list[float], draft: int) -> float:
    """Tokens a verification, over all outcomes of each start."""
    starts = range(len(acceptance) - draft + 1)
    total = 0.0
    for start, fate in itertools.product(starts, itertools.product((True, False), repeat=draft)):
        chances = acceptance[start : start + draft]
        weight = math.prod(one if taken else 1 - one for one, taken in zip(chances, fate, strict=True))
        total += weight * (1 + next((place for place, taken in enumerate(fate) if not taken), draft))
    return total / len(starts)


def test_tokens_per_verification_are_those_of_all_outcomes_and_count_blocks_as_they_are():
    draw = random.Random(3)
    rates = [draw.random() for _ in range(9)]
    assert draft_tokens(rates) == pytest.approx(simulated(rates, DRAFT))
    assert draft_tokens([0.6] * 9) == pytest.approx((1 - 0.6**5) / 0.4)
    blocks = ([0.9] * 40 + [0.3] * 40) * 5  # of the same mean
    assert draft_tokens(blocks) == pytest.approx(simulated(blocks, DRAFT))
    assert (round(draft_tokens(blocks), 2), round((1 - 0.6**5) / 0.4, 2)) == (2.74, 2.31)


def test_distances_of_two_distributions_are_those_of_the_formulas():
    from distill.models.likelihood import token_distances

    p, q = (0.5, 0.5, 0.0), (0.7, 0.1, 0.2)
    found = token_distances(torch.tensor([p]).log(), torch.tensor([q]).log())
    assert found.forward.item() == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a))
    assert found.reverse.item() == math.inf
    assert found.acceptance.item() == pytest.approx(0.6)


def answered(metric: Probabilities, *replies, own="b", reference="a"):
    flow = metric.score(((Message("user", "Q"),), reference), ((Message("user", "Q"),), own))
    requests = next(flow)
    assert {(one.role, one.kind) for one in requests} == {(PAIR, "likelihood")}
    with pytest.raises(StopIteration) as end:
        flow.send(replies[: len(requests)])
    return end.value.value


def reply(**raw):
    return Completion(key="key", text="", finish="stop", raw=raw)


def test_each_measure_is_a_mean_over_tokens_and_a_failed_request_leaves_its_own_out():
    held = reply(divergence=[1.0, 2.0], acceptance=[0.5, 0.7], same_first=1)
    own = reply(divergence=[3.0], acceptance=[0.1], same_first=0)
    failure = Failure(key="key", reason="context_length", detail="", transient=False)
    found = answered(Probabilities(), held, own)
    assert found == {"divergence": 1.5, "first_choices": 0.5, "acceptance": 0.6, "divergence_own": 3.0}
    assert answered(Probabilities(), failure, own) == {"divergence_own": 3.0}
    assert set(answered(Probabilities(), held, failure)) == {"divergence", "first_choices", "acceptance"}
    assert next(Probabilities().score(((), ""), None), None) is None
    longer = reply(divergence=[0.0] * 5, acceptance=[1.0] * 5, same_first=5)
    assert answered(Probabilities(), longer, own)["draft_tokens"] == Probabilities.teacher["draft_tokens"] == 5


@pytest.fixture(scope="module")
def continued(tmp_path_factory) -> Bench:
    """A run whose student, with twice the adapter, continued another's, compared beside a teacher of more ids."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("continued")
    base, teacher = (save_tiny_model(folder / name, seed=seed) for seed, name in enumerate(("base", "teacher")))
    widen(teacher)
    save_student(base, folder / "a/student")
    student = shutil.copytree(folder / "a/student", folder / "b/student")
    weights = load_file(student / "adapter_model.safetensors")
    save_file({name: 2 * one for name, one in weights.items()}, student / "adapter_model.safetensors")
    previous = {"run": str(folder / "a"), "fingerprint": student_fingerprint(folder / "a/student")}
    write_json(student / "base.json", {**read_json(student / "base.json"), "previous": previous})
    bench = Bench(folder / "b", SESSIONS[:3])
    bench.compare(metrics=(Likelihood(), Probabilities()), teacher_weights=str(teacher))
    return bench


def widen(folder: Path, ids: int = 64) -> None:
    """Pad a model's vocabulary, as Qwen2.5's larger models have it, with rows of which no id is a token."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(model.config.vocab_size + ids, mean_resizing=False)
    model.save_pretrained(folder)


@pytest.mark.model
def test_the_numbers_are_those_of_both_models_on_the_same_tokens(continued):
    from distill.models import chat_template, loading

    student, tokenizer = loading.load_student(continued.folder / "student", adapter=True)
    teacher = loading.load_causal(continued.folder.parent / "teacher")
    row = continued.answers[1]
    for name, answerer in (("divergence", "teacher"), ("divergence_own", "student")):
        text = row["answers"][answerer]["text"]
        turns = [Message(**one) for one in row["messages"]] + [Message("assistant", text)]
        logits, nats = [], []
        for model, template in ((teacher, "own"), (student, "chatml")):
            ids = torch.tensor([chat_template.encode(turns, template, tokenizer, truncated=True).input_ids])
            start = len(chat_template.prompt_ids(turns[:-1], template, tokenizer))
            logits.append(model(ids).logits[0, start - 1 : -1].double())
            nats.append(torch.nn.functional.cross_entropy(logits[-1], ids[0, start:]).item() * (ids.shape[1] - start))
        p, q = (torch.log_softmax(one[:, : len(tokenizer)], -1) for one in logits)
        expected = (p.exp() * (p - q)).sum(-1).mean().item()
        assert row["scores"]["student"][name] == pytest.approx(expected, abs=1e-3)
        if answerer == "teacher":  # of each model's whole vocabulary, from the same pass
            likelihoods = [row["scores"][model]["nll_per_byte"] for model in ("teacher", "student")]
            assert likelihoods == pytest.approx([one / len(text.encode()) for one in nats], abs=1e-4)


@pytest.mark.model
def test_the_student_before_is_a_further_model_and_the_gap_is_still_the_bases(continued):
    assert [list(row["answers"]) for row in continued.answers] == [
        ["base", "previous", "student", "teacher", "teacher_again"]
    ] * 3
    divergence, likelihood = (continued.scores["metrics"][name] for name in ("divergence", "nll_per_byte"))
    assert set(divergence["by"]) == set(likelihood["by"]) == {"base", "previous", "student", "teacher"}
    assert divergence["by"]["teacher"]["mean"] == 0.0
    by, difference = likelihood["by"], likelihood["student_minus_previous"]
    assert difference["mean"] == pytest.approx(by["student"]["mean"] - by["previous"]["mean"])
    assert by["previous"]["mean"] not in (by["student"]["mean"], by["base"]["mean"])
    assert "the student of a" in continued.scores["models"]["previous"]["description"]
    asked = continued.asked
    continued.compare(metrics=(Likelihood(), Probabilities()), teacher_weights=str(continued.folder.parent / "teacher"))
    assert continued.asked == asked


@pytest.mark.model
def test_without_the_teachers_probabilities_or_its_tokens_there_is_a_line_in_place_of_numbers(continued, tmp_path):
    shutil.copytree(continued.folder / "student", tmp_path / "run/student")
    write_json(tmp_path / "run/student/base.json", {**read_json(tmp_path / "run/student/base.json"), "previous": None})
    bench = Bench(tmp_path / "run", SESSIONS[:1])
    bench.compare(metrics=(Probabilities(),))
    entry = bench.scores["metrics"]["divergence"]
    assert (entry["by"], entry["note"]) == (
        {},
        "absent: the teacher gives neither weights nor log-probabilities, so it has no value here",
    )

    other = shutil.copytree(continued.folder.parent / "base", tmp_path / "other")
    document = read_json(other / "tokenizer.json")
    vocabulary = document["model"]["vocab"]
    vocabulary["Ġthe"], vocabulary["Ġof"] = vocabulary["Ġof"], vocabulary["Ġthe"]
    write_json(other / "tokenizer.json", document)
    bench.compare(metrics=(Probabilities(),), teacher_weights=str(other))
    assert "tokenizer is not the student's" in bench.scores["metrics"]["divergence"]["note"]
    assert sum("tokenizer is not" in note for note in bench.scores["notes"]) == 1
