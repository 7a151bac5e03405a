"""Contender: two optimizer steps of our trainer on sessions of a given length; this process's peaks of memory."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from training import watch

from distill.models import chat_template, loading, third_party
from distill.train import build
from distill.train.dataset import Examples
from distill.train.options import TrainOptions


def main() -> None:
    """Train on steps of two forward passes full of sessions, a third of each a prompt."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--length", type=int, required=True, help="tokens of a session")
    parser.add_argument("--options", required=True, help="of the recipe's section train, as JSON")
    given = parser.parse_args()
    options = TrainOptions.model_validate_json(given.options)
    assert options.micro_batch_tokens
    count = 2 * options.micro_batch_tokens // given.length
    ids = [list(range(100 + one, 100 + one + given.length)) for one in range(count)]
    prompt = given.length // 3
    examples = [chat_template.Example(one, [chat_template.IGNORED] * prompt + one[prompt:]) for one in ids]
    found = Examples([str(one) for one in range(count)], examples, Counter())
    seen = watch()
    with third_party.quiet():
        trainer = build.build(
            given.model,
            None,
            loading.load_tokenizer(given.model),
            found,
            options=options,
            seed=0,
            output=given.model / "no",
            say=print,
            callbacks=[seen],
        )
        trainer.train()
    sys.stdout.write(
        f"\n{json.dumps({'before_mb': seen.before_mb, 'peak_mb': seen.peak_mb, 'seconds': seen.seconds})}\n"
    )


if __name__ == "__main__":
    main()
