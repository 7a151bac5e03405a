"""Merges a stream that answers a plain request into the response that it amounts to.

Some gateways and local servers stream whatever was asked: as server-sent events (SSE), as a JSON object per line
(NDJSON, Ollama's own API), or as a list of chunks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from distill.core.surrogates import mended
from distill.engine.providers import ProviderError
from distill.text.chat_replies import BESIDE, choice_of, reason_in, turn_of

_PIECES = ("content", "text", "refusal", *BESIDE)
"""Fields of a message that come in pieces."""
_OF_CHOICES = ("choices", "candidates", "message", "delta")


def merged(body: Any) -> dict[str, Any] | None:
    """The response that a stream amounts to; `None` for what is no stream.

    `body` is a text that is no JSON, or a list. Raises a transient `ProviderError` for a stream that breaks off.
    """
    chunks = _chunks(body)
    if not chunks:
        return None
    whole: dict[str, Any] = {}
    turn: dict[str, Any] = {}
    pieces: dict[str, list[Any]] = {}
    reason: Any = None
    for chunk in chunks:
        whole |= {name: value for name, value in chunk.items() if name not in _OF_CHOICES and value is not None}
        choice = choice_of(chunk)
        if choice is not None and choice.get("index", 0) == 0:
            _add(turn, pieces, turn_of(choice))
            reason = reason_in(chunk) or reason
            whole |= {"error": choice["error"]} if choice.get("error") else {}
    turn |= {name: _joined(values) for name, values in pieces.items()}
    is_over = reason is not None or whole.get("done") is True or any(chunk is _DONE for chunk in chunks)
    if not ((is_over and turn) or whole.get("error")):
        raise ProviderError("malformed", "the response is a stream that breaks off", transient=True)
    reply: dict[str, Any] = mended({**whole, "choices": [{"index": 0, "message": turn, "finish_reason": reason}]})
    return reply


_DONE: Mapping[str, Any] = {}
"""Stands for the last event, `[DONE]`."""


def _chunks(body: Any) -> list[Mapping[str, Any]] | None:
    """The chunks of a stream; `None` where there is anything else."""
    if isinstance(body, list):
        return body if all(isinstance(chunk, dict) for chunk in body) else None
    if not isinstance(body, str):
        return None
    lines = re.split(r"\r?\n|\r", body.strip())
    try:
        if any(line.startswith("data:") for line in lines):
            return [_DONE if event == "[DONE]" else _object(event) for event in _events(lines)]
        return [_object(line) for line in lines if line.strip()]
    except ValueError:
        return None


def _events(lines: list[str]) -> list[str]:
    """The data of each event (HTML standard, section 9.2.6); comments and other fields are left out."""
    events: list[list[str]] = [[]]
    for line in lines:
        if line.startswith("data:"):
            events[-1].append(line.removeprefix("data:").strip())
        elif not line:
            events.append([])
    return [event for data in events if (event := "\n".join(data).strip())]


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _add(turn: dict[str, Any], pieces: dict[str, list[Any]], piece: Any) -> None:
    """Add a chunk's piece of the message: to `pieces` what comes in pieces, to `turn` the rest."""
    for name, value in (piece if isinstance(piece, Mapping) else {"content": piece}).items():
        if name not in _PIECES:
            turn[name] = value
        elif value is not None:
            pieces.setdefault(name, []).append(value)


def _joined(values: list[Any]) -> Any:
    """Texts as one; texts and lists of parts as one list."""
    if all(isinstance(value, str) for value in values):
        return "".join(values)
    return [part for value in values for part in (value if isinstance(value, list) else [value]) if part != ""]
