"""The parts of the compare stage: what is asked of whom, what is counted, and what is said of it."""

from __future__ import annotations

from distill.metrics import Model

MODELS: tuple[Model, ...] = ("base", "student", "teacher", "teacher_again")
NAMES: dict[Model, str] = {
    "base": "the base",
    "student": "the student",
    "teacher": "the teacher",
    "teacher_again": "the teacher asked again",
}
