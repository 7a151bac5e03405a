"""A conversation with student and teacher: each side has its own, and nothing is kept unless it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.cli.chat import HELP, replies, talk
from distill.engine.mock_server import MockServer
from distill.engine.mock_server.stand_in import answer
from distill.errors import DistillError
from distill.pipeline import smoke
from distill.pipeline.chat import Conversation
from distill.pipeline.parts import load_recipe
from distill.types import Sampling


def echoing(side, messages, sampling):
    said = " | ".join(message.content for message in messages)
    return f"{side} at {sampling.temperature} heard {said}"


def begin() -> Conversation:
    return Conversation(echoing, ["student", "teacher"], Sampling(temperature=0.7))


def test_each_side_hears_its_own_answers_only():
    conversation = begin()
    list(replies(conversation, "Hi."))
    student, teacher = replies(conversation, "And?")
    assert student == "the student: student at 0.7 heard Hi. | student at 0.7 heard Hi. | And?"
    assert teacher.startswith("the teacher: teacher at 0.7 heard Hi. | teacher at 0.7")


def test_commands_change_how_everybody_is_asked():
    conversation = begin()
    said = [line for command in ("/base on", "/temp 0", "/system Be brief.") for line in replies(conversation, command)]
    assert said == ["the base is on", "temperature 0", "started over with that system message"]
    assert list(replies(conversation, "Hi."))[2] == "the base: base at 0.0 heard Be brief. | Hi."
    assert list(replies(conversation, "/temp hot")) == [HELP]


def test_a_side_that_fails_says_why_and_the_others_go_on():
    def failing(side, messages, sampling):
        if side == "student":
            raise DistillError("no room")
        return "fine"

    conversation = Conversation(failing, ["student", "teacher"], Sampling())
    assert list(replies(conversation, "Hi.")) == ["the student: (no answer: no room)", "the teacher: fine"]
    assert conversation.turns["student"] == []


def test_what_was_said_is_saved_as_sessions_when_asked(tmp_path: Path):
    conversation = begin()
    assert list(replies(conversation, f"/save {tmp_path}/x.jsonl")) == ["there is no conversation yet"]
    list(replies(conversation, "Hi."))
    assert list(replies(conversation, f"/save {tmp_path}/x.jsonl")) == [f"{tmp_path}/x.jsonl: 2 conversations"]
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [row["meta"]["answered_by"] for row in rows] == ["student", "teacher"]


def test_hidden_characters_of_an_answer_do_nothing():
    conversation = Conversation(lambda *_: "a\x1b[2Jb", ["student"], Sampling())
    assert list(replies(conversation, "Hi.")) == ["the student: a⟦U+001B⟧[2Jb"]


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")  # of the training packages, on models this small
def test_a_trained_student_and_its_teacher_answer(tmp_path: Path):
    smoked = smoke.smoke(Path("quickstart"), tmp_path)
    recipe = smoked.folder / "recipe.yaml"
    with MockServer(answer=answer) as server:
        old = load_recipe(smoked.folder).main_teacher
        recipe.write_text(recipe.read_text().replace(str(old.base_url), server.url))
        before = {file.name for file in smoked.folder.iterdir()}
        shown = list(talk(smoked.folder, ["Describe a kite.", "/quit", "never read"]))
    assert shown[0] == HELP
    assert shown[1].startswith("the student: ")
    assert shown[2].startswith("the teacher: The ")
    assert len(shown) == 3
    assert {file.name for file in smoked.folder.iterdir()} == before
