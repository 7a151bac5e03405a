"""Contender: our trainer through the function that the stage `train` calls; writes order.json, the rows by steps."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version

from training import ALPHA, LEARNING_RATE, RANK, parser, rows, tell, watch

from distill.train import loop
from distill.train.options import TrainOptions, TrainSettings
from distill.types import Message, Session


def main() -> None:
    """Train for one epoch."""
    options = parser()
    options.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the recipe's section train")
    given = options.parse_args()
    sessions = [
        Session(row["id"], tuple(Message(turn["role"], turn["content"]) for turn in row["messages"]))
        for row in rows(given)
    ]
    settings = {
        "method": "qlora",
        "epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lora": {"r": RANK, "alpha": ALPHA},
        "batch_rows": given.batch,
        "max_length": 1024,
        "scheduler": "linear",
        "warmup": 0.0,
        "eval_rows": 0,
        **({"dtype": "fp32"} if given.same else {}),
        **{key: json.loads(value) for key, value in (one.split("=", 1) for one in given.set)},
    }
    student = given.folder / "student"
    shutil.rmtree(student, ignore_errors=True)
    seen = watch()
    order: list[list[str]] = []
    seen.on_epoch_begin = lambda *_, train_dataloader, **__: order.extend(
        [[sessions[row].id for row in step] for step in train_dataloader.dataset]
    )
    result = loop.train(
        sessions,
        student,
        TrainSettings(str(given.folder / "model"), "chatml", TrainOptions.model_validate(settings), seed=0),
        callbacks=[seen],
    )
    (given.folder / "order.json").write_text(json.dumps(order))
    tell(seen, trained=result.trained_tokens, tokens=result.tokens, version=version("trl"))


if __name__ == "__main__":
    main()
