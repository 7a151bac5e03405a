"""Rules that ask a model, and rules that mend a session, in a run of curate."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from distill.core.jsonl import read_jsonl, read_sessions, write_rows
from distill.curate.filters.judge import Judge
from distill.curate.filters.length import Length
from distill.curate.stage import curate
from distill.engine import StoppedByEndpoint
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.providers import ProviderError
from distill.engine.providers.scripted import Scripted
from distill.errors import StageIncomplete
from distill.types import Request, Session, Verdict
from tests.support.curating import curated, ids, session, varied
from tests.support.engine.engines import bound

# --- rules that ask a model


def judged(folder: Path, sessions: list[Session], *filters, script, **options):
    """Curate with a judge that follows the script; returns the counts and the requests that reached it."""
    write_rows(folder / "sessions.jsonl", sessions)
    judge = Scripted(script)
    with Journal.open(folder / "journal.sqlite") as journal:

        def ask(flows, rule, role):
            assert role == "judge"
            return Engine(journal, bound(**{role: judge}), stage="curate", attempts=1, concurrency=4).run(flows)

        return curate(folder, filters=filters, test=0, seed=7, ask=ask, **options), judge.requests


def scores(request: Request) -> str:
    """A number out of the answer that is graded."""
    return f"It says so.\nScore: {re.findall(r'is worth ([0-9]+)', request.messages[0].content)[-1]}"


WORTHS = [session(number, f"Question {number}?", f"This one is worth {number}") for number in range(10)]


def judge(**options):
    return "judge", Judge(Judge.Options(**options))


def test_a_judges_grade_and_reason_are_on_every_row(tmp_path):
    counts, requests = judged(tmp_path, WORTHS, judge(min_score=4), script=scores)
    assert (len(requests), counts["kept"], counts["by_rule"]) == (10, 6, {"judge/low_score": 4})
    rows = [row for name in ("dropped", "kept") for row in read_jsonl(tmp_path / f"{name}.jsonl")]
    assert [float(row["verdicts"][0]["value"]) for row in rows] == list(range(10))
    assert {row["verdicts"][0]["note"] for row in rows} == {"It says so."}


def test_another_threshold_decides_anew_and_asks_nobody(tmp_path):
    for least, kept in ((4, 6), (8, 2), (0, 10)):
        counts, requests = judged(tmp_path, WORTHS, judge(min_score=least), script=scores)
        assert counts["kept"] == kept
        assert len(requests) == (10 if least == 4 else 0)


def test_nobody_pays_for_a_row_that_a_free_rule_drops_unless_told(tmp_path):
    sessions = [*WORTHS, session(10, "Say hello.", "is worth 1")]
    short = ("length", Length(Length.Options(min_words=4)))
    counts, requests = judged(tmp_path, sessions, judge(min_score=4), short, script=scores)
    assert (len(requests), counts["measured"]) == (10, {"length": 11, "judge": 10})
    counts, requests = judged(tmp_path, sessions, judge(min_score=4, every_row=True), short, script=scores)
    assert (len(requests), counts["measured"]) == (1, {"length": 11, "judge": 11})
    assert counts["overlaps"] == {"length": {"judge": 1}}


def test_equal_sessions_are_asked_about_once(tmp_path):
    sessions = [session(number, "Why?", "It is worth 5") for number in range(9)]
    assert len(judged(tmp_path, sessions, judge(), script=scores)[1]) == 1


def test_a_row_without_a_grade_is_kept_labelled_and_counted(tmp_path):
    def script(request: Request):
        return "I would rather not." if "worth 3" in request.messages[0].content else scores(request)

    counts, _ = judged(tmp_path, WORTHS, judge(min_score=9), script=script)
    assert counts["labels"] == {"unparsed": 1}
    assert ids(tmp_path, "kept") == ["s003", "s009"]


def test_a_judge_of_whom_nothing_can_be_read_is_warned_of_and_drops_nothing(tmp_path, capsys):
    counts, _ = judged(tmp_path, WORTHS, judge(min_score=9), script=lambda request: "What a nice question!")
    assert counts["kept"] == 10
    assert "judge: 10 of 10 replies cannot be read" in capsys.readouterr().err


def failing(transient: bool):
    def script(request: Request):
        return ProviderError("http_503" if transient else "http_400", "no luck", transient=transient)

    return script


def some_fail(request: Request):
    return failing(True)(request) if "worth 3" in request.messages[0].content else scores(request)


def test_rows_that_a_judge_failed_on_are_kept_and_asked_about_again(tmp_path):
    counts, _ = judged(tmp_path, WORTHS, judge(min_score=9), script=some_fail, max_failed=0.1)
    assert (counts["failed"], counts["retryable"], counts["labels"]) == (1, 1, {"not_measured": 1})
    (row,) = [row for row in read_jsonl(tmp_path / "kept.jsonl") if row["id"] == "s003"]
    assert "no luck" in row["verdicts"][0]["note"]
    counts, requests = judged(tmp_path, WORTHS, judge(min_score=9), script=scores)
    assert (len(requests), counts["failed"], ids(tmp_path, "kept")) == (1, 0, ["s009"])


@pytest.mark.parametrize(("transient", "advice"), [(True, "run again"), (False, "--retry-failed")])
def test_a_judge_that_fails_on_too_many_is_an_error_with_everything_written(tmp_path, transient, advice):
    with pytest.raises(StageIncomplete, match=rf"^judge: 10 of 10 rows could not be measured .*no luck.*{advice}"):
        judged(tmp_path, WORTHS, judge(min_score=9), script=failing(transient))
    assert len(ids(tmp_path, "kept")) == 10


def test_a_stopped_judge_leaves_what_it_said_and_the_rest_unmeasured(tmp_path):
    def script(request: Request):
        refused = ProviderError("http_401", "who are you?", fatal=True)
        return refused if "worth 8" in request.messages[0].content else scores(request)

    with pytest.raises(StoppedByEndpoint, match="who are you"):
        judged(tmp_path, WORTHS, judge(min_score=4), ("length", Length(Length.Options())), script=script)
    verdicts = {
        row["id"]: row["verdicts"] for name in ("kept", "dropped") for row in read_jsonl(tmp_path / f"{name}.jsonl")
    }
    assert len(verdicts) == 10
    assert {one["reason"] for each in verdicts.values() for one in each} == {"ok", "low_score", "not_measured"}


def test_a_rule_that_asks_needs_somebody_to_ask(tmp_path):
    with pytest.raises(TypeError, match="judge"):
        curated(tmp_path, varied(2), judge())


# --- rules that mend


class Masking:
    """Puts stars in the place of digits."""

    scope = "row"

    def measure(self, session: Session) -> int:
        return sum(character.isdigit() for message in session.messages for character in message.content)

    def decide(self, value: int) -> Verdict:
        return Verdict(rule="masking", keep=True, reason="masked" if value else "ok", value=value)

    def mend(self, session: Session, value: int) -> Session:
        masked = tuple(replace(each, content=re.sub(r"\d", "*", each.content)) for each in session.messages)
        return replace(session, messages=masked) if value else session


def test_a_mended_session_goes_on_in_the_others_place(tmp_path):
    sessions = [session(0, "Call whom?", "Call 555 123 now, please."), session(1, "Say good night.")]
    counts = curated(tmp_path, sessions, ("masking", Masking()), ("masking again", Masking()))
    kept = read_sessions(tmp_path / "kept.jsonl")
    assert kept[0].messages[1].content == "Call *** *** now, please."
    assert kept[1].messages == sessions[1].messages
    assert (counts["mended"], counts["labels"]) == ({"masking": 1}, {"masked": 1})
    verdicts = next(read_jsonl(tmp_path / "kept.jsonl"))["verdicts"]
    assert [(one["rule"], one["reason"], one["value"]) for one in verdicts] == [
        ("masking", "masked", "6"),
        ("masking again", "ok", "0"),
    ]


def test_a_judge_sees_what_is_mended(tmp_path):
    sessions = [session(0, "Call whom?", "Call 555 123 now.")]
    _, requests = judged(tmp_path, sessions, judge(), ("masking", Masking()), script=lambda request: "Score: 5")
    assert "Call *** *** now." in requests[0].messages[0].content
