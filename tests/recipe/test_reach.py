"""What a recipe sends, reads and runs: hosts with their variables, files outside its folder, parts of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distill.core import assets
from distill.pipeline.parts import load_recipe
from distill.recipe import Reach, reach_of

KEYED = {
    "model": "m",
    "base_url": "https://api.example.com:8443/v1?key=$GATEWAY_KEY",
    "api_key_env": "OPENAI_API_KEY",
    "headers_env": {"X-Team": "TEAM_TOKEN"},
    "terms": "ours",
}
JUDGE = {"model": "j", "base_url": "http://127.0.0.1:9/v1", "terms": "ours"}


def reach(folder: Path, **sections: Any) -> Reach:
    (folder / "tasks.txt").write_text("Name three rivers.\n")
    document = {"name": "x", "teacher": KEYED, "collect": {"tasks": "tasks.txt", "test": 0}, **sections}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(document))
    return reach_of(load_recipe(path, importing=False), folder)


def test_each_host_is_named_with_the_variables_it_is_sent(tmp_path):
    result = reach(tmp_path, judge=JUDGE)
    assert result.hosts == {
        "api.example.com:8443": ("OPENAI_API_KEY", "TEAM_TOKEN", "GATEWAY_KEY"),
        "127.0.0.1:9": (),
    }
    assert result.files == result.parts == ()
    assert result.lines() == [
        "sends to api.example.com:8443, with $OPENAI_API_KEY, $TEAM_TOKEN, $GATEWAY_KEY",
        "sends to 127.0.0.1:9",
    ]


def test_a_variable_in_the_body_of_a_judges_sampling_goes_to_the_judge(tmp_path):
    sampling = {"extra_body": {"password": "$JUDGE_PASSWORD"}}
    collect = {"strategy": "best_of", "tasks": "tasks.txt", "test": 0, "judge_sampling": sampling}
    result = reach(tmp_path, judge=JUDGE, collect=collect)
    assert result.hosts["127.0.0.1:9"] == ("JUDGE_PASSWORD",)
    assert "JUDGE_PASSWORD" not in result.hosts["api.example.com:8443"]


def test_a_variable_in_the_body_of_expands_sampling_goes_to_the_teacher(tmp_path):
    expand = {"seeds": "seeds/general.jsonl", "tasks": 9, "sampling": {"extra_body": {"token": "$BODY_TOKEN"}}}
    result = reach(tmp_path, expand=expand)
    assert "BODY_TOKEN" in result.hosts["api.example.com:8443"]


def test_a_name_that_may_be_a_secret_is_not_shown(tmp_path):
    result = reach(tmp_path, teacher={**KEYED, "api_key_env": "sk_live_9f8e7d6c5b4a"})
    assert "sk_live" not in "\n".join(result.lines())


def test_files_outside_the_folder_are_named_also_behind_links_and_dots(tmp_path):
    folder, elsewhere = tmp_path / "recipe", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    for name in ("linked.txt", "dotted.txt"):
        (elsewhere / name).write_text("Name a bird.\n")
    (folder / "inside.txt").symlink_to(elsewhere / "linked.txt")
    rules = [{"filter": "contamination", "files": ["inside.txt", "../elsewhere/dotted.txt", "seeds/general.jsonl"]}]
    result = reach(folder, curate=rules)
    assert result.files == (str(elsewhere / "dotted.txt"), str(elsewhere / "linked.txt"))
    assert result.lines()[-1] == f"reads {elsewhere / 'linked.txt'}, outside the recipe's folder"


def test_a_local_model_outside_the_folder_is_a_file_and_one_of_the_hub_a_host(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "recipe").mkdir()
    local = reach(tmp_path / "recipe", student={"model": "../model"}, train={"method": "lora", "epochs": 1})
    assert str(model) in local.files
    hub = reach(tmp_path / "recipe", student={"model": "owner/name"}, train={"report_to": ["wandb"]})
    assert hub.hosts["huggingface.co"] == ("HF_TOKEN",)
    assert hub.hosts["api.wandb.ai"] == ("WANDB_API_KEY",)


def test_dotted_paths_are_named_and_not_imported(tmp_path):
    result = reach(tmp_path, curate=[{"filter": "mine.rules:Rule"}])
    assert result.parts == ("mine.rules:Rule",)
    assert result.lines()[-1] == "runs mine.rules:Rule, which is not part of distill"


def test_the_shipped_recipes_read_nothing_outside():
    recipes = sorted(path for path in assets.find("recipes").rglob("*.yaml") if path.parent.name != "accelerate")
    assert len(recipes) >= 1
    for path in recipes:
        assert reach_of(load_recipe(path), path.parent).files == ()
