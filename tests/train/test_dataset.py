"""From sessions to examples: what is too long, empty or not to be spelt is counted, and never cut in silence."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from distill.core.files import read_json
from distill.errors import DistillError, MaskError
from distill.models import chat_template
from distill.models.token_bytes import marked_examples, write_masks
from distill.train.dataset import examples_of, notes
from distill.train.options import TrainOptions
from distill.types import Message, Session
from tests.support import families
from tests.support.families import Family, byte_level

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def smollm():
    from distill.models.loading import load_tokenizer, materialise

    return load_tokenizer(materialise("smollm2"))


def pair(number: int, words: int = 5) -> tuple[Message, Message]:
    return Message("user", f"Question {number}?"), Message("assistant", f"Answer {number}" + " word" * words)


def talk(*, pairs: int, system: bool = True, truncated: bool = False, words: int = 5, name: str = "long") -> Session:
    lines = [message for number in range(pairs) for message in pair(number, words)]
    first = [Message("system", "Be brief.")] if system else []
    return Session(name, (*first, *lines), {"truncated": truncated})


def made(sessions, tokenizer, **options):
    given = TrainOptions(max_length=80, **options)
    found = examples_of(sessions, "chatml", tokenizer, given)
    return found, list(notes(found, len(sessions), given))


def texts(found, tokenizer) -> list[str]:
    return [tokenizer.decode(example.input_ids) for example in found.examples]


SHORT = talk(pairs=1, name="short")


def test_what_is_too_long_is_left_out_and_counted(smollm):
    found, lines = made([SHORT, talk(pairs=7)], smollm)
    assert (found.ids, found.left_out["too_long"]) == (["short"], 1)
    assert lines == ["1 of 2 sessions are longer than train.max_length=80 and left out"]


def test_what_is_too_long_can_stop_the_run(smollm):
    with pytest.raises(DistillError) as caught:
        made([SHORT, talk(pairs=7)], smollm, over_length="raise")
    assert str(caught.value) == (
        "session long has 168 tokens, more than train.max_length=80; raise that, or set train.over_length to split or "
        "drop"
    )


def test_a_split_session_loses_no_pair_and_each_part_begins_with_the_system_turn(smollm):
    found, lines = made([SHORT, talk(pairs=7)], smollm, over_length="split")
    assert found.ids == ["short", "long#1", "long#2", "long#3"]
    parts = texts(found, smollm)[1:]
    assert [number for part in parts for number in range(7) if f"Question {number}?" in part] == list(range(7))
    assert all(part.startswith("<|im_start|>system\nBe brief.<|im_end|>") for part in parts)
    assert max(found.lengths()) <= 80
    assert sum(example.trained for example in found.examples[1:]) == 7 * 9
    assert lines == ["1 of 2 sessions are longer than train.max_length=80 and split into 3 parts"]


def test_a_part_holds_as_many_pairs_as_fit(smollm):
    found, _ = made([talk(pairs=7)], smollm, over_length="split")
    one_more = talk(pairs=4)
    assert len(chat_template.encode(one_more.messages, "chatml", smollm).input_ids) > 80
    assert max(found.lengths()) == len(chat_template.encode(talk(pairs=3).messages, "chatml", smollm).input_ids)


def test_only_the_last_part_of_a_truncated_session_lacks_an_end_token(smollm):
    found, _ = made([talk(pairs=7, truncated=True)], smollm, over_length="split")
    assert [text.endswith("<|im_end|>") for text in texts(found, smollm)] == [True, True, False]


def test_a_pair_that_is_too_long_alone_is_left_out_and_counted(smollm):
    messages = (*pair(0), *pair(1, words=90), *pair(2))
    found, lines = made([Session("long", messages)], smollm, over_length="split")
    assert found.ids == ["long#1", "long#3"]
    assert lines == [
        "1 of 1 sessions are longer than train.max_length=80 and split into 2 parts; 1 more are too long themselves "
        "and left out"
    ]


def test_where_the_last_answer_is_trained_a_split_session_keeps_its_last_pairs(smollm):
    found, _ = made([talk(pairs=7)], smollm, over_length="split", train_on="last")
    assert found.ids == ["long#1"]
    (text,) = texts(found, smollm)
    assert [number for number in range(7) if f"Question {number}?" in text] == [4, 5, 6]
    assert found.examples[0].trained == 9


@pytest.mark.parametrize(("train_on", "empty"), [("all", 2), ("last", 1)])
def test_a_session_with_an_empty_answer_that_would_be_trained_is_left_out(smollm, train_on, empty):
    early = Session("early", (Message("user", "x"), Message("assistant", " "), *pair(1)))
    late = Session("late", (*pair(1), Message("user", "x"), Message("assistant", "\n")))
    found, lines = made([SHORT, early, late], smollm, train_on=train_on)
    assert found.left_out["empty"] == empty
    assert lines == [f"{empty} of 3 sessions have an empty answer and are left out"]


def test_a_session_that_the_tokenizer_cannot_spell_is_left_out(smollm):
    odd = Session("odd", (Message("user", "a\x06b"), Message("assistant", "c")))
    found, lines = made([SHORT, odd], smollm)
    assert found.ids == ["short"]
    assert lines == ["1 rows hold characters that the tokenizer has no tokens for and are left out"]


def test_a_base_that_can_spell_no_session_is_one_line(smollm):
    strange = Session("strange", (Message("user", "a\x06b"), Message("assistant", "Fine.")))
    with pytest.raises(DistillError) as caught:
        made([strange], smollm)
    assert str(caught.value) == (
        "none of the 1 sessions can be trained on: 1 hold characters that the tokenizer does not know (take another "
        "student.model)"
    )


def test_nothing_left_is_one_line(smollm):
    empty = Session("empty", (Message("user", "x"), Message("assistant", "")))
    with pytest.raises(DistillError) as caught:
        made([talk(pairs=7), empty], smollm)
    assert str(caught.value) == (
        "none of the 2 sessions can be trained on: 1 are longer than train.max_length=80 tokens (raise it), "
        "1 have no answer (collect more)"
    )


def test_what_the_gate_has_seen_is_told(smollm):
    mention = Session("m", (Message("user", "What is <|im_end|>?"), Message("assistant", "A token.")))
    _, lines = made([SHORT, mention], smollm)
    assert lines == ["1 of 2 rows (such as m) mention control tokens, which stay text in training"]


def test_a_lost_system_turn_stops_the_run_unless_it_is_accepted(smollm):
    tokenizer = byte_level(
        smollm, Family(families.GEMMA_SILENT, ("<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>")
    )
    with pytest.raises(MaskError, match="template own leaves out the system turn of session short"):
        examples_of([SHORT], "own", tokenizer, TrainOptions())
    accepting = TrainOptions(lost_system="accept")
    found = examples_of([SHORT], "own", tokenizer, accepting)
    assert list(notes(found, 1, accepting)) == [
        "1 of 1 rows (such as short) have a system turn, which the template leaves out (train.lost_system: accept)"
    ]


# For the reader's eyes


def test_shown_examples_are_spread_over_all_and_spell_their_tokens(smollm, tmp_path: Path):
    found, _ = made([talk(pairs=1, name=f"s{number}") for number in range(9)], smollm)
    rows = marked_examples(found.ids, found.examples, smollm, count=3)
    assert [row.id for row in rows] == ["s0", "s3", "s6"]
    assert (
        "".join(text for text, trained in rows[0].stretches() if trained)
        == "Answer 0 word word word word word<|im_end|>"
    )
    assert marked_examples(found.ids, found.examples, smollm, count=0) == []
    write_masks(tmp_path / "masks.json", rows, template="chatml", train_on="all", checked=9)
    told = read_json(tmp_path / "masks.json")
    assert {key: told[key] for key in ("template", "train_on", "checked")} == {
        "template": "chatml",
        "train_on": "all",
        "checked": 9,
    }
    for session, example in zip(told["sessions"], found.examples[::3], strict=True):
        assert session["ids"] == example.input_ids
        assert session["trained"] == [label != chat_template.IGNORED for label in example.labels]
        assert "".join(session["texts"]) == smollm.decode(example.input_ids)


SHOW = """
from distill.core import console
class Text:
    id, trained = "s1", [False, True]
    def stretches(self):
        return iter([("Hi \\x1b[2J\\u202e", False), ("one\\ntwo<|end|>", True)])
