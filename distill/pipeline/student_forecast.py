"""Forecasts of the student, without loading it: memory of its training, and the forms in which it can be exported."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from distill.core.embedded import EMBEDDED
from distill.core.model_files import local_folder
from distill.errors import RecipeError
from distill.models.gguf.support import obstacle
from distill.models.tokenizer_identity import FromFile, difference, tokenizer_file
from distill.recipe import Recipe, Student, Teacher
from distill.train.memory import SMOLLM2, Shape, estimate, shape_in, usual_pass
from distill.train.objectives.on_policy import OnPolicyOptions, another_tokenizer
from distill.train.stage import settings_of

DEVICES: tuple[Literal["cpu", "cuda"], ...] = ("cuda", "cpu")


def training_lines(recipe: Recipe) -> list[str]:
    """Method, memory and exports; empty without `train`.

    Raises `RecipeError` for more layers than the model has, and for a tokenizer that the objective cannot learn from.
    """
    if recipe.student is None or recipe.train is None:
        return []
    settings_of(recipe).require_start()
    layers = recipe.student.prune.layers if recipe.student.prune is not None else None
    writable = [*_rollouts_line(recipe), exports(recipe.student, recipe.train.options.method)]
    if recipe.student.continues is not None:
        writable.insert(0, f"train: continues the student of {recipe.student.continues}, on the same base")
    shape = _shape(recipe.student.model, layers)
    if shape is None:
        is_here = local_folder(recipe.student.model) is not None
        why = "does not say its sizes by names that are known here" if is_here else "is not on this machine"
        return [f"train: memory unknown, the student's config.json {why}", *writable]
    require_layers(recipe.student.model, layers)
    options = recipe.train.options
    gpu, cpu = (usual_pass(options, device, shape.layers) for device in DEVICES)
    return [
        f"train: {options.method} at a learning rate of {options.learning_rate:g} takes about "
        f"{estimate(shape, options, gpu).total / 1e9:.1f} GB on a GPU (passes of {gpu.tokens:,} tokens), "
        f"{estimate(shape, options, cpu).total / 1e9:.1f} GB on a CPU (of {cpu.tokens:,}); "
        "`distill train --plan` measures it",
        *_experts_line(shape, options.method),
        *writable,
    ]


def require_layers(model: str, layers: int | None) -> None:
    """Raise `RecipeError` where more layers are to be kept than the model's config.json has."""
    whole = _shape(model, None)
    if layers is not None and whole is not None and layers > whole.layers:
        raise RecipeError(f"student.prune.layers: {layers} cannot be kept, {model} has {whole.layers}")


def _experts_line(shape: Shape, method: str) -> list[str]:
    if not shape.experts or method == "full":
        return []
    share = shape.expert_weights() / (shape.expert_weights() + shape.linear_weights() + shape.other_weights())
    return [
        f"train: {shape.experts} experts a layer hold {share:.0%} of the weights; they stay in 16 bits (32 on a CPU), "
        "and adapters do not reach them"
    ]


def _rollouts_line(recipe: Recipe) -> list[str]:
    assert recipe.train is not None
    options = recipe.train.objective.options
    if not isinstance(options, OnPolicyOptions):
        return []
    longest = f"{options.max_tokens} tokens" if options.max_tokens is not None else "the teacher's longest answer"
    (teacher,) = (one for one in recipe.teachers if one.serve is not None)
    _require_one_tokenizer(teacher, recipe.student)
    return [
        f"train: on_policy holds {teacher.display_name} beside the student, which answers every prompt once per epoch, "
        f"with at most {longest}; on the demo's models a step takes three to six times that of sft"
    ]


def _require_one_tokenizer(teacher: Teacher, student: Student | None) -> None:
    """Raise `RecipeError` where files on this machine say that their tokenizers differ."""
    assert student is not None
    theirs, ours = tokenizer_file(teacher.model), tokenizer_file(student.model)
    if theirs is None or ours is None or theirs == ours:
        return
    if found := difference(FromFile(theirs), FromFile(ours)):
        raise RecipeError(another_tokenizer(teacher.display_name, found))


def exports(student: Student, method: str) -> str:
    """The forms in which `distill export` can write the student."""
    whole = "merged" if method == "full" else "adapter, merged"
    is_embedded = student.model in EMBEDDED
    folder = None if is_embedded else local_folder(student.model)
    if folder is None and not is_embedded:
        return (
            f"exports: {whole}; gguf and ollama depend on the student's model, which is no folder on this machine; "
            "a run looks for it before it asks the teacher"
        )
    reason = obstacle(folder) if folder is not None else None
    if reason is not None:
        return f"exports: {whole}; {reason}"
    ollama = "ollama (if its own template puts fixed texts around messages)" if student.template == "own" else "ollama"
    return f"exports: {whole}, gguf, {ollama}"


def _shape(model: str, layers: int | None) -> Shape | None:
    if model in EMBEDDED:
        return replace(SMOLLM2, layers=layers or SMOLLM2.layers)
    folder = local_folder(model)
    return shape_in(folder, layers=layers) if folder is not None else None
