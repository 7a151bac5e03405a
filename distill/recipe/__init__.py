"""The recipe: one YAML file that describes one run, validated whole before anything happens.

Sections that belong to interchangeable parts (a strategy, a filter, a metric, a training method) are validated by the
part's own options; callers pass them in as `Parts`, so that this package knows no part.
"""

from __future__ import annotations

from distill.recipe.checks import CheckOptions
from distill.recipe.comparison import Benchmarks, Compare, Judging, Metric
from distill.recipe.loading import load, load_recorded
from distill.recipe.reach import Reach, reach_of
from distill.recipe.recipe import Recipe
from distill.recipe.sections import (
    Asks,
    BaseOptions,
    Collect,
    Expand,
    HeldOut,
    Objective,
    OneOrMore,
    PartSection,
    Price,
    Prune,
    Rule,
    SamplingOptions,
    Source,
    Student,
    Teacher,
    Train,
)
from distill.recipe.validation import Parts

__all__ = [
    "Asks",
    "BaseOptions",
    "Benchmarks",
    "CheckOptions",
    "Collect",
    "Compare",
    "Expand",
    "HeldOut",
    "Judging",
    "Metric",
    "Objective",
    "OneOrMore",
    "PartSection",
    "Parts",
    "Price",
    "Prune",
    "Reach",
    "Recipe",
    "Rule",
    "SamplingOptions",
    "Source",
    "Student",
    "Teacher",
    "Train",
    "load",
    "load_recorded",
    "reach_of",
]

Options = BaseOptions
"""Its former name, for parts written before."""
