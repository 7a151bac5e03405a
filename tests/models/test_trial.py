"""What a model cannot do is an outcome of a trial; what this package does wrong is raised."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.model


def ours(statement: str) -> Callable[[], None]:
    """A function of this package that runs one statement."""
    scope = {"__name__": "distill.models.mine", "torch": torch}
    exec(f"def function():\n    {statement}", scope)
    return scope["function"]


MISTAKES = {
    AttributeError: "torch.ones(1).no_such_name",
    TypeError: "(lambda one: one)()",
    KeyError: "{}['absent']",
    ValueError: "list(zip([1], [], strict=True))",
    torch.OutOfMemoryError: "raise torch.OutOfMemoryError('full')",
}
OF_A_MODEL = {
    "an operator's shapes": "torch.ones(2, 3) @ torch.ones(2, 3)",
    "an id beyond the embeddings": "torch.nn.Embedding(2, 2)(torch.tensor([5]))",
    "an option that a forward does not have": "torch.nn.Linear(2, 2)(torch.ones(2), position_ids=None)",
    "a module that is missing in a family": "torch.nn.Linear(2, 2).gate_proj",
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_of_this_package_is_raised(kind):
    from distill.models.trial import attempt

    with pytest.raises(kind):
        attempt(ours(MISTAKES[kind]))


@pytest.mark.parametrize("name", OF_A_MODEL)
def test_what_a_model_cannot_do_is_none(name):
    from distill.models.trial import attempt

    assert attempt(ours(OF_A_MODEL[name])) is None
