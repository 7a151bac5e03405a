"""`python -m tests.benchmarks.labels FOLDER`: a narrow job with known answers, on the embedded model.

Messages to a shop's support are made of phrases and slots, so that each one's label is known. Phrases of the training
rows and of the test prompts are disjoint. The student learns the labels of 320 messages; it and its base sort 100 more.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import yaml

from distill.pipeline.runner import run_recipe

ITEMS = [
    "kettle",
    "lamp",
    "chair",
    "phone",
    "radio",
    "bicycle",
    "camera",
    "jacket",
    "mirror",
    "carpet",
    "table",
    "clock",
    "toaster",
    "backpack",
    "headset",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
NAMES = ["Ada", "Boris", "Chen", "Dora", "Emil", "Farah", "Goran", "Hana", "Ivo", "Jana"]
GREETINGS = ("", "Hello. ", "Hi there, ", "Good morning. ", "Dear team, ")
TRAINING = {
    "refund": (
        "I want my money back for the {item} I bought on {day}.",
        "The {item} broke after one use; please return what I paid.",
        "Can you reimburse me for the {item}? It does not work.",
        "I sent the {item} back on {day} and still wait for my payment to be returned.",
        "You charged me twice for the {item}. Give me the extra amount back.",
        "The {item} is faulty. I would like the full price returned to my card.",
    ),
    "delivery": (
        "Where is the {item} I ordered on {day}?",
        "My parcel with the {item} has not arrived yet.",
        "The tracking page says my {item} has been stuck since {day}.",
        "When will the courier bring the {item}?",
        "I was promised the {item} by {day} and nothing came.",
        "Has my {item} been shipped already?",
    ),
    "account": (
        "I cannot log in since {day}.",
        "Please reset my password, I am {name}.",
        "How do I change the e-mail address of my profile? {name}",
        "The site says my user name {name} does not exist.",
        "I am locked out after three attempts on {day}.",
        "My login code never arrives, I cannot get into my profile, says {name}.",
    ),
    "cancel": (
        "Please end my subscription on {day}.",
        "I no longer want the monthly plan, stop it. {name}",
        "How can I quit the membership before {day}?",
        "Do not renew my contract, {name}.",
        "I wish to terminate the service for the {item} insurance.",
        "Unsubscribe me from the paid {item} plan now.",
    ),
    "praise": (
        "Thank you, the {item} is wonderful!",
        "Your team on {day} was so kind and quick.",
        "I love my new {item}, great work.",
        "Best shop ever, greetings from {name}.",
        "The {item} works perfectly, I am very happy.",
        "Compliments to {name} at the hotline, excellent help.",
    ),
}
TEST = {
    "refund": (
        "My {item} arrived damaged and I expect a refund, {name}.",
        "Please pay back the price of the {item}, it stopped working on {day}.",
    ),
    "delivery": (
        "The {item} should have been here on {day}; has the driver got lost?",
        "No package, no {item}. How long does shipping take, asks {name}.",
    ),
    "account": (
        "{name} here: signing in fails with a wrong password message.",
        "Since {day} the app rejects my user name and password.",
    ),
    "cancel": (
        "I would like to cancel my plan from {day} on, {name}.",
        "Stop the subscription for the {item} club, I do not need it.",
    ),
    "praise": (
        "What a lovely {item}! You made {name} smile.",
        "Five stars: the {item} came early on {day} and is superb.",
    ),
}
SYSTEM = "Sort the customer's message. Answer with one word: refund, delivery, account, cancel or praise."


def messages(phrases: dict[str, tuple[str, ...]], count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Different messages with their labels, as many of each label."""
    rng, seen = Random(seed), set[str]()
    while len(seen) < count:
        label = list(phrases)[len(seen) % len(phrases)]
        slots = {"item": rng.choice(ITEMS), "day": rng.choice(DAYS), "name": rng.choice(NAMES)}
        text = rng.choice(GREETINGS) + rng.choice(phrases[label]).format(**slots)
        if text not in seen:
            seen.add(text)
            yield text, label


def main(folder: Path) -> None:
    """Write the files and run the recipe; the run prints the headline and the report's path."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.csv").open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(("system", "text", "label"))
        table.writerows((SYSTEM, *one) for one in messages(TRAINING, 320, seed=7))
    test = [(f"test-{n}", *one) for n, one in enumerate(messages(TEST, 100, seed=8))]
    prompts = [json.dumps({"id": id, "instruction": text, "reference": label}) for id, text, label in test]
    (folder / "prompts.jsonl").write_text("\n".join(prompts))
    known = [json.dumps({"id": id, "answer": label}) for id, _, label in test]
    (folder / "known.jsonl").write_text("\n".join(known))
    choice = {"labels": list(TRAINING)}
    recipe = {
        "name": "labels",
        "sources": [
            {"path": "rows.csv", "system": "system", "prompt": "text", "answer": "label", "reference": "label"}
        ],
        "test": 0,
        "curate": [{"filter": "verified", **choice}],
        "student": {"model": "smollm2"},
        "train": {"method": "qlora", "epochs": 1, "learning_rate": 1e-3, "max_length": 256},
        "compare": {
            "prompts": "prompts.jsonl",
            "system": SYSTEM,
            "answers": {"teacher": "known.jsonl"},
            "sampling": {"temperature": 0, "max_tokens": 24},
            "metrics": [{"metric": "accuracy", **choice}],
        },
    }
    (folder / "labels.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    run_recipe(folder / "labels.yaml", run_dir=folder / "run")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
