"""The compare stage on a tiny student: asked once, compared in pairs, and plain about what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import chain, repeat
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import pytest

from distill.compare.local_model import Live
from distill.compare.metrics.likelihood import Likelihood
from distill.compare.metrics.overlap import Overlap
from distill.compare.metrics.style import Style
from distill.compare.stage import Sides, compare
from distill.core import weights
from distill.core.files import write_json
from distill.core.jsonl import write_rows
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.providers import ProviderError
from distill.engine.providers.scripted import Scripted
from distill.errors import DistillError, EndpointError, RunFolderError
from distill.types import Message, Sampling, Session
from tests.support.engine.engines import bound
from tests.support.tiny import save_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21

NOUNS = ("sea", "moon", "rain", "tea", "bread", "map", "tree", "lake")
SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_tokens=6)
METRICS = (Likelihood(), Overlap(), Style())


def session(number: int, answer: str | None = None, question: str | None = None, **meta) -> Session:
    noun = NOUNS[number % len(NOUNS)]
    asked = Message("user", question or f"Tell me about the {noun}.")
    said = f"The {noun} is old and wide, and the {noun} is ours." if answer is None else answer
    return Session(f"task-{number}", (Message("system", "Be brief."), asked, Message("assistant", said)), meta)


SESSIONS = [session(number) for number in range(8)]


def save_student(model: Path, folder: Path, *, trained: bool = True) -> None:
    """A LoRA adapter on three of the model's layers; an untrained one changes nothing."""
    import torch
    from peft import LoraConfig, get_peft_model

    from distill.models import loading

    layers = [0, 1, 3]
    torch.manual_seed(3)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=not trained)
    get_peft_model(loading.load_causal(model, layers=layers, device="cpu"), lora).save_pretrained(folder)
    loading.load_tokenizer(model).save_pretrained(folder)
    base = {"model": str(model), "fingerprint": weights.fingerprint(str(model))}
    write_json(folder / "base.json", {**base, "layers": layers, "template": "chatml", "quantised": False})


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), layers=4)


