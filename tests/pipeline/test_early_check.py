"""A model that cannot be trained is found before a teacher is asked."""

from __future__ import annotations

import pytest

from distill.engine.mock_server import MockServer
from distill.errors import DistillError
from tests.support.models.archs import save_arch

pytest.importorskip("torch")
pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")]

RECIPE = """\
name: early
teacher: {{model: any, base_url: {url}, terms: ours, sampling: {{max_tokens: 16}}}}
collect: {{tasks: tasks.txt, test: 2}}
curate: [{{filter: length, min_words: 99}}]
student: {{model: {model}, template: chatml}}
train: {{method: {method}, epochs: 1, batch_rows: 64, lora: {{r: 2}}}}
"""
"""Of which training never begins, for want of rows."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Of a family whose weights bitsandbytes does not quantise."""
    return save_arch("falcon", tmp_path_factory.mktemp("falcon") / "model", num_hidden_layers=1)


WHOLE, WITHOUT_CURATE = ["collect", "curate", "train"], ["collect", "train"]
ASKED = {
    "qlora": [(WHOLE, 0, "none of the weights of a falcon model can be held in 4 bits")],
    "lora": [(WHOLE, 1, "nothing is left to train on"), (WITHOUT_CURATE, 0, "needs a finished `curate`")],
}
"""By method, commands one after another: stages, how often the self-check says its line, and how the command ends."""


@pytest.mark.parametrize("method", ASKED)
def test_a_teacher_is_asked_only_once_the_students_model_has_passed(model, method, tmp_path, capfd):
    from distill.pipeline.runner import run_recipe

    (tmp_path / "tasks.txt").write_text("".join(f"Say the number {one}.\n" for one in range(8)))
    recipe = tmp_path / "recipe.yaml"
    with MockServer() as server:
        recipe.write_text(RECIPE.format(url=server.url, model=model, method=method))
        for stages, count, error in ASKED[method]:
            with pytest.raises(DistillError, match=error):
                run_recipe(recipe, run_dir=tmp_path / "run", stages=stages)
            told = capfd.readouterr().err.splitlines()
            assert len([line for line in told if line.startswith("self-check on rows made of seeds: ")]) == count
        assert (server.count > 0) == (method == "lora")


PAID = {"teacher.serve": None, "teacher.base_url": "https://api.example.com/v1"}


@pytest.mark.parametrize(("changes", "costs"), [({}, False), (PAID, True), ({"student.model": "owner/name"}, True)])
def test_the_embedded_model_is_not_tried_twice_where_its_teacher_is_served_here(changes, costs):
    from distill.api import load_recipe
    from distill.pipeline.early_check import _costs_nothing_to_fail

    assert _costs_nothing_to_fail(load_recipe("quickstart", overrides=changes)) is not costs
