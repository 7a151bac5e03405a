"""Model card of a student: a README.md with YAML front matter for the Hugging Face Hub, with its provenance.

All of it comes from the run's own records: teacher and terms, seeds and strategies, hashes, filters, training, cost,
what the comparison found, and for an export its receipt. What others wrote is shown as text, never as markup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from distill.core.embedded import EMBEDDED
from distill.core.files import flatten, read_json, write_atomically
from distill.core.student_folder import NEXT, current
from distill.run import students
from distill.run.dataset_card import (
    CONTROL,
    cost,
    counts_of,
    filters,
    number,
    plain,
    sources,
    steps_of,
    table,
    teachers_of,
)
from distill.run.record import read_record
from distill.run.remarks import is_compared

LEFT_OUT = ("base_url", "api_key_env", "headers_env")
"""Keys of a recipe that say where something is, which is nobody else's business."""
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


def write(path: Path, run: Path, **what: Any) -> None:
    """Write the card that `card` makes; half of one is never seen."""
    write_atomically(path, [card(run, **what)])


def card(
    run: Path,
    *,
    form: str = "student",
    receipt: Mapping[str, Any] | None = None,
    made: Mapping[str, Any] | None = None,
) -> str:
    """The whole card. `form` is what lies beside it: `student` (the run's own folder) or the name of an export.

    It tells of the student by what made it, whatever was begun in the run since: the one that is there, or, with
    `made` as `students.account` has it, the one that is about to replace it. Raises `RunFolderError` for no run.
    """
    whole = read_record(run)
    info = read_json((current(run) if made is None else run / NEXT) / "base.json")
    base = info if isinstance(info, dict) else {}
    compared = made is None and is_compared(run, whole)
    made = made if made is not None else students.training(run, whole)
    record, recipe = _own(whole, made, compared=compared), dict(made["recipe"]) if made is not None else {}
    sections = [
        _what(record, recipe, base),
        _use(form, receipt, _system(recipe)),
        _result(run) if compared else "## Result\n\nNot compared with its base and its teacher yet.",
        _training(recipe, base, counts_of(record, "train")),
        _data(record, recipe),
        sources(recipe, record),
        filters(recipe, record),
        cost(record),
        _receipt(receipt),
        _versions(record),
        _recipe(recipe),
        _limits(recipe, base),
    ]
    name = str(whole.get("name") or run.name)
    text = "\n\n".join(["# " + plain(name), *(part for part in sections if part)])
    return f"---\n{_head(name, form, base)}---\n\n{text}\n"


def _own(record: Mapping[str, Any], made: Mapping[str, Any] | None, *, compared: bool) -> dict[str, Any]:
    """run.json as it was when the student was finished, with its comparison; nothing where that is not known."""
    stages = record.get("stages", {})
    after = {"compare": stages["compare"]} if compared else {}
    return {**made, "stages": {**made["stages"], **after}} if made is not None else {"stages": after}


def _head(name: str, form: str, base: Mapping[str, Any]) -> str:
    head: dict[str, Any] = {
        "model_name": name,
        "license": "other",
        "license_name": "see-base-and-teacher",
        "license_link": "README.md",
        "pipeline_tag": "text-generation",
        "tags": ["distillation", "imitation", "synthetic-data", *(["gguf"] if form in ("gguf", "ollama") else [])],
    }
    if form in LIBRARIES:
        head["library_name"] = LIBRARIES[form]
    if (hub := _on_hub(base)) is not None:
        head["base_model"] = hub
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def _on_hub(base: Mapping[str, Any]) -> str | None:
    """The base's id on the Hub, where it has one."""
    model = str(base.get("model"))
    found = EMBEDDED[model].source.partition(",")[0] if model in EMBEDDED else model
    named = model in EMBEDDED or str(base.get("fingerprint")).startswith("hub:")
    return found if named and re.fullmatch(r"[\w.-]+/[\w.-]+", found) else None


def _called(model: Any) -> str:
    """A model as the card names it: a path by its last part."""
    text = str(model)
    return plain(Path(text).name if text.startswith(("/", "~", ".")) else text)


