"""Parses Open Assistant's exported conversation trees into the path of best-ranked replies.

Guanaco (Dettmers et al., 2023) trained on the top-ranked reply at each level of OASST1. Both exports are read: one tree
per row (`prompt` with nested `replies`), and one message per row (`parent_id`), as on the Hub.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from distill.formats.json_rows import RejectedRow, Rows
from distill.formats.parsed_row import ParsedRow, messages_of
from distill.formats.turns import MalformedRow, Turn, is_blank, regular, role_of

READY = ("ready_for_export", "prompt_lottery_waiting", None)
"""States of a tree that was not abandoned."""
UNRANKED = 1 << 30
READ = frozenset(
    [
        "prompt",
        "replies",
        "message_id",
        "message_tree_id",
        "parent_id",
        "tree_state",
        "lang",
        "role",
        "text",
        "rank",
        "deleted",
    ]
)
"""Columns of a message or a tree that are used."""


def threads(rows: Rows) -> Iterator[ParsedRow | RejectedRow]:
    """The best path of every tree. One tree per row is read as a stream; single messages are collected first."""
    flat: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for row in rows:
        if isinstance(row, RejectedRow):
            yield row
        elif isinstance(row.value.get("prompt"), Mapping):
            yield _thread(row.line, row.value["prompt"], _nested, row.value)
        elif isinstance(id := row.value.get("message_id"), str):
            if id in flat:
                yield RejectedRow(row.line, "same_id", f"line {flat[id][0]} has the same message_id")
            flat.setdefault(id, (row.line, row.value))
        else:
            yield RejectedRow(row.line, "unknown_shape", "found neither `prompt` nor `message_id`")
    yield from _gathered(flat)


def _gathered(flat: Mapping[str, tuple[int, Mapping[str, Any]]]) -> Iterator[ParsedRow | RejectedRow]:
    replies: dict[Any, list[Mapping[str, Any]]] = {}
    for _, message in flat.values():
        parent = message.get("parent_id")
        replies.setdefault(parent if parent is None else str(parent), []).append(message)

    def below(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return replies.get(message["message_id"], [])

    waiting = [*replies.get(None, [])]
    for message in waiting:
        waiting += below(message)
    in_trees = {message["message_id"] for message in waiting}
    for id, (line, message) in flat.items():
        parent = str(message.get("parent_id"))
        if message.get("parent_id") is None:
            yield _thread(line, message, below, message)
        elif parent not in flat:
            yield RejectedRow(line, "no_parent", f"its parent {parent[:60]} is not in the file")
        elif id not in in_trees:
            yield RejectedRow(line, "no_root", f"its parent {parent[:60]} does not lead to a first message")


def _nested(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    replies = message.get("replies")
    return [reply for reply in replies if isinstance(reply, Mapping)] if isinstance(replies, list) else []


def _thread(line: int, root: Mapping[str, Any], below: Any, tree: Mapping[str, Any]) -> ParsedRow | RejectedRow:
    state = tree.get("tree_state")
    if state not in READY:
        return RejectedRow(line, "tree_state", f"the tree is marked {str(state)[:40]}")
    try:
        messages, repairs = regular(_path(root, below))
    except MalformedRow as fault:
        return RejectedRow(line, fault.reason, str(fault))
    meta = {"language": root["lang"]} if isinstance(root.get("lang"), str) else {}
    id = next((value for name in ("message_tree_id", "message_id") if isinstance(value := tree.get(name), str)), None)
    parts = messages_of(messages)
    return ParsedRow(
        line=line,
        messages=parts,
        instruction=parts[0].content,
        id=id,
        meta=meta,
        repairs=tuple(dict.fromkeys(repairs)),
        ignored=tuple(str(key) for key, value in tree.items() if key not in READ and not is_blank(value)),
    )


def _path(root: Mapping[str, Any], below: Any) -> list[Turn]:
    """From the root down, the best-ranked reply each time; deleted ones do not count, ties go to the first."""
    path = []
    level = [root]
    while messages := [message for message in level if not message.get("deleted")]:
        best = min(messages, key=_rank)
        role, text = role_of(best.get("role")), best.get("text")
        if role is None or not isinstance(text, str):
            raise MalformedRow("bad_turn", "a message without a role or a text")
        path.append(Turn(role, text))
        level = below(best)
    return path


def _rank(message: Mapping[str, Any]) -> int:
    rank = message.get("rank")
    return int(rank) if isinstance(rank, (int, float)) and isfinite(rank) else UNRANKED
