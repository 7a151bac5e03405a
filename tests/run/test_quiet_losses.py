"""What a run loses without an error is said at the end of its stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.engine.mock_server import MockServer
from distill.pipeline.runner import run_recipe

RECIPE = """\
name: quiet
teacher: {{model: any, base_url: {url}, terms: ours, sampling: {{max_tokens: 16}}}}
collect: {{tasks: tasks.txt, test: 0}}
curate: [{{filter: empty}}]
"""


def test_answers_that_were_cut_are_counted_with_the_remedies(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tasks.txt").write_text("".join(f"Say the number {one}.\n" for one in range(8)))
    with MockServer(finish="length") as server:
        (tmp_path / "recipe.yaml").write_text(RECIPE.format(url=server.url))
        run_recipe(tmp_path / "recipe.yaml", run_dir=tmp_path / "run", stages=["collect", "curate"])
    told = capfd.readouterr().err
    assert "warning: collect: 8 of 8 answers (100%) were cut at 16 tokens; raise teacher.sampling.max_tokens" in told
    assert "warning: curate: 8 of 8 kept rows (100%) end in an answer that was cut" in told


@pytest.mark.parametrize(("words", "advised"), [(12, False), (30, True)])
def test_a_long_frame_of_all_prompts_is_better_said_in_the_system_turn(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: int, advised: bool
) -> None:
    frame = " ".join(f"rule{number}" for number in range(words))
    parts = [
        f"the {a} of the {b}" for a in ("chain", "wheel", "saddle", "brake", "bell") for b in ("red", "old", "new")
    ]
    rows = [json.dumps({"prompt": f"{frame} {part}", "answer": f"Mend {part}."}) for part in parts]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "recipe.yaml").write_text(
        "name: framed\nsources: [{path: rows.jsonl, from: prompt_response}]\ntest: 2\ncurate: [{filter: empty}]\n"
    )
    run_recipe(tmp_path / "recipe.yaml", run_dir=tmp_path / "run", stages=["collect", "curate"])
    told = capfd.readouterr().err
    assert "15 prompts share" in told
    assert ("curate: 15 prompts say at least 20 words alike: move these to the system turn" in told) == advised