def _what(record: Mapping[str, Any], recipe: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    teachers = ", ".join(_called(one.get("model")) for one in teachers_of(record)) or "others' data"
    teachers = teachers if recipe else "not known, for another training was begun in its run since"
    layers = base.get("layers")
    kept = f", of which {len(layers)} layers were kept" if isinstance(layers, list) else ""
    version = f" {plain(record['version'])}" if "version" in record else ""
    lines = [
        f"A small model trained to answer as its teacher does, made by distill{version}.",
        "",
        f"- Teacher: {teachers}.",
        f"- Base: {_called(base.get('model', '—'))}{kept}; SHA-256 or Hub id {plain(base.get('fingerprint', '—'))}.",
        f"- Chat template: {plain(base.get('template', '—'))}, saved with the tokenizer.",
    ]
    if _system(recipe):
        lines.append(f"- It was trained under the system message: {plain(_system(recipe))}")
    return "\n".join(lines)


def _system(recipe: Mapping[str, Any]) -> str:
    collect = recipe.get("collect")
    return str(collect.get("system") or "") if isinstance(collect, dict) else ""


def _use(form: str, receipt: Mapping[str, Any] | None, system: str) -> str:
    """How to run it, asked as it was in training."""
    ask = _ASK.replace("SYSTEM", json.dumps({"role": "system", "content": system}) + ", " if system else "")
    if form == "merged":
        code = _fenced(f"{_LOAD_WHOLE}\n{ask}", "python")
        return f"## Use\n\n{code}\n\nOr `distill serve FOLDER`, an OpenAI-compatible endpoint."
    if form == "adapter":
        code = _fenced(f"{_adapter_code(receipt)}\n{ask}", "python")
        return f"## Use\n\n{code}"
    if form == "gguf":
        return "## Use\n\n`distill serve FOLDER/model.gguf`, or llama.cpp and what is built on it."
    if form == "ollama":
        return "## Use\n\n" + _fenced("ollama create NAME -f Modelfile\nollama run NAME\n", "sh")
    return (
        "## Use\n\n`distill serve RUN` answers on an OpenAI-compatible endpoint. The weights here fit only the base as"
        " it is in this run; `distill export RUN --to merged --out FOLDER` writes a model that anybody can load (other"
        " forms: `adapter`, `gguf`, `ollama`)."
    )


def _adapter_code(receipt: Mapping[str, Any] | None) -> str:
    """How an adapter is loaded: on the base beside it, or on one from the Hub, in the 4 bits it was trained on."""
    hub = str((receipt or {}).get("base") or "")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", hub):
        return _LOAD_ADAPTER
    if not (receipt or {}).get("quantised"):
        return _LOAD_ADAPTER.replace('"FOLDER/base"', f'"{hub}"')
    code = _LOAD_ADAPTER.replace('"FOLDER/base"', f'"{hub}", quantization_config=settings')
    code = code.replace(
        "import AutoModelForCausalLM, AutoTokenizer", "import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig"
    )
    return code.replace("base = ", f"{_NF4}base = ")


def _result(run: Path) -> str:
    """What the comparison found."""
    scores = read_json(run / "scores.json")
    scores = scores if isinstance(scores, dict) else {}
    tasks = (scores.get("lm_eval") or {}).get("entries") or {}
    entries = (*scores.get("metrics", {}).values(), *tasks.values())
    rows = [_measure(entry) for entry in entries if isinstance(entry, dict)]
    head = ("measure", "base", "student", "teacher", "teacher again", "gap closed")
    lines = [
        plain(scores.get("headline", ""), longest=2_000),
        "",
        f"On {number(scores.get('prompts'))} {'held-out prompts' if scores.get('held_out', True) else 'prompts'}:",
        "",
    ]
    return "\n".join(["## Result", "", *lines, table(head, [row for row in rows if row is not None])])


def _measure(entry: Mapping[str, Any]) -> tuple[str, ...] | None:
    """A measure's row, with means; None where there is none."""
    by = entry.get("by")
    if not isinstance(by, dict) or not by:
        return None
    means = [_decimal((by.get(model) or {}).get("mean")) for model in ("base", "student", "teacher", "teacher_again")]
    gap = entry.get("gap_closed")
    share = "—"
    if isinstance(gap, dict) and isinstance(gap.get("share"), (int, float)):
        share = f"{gap['share']:.0%} ({_percent(gap.get('low'))} to {_percent(gap.get('high'))})"
    unit = f" ({plain(entry['unit'])})" if entry.get("unit") else ""
    return (f"{plain(entry.get('title', ''))}{unit}", *means, share)


def _decimal(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else "—"


def _percent(value: Any) -> str:
    return f"{value:.0%}" if isinstance(value, (int, float)) else "—"


def _training(recipe: Mapping[str, Any], base: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    section = recipe.get("train")
    options = flatten(section) if isinstance(section, dict) else {}
    lines = [f"- {plain(key)}: {plain(value)}" for key, value in options.items() if value is not None]
    done = {
        "conversations": number(counts.get("rows")),
        "tokens, once": number(counts.get("tokens")),
        "of them trained on": number(counts.get("trained_tokens")),
        "optimizer steps": number(counts.get("steps")),
        "final loss, nats per token": _decimal(counts.get("final_loss")),
        "left out as too long": number(counts.get("too_long")),
        "seed": plain(recipe.get("seed", "—")),
    }
    measured = table(("training", ""), done.items())
    base_is = "in 4 bits (NF4, double quantisation)" if base.get("quantised") else "not quantised"
    return "\n".join(["## Training", "", f"The base was {base_is}.", "", measured, "", *lines])


def _data(record: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """How the data came to be, with counts and hashes."""
    collected, curated = counts_of(record, "collect"), counts_of(record, "curate")
    hashes = record.get("stages", {}).get("curate", {}).get("outputs", {})
    rows = [
        ("collected", number(collected.get("sessions")), "—"),
        ("kept, trained on", number(curated.get("kept")), plain(hashes.get("kept.jsonl", "—"))),
        ("dropped", number(curated.get("dropped")), plain(hashes.get("dropped.jsonl", "—"))),
        ("held out", number(curated.get("test")), plain(hashes.get("test.jsonl", "—"))),
    ]
    steps = [f"- {step}" for step in steps_of(record, recipe)]
    return "\n".join(["## Data", "", *steps, "", table(("conversations", "rows", "SHA-256 of the file"), rows)])


def _receipt(receipt: Mapping[str, Any] | None) -> str:
    """What the export was compared with, and how near it is."""
    if receipt is None:
        return ""
    found, served = receipt["compared"], receipt["train_serve"]
    rows = [
        ("weights stored as", plain(receipt["dtype"])),
        ("compared on", f"{number(found['tokens'])} answer tokens of {number(found['rows'])} {plain(found['on'])}"),
        (
            "KL to the trained student",
            f"{found['mean_kl_nats']:.2g} nats per token, at most {found['max_kl_nats']:.2g}",
        ),
        ("the same most probable token", f"{found['top1_agreement']:.2%}"),
        ("limits", f"{found['limits']['mean_kl_nats']:g} nats, {found['limits']['top1_agreement']:.1%}"),
        (
            "asked in the trained tokens",
            f"{number(served['dialogues'])} dialogues, {len(served['differences'])} differ",
        ),
        ("end tokens", ", ".join(map(plain, receipt["end_tokens"]))),
        ("made from the student", plain(receipt["student"])),
    ]
    note = "`export.json` has all of it, with the SHA-256 of every file."
    return "\n".join(["## Receipt", "", table(("export", ""), rows), "", note])


def _versions(record: Mapping[str, Any]) -> str:
    known = record.get("versions")
    found = {"distill": record.get("version", "—"), **(known if isinstance(known, dict) else {})}
    return "\n".join(["## Versions", "", ", ".join(f"{plain(name)} {plain(value)}" for name, value in found.items())])


def _recipe(recipe: Mapping[str, Any]) -> str:
    """The recipe without addresses, paths shortened to their last part."""
    if not recipe:
        return ""
    text = yaml.safe_dump(_public(recipe), sort_keys=False, allow_unicode=True)
    return f"## Recipe\n\nAddresses are left out, files are named without their folders.\n\n{_fenced(text, 'yaml')}"


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {_public(key): _public(item) for key, item in value.items() if key not in LEFT_OUT}
    if isinstance(value, list):
        return [_public(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~/")) and "\n" not in value else value


def _fenced(text: str, language: str) -> str:
    """A block of code whose fence is longer than any in it."""
    lines = [CONTROL.sub(" ", line) for line in text.splitlines()]
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def _limits(recipe: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    longest = (recipe.get("train") or {}).get("max_length") if isinstance(recipe.get("train"), dict) else None
    lines = [
        "## Limits",
        "",
        "- It imitates how its teacher answers more than what it knows (Gudibande et al., 2023): check what it states.",
        "- The teacher's answers were not checked by people; what is wrong or biased in them is learned too.",
        "- A message that spells a special token makes it real in most programs; `distill serve` keeps it as text.",
    ]
    if longest is not None:
        lines.append(f"- It was trained on conversations of at most {number(longest)} tokens.")
    if isinstance(base.get("layers"), list):
        lines.append("- Layers of its base were removed: it knows less than that did.")
    lines.append("- What it may be used for follows from the terms and licences of its base, its teacher and its data.")
    return "\n".join(lines)
