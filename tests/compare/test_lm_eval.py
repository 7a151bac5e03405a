"""Tasks of the lm-evaluation-harness: what it logs is read and paired by document, and nothing is run twice."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from distill.cli.show import benchmark_lines
from distill.compare.lm_eval import entries
from distill.compare.lm_eval_tasks import documents
from distill.core.extras import install
from distill.core.files import write_json
from distill.core.jsonl import read_jsonl
from distill.errors import DistillError, MissingPackage, RecipeError
from distill.formats.export import harness_commands
from distill.pipeline import parts
from distill.pipeline.forecast import lines
from distill.pipeline.requirements import require_benchmarks
from distill.recipe import Benchmarks
from distill.report.stage import report, shape
from tests.compare.test_compare import save_student
from tests.support.harness_tasks import write_tasks
from tests.support.run_folder import write_run
from tests.support.tiny import save_tiny_model

RECORDED = Path(__file__).parent / "recorded_lm_eval"
needs_harness = pytest.mark.skipif(
    find_spec("lm_eval") is None,
    reason=f"the lm-evaluation-harness has NOT run: {install('lm-eval')}",
)
harness_warnings = pytest.mark.filterwarnings("ignore")  # of the harness's own packages
RECIPE = """\
name: one
teacher: {model: smollm2, serve: transformers, terms: Apache-2.0}
collect: {tasks: TASKS}
student: {model: smollm2}
train: {method: lora}
compare: {lm_eval: TOLD}
"""


def recorded(name: str, means: tuple[str, ...] = ("acc", "acc_norm")) -> list[dict]:
    return documents(list(read_jsonl(RECORDED / f"{name}.jsonl")), dict.fromkeys(means, True))


def row(task: str, found: list[dict], higher: bool = True) -> dict:
    names = {name.partition(",")[0] for document in found for name in document["values"]}
    return {"task": task, "version": "1.0", "higher": dict.fromkeys(names, higher), "left_out": [], "documents": found}


def told(base: list[dict], student: list[dict], **options) -> dict:
    rows = {
        "base": {"order": [row("order", base, **options)]},
        "student": {"order": [row("order", student, **options)]},
    }
    return entries(["order"], rows, 7)["entries"]


def document(place: int, value: float, hash_: str = "") -> dict:
    return {"id": place, "hash": hash_ or f"h{place}", "values": {"acc,none": value}}


# Reading and pairing


def test_a_recorded_log_gives_the_means_that_the_harness_printed():
    found = told(recorded("base_order"), recorded("student_order"))
    means = {name: [round(entry["by"][side].mean, 4) for side in ("base", "student")] for name, entry in found.items()}
    assert means == {"order acc,none": [0.6667, 0.9167], "order acc_norm,none": [0.5833, 0.5]}


def test_the_test_on_right_and_wrong_is_the_exact_mcnemar_test():
    found = told(recorded("base_order"), recorded("student_order"))["order acc,none"]
    assert found["p"] == 2 * 0.5**3  # three documents came right, and none went wrong


def test_each_filter_of_an_answer_is_a_measure_of_its_own():
    found = recorded("student_said", ("exact_match",))
    assert len(found) == 12
    assert {name for one in found for name in one["values"]} == {"exact_match,strict", "exact_match,number"}


def test_a_metric_that_is_no_mean_and_a_value_that_is_no_number_are_left_out():
    sample = {"doc_id": 0, "doc_hash": "h", "filter": "none", "metrics": ["acc", "ppl", "f1"], "ppl": (-3.0, 2)}
    assert documents([{**sample, "acc": float("nan"), "f1": True}], {"acc": True, "f1": True}) == [
        {"id": 0, "hash": "h", "values": {"f1,none": 1.0}}
    ]


def test_documents_pair_by_place_and_hash_and_those_without_a_partner_are_counted():
    base = [document(place, 0.0) for place in range(8)]
    student = [document(place, 1.0) for place in range(7)] + [document(7, 1.0, "another")]
    found = told(base, student)["order acc,none"]
    assert (found["student_minus_base"].n, found["note"]) == (7, "documents without a number of both: 1")


def test_tasks_of_a_group_are_pooled_by_document_and_stand_beside():
    rows = {
        side: {"group": [row("one", [document(at, worth) for at in range(9)]), row("two", [document(0, 1.0)])]}
        for side, worth in (("base", 0.0), ("student", 1.0))
    }
    found = entries(["group"], rows, 7)["entries"]["group acc,none"]
    assert found["student_minus_base"].mean == pytest.approx(0.9)
    assert {name: part["n"] for name, part in found["categories"].items()} == {"one": 9, "two": 1}


def test_each_p_is_adjusted_for_looking_at_all():
    found = told(recorded("base_order"), recorded("student_order"))
    assert {name: (entry["p"], entry["p_holm"]) for name, entry in found.items()} == {
        "order acc,none": (0.25, 0.5),
        "order acc_norm,none": (1.0, 1.0),
    }


# What is shown


def shown(folder: Path) -> Path:
    """A finished run whose student has lost an ability, and whose task has a hostile name."""
    run = write_run(folder / "run")
    base = [document(place, 1.0) for place in range(30)]
    found = told(base, [document(place, 0.0) for place in range(30)])
    found["order acc,none"]["title"] = "order: acc <b>\u202e"
    scores = json.loads((run / "scores.json").read_text())
    write_json(run / "scores.json", {**scores, "lm_eval": {"package": "0.4.13", "entries": found, "notes": []}})
    return run


def test_show_says_what_the_student_lost(tmp_path):
    assert benchmark_lines(shown(tmp_path)) == [
        "lm-eval  order: acc <b>⟦U+202E⟧: student 0.000, base 1.000, difference -1.000 (95% CI -1.000 to -1.000), "
        "adjusted p < 0.001"
    ]


def test_a_task_without_a_number_for_one_document_says_so(tmp_path):
    run = write_run(tmp_path)
    rows = {
        side: {"wikitext": [{**row("wikitext", []), "left_out": ["word_perplexity"]}]} for side in ("base", "student")
    }
    scores = json.loads((run / "scores.json").read_text())
    write_json(run / "scores.json", {**scores, "lm_eval": entries(["wikitext"], rows, 7)})
    note = "wikitext: word_perplexity has no value for one document, so no pairs"
    assert benchmark_lines(run) == [f"lm-eval  {note}"]
    report(run)
    section = (run / "report.html").read_text().partition('<section id="benchmarks">')[2].partition("</section>")[0]
    assert (note in section, "<table" in section) == (True, False)


def test_a_comparison_without_tasks_shows_none(tmp_path):
    run = write_run(tmp_path)
    assert (benchmark_lines(run), shape(run)["benchmarks"]) == ([], None)


def test_the_report_says_what_the_student_lost(tmp_path):
    run = shown(tmp_path)
    facts = dict(shape(run)["trust"])
    assert facts["Abilities (lm-eval)"].startswith("worse than the base in order: acc <b>")
    report(run)
    page = (run / "report.html").read_text()
    assert page.count('<section id="benchmarks">') == 1
    assert "order: acc &lt;b&gt;⟦U+202E⟧" in page


def test_an_export_says_how_the_harness_is_asked_about_it(tmp_path):
    run, out = tmp_path / "run", tmp_path / "my out"
    (out / "base").mkdir(parents=True)
    run.mkdir()
    write_json(
        run / "scores.json", {"lm_eval": {"tasks": ["arc_easy", "ifeval"], "limit": 5, "shots": 0, "chat": True}}
    )
    how = "--tasks arc_easy,ifeval --batch_size 8 --limit 5 --num_fewshot 0 --apply_chat_template --log_samples"
    base, student = f"pretrained={out}/base", f"pretrained={out}/base,peft={out}"
    assert harness_commands(run, out, to="adapter") == [
        f"lm-eval, {model}: lm_eval --model hf --model_args '{given},dtype=float32' {how} --output_path lm_eval_out"
        for model, given in (("base", base), ("student", student))
    ]
    assert harness_commands(run, out, to="gguf") == []


def test_an_adapter_on_quantised_weights_elsewhere_has_no_command(tmp_path):
    write_json(tmp_path / "export.json", {"base": "owner/name", "quantised": True})
    assert harness_commands(tmp_path, tmp_path, to="adapter") == []


# The recipe


def loaded(folder: Path, tasks: str, more: str = ""):
    (folder / "tasks.txt").write_text("Name a river.\n")
    text = RECIPE.replace("TASKS", str(folder / "tasks.txt")).replace("TOLD", tasks + more)
    (folder / "one.yaml").write_text(text)
    return parts.load_recipe(folder / "one.yaml")


def test_a_list_of_names_is_enough_and_a_name_counts_once(tmp_path):
    assert loaded(tmp_path, "[arc_easy, ifeval, arc_easy]").compare.lm_eval == Benchmarks(tasks=["arc_easy", "ifeval"])


@pytest.mark.parametrize("name", ["../mine.yaml", "/etc/passwd", "mine.yaml", "a b", "mmlu_*", "-x", "a\\nb", ""])
def test_a_path_or_a_file_is_no_task(tmp_path, name):
    with pytest.raises(RecipeError, match="is no task's name; files and paths are not read"):
        loaded(tmp_path, f'["{name}"]')


def test_tasks_need_a_student_that_is_trained_here(tmp_path):
    with pytest.raises(RecipeError, match=r"compare\.lm_eval: is for a student that is trained here"):
        loaded(tmp_path, "[arc_easy]", ", answers: {student: " + str(tmp_path / "tasks.txt") + "}")


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="the harness is installed")
def test_without_the_harness_a_run_says_what_to_install_and_check_warns(tmp_path):
    recipe = loaded(tmp_path, "[arc_easy]")
    with pytest.raises(MissingPackage, match=f"type: {re.escape(install('lm-eval'))}$"):
        require_benchmarks(recipe)
    assert [line for line in lines(recipe) if "lm_eval" in line] == [
        f"warning: compare.lm_eval needs the package lm_eval; type: {install('lm-eval')}"
    ]


# With the harness itself


@pytest.fixture
def run(tmp_path) -> Path:
    save_student(save_tiny_model(tmp_path / "model", layers=4), tmp_path / "run" / "student")
    return tmp_path / "run"


@pytest.fixture
def harness(tmp_path):
    from distill.compare.lm_eval_tasks import Harness

    (tmp_path / "tasks").mkdir()
    return Harness(write_tasks(tmp_path / "tasks"))


@needs_harness
@harness_warnings
@pytest.mark.model
def test_base_and_student_do_each_task_once_even_after_a_kill(run, harness, capsys):
    from distill.compare.lm_eval import benchmarks

    options = Benchmarks(tasks=["ours", "order"], limit=8)
    found = benchmarks(run, options, seed=7, harness=harness)
    done = [f"lm-eval: {model} does {task}" for model in ("base", "student") for task in ("order", "said")]
    assert capsys.readouterr().err.splitlines() == done
    assert {entry["student_minus_base"].n for entry in found["entries"].values()} == {8}
    kept = run / "lm_eval" / "student.jsonl"
    whole = kept.read_text()
    kept.write_text(whole.splitlines()[0] + "\n" + whole.splitlines()[1][:40])  # killed in the second row
    assert benchmarks(run, options, seed=7, harness=harness) == found
    assert capsys.readouterr().err.splitlines() == done[3:]
    assert kept.read_text() == whole
    assert benchmarks(run, options, seed=7) == found  # no task is looked up any more


@needs_harness
@harness_warnings
@pytest.mark.model
def test_another_limit_or_another_student_runs_anew(run, harness, tmp_path, capsys):
    from distill.compare.lm_eval import benchmarks

    benchmarks(run, Benchmarks(tasks=["order"], limit=2), seed=7, harness=harness)
    benchmarks(run, Benchmarks(tasks=["order"], limit=3), seed=7, harness=harness)
    save_student(tmp_path / "model", run / "student", trained=False)
    benchmarks(run, Benchmarks(tasks=["order"], limit=3), seed=7, harness=harness)
    said = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert said == ["base", "student", "base", "student", "student"]


@needs_harness
@harness_warnings
def test_a_task_that_runs_code_is_refused(harness):
    with pytest.raises(RecipeError, match="runs_code runs code that the model writes, so it is refused"):
        harness.tasks("runs_code")


@needs_harness
@harness_warnings
def test_a_metric_whose_code_is_on_the_hub_is_not_fetched(harness, monkeypatch):
    import requests

    asked = []

    def request(self, method, url, **options):
        asked.append(url)
        raise requests.ConnectionError(url)

    monkeypatch.setattr(requests.Session, "request", request)
    with pytest.raises(RecipeError, match="fetches measures by accuracy, whose code is on the Hub and is not fetched"):
        harness.tasks("fetches")
    assert asked == []


@needs_harness
@harness_warnings
def test_a_task_that_needs_another_package_says_so(harness):
    with pytest.raises(
        MissingPackage, match="needs needs more than lm_eval: ModuleNotFoundError: No module named 'a_pac"
    ):
        harness.tasks("needs")


@needs_harness
@harness_warnings
def test_an_unknown_task_is_told_with_the_nearest(harness):
    with pytest.raises(RecipeError, match='unknown task "ordre"; did you mean "order"'):
        harness.require(["ordre"])


@needs_harness
@harness_warnings
def test_documents_that_are_not_there_are_one_line(harness, tmp_path):
    (tmp_path / "tasks" / "rows.jsonl").unlink()
    with pytest.raises(DistillError, match=r"compare\.lm_eval: order cannot be loaded: FileNotFoundError") as caught:
        harness.tasks("order")
    assert len(str(caught.value).splitlines()) == 1
