"""Trees of OpenAssistant: the best ranked path of either export."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from distill.formats import oasst_trees
from distill.formats.json_rows import ForeignRow
from distill.formats.parsed_row import ParsedRow
from tests.support.importing import JSON, read, said, written

# What rows say


PARTS = st.sampled_from(("message_id", "parent_id", "text", "role", "rank", "prompt", "replies", "deleted", "lang"))


@given(st.lists(st.dictionaries(PARTS, JSON | st.floats() | st.sampled_from(("a", "b", "prompter", "assistant")))))
def test_any_tree_is_read_or_rejected(rows):
    for found in oasst_trees.threads(iter([ForeignRow(line, row) for line, row in enumerate(rows, start=1)])):
        assert found.messages if isinstance(found, ParsedRow) else found.reason


# Trees


def reply(text: str, role: str, *replies: dict[str, Any], rank: int | None = None, **more: Any) -> dict[str, Any]:
    return {"message_id": text, "text": text, "role": role, "rank": rank, "replies": list(replies), **more}


def tree(**more: Any) -> dict[str, Any]:
    best = reply("good", "assistant", reply("and?", "prompter", reply("so.", "assistant")), rank=0)
    gone = reply("gone", "assistant", rank=-1, deleted=True)
    prompt = reply("q", "prompter", reply("bad", "assistant", rank=1), gone, best)
    return {"message_tree_id": "q", "tree_state": "ready_for_export", "prompt": prompt, **more}


def flat(message: dict[str, Any], parent: str | None = None) -> list[dict[str, Any]]:
    own = {key: value for key, value in message.items() if key != "replies"}
    below = [row for child in message["replies"] for row in flat(child, message["message_id"])]
    return [{**own, "parent_id": parent, "message_tree_id": "q"}, *below]


def test_the_best_ranked_path_of_a_tree_is_taken_from_either_export(tmp_path):
    expected = ["u: q", "a: good", "u: and?", "a: so."]
    [nested] = read("oasst", written(tmp_path / "trees.jsonl", [tree()]))
    [gathered] = read("oasst", written(tmp_path / "messages.jsonl", flat(tree()["prompt"])))
    assert said(nested) == said(gathered) == expected


def test_trees_that_were_given_up_and_orphans_are_rejected(tmp_path):
    rows = [tree(tree_state="aborted_low_grade"), {**flat(tree()["prompt"])[1], "parent_id": "nowhere"}]
    found = read("oasst", written(tmp_path / "trees.jsonl", rows))
    assert [one.reason for one in found] == ["tree_state", "no_parent"]


def test_a_tree_as_deep_as_it_likes_is_read(tmp_path):
    rows = [
        {"message_id": str(n), "parent_id": str(n - 1) if n else None, "text": f"t{n}",
         "role": ("prompter", "assistant")[n % 2], "message_tree_id": "0"} for n in range(3_000)
    ]  # fmt: skip
    [found] = read("oasst", written(tmp_path / "deep.jsonl", rows))
    assert len(found.messages) == 3_000
