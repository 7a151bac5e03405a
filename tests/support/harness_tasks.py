"""Tasks for the lm-evaluation-harness whose documents lie here: choices, free text, and three that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCUMENTS = [
    {"question": f"Which comes after {number}?", "choices": [str(number + 1), str(number + 7), str(number - 3)]}
    for number in range(12)
]
CHOICES = """\
task: order
tag: ours
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list: [{metric: acc}, {metric: acc_norm}]
metadata: {version: 1.0}
"""
SAID = """\
task: said
tag: ours
output_type: generate_until
doc_to_text: "{{question}} Answer:"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: strict, filter: [{function: take_first}]}
  - {name: number, filter: [{function: regex, regex_pattern: "(-?[0-9]+)"}, {function: take_first}]}
metadata: {version: 2.0}
"""


def write_tasks(folder: Path) -> Any:
    """An index of these tasks alone."""
    from lm_eval.tasks import TaskManager

    rows = folder / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in DOCUMENTS), encoding="utf-8")
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows}}}}}\ntest_split: test\n"
    runs = SAID.replace("task: said\ntag: ours", "task: runs_code\nunsafe_code: true")
    fetches = SAID.replace("task: said\ntag: ours", "task: fetches").replace(
        "metric: exact_match", "metric: accuracy, hf_evaluate: true"
    )
    needs = SAID.replace("task: said\ntag: ours", "task: needs").replace('"{{choices[0]}}"', "!function more.answer")
    (folder / "more.py").write_text("import a_package_that_nobody_has\n", encoding="utf-8")
    tasks = {"order": CHOICES, "said": SAID, "runs_code": runs, "fetches": fetches, "needs": needs}
    for name, text in tasks.items():
        (folder / f"{name}.yaml").write_text(text + data, encoding="utf-8")
    return TaskManager(include_path=str(folder), include_defaults=False)
