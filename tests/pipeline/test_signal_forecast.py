"""What `check` says of a teacher's probabilities before they are asked for."""

from __future__ import annotations

from distill.pipeline.forecast import lines
from distill.pipeline.parts import load_recipe

ELSEWHERE = {"model": "gpt", "base_url": "http://127.0.0.1:9/v1", "terms": "ours"}
CASES = {
    "asked": (
        {**ELSEWHERE, "sampling": {"max_tokens": 100, "logprobs": True, "top_logprobs": 5}},
        [
            "collect: top_logprobs 5 adds at most about 4.0 MB to the journal; to ask for them in a finished run "
            "changes its requests, so that all answers are bought again",
            "train: soft_targets.arrow takes at most about 1.3 MB",
            "warning: train.objective.k is 20, and gpt gives 5 top_logprobs: its targets hold 5 tokens and the "
            "answer's own",
        ],
    ),
    "here": (
        {"model": "smollm2", "serve": "transformers", "terms": "ours", "sampling": {"max_tokens": 100}},
        [
            "train: smollm2 and the student have one tokenizer",
            "train: soft_targets.arrow takes at most about 1.3 MB",
            "train: smollm2 reads the kept rows once before the first step, for soft targets, in at most about 0.9 to "
            "2.7 min on two CPU cores",
        ],
    ),
    "scores": (
        {**ELSEWHERE, "model": "smollm2", "price": {"input": 1, "output": 1}, "sampling": {"max_tokens": 100}},
        [
            "train: at most 100 requests, about 16,000 prompt tokens, at most 100 answer tokens, up to about USD "
            "0.0161",
            "train: smollm2 and the student have one tokenizer",
            "train: soft_targets.arrow takes at most about 1.3 MB",
            "train: smollm2's endpoint is asked to score the kept rows (prompt_logprobs, or echo), in the template of "
            "smollm2 on this machine",
        ],
    ),
}


def test_each_source_of_probabilities_is_forecast_with_its_bytes_time_and_cost():
    found = {}
    for name, (teacher, expected) in CASES.items():
        recipe = {"name": "x", "seed": 1, "teacher": teacher, "expand": {"tasks": 100}, "collect": {"test": 0},
                  "student": {"model": "smollm2"}, "train": {"objective": {"kind": "soft"}}}  # fmt: skip
        found[name] = [line for line in lines(load_recipe(recipe), probed=False) if line in expected]
    assert found == {name: expected for name, (_, expected) in CASES.items()}
