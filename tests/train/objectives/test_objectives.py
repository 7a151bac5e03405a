"""The shelf of objectives: an objective of one's own, trained as its page says."""

from __future__ import annotations

import re
import sys

import pytest
import yaml

from distill.errors import RecipeError
from distill.pipeline.parts import load_recipe
from tests.support import training
from tests.support.documents import ROOT

PAGE = ROOT / "distill" / "train" / "objectives" / "README.md"
RECIPE = {
    "name": "own",
    "sources": [{"path": "rows.jsonl", "from": "prompt_response"}],
    "student": {"model": "smollm2"},
    "train": {"objective": {"kind": "dft:Dft", "power": 2.0}},
}


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
    """A recipe whose objective is the page's, in a folder that has it."""
    (code,) = re.findall(r"<!-- file dft.py -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) < 30
    (tmp_path / "dft.py").write_text(code)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop("dft", None)


def test_an_objective_of_ones_own_is_imported_only_where_that_is_allowed(recipe_file):
    with pytest.raises(RecipeError, match="would run code of the package dft; add --allow-parts dft"):
        load_recipe(recipe_file)
    assert "dft" not in sys.modules
    recipe = load_recipe(recipe_file, allowed=["dft"])
    assert (recipe.train.objective.kind, recipe.train.objective.options.power) == ("dft:Dft", 2.0)
    with pytest.raises(RecipeError, match=r'unknown key "train\.objective\.pwer"; did you mean "power"\?'):
        load_recipe(recipe_file, allowed=["dft"], overrides={"train.objective.pwer": 1})


@pytest.mark.model
def test_the_pages_objective_weighs_each_token_by_its_probability(recipe_file, tiny, tmp_path):
    torch = pytest.importorskip("torch")
    from distill.train.stage import objective_of

    objective = objective_of(load_recipe(recipe_file, allowed=["dft"]), allowed=["dft"])
    nats, tokens = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([2, 1])
    expected = [float(sum(one * (-2 * one).exp() for one in part)) for part in (nats[:2], nats[2:])]
    assert objective.loss(nats, tokens, (0, 1)).tolist() == pytest.approx(expected)
    training.run(tmp_path / "a" / "student", tiny, options=training.options(epochs=0.5), objective=objective)
    training.run(tmp_path / "b" / "student", tiny, options=training.options(epochs=0.5))
    weighted, plain = (training.losses(tmp_path / name / "student")[0] for name in "ab")
    assert weighted < plain / 100