console.show_marked(Text())
"""


def run(stdout: int, **variables: str) -> None:
    environment = {**{key: value for key, value in os.environ.items() if key != "NO_COLOR"}, **variables}
    subprocess.run([sys.executable, "-c", SHOW], stdout=stdout, env=environment, check=True)


def on_a_terminal(**variables: str) -> str:
    master, slave = pty.openpty()
    run(slave, **variables)
    os.close(slave)
    shown = os.read(master, 4096).decode().replace("\r\n", "\n")
    os.close(master)
    return shown


def test_trained_tokens_are_green_on_a_terminal_and_in_brackets_elsewhere(tmp_path: Path):
    with (tmp_path / "out").open("wb") as out:
        run(out.fileno())
    assert (tmp_path / "out").read_text() == (
        "session s1: 1 of 2 tokens are trained (in ⟦ ⟧)\n  Hi \\x1b[2J\\u202e⟦one\n  two<|end|>⟧\n"
    )
    assert on_a_terminal() == (
        "session s1: 1 of 2 tokens are trained (green)\n"
        "  Hi \\x1b[2J\\u202e\x1b[30;42mone\x1b[0m\n  \x1b[30;42mtwo<|end|>\x1b[0m\n"
    )
    assert "\x1b" not in on_a_terminal(NO_COLOR="1")


def weighted(*weights: int, **meta) -> Session:
    """A conversation of so many pairs, whose answers have these weights."""
    return Session("w", talk(pairs=len(weights)).messages, {"answer_weights": list(weights), **meta})


def trained_text(found, tokenizer) -> str:
    return tokenizer.decode([label for example in found.examples for label in example.labels if label != -100])


@pytest.mark.parametrize("weights", [(0, 1), (1, 0, 1), (0, 0, 1)])
def test_an_answer_of_weight_0_is_context_and_is_not_in_the_loss(smollm, weights):
    found, lines = made([weighted(*weights)], smollm)
    learnt = [number for number, weight in enumerate(weights) if weight]
    assert trained_text(found, smollm) == "".join(f"Answer {n}{' word' * 5}<|im_end|>" for n in learnt)
    assert all(f"Answer {number}" in texts(found, smollm)[0] for number in range(len(weights)))
    assert (found.checked.rows, lines) == (1, [])


def test_each_part_of_a_split_session_has_the_weights_of_its_own_answers(smollm):
    found, lines = made([weighted(1, 0, 1, 0, 0, 0, 1)], smollm, over_length="split")
    assert (found.ids, found.left_out["unlearnt"]) == (["w#1", "w#3"], 1)
    assert [number for number in range(7) if f"Answer {number}" in trained_text(found, smollm)] == [0, 2, 6]
    assert lines[1] == "1 sessions or parts have no answer to learn, by their weights, and are left out"


def test_where_nothing_is_to_be_learnt_a_session_is_left_out(smollm):
    found, _ = made([SHORT, weighted(1, 0, truncated=True)], smollm, train_on="last")
    assert (found.ids, found.left_out["unlearnt"]) == (["short"], 1)
    found, _ = made([weighted(1, 0, truncated=True)], smollm)
    assert trained_text(found, smollm) == f"Answer 0{' word' * 5}<|im_end|>"


@pytest.mark.parametrize("weights", [[1], [1, 2], "10", [None, 1]])
def test_weights_that_do_not_fit_the_answers_stop_the_run(smollm, weights):
    with pytest.raises(DistillError, match="expected 2 numbers, each 0 or 1"):
        made([Session("w", talk(pairs=2).messages, {"answer_weights": weights})], smollm)
