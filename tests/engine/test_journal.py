"""The journal: keys, durable writes, reading beside a writer, and every way in which a file can be unusable."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from distill.engine.journal.keys import key
from distill.engine.journal.records import Bill, intention, settled
from distill.engine.journal.store import Journal
from distill.types import Completion, Failure, Usage
from tests.support.engine.journal_rows import (
    CHAT,
    HERE,
    RAW,
    answer,
    entries_of,
    keep,
    numbered,
    write_answer,
    write_failure,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


# --- writing and reading


def test_an_answer_comes_back_as_it_was(path: Path) -> None:
    raw = {"choices": [{"x": [1, 2.5, None, True]}], "odd": "\ud800 \U0001f600 ünï", "nested": {"a": {}}}
    whole = Completion(key=key(CHAT, HERE), text="ünï\n", finish="length", usage=None, raw=raw, loglikelihood=-1.25)
    with Journal.open(path) as journal:
        write_answer(journal, whole, CHAT, HERE, stage="collect").result(5)
        assert journal.get(whole.key) == replace(whole, raw={**raw, "odd": "\ufffd \U0001f600 ünï"})
    with Journal.open(path) as journal:
        assert journal.get(whole.key) == replace(whole, raw={**raw, "odd": "\ufffd \U0001f600 ünï"})
        assert journal.get("another") is None


def test_what_was_asked_is_kept_beside_the_answer(path: Path) -> None:
    with Journal.open(path) as journal:
        keep(journal, RAW, stage="expand")
        keep(journal, CHAT, stage="collect")
        entries = entries_of(journal)
        assert [entry.stage for entry in entries if entry.stage == "collect"] == ["collect"]
    assert [(entry.request, entry.endpoint) for entry in entries] == [(RAW, HERE), (CHAT, HERE)]
    assert entries[0].created <= entries[1].created


def test_the_first_answer_under_a_key_stays(path: Path) -> None:
    with Journal.open(path) as journal:
        of = keep(journal, RAW, "first")
        keep(journal, RAW, "second")
        found = journal.get(of)
        assert isinstance(found, Completion)
        assert found.text == "first"


def test_a_permanent_failure_is_found_until_an_answer_comes(path: Path) -> None:
    failure = Failure(key=key(RAW, HERE), reason="http_400", detail="too long", transient=False, attempts=1)
    with Journal.open(path) as journal:
        write_failure(journal, failure, RAW).result(5)
        assert journal.get(failure.key) == failure
        keep(journal, RAW)
        assert isinstance(journal.get(failure.key), Completion)
        assert journal.counts() == {"answers": 1, "failures": 0, "intents": 0}


def test_a_transient_failure_is_counted_and_never_found(path: Path) -> None:
    failure = Failure(key=key(RAW, HERE), reason="timeout", detail="slow", transient=True, attempts=10)
    with Journal.open(path) as journal:
        write_failure(journal, failure, RAW).result(5)
        assert journal.get(failure.key) is None
        assert journal.counts()["failures"] == 1


def test_tokens_are_summed_by_stage(path: Path) -> None:
    with Journal.open(path) as journal:
        assert journal.tokens() == Usage(0, 0)
        keep(journal, RAW, stage="expand")
        keep(journal, CHAT, stage="collect")
        unreported = Completion(key="k", text="", finish="stop")
        write_answer(journal, unreported, numbered(1), HERE, stage="collect").result(5)
        assert (journal.tokens(), journal.tokens("collect")) == (Usage(6, 4), Usage(3, 2))


def test_other_journals_are_consulted_after_our_own(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "old.sqlite") as old:
        keep(old, RAW, "old")
        keep(old, CHAT, "old")
    with (
        Journal.open(tmp_path / "old.sqlite", read_only=True) as old,
        Journal.open(tmp_path / "new.sqlite", reuse=[old]) as new,
    ):
        keep(new, RAW, "new")
        texts = [found.text for request in (RAW, CHAT) if isinstance(found := new.get(key(request, HERE)), Completion)]
        assert texts == ["new", "old"]
        assert new.counts()["answers"] == 1


def test_writes_that_come_together_share_commits(path: Path) -> None:
    with Journal.open(path) as journal:
        keep(journal, RAW)
        started = time.monotonic()
        writes = [journal.write(intention(str(number), 1)) for number in range(2000)]
        writes[-1].result(10)
        assert time.monotonic() - started < 2  # one by one: 2,000 times an fsync and 5 ms
        assert journal.counts()["intents"] == 2000


def test_closing_commits_what_was_handed_in(path: Path) -> None:
    with Journal.open(path) as journal:
        for number in range(100):
            journal.write(intention(str(number), 1))
    with Journal.open(path, read_only=True) as journal:
        assert journal.counts()["intents"] == 100


WRITER = """
import sys
from pathlib import Path
from distill.core.hashing import canonical
from distill.engine.journal.keys import key
from distill.engine.journal.records import answered
from distill.engine.journal.store import Journal
from distill.types import Completion, Endpoint, Request
here = Endpoint(model="m")
with Journal.open(Path(sys.argv[1])) as journal:
    for number in range(100000):
        request = Request(role="teacher", prompt=f"question {number}")
        completion = Completion(key=key(request, here), text="x" * 500, finish="stop")
        journal.write(answered(completion, canonical(request), "answer", here)).result()
        sys.stdout.write(completion.key + "\\n")
        sys.stdout.flush()
