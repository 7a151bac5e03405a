"""Model card of a student: a README.md with YAML front matter for the Hugging Face Hub, with its provenance.

All of it comes from the run's own records: teacher and terms, seeds and strategies, hashes, filters, training, cost,
results of the comparison, and for an export its receipt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from distill.core.embedded import EMBEDDED
from distill.core.files import flatten, write_atomically
from distill.core.student_folder import NEXT, current
from distill.run import students
from distill.run.cards import public, render
from distill.run.dataset_card import dropped_by_rule
from distill.run.reading import json_object, validated
from distill.run.record import RunRecord, read_record
from distill.run.remarks import is_compared
from distill.run.scores import read_scores
from distill.types import MODELS

LIBRARIES = {"adapter": "peft", "student": "peft", "merged": "transformers"}

_LOAD_WHOLE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
"""
_NF4 = 'settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)\n'
_ASK = (
    'messages = [SYSTEM{"role": "user", "content": "What is a rainbow?"}]\n'
    "prompt = tokenizer.apply_chat_template(\n"
    '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n'
    ")\n"
    'answer = model.generate(**prompt, max_new_tokens=256)[0, prompt["input_ids"].shape[1]:]\n'
    "print(tokenizer.decode(answer, skip_special_tokens=True))\n"
)
_LOAD_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("FOLDER/base")
model = PeftModel.from_pretrained(base, "FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
"""


def write(path: Path, run: Path, **options: Any) -> None:
    """Write the card that `card` makes, atomically."""
    write_atomically(path, [card(run, **options)])


def card(
    run: Path,
    *,
    form: str = "student",
    receipt: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> str:
    """The whole card. `form` is what it accompanies: `student` (the run's own folder) or the name of an export.

    It describes the current student by the training that made it, or, with `training` (as from `students.account`), the
    student about to replace it. Raises `RunFolderError` for a folder that is no run.
    """
    whole = read_record(run)
    base = json_object((current(run) if training is None else run / NEXT) / "base.json")
    has_scores = training is None and is_compared(run, whole)
    origin = training if training is not None else students.training(run, whole) or {}
    stages = {**origin.get("stages", {}), **({"compare": whole["stages"]["compare"]} if has_scores else {})}
    system = str((origin.get("recipe", {}).get("collect") or {}).get("system") or "")
    record = validated(RunRecord, public({**origin, "stages": stages}), run / "run.json")
    recipe, name = dict(record.recipe), str(whole.get("name") or run.name)
    return render(
        "model_card.md.jinja",
        _head(name, form, base),
        name=name,
        record=record,
        recipe=recipe,
        base={"model": "—", **public(base)},
        teachers=[teacher.get("model") for teacher in record.all_teachers],
        form=form,
        code=_code(form, receipt or {}, system),
        scores=read_scores(run) if has_scores else None,
        models=[model for model in MODELS if model != "previous" or "previous" in base],
        training=[(key, value) for key, value in flatten(recipe.get("train") or {}).items() if value is not None],
        dropped=dropped_by_rule(record, recipe),
        receipt=receipt,
        packages=[
            f"{key} {value}" for key, value in ({"distill": record.version or "—"} | dict(record.versions)).items()
        ],
        public_recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
    )


def _head(name: str, form: str, base: Mapping[str, Any]) -> dict[str, Any]:
    hub = _on_hub(base)
    return {
        "model_name": name,
        "license": "other",
        "license_name": "see-base-and-teacher",
        "license_link": "README.md",
        "pipeline_tag": "text-generation",
        "tags": ["distillation", "imitation", "synthetic-data", *(["gguf"] if form in ("gguf", "ollama") else [])],
        **({"library_name": LIBRARIES[form]} if form in LIBRARIES else {}),
        **({"base_model": hub} if hub is not None else {}),
    }


def _on_hub(base: Mapping[str, Any]) -> str | None:
    """The base's Hub id, if any."""
    model = str(base.get("model"))
    if model in EMBEDDED:
        return EMBEDDED[model].source.partition(",")[0]
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", model) is not None
    return model if is_id and str(base.get("fingerprint")).startswith("hub:") else None


def _code(form: str, receipt: Mapping[str, Any], system: str) -> str:
    """Python code that loads an export of this form and asks it in the format of its training."""
    load = _LOAD_WHOLE if form == "merged" else _adapter_code(receipt)
    turn = json.dumps({"role": "system", "content": system}) + ", " if system else ""
    return f"{load}\n{_ASK.replace('SYSTEM', turn)}"


def _adapter_code(receipt: Mapping[str, Any]) -> str:
    """Python code that loads an adapter on the base beside it, or on one from the Hub, in 4 bits if trained so."""
    hub = str(receipt.get("base") or "")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", hub):
        return _LOAD_ADAPTER
    if not receipt.get("quantised"):
        return _LOAD_ADAPTER.replace('"FOLDER/base"', f'"{hub}"')
    code = _LOAD_ADAPTER.replace('"FOLDER/base"', f'"{hub}", quantization_config=settings')
    code = code.replace("AutoTokenizer\n", "AutoTokenizer, BitsAndBytesConfig\n", 1)
    return code.replace("base = ", f"{_NF4}base = ")
