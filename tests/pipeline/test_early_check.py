"""A model that cannot be trained is found before a teacher is asked."""

from __future__ import annotations

import pytest

from distill.engine.mock_server import MockServer
from distill.errors import ModelError
from tests.support.models.archs import save_arch

pytest.importorskip("torch")
pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")]

RECIPE = """\
name: early
teacher: {{model: any, base_url: {url}, terms: ours, sampling: {{max_tokens: 16}}}}
collect: {{tasks: tasks.txt, test: 2}}
curate: [{{filter: empty}}]
student: {{model: {model}, template: chatml}}
train: {{method: {method}, epochs: 1, batch_rows: 64, lora: {{r: 2}}}}
"""


@pytest.mark.parametrize(("method", "asked"), [("qlora", False), ("lora", True)])
def test_a_teacher_is_asked_only_once_the_students_model_has_passed(method, asked, tmp_path, capfd):
    from distill.pipeline.runner import run_recipe

    model = save_arch("falcon", tmp_path / "model")
    (tmp_path / "tasks.txt").write_text("".join(f"Say the number {one}.\n" for one in range(8)))
    with MockServer() as server:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(url=server.url, model=model, method=method))
        if asked:
            run_recipe(recipe, run_dir=tmp_path / "run", stages=["collect", "curate", "train"])
            told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("self-check")]
            assert [line.partition(":")[0] for line in told] == ["self-check on rows made of seeds", "self-check"]
            run_recipe(recipe, run_dir=tmp_path / "run", stages=["collect", "curate", "train"])
            assert "self-check" not in capfd.readouterr().err
        else:
            with pytest.raises(ModelError, match="none of the weights of a falcon model can be held in 4 bits"):
                run_recipe(recipe, run_dir=tmp_path / "run", stages=["collect", "curate", "train"])
        assert (server.count > 0) == asked
