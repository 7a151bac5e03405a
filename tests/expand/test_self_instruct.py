"""Self-Instruct: what it shows, how it reads what comes back, what it refuses, and that order decides nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from random import Random

import pytest
from pydantic import ValidationError

from distill.core import assets
from distill.expand.pool import FORBIDDEN_WORDS, form_fault
from distill.expand.pool import numbered_items as parsed
from distill.expand.seeds import load_seeds
from distill.expand.strategies.self_instruct import SelfInstruct
from distill.text.tokens import rouge_l, rouge_tokens
from distill.types import Completion, Failure, Task

SEEDS = load_seeds(assets.find("prompts/seeds/general.jsonl"))


def growth(target: int = 64, seed: int = 7, **options) -> SelfInstruct:
    return SelfInstruct(SelfInstruct.Options(**options), seeds=SEEDS, seed=seed, target=target)


def asked(part: SelfInstruct, k: int):
    return next(part.propose(k))


def answered(part: SelfInstruct, k: int, text: str, finish: str = "stop") -> list[Task]:
    flow = part.propose(k)
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send(Completion(key=f"key-{k}", text=text, finish=finish))
    return end.value.value


def offered(*instructions: str) -> list[Task]:
    return [Task(f"0.{number}", text) for number, text in enumerate(instructions)]


def admitted(part: SelfInstruct, *instructions: str) -> list[str]:
    return [task.instruction for task in part.admit(0, offered(*instructions))]


def shown_lines(prompt: str) -> list[str]:
    return re.findall(r"^\d+\. (.+)$", prompt, re.MULTILINE)


# --- what is asked


def test_the_first_request_shows_eight_seeds_and_goes_on_at_nine():
    request = asked(growth(), 0)
    assert len(shown_lines(request.prompt)) == 8
    assert request.prompt.endswith("\n9.")


def test_seeds_in_context_need_no_input():
    complete = {seed.instruction for seed in SEEDS if any(not instance.input for instance in seed.instances)}
    shown = {line for k in range(20) for line in shown_lines(asked(growth(), k).prompt)}
    assert shown <= complete


def test_with_accepted_tasks_two_of_the_eight_are_the_teachers_own():
    part = growth()
    own = admitted(part, "Name four kinds of clouds.", "Explain why bread rises.", "How far away is the moon?")
    shown = shown_lines(asked(part, 1).prompt)
    assert len(shown) == 8
    assert len(set(shown) & set(own)) == 2


def test_the_request_number_is_the_replica_and_decides_what_is_shown():
    one, two = asked(growth(), 1), asked(growth(), 2)
    assert (one.replica, two.replica) == (1, 2)
    assert one == asked(growth(), 1)
    assert one.prompt != two.prompt


def test_another_seed_shows_other_instructions():
    assert asked(growth(seed=1), 0).prompt != asked(growth(seed=2), 0).prompt


def test_numbers_stop_an_answer_only_at_the_start_of_a_line():
    assert asked(growth(new_tasks=7), 0).sampling.stop == ("\n16.",)


def test_classification_tasks_come_from_classification_seeds():
    of_kind = {" ".join(seed.instruction.split()).rstrip(":") for seed in SEEDS if seed.is_classification}
    part = growth(classification=True)
    assert {line for k in range(20) for line in shown_lines(asked(part, k).prompt)} <= of_kind
    (task,) = part.admit(0, answered(part, 0, " Is this mail spam or not: you have won a boat?"))
    assert task.meta["kind"] == "classification"


def test_nothing_of_the_sampling_is_lost_on_the_way():
    chosen = {"seed": 3, "extra_body": {"top_k": 40}, "stop": ["\n\n"], "presence_penalty": 2}
    sampling = asked(growth(sampling=chosen), 0).sampling
    assert (sampling.seed, sampling.extra_body, sampling.presence_penalty) == (3, {"top_k": 40}, 2)
    assert sampling.stop == ("\n\n", "\n15.")


def test_it_can_be_asked_by_chat():
    request = asked(growth(ask="chat"), 0)
    assert request.prompt is None
    assert request.messages[0].content.endswith("\n9.")


def test_it_can_be_asked_inside_an_answer_in_chatml():
    request = asked(growth(ask="chatml"), 0)
    assert request.prompt.startswith("<|im_start|>user\n")
    assert request.prompt.count("<|im_end|>") == 1
    assert (len(shown_lines(request.prompt)), request.prompt[-3:]) == (8, "\n9.")


def test_the_window_widens_with_the_requests_and_never_with_the_target():
    part, windows = growth(10_000), {}
    for k in range(600):
        windows[k] = part.window
        part.admit(k, [])
    assert [windows[k] for k in (0, 4, 112, 599)] == [4, 5, 32, 128]
    assert growth(5).window == growth(10_000).window
    assert growth(window=6).window == 6


def test_its_own_sampling_is_kept_apart_from_the_teachers():
    sampling = asked(growth(sampling={"temperature": 0.2}), 0).sampling
    assert (sampling.temperature, sampling.max_tokens) == (0.2, 200)


# --- how an answer is read


def test_an_answer_is_split_at_its_numbers():
    assert parsed(" Name a bird.\n10. Say why it sings.\n11 . Count to 3.5 slowly.") == [
        "Name a bird.",
        "Say why it sings.",
        "Count to 3.5 slowly.",
    ]


def test_a_year_at_the_end_of_a_sentence_is_no_number_of_an_item():
    assert parsed(" Who won in 2016. Say it briefly.\n10. Name a bird.")[0] == "Who won in 2016. Say it briefly."


def test_an_answer_that_repeats_the_number_is_read_too():
    assert parsed("9. Name a bird.\n10. Name a fish.") == ["Name a bird.", "Name a fish."]


def test_a_number_written_twice_is_no_part_of_an_item():
    assert parsed(" Name a bird.\n10. 11. Name a fish.") == ["Name a bird.", "Name a fish."]


def test_what_follows_a_blank_line_is_no_part_of_an_item():
    assert parsed(" Name a bird.\n\nI hope this helps!\n\n10. Name a fish.") == ["Name a bird.", "Name a fish."]


def test_names_keep_their_capitals():
    assert parsed(" tell me about Marie Curie.") == ["Tell me about Marie Curie."]


def test_of_a_cut_answer_only_the_last_item_is_refused():
    part = growth()
    items = answered(part, 0, " Name four kinds of clouds.\n10. Explain why bread rises.\n11. How far aw", "length")
    assert [task.instruction for task in part.admit(0, items)] == [
        "Name four kinds of clouds.",
        "Explain why bread rises.",
    ]
    assert part.rejected == {"cut_off": 1}


def test_a_failure_brings_no_task():
    flow = growth().propose(0)
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send(Failure(key="k", reason="http_400", detail="no", transient=False))
    assert end.value.value == []


def test_a_task_says_where_it_comes_from():
    part = growth()
    shown = shown_lines(asked(part, 3).prompt)
    (task,) = part.admit(3, answered(part, 3, " Name four kinds of clouds."))
    assert task.id == "task-00001"
    meta = dict(task.meta)
    by_id = {seed.id: " ".join(seed.instruction.split()) for seed in SEEDS}
    assert [by_id[id] for id in meta.pop("lineage")] == shown
    assert meta.pop("nearest")["id"] in {seed.id for seed in SEEDS}
    assert meta == {"strategy": "self_instruct", "request": 3, "replica": 3, "key": "key-3"}


def test_a_task_names_the_most_similar_text_however_little_alike():
    part = growth()
    known = {seed.id: rouge_tokens(seed.instruction) for seed in SEEDS}
    for k, text in enumerate(
        ["Whistle seven tunes backwards.", "Name four kinds of clouds.", "Name two kinds of dogs."]
    ):
        scores = {id: rouge_l(tokens, rouge_tokens(text)) for id, tokens in known.items()}
        (task,) = part.admit(k, offered(text))
        nearest = task.meta["nearest"]
        assert nearest == {"id": max(scores, key=scores.__getitem__), "rouge_l": max(scores.values())}
        known[task.id] = rouge_tokens(text)
    assert nearest["id"] == "task-00002"


def test_ids_count_what_is_admitted():
    part = growth()
    part.admit(0, offered("Name four kinds of clouds.", "No.", "Explain why bread rises."))
    more = part.admit(1, offered("How far away is the moon?"))
    assert [task.id for task in more] == ["task-00003"]


# --- what is refused


CHINESE = [
    replace(seed, instruction=text)
    for seed, text in zip(SEEDS, ["法国的首都是哪座城市？", "写一首关于大海的诗。"], strict=False)
]


def test_seeds_of_another_script_grow_tasks_of_that_script():
    part = SelfInstruct(SelfInstruct.Options(), seeds=CHINESE, seed=7, target=9)
    offers = (
        "为我的猫起一个名字。",
        "写一首关于大河的诗。",
        "你好",
        "解释天空为什么是蓝色的。",
        "为我的猫起一个名字！",
    )
    assert admitted(part, *offers) == [offers[0], offers[3]]
    assert part.rejected == {"too_similar": 2, "too_short": 1}


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("Name three birds", "too_short"),
        ("word " * 151, "too_long"),
        ("Describe the picture of a harbour.", "forbidden_word"),
        ("Tell me where to Go To for good bread.", "forbidden_word"),
        ("Write a program that sorts a list.", "program"),
        ("* Name four kinds of clouds.", "punctuation_first"),
        ("Écris un poème sur la mer.", "not_ascii_first"),
        ("Summarise this paragraph in one sentence.", "needs_input"),
        ("Classify the following words as nouns or verbs.", "needs_input"),
        ("Correct the given sentence, please.", "needs_input"),
        ("Translate the greeting into French:", "needs_input"),
        ("The sky is blue at noon.", "statement"),
        ("I am planning to buy a house.", "statement"),
        ("A man bought a hat. The hat was red.", "statement"),
        ("If there is one egg in a basket, it is the last.", "statement"),
        ("9.9 is 12 more than 10 times 11.", "statement"),
    ],
)
def test_an_instruction_is_refused_with_its_reason(instruction, reason):
    part = growth()
    assert admitted(part, instruction) == []
    assert part.rejected == {reason: 1}


@pytest.mark.parametrize(
    "instruction",
    [
        "Name three large birds",
        "Explain photography to a grandfather.",
        "Rewrite this sentence in the past tense: I go home.",
        'Give a synonym for the following word: "bright".',
        "I need a name for my bakery.",
        "A baker sells ninety rolls before noon. Guess how many remain.",
        "The bat costs 1 dollar more than the ball. What does the ball cost?",
    ],
)
def test_a_sound_instruction_is_taken(instruction):
    assert admitted(growth(), instruction) == [instruction]


def test_every_forbidden_word_is_refused():
    assert {form_fault(f"Please show me a {word} now.") for word in FORBIDDEN_WORDS} == {"forbidden_word"}


def test_our_own_rules_can_be_switched_off():
    texts = ("Summarise this paragraph in one sentence.", "The sky is blue at noon.")
    assert admitted(growth(reject=[]), *texts) == list(texts)


VERBS = ("is", "lies", "was", "stood", "went", "fell", "flew", "came", "ran")


MOONS = [f"How far away {verb} thing{verb}?" for verb in VERBS]


def test_an_opening_that_eight_tasks_share_is_refused():
    part = growth()
    assert admitted(part, *MOONS) == MOONS[:8]
    assert part.rejected == {"common_opening": 1}


def test_an_opening_may_begin_an_eighth_of_the_tasks():
    part = growth()
    others = [f"Paint{number} red{number} hats{number} now{number}." for number in range(80)]
    assert len(admitted(part, *others)) == 80
    assert admitted(part, *MOONS) == MOONS


def test_words_of_ones_own_can_be_forbidden():
    part = growth(forbidden=["moon", "brand x"])
    assert admitted(part, "How far is the Moon?", "Praise Brand X in rhyme.", "Name a few moons.") == [
        "Name a few moons."
    ]
    assert part.rejected == {"forbidden_word": 2}


def test_a_task_like_a_seed_is_refused():
    part = growth()
    assert admitted(part, SEEDS[0].instruction.upper()) == []
    assert part.rejected == {"too_similar": 1}


def test_a_task_like_one_before_it_in_the_same_answer_is_refused():
    first, second = "Name four kinds of clouds in the sky.", "Name five kinds of clouds in the sky."
    assert admitted(growth(), first, second) == [first]


def test_every_candidate_is_admitted_or_counted_by_reason():
    part = growth()
    taken = admitted(
        part, "No.", "Name four kinds of clouds.", "Name four kinds of clouds.", "The sky is blue at noon."
    )
    assert part.candidates == len(taken) + sum(part.rejected.values()) == 4


def test_replaying_a_growth_gives_the_same_tasks():
    def grown() -> list[Task]:
        part, tasks = growth(), []
        for k in range(5):
            rng = Random(k)
            words = [
                rng.sample(("sun", "moon", "rain", "tree", "bread", "river", "stone", "cloud", "bird"), 5)
                for _ in range(4)
            ]
            tasks += part.admit(k, answered(part, k, "\n9. ".join(f"Explain {' '.join(each)}." for each in words)))
        return tasks

    assert grown() == grown()


def test_an_unknown_option_is_an_error():
    with pytest.raises(ValidationError, match="temprature"):
        SelfInstruct.Options(temprature=1.0)
