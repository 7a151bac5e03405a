"""Errors as a command prints them."""

from __future__ import annotations

import pytest

from distill.errors import ModelError


def one_line(error: pytest.ExceptionInfo[ModelError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message