@pytest.fixture(scope="module")
def student(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    save_student(model, folder)
    return folder


@pytest.fixture
def folder(student, tmp_path) -> Path:
    shutil.copytree(student, tmp_path / "student")
    return tmp_path


class Bench:
    """One run folder with a scripted teacher; keeps the engines that compare had made."""

    def __init__(self, folder: Path, sessions: Sequence[Session] = SESSIONS, script=None) -> None:
        self.folder = folder
        self.teacher = Scripted(script or (lambda request: f"{request.messages[-1].content} It is wide."))
        self.engines: list[tuple[Engine, list[str], bool]] = []
        self.released_after: list[int] = []
        write_rows(folder / "test.jsonl", sessions)

    def compare(self, metrics=METRICS, more=MappingProxyType({}), **options):
        with Journal.open(self.folder / "journal.sqlite") as journal:

            def engine(providers, *, progress, local):
                made = Engine(
                    journal, bound(**providers), progress=progress, stage="compare", first_wait_seconds=0.01, attempts=2
                )
                self.engines.append((made, list(providers), local))
                return made

            return compare(
                self.folder,
                engine=engine,
                journal=journal,
                metrics=metrics,
                sampling=SAMPLING,
                seed=7,
                sides=Sides(**{"teachers": {"teacher": self.teacher}, "release_teacher": self._release, **options}),
                **more,
            )

    def _release(self) -> None:
        self.released_after.append(len(self.engines))

    @property
    def asked(self) -> int:
        return sum(engine.tally.asked for engine, _, _ in self.engines)

    @property
    def scores(self):
        def refuse(name: str):
            raise AssertionError(f"{name} in scores.json")

        return json.loads((self.folder / "scores.json").read_text(), parse_constant=refuse)

    @property
    def answers(self):
        return [json.loads(line) for line in (self.folder / "answers.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(model, student, tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(student, folder / "student")
    bench = Bench(folder)
    bench.counts = bench.compare(teacher_weights=str(model))
    return bench


@pytest.mark.model
def test_every_prompt_has_four_answers_and_their_scores(finished):
    assert finished.counts == {"prompts": 8, "answers": 32, "missing": 0}
    assert [row["id"] for row in finished.answers] == [session.id for session in SESSIONS]
    for row in finished.answers:
        assert list(row["answers"]) == ["base", "student", "teacher", "teacher_again"]
        assert all(set(answer) == {"text", "finish", "tokens"} for answer in row["answers"].values())
        assert set(row["scores"]["student"]) >= {"nll_per_byte", "rouge_l", "length_ratio", "stopped"}


@pytest.mark.model
def test_the_tokens_of_an_answer_add_up_to_its_likelihood(finished):
    for row in finished.answers:
        text, told = row["answers"]["teacher"]["text"], row["surprise"]
        assert (sum(told["widths"]), set(told["nats"])) == (len(text), {"base", "student"})
        for model, nats in told["nats"].items():
            rounding = 0.006 * len(nats) / len(text)
            assert sum(nats) / len(text) == pytest.approx(row["scores"][model]["nll_per_byte"], abs=rounding)


@pytest.mark.model
def test_without_likelihoods_no_token_has_a_figure(folder):
    bench = Bench(folder)
    bench.compare(metrics=(Overlap(),))
    assert [row for row in bench.answers if "surprise" in row] == []


@pytest.mark.model
def test_the_prompt_holds_the_system_message_and_not_the_answer(finished):
    assert [message["role"] for message in finished.answers[0]["messages"]] == ["system", "user"]


@pytest.mark.model
def test_base_student_and_teacher_have_a_likelihood_and_the_second_answer_an_overlap(finished):
    metrics = finished.scores["metrics"]
    assert set(metrics["nll_per_byte"]["by"]) == {"base", "student", "teacher"}
    assert set(metrics["rouge_l"]["by"]) == {"base", "student", "teacher_again"}
    assert metrics["length_ratio"]["by"]["teacher"]["mean"] == 1.0
    assert metrics["nll_per_byte"]["by"]["student"]["n"] == 8


@pytest.mark.model
def test_the_likelihoods_are_those_of_the_models_themselves(finished, student):
    from distill.models import loading
    from distill.models.likelihood import loglikelihoods

    texts = [each.messages[-1].content for each in SESSIONS]
    pairs = [(each.messages[:-1], text) for each, text in zip(SESSIONS, texts, strict=True)]
    for name, adapter in (("base", False), ("student", True)):
        sums = loglikelihoods(*loading.load_student(student, adapter=adapter), "chatml", pairs)
        expected = sum(-each.total / len(text.encode()) for each, text in zip(sums, texts, strict=True)) / 8
        assert finished.scores["metrics"]["nll_per_byte"]["by"][name]["mean"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.model
def test_base_and_student_are_two_models(finished):
    scores = [row["scores"] for row in finished.answers]
    assert all(row["base"]["nll_per_byte"] != row["student"]["nll_per_byte"] for row in scores)


@pytest.mark.model
def test_an_answer_at_its_bound_counts_as_cut(finished):
    assert finished.scores["cut_share"] == {"base": 1.0, "student": 1.0, "teacher": 0.0, "teacher_again": 0.0}


@pytest.mark.model
def test_the_teacher_is_released_before_a_model_is_loaded_here(finished):
    assert [providers for _, providers, _ in finished.engines] == [["teacher"], ["base"], ["student"], ["teacher"]]
    assert [local for _, _, local in finished.engines] == [False, True, True, True]
    assert finished.released_after == [1]


@pytest.mark.model
def test_the_scores_say_how_they_were_made(finished):
    scores = finished.scores
    assert "10,000 resamples" in scores["method"]
    assert "temperature 0.7, top_p 0.9, at most 6 tokens" in scores["method"]
    assert scores["models"]["base"]["description"].startswith("the student before training: 3 layers of ")
    assert scores["headline"].endswith(".")
    assert "8 held-out prompts" in scores["headline"]


@pytest.mark.model
def test_running_again_asks_nothing_and_gives_the_same(finished, model):
    before = [(finished.folder / name).read_bytes() for name in ("answers.jsonl", "scores.json")]
    again = Bench(finished.folder)
    again.compare(teacher_weights=str(model))
    assert again.asked == 0
    assert [(finished.folder / name).read_bytes() for name in ("answers.jsonl", "scores.json")] == before


@pytest.mark.model
def test_a_journal_that_knows_everything_loads_no_model(tmp_path):
    model = save_tiny_model(tmp_path / "model", layers=4)
    save_student(model, tmp_path / "student")
    bench = Bench(tmp_path)
    bench.compare()
    model.rename(tmp_path / "gone")
    (tmp_path / "scores.json").unlink()
    bench.compare()
    assert bench.scores["prompts"] == 8


@pytest.mark.model
def test_what_was_asked_before_an_interruption_is_not_asked_again(folder):
    expired = ProviderError("http_401", "the key has expired", fatal=True)
    script = chain(repeat("It is wide.", 5), repeat(expired))
    bench = Bench(folder, script=lambda request: next(script))
    with pytest.raises(EndpointError, match="expired"):
        bench.compare()
    refusals = len(bench.teacher.requests) - 5  # as many as had left before the first one was back
    script = repeat("It is wide.")
    bench.compare()
    assert 1 <= refusals <= 3
    assert len(bench.teacher.requests) == 8 + refusals


@pytest.mark.model
def test_without_the_teachers_weights_the_metric_says_so_and_another_leads(folder):
    bench = Bench(folder)
    bench.compare(teacher_weights=None)
    scores = bench.scores
    assert scores["metrics"]["nll_per_byte"]["note"].startswith("absent: the teacher gives neither weights nor")
    assert scores["metrics"]["nll_per_byte"]["gap_closed"] is None
    assert "the teacher's own second answer" in scores["headline"]


@pytest.mark.model
def test_without_a_teacher_to_ask_there_is_no_ceiling(folder):
    bench = Bench(folder)
    bench.compare(teachers={})
    assert set(bench.scores["metrics"]["rouge_l"]["by"]) == {"base", "student"}
    assert bench.scores["models"]["teacher"]["model"] == "data"


@pytest.mark.model
def test_one_prompt_is_compared_without_an_interval_to_speak_of(folder):
    bench = Bench(folder, SESSIONS[:1])
    bench.compare()
    assert bench.scores["metrics"]["rouge_l"]["by"]["base"]["n"] == 1
    assert not bench.scores["metrics"]["nll_per_byte"]["student_minus_base"]["excludes_zero"]
    assert bench.scores["headline"].startswith("On 1 held-out prompt: NLL")


@pytest.mark.model
def test_empty_and_repeated_answers_of_the_teacher_give_numbers(folder):
    bench = Bench(folder, [session(0, ""), session(1, "Yes."), session(1, "Yes."), session(2, "Yes.")])
    bench.compare()
    assert bench.scores["metrics"]["nll_per_byte"]["by"]["base"]["n"] == 3
    assert bench.scores["metrics"]["rouge_l"]["by"]["base"]["n"] == 3
    assert "nll_per_byte" not in bench.answers[0]["scores"]["base"]


@pytest.mark.model
def test_missing_answers_are_counted_and_said(folder):
    long = session(8, question="why " * 600)
    bench = Bench(folder, [*SESSIONS, long])
    counts = bench.compare()
    assert (counts["answers"], counts["missing"]) == (34, 2)
    assert list(bench.answers[8]["answers"]) == ["teacher", "teacher_again"]
    assert any("the base has no answer to 1 of 9 prompts (context_length 1)" in note for note in bench.scores["notes"])
    assert any("the student gave no likelihood for 1 of 9" in note for note in bench.scores["notes"])
    assert bench.scores["metrics"]["rouge_l"]["by"]["teacher_again"]["n"] == 9
    assert bench.scores["metrics"]["rouge_l"]["student_minus_base"]["n"] == 8


@pytest.mark.model
def test_a_teacher_that_fails_on_some_prompts_leaves_the_rest(folder):
    def script(request):
        moon = "moon" in request.messages[-1].content
        return ProviderError("http_400", "no moons here") if moon else "It is wide."

    bench = Bench(folder, script=script)
    assert bench.compare()["missing"] == 1
    assert any(
        "the teacher asked again has no answer to 1 of 8 prompts (http_400 1)" in n for n in bench.scores["notes"]
    )


@pytest.mark.model
def test_an_adapter_that_changes_nothing_is_an_error(model, tmp_path):
    save_student(model, tmp_path / "student", trained=False)
    with pytest.raises(DistillError, match="they are one model"):
        Bench(tmp_path).compare(metrics=[Overlap()])


def test_no_held_out_prompts_are_said_and_no_model_is_needed(tmp_path):
    bench = Bench(tmp_path, [])
    assert bench.compare() == {"prompts": 0, "answers": 0, "missing": 0}
    assert bench.engines == []
    assert bench.released_after == [0]
    assert "no held-out prompts" in bench.scores["headline"]
    assert bench.answers == []


def test_a_missing_test_file_is_one_line(tmp_path):
    bench = Bench(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(RunFolderError, match="curate"):
        bench.compare()


def test_a_held_out_row_without_an_answer_is_one_line(tmp_path):
    bench = Bench(tmp_path, [Session("task-0", (Message("user", "Why?"),))])
    with pytest.raises(RunFolderError, match="task-0"):
        bench.compare()


def test_the_count_of_asked_prompts_never_falls():
    shown: list[float] = []
    live = Live(SimpleNamespace(update=lambda done, total, note: shown.append(done)))
    live.update(0, 61)
    live.watch(17, "")  # a batch under way …
    live.watch(0, "")  # … has ended, and the engine sees its answers one by one
    for done in (1, 10, 17, 18):
        live.update(done, 61)
    assert shown == [0, 17, 17, 17, 17, 17, 18]
