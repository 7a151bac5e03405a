"""A card says where its student is from, shows what others wrote and does nothing with it, and follows the run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from distill.core.hashing import tree_sha256
from distill.run import dataset_card, model_card, students
from distill.run.cards import fence
from distill.run.record import read_record
from tests.support.run_folder import HOSTILE, change, poison, write_run

SECTIONS = (
    "Use", "Result", "Training", "Data", "Sources and terms", "Filters", "Cost", "Versions", "Recipe", "Limits"
)  # fmt: skip


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "run")


def head_and_text(card: str) -> tuple[dict[str, Any], str]:
    _, head, text = card.split("---\n", 2)
    return yaml.safe_load(head), text


def receipt(**changes: Any) -> dict[str, Any]:
    return {
        "dtype": "float16",
        "end_tokens": ["<|im_end|>"],
        "student": "ab" * 32,
        "base": None,
        "quantised": True,
        "compared": {
            "on": "held-out rows",
            "rows": 6,
            "tokens": 1116,
            "mean_kl_nats": 1.2e-6,
            "max_kl_nats": 1.6e-5,
            "top1_agreement": 1.0,
            "limits": {"mean_kl_nats": 1e-4, "top1_agreement": 0.995},
        },
        "train_serve": {"dialogues": 18, "differences": []},
        **changes,
    }


def test_a_card_has_the_whole_provenance(run):
    head, text = head_and_text(model_card.card(run))
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == list(SECTIONS)
    assert (head["library_name"], head["base_model"]) == ("peft", "HuggingFaceTB/SmolLM2-135M-Instruct")
    for part in (
        "Teacher: smollm2 (smollm2). Terms, as the makers of this data state them: Apache-2.0.",
        "of which 24 layers were kept",
        "Seeds: general.jsonl",
        "by the strategy self\\_instruct",
        "| kept, trained on | 103 | — |",
        "| length | min\\_words: 3 | 12 |",
        "| collect | 160 | 6,400 | 14,190 | — |",
        "- lora.alpha: 32",
        "| conversations | 103 |",
        "The student closed 66% of the gap to its teacher",
        "66% (59% to 72%)",
        "torch 2.13.0",
        "strategy: self_instruct",
        "4 bits (NF4",
    ):
        assert part in text


def test_hashes_and_usd_are_on_the_card(run):
    def priced(record: dict[str, Any]) -> dict[str, Any]:
        record["stages"]["collect"]["usd"] = 1.25
        record["stages"]["curate"]["outputs"] = {"kept.jsonl": "cd" * 32}
        return record

    change(run / "run.json", priced)
    text = model_card.card(run)
    assert "| kept, trained on | 103 | " + "cd" * 32 in text
    assert "| 14,190 | 1.2500 |" in text


def test_after_training_the_card_waits_for_the_comparison(run):
    made = students.account(run, read_record(run), {"counts": {"rows": 7, "steps": 3}})
    fresh = model_card.card(run, training=made)
    assert "Not compared with its base and its teacher yet." in fresh
    assert "| conversations | 7 |" in fresh
    (run / "scores.json").unlink()
    assert "Not compared" in model_card.card(run)


def test_tasks_that_base_and_student_did_are_on_the_card(run):
    task = {
        "title": "arc_easy: acc",
        "unit": "mean over documents",
        "by": {"base": {"mean": 0.5}, "student": {"mean": 0.25}},
    }
    change(run / "scores.json", lambda scores: {**scores, "lm_eval": {"entries": {"arc_easy acc,none": task}}})
    assert "| arc\\_easy: acc (mean over documents) | 0.500 | 0.250 | — | — | — |" in model_card.card(run)


def test_a_comparison_of_another_student_is_not_on_the_card(run):
    assert "66%" in model_card.card(run)
    (run / "student/train_log.jsonl").write_text('{"step": 1}\n')
    assert "66%" not in model_card.card(run)


def test_addresses_and_folders_stay_here(run):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["teacher"] |= {"base_url": "http://10.0.0.7:8000/v1", "api_key_env": "SECRET_NAME"}
    recipe["expand"]["seeds"] = "/home/somebody/seeds.jsonl"
    recipe["files"] = {"/home/somebody/seeds.jsonl": "ef" * 32}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    text = model_card.card(run)
    assert "somebody" not in text
    assert "10.0.0.7" not in text
    assert "SECRET_NAME" not in text
    assert f"Seeds: seeds.jsonl, SHA-256 {'ef' * 32}" in text


def test_no_path_of_this_machine_is_on_a_card(run):
    private = "/home/alice/secret project"
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["teacher"]["model"] = f"{private}/teacher"
    recipe["collect"] |= {"tasks": f"{private}/tasks.jsonl", "system": "/no_think"}
    recipe["curate"] = [{"filter": "contamination", "files": [f"{private}/bench.jsonl"], "min_words": 3}]
    recipe["files"] = {f"{private}/bench.jsonl": "ab" * 32}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    change(run / "run.json", lambda record: {**record, "teacher": {**record["teacher"], "model": f"{private}/teacher"}})
    for text in (model_card.card(run), dataset_card.card(run, {"train": "data/x.parquet"}, {"train": 1})):
        assert "alice" not in text
        assert "secret" not in text
        assert "| contamination | files: \\['bench.jsonl'\\], min\\_words: 3 |" in text
    assert "under the system message: /no" in model_card.card(run)
    change(run / "student/base.json", lambda base: {**base, "model": f"{private}/base.gguf"})
    assert "alice" not in model_card.card(run)


def test_the_card_of_an_export_has_its_receipt_and_how_it_is_used(run):
    _, text = head_and_text(model_card.card(run, form="merged", receipt=receipt()))
    assert "| KL to the trained student | 1.2e-06 nats per token, at most 1.6e-05 |" in text
    assert "| compared on | 1,116 answer tokens of 6 held-out rows |" in text
    assert 'AutoModelForCausalLM.from_pretrained("FOLDER")' in text
    assert "ollama create" in model_card.card(run, form="ollama", receipt=receipt())


def test_an_adapter_of_a_base_on_the_hub_is_loaded_as_it_was_trained(run):
    text = model_card.card(run, form="adapter", receipt=receipt(base="owner/base"))
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    compile(code, "card", "exec")
    assert 'from_pretrained("owner/base", quantization_config=settings)' in code
    assert 'bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True' in code
    whole = model_card.card(run, form="adapter", receipt=receipt(base="owner/base", quantised=False))
    assert 'AutoModelForCausalLM.from_pretrained("owner/base")' in whole


def test_the_code_asks_under_the_system_message_of_training(run):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    hostile = '"}]\n```\n# <script>'
    recipe["collect"]["system"] = hostile
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    text = model_card.card(run, form="merged", receipt=receipt())
    code = re.findall(r"^(`{3,})python\n(.*?)^\1$", text, re.DOTALL | re.MULTILINE)[0][1]
    compile(code, "card", "exec")
    (line,) = [line for line in code.splitlines() if line.startswith("messages = ")]
    assert json.loads(line.removeprefix("messages = "))[0] == {"role": "system", "content": hostile}


@pytest.mark.parametrize("payload", HOSTILE)
def test_a_card_shows_what_others_wrote_and_does_nothing_with_it(run, payload):
    poison(run, payload)
    (run / "recipe.yaml").write_text(
        yaml.safe_dump(
            {"name": payload, "collect": {"strategy": payload, "system": payload}, "train": {payload: payload}}
        )
    )
    head, body = head_and_text(model_card.card(run, form="merged", receipt=receipt()))
    assert head["license"] == "other"
    outside = re.sub(r"^(`{3,})\w+\n.*?^\1$", "", body, flags=re.DOTALL | re.MULTILINE)
    assert not [line for line in outside.replace("\\<", "").splitlines() if "<" in line]
    assert not {"\u202e", "\x00", "\x1b"} & set(body)


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("`\n\r"), max_size=60))
def test_no_text_ends_the_block_of_code_that_it_stands_in(text):
    block = fence(text, "yaml")
    mark = block.splitlines()[0].removesuffix("yaml")
    assert [line for line in block.splitlines() if line.startswith(mark)] == [f"{mark}yaml", mark]


def test_a_new_card_makes_no_stage_stale(tmp_path):
    student = tmp_path / "student"
    student.mkdir()
    (student / "base.json").write_text("{}")
    before = tree_sha256(student)
    (student / "README.md").write_text("a card")
    assert tree_sha256(student) == before
    (student / "other.md").write_text("no card")
    assert tree_sha256(student) != before