"""


@contextmanager
def writing(path: Path) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def test_it_can_be_read_while_another_process_writes(path: Path) -> None:
    with writing(path) as child:
        assert child.stdout is not None
        said = child.stdout.readline().strip()
        with Journal.open(path, read_only=True) as journal:
            for _ in range(5):
                assert isinstance(journal.get(said), Completion)
                said = child.stdout.readline().strip()


@pytest.mark.slow
@pytest.mark.parametrize("lines", [1, 7, 30])
def test_a_kill_loses_nothing_that_was_acknowledged(path: Path, lines: int) -> None:
    with writing(path) as child:
        assert child.stdout is not None
        said = [child.stdout.readline().strip() for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        said += [line for line in child.stdout.read().split("\n") if len(line) == 64]
    with Journal.open(path) as journal:
        assert [of for of in said if not isinstance(journal.get(of), Completion)] == []
        assert len(said) <= journal.counts()["answers"] <= len(said) + 1


# --- accounts


def test_what_sends_became_is_told_by_stage_role_model_and_outcome(path: Path) -> None:
    with Journal.open(path) as journal:

        def send(of: str, model: str = "m", stage: str = "collect") -> int:
            most = Bill(100, 10, 0.5)
            return journal.write(intention(of, 1, stage=stage, role="teacher", model=model, most=most)).result(5)

        of = keep(journal, RAW)
        kept, failed_once, lost, wrong, unsent = send(of), send(of), send(of), send("another"), send("another")
        journal.write((settled(kept, Bill(3, 2, 0.01), "kept"),)).result(5)
        journal.write((settled(failed_once, None, "charged"),)).result(5)
        journal.write((settled(wrong, Bill(0, 0, 0.0), "free"),)).result(5)
        journal.write((settled(unsent, Bill(0, 0, 0.0), "unsent"),)).result(5)
        send(of, "other", "expand")
        costs = journal.costs()
        assert [(cost.stage, cost.model, cost.outcome, cost.sends, cost.usd) for cost in costs] == [
            ("collect", "m", "kept", 1, 0.01),
            ("collect", "m", "retried", 1, 0.5),
            ("collect", "m", "in flight", 1, 0.5),
            ("collect", "m", "wasted", 1, 0.0),
            ("expand", "other", "in flight", 1, 0.5),
        ]
        assert lost > failed_once > kept
        assert costs[0].prompt_tokens == 3
        assert costs[1].prompt_tokens == 100


def test_trimming_gives_pages_back_and_loses_nothing(path: Path) -> None:
    with Journal.open(path) as journal:
        for number in range(200):
            write_answer(journal, answer(key(numbered(number), HERE), "x" * 2000), numbered(number), HERE)
        of = keep(journal, RAW)
        freed = journal.trim()
        assert freed > 10_000
        assert isinstance(journal.get(of), Completion)
        assert journal.counts()["answers"] == 201
        assert not Path(f"{path}-wal").exists() or Path(f"{path}-wal").stat().st_size == 0
