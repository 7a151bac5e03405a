"""The journal: keys, durable writes, reading beside a writer, and every way in which a file can be unusable."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from distill.core.hashing import canonical
from distill.engine.journal.keys import key
from distill.engine.journal.records import Bill, intention, settled
from distill.engine.journal.schema import VERSION, file_system
from distill.engine.journal.store import Journal
from distill.errors import RunFolderError
from distill.types import Completion, Endpoint, Failure, Message, Request, Sampling, Usage

HERE = Endpoint(model="m", url="http://h/v1")
CHAT = Request(
    role="teacher",
    messages=(Message("system", "be brief"), Message("user", "hi")),
    sampling=Sampling(temperature=0.7, stop=("\n",)),
)
RAW = Request(role="teacher", prompt="once", sampling=Sampling(max_tokens=8))


def answer(of: str, text: str = "hello", **options: Any) -> Completion:
    return Completion(key=of, text=text, finish="stop", usage=Usage(3, 2), raw={"text": text}, **options)


def keep(journal: Journal, request: Request, text: str = "hello", stage: str = "") -> str:
    of = key(request, HERE)
    journal.keep(answer(of, text), request, HERE, stage=stage).result(5)
    return of


def numbered(number: int) -> Request:
    return Request(role="teacher", prompt=f"question {number}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


# --- keys


def mutations(value: Any) -> Iterator[Any]:
    """Values that differ from `value` in one place, found by introspection; at least one for every place."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            for other in mutations(getattr(value, field.name)):
                yield replace(value, **{field.name: other})
    elif isinstance(value, str):
        yield value + "x"
    elif isinstance(value, (int, float)):
        yield value + 1
    elif isinstance(value, tuple):
        yield (*value, value[0] if value else "x")
        for index, item in enumerate(value):
            for other in mutations(item):
                yield (*value[:index], other, *value[index + 1 :])
    elif isinstance(value, Mapping):
        yield {**value, "x": 1}
        for name, item in value.items():
            for other in mutations(item):
                yield {**value, name: other}
    else:
        assert value is None
        yield "x"
        yield 1
        yield 0.5


@pytest.mark.parametrize("request_", [CHAT, RAW])
@pytest.mark.parametrize("endpoint", [HERE, Endpoint(model="m", fingerprint="f", revision="r")])
def test_every_field_of_request_and_endpoint_changes_the_key(request_: Request, endpoint: Endpoint) -> None:
    pairs = [(other, endpoint) for other in mutations(request_)] + [(request_, other) for other in mutations(endpoint)]
    keys = {key(*pair) for pair in pairs}
    places = sum(len(fields(kind)) for kind in (Request, Sampling, Endpoint)) - 1  # sampling is counted by its fields
    assert len(pairs) >= places
    assert len(keys | {key(request_, endpoint)}) == len(pairs) + 1


def test_a_key_never_changes_between_versions() -> None:
    assert canonical(CHAT) == (
        '{"messages":[{"content":"be brief","role":"system"},{"content":"hi","role":"user"}],"role":"teacher",'
        '"sampling":{"stop":["\\n"],"temperature":0.7}}'
    )
    assert key(CHAT, HERE) == "a03cf6e3ced141878c033812af5a9a95e7f4730d48031e90742842a91efa38b8"


def test_a_later_field_at_its_default_finds_earlier_answers() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Later(Request):
        tools: tuple[str, ...] = ()

    later = Later(role=RAW.role, prompt=RAW.prompt, sampling=RAW.sampling)
    assert key(later, HERE) == key(RAW, HERE)
    assert key(replace(later, tools=("search",)), HERE) != key(RAW, HERE)


def test_a_whole_number_is_the_same_key_however_it_is_written() -> None:
    keys = {key(replace(RAW, sampling=Sampling(temperature=t)), HERE) for t in (1, 1.0, 1e0)}
    assert len(keys) == 1
    assert key(replace(RAW, sampling=Sampling(temperature=0.0)), HERE) != key(replace(RAW, sampling=Sampling()), HERE)


def test_what_has_no_canonical_json_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("nan"))
    with pytest.raises(TypeError, match="set has no canonical JSON"):
        canonical({1, 2})


# --- writing and reading


def test_an_answer_comes_back_as_it_was(path: Path) -> None:
    raw = {"choices": [{"x": [1, 2.5, None, True]}], "odd": "\ud800 \U0001f600 ünï", "nested": {"a": {}}}
    whole = Completion(key=key(CHAT, HERE), text="ünï\n", finish="length", usage=None, raw=raw, loglikelihood=-1.25)
    with Journal.open(path) as journal:
        journal.keep(whole, CHAT, HERE, stage="collect").result(5)
        assert journal.get(whole.key) == whole
    with Journal.open(path) as journal:
        assert journal.get(whole.key) == whole
        assert journal.get("another") is None


def test_what_was_asked_is_kept_beside_the_answer(path: Path) -> None:
    with Journal.open(path) as journal:
        keep(journal, RAW, stage="expand")
        keep(journal, CHAT, stage="collect")
        entries = list(journal.entries())
        assert [entry.stage for entry in journal.entries("collect")] == ["collect"]
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
        journal.fail(failure, RAW, HERE).result(5)
        assert journal.get(failure.key) == failure
        keep(journal, RAW)
        assert isinstance(journal.get(failure.key), Completion)
        assert journal.counts() == {"answers": 1, "failures": 0, "intents": 0}


def test_a_transient_failure_is_counted_and_never_found(path: Path) -> None:
    failure = Failure(key=key(RAW, HERE), reason="timeout", detail="slow", transient=True, attempts=10)
    with Journal.open(path) as journal:
        journal.fail(failure, RAW, HERE).result(5)
        assert journal.get(failure.key) is None
        assert journal.counts()["failures"] == 1


def test_tokens_are_summed_by_stage(path: Path) -> None:
    with Journal.open(path) as journal:
        assert journal.tokens() == Usage(0, 0)
        keep(journal, RAW, stage="expand")
        keep(journal, CHAT, stage="collect")
        unreported = Completion(key="k", text="", finish="stop")
        journal.keep(unreported, numbered(1), HERE, stage="collect").result(5)
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
        writes = [journal.intend(str(number), 1) for number in range(2000)]
        writes[-1].result(10)
        assert time.monotonic() - started < 2  # one by one: 2,000 times an fsync and 5 ms
        assert journal.counts()["intents"] == 2000


def test_closing_commits_what_was_handed_in(path: Path) -> None:
    with Journal.open(path) as journal:
        for number in range(100):
            journal.intend(str(number), 1)
    with Journal.open(path, read_only=True) as journal:
        assert journal.counts()["intents"] == 100


WRITER = """
import sys
from pathlib import Path
from distill.engine.journal.keys import key
from distill.engine.journal.store import Journal
from distill.types import Completion, Endpoint, Request
here = Endpoint(model="m")
with Journal.open(Path(sys.argv[1])) as journal:
    for number in range(100000):
        request = Request(role="teacher", prompt=f"question {number}")
        completion = Completion(key=key(request, here), text="x" * 500, finish="stop")
        journal.keep(completion, request, here).result()
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


# --- files that cannot be used


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(RunFolderError) as caught:
        Journal.open(path, **options)
    line = str(caught.value)
    assert str(path) in line
    assert "\n" not in line
    return line


def test_reading_never_creates(path: Path) -> None:
    assert "no journal at" in refused(path, read_only=True)
    assert not path.exists()


def test_a_journal_opened_for_reading_cannot_be_written(path: Path) -> None:
    Journal.open(path).close()
    with Journal.open(path, read_only=True) as journal:
        error = journal.intend("k", 1).exception(5)
    assert isinstance(error, RunFolderError)
    assert "for reading only" in str(error)


def test_a_text_file_is_no_journal(path: Path) -> None:
    path.write_text("to be or not to be\n" * 100)
    for read_only in (False, True):
        assert "not a database" in refused(path, read_only=read_only)
    assert path.read_text() == "to be or not to be\n" * 100


def test_another_programs_database_is_left_alone(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE shopping (item TEXT)")
    connection.close()
    before = path.read_bytes()
    for read_only in (False, True):
        assert "another program" in refused(path, read_only=read_only)
    assert path.read_bytes() == before


def test_a_newer_journal_is_refused(path: Path) -> None:
    Journal.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    for read_only in (False, True):
        assert "newer distill (version 3, this one knows 2); upgrade" in refused(path, read_only=read_only)


def test_a_damaged_journal_is_one_line(path: Path) -> None:
    with Journal.open(path) as journal:
        for number in range(200):
            journal.keep(answer(key(numbered(number), HERE), "x" * 2000), numbered(number), HERE)
    data = bytearray(path.read_bytes())
    data[4096 : len(data)] = b"\xff" * (len(data) - 4096)
    path.write_bytes(bytes(data))
    with pytest.raises(RunFolderError, match="damaged"), Journal.open(path) as journal:
        journal.get(key(numbered(7), HERE))


def test_a_folder_or_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    assert "unable to open" in refused(tmp_path)
    assert "check that the folder exists" in refused(tmp_path / "no" / "journal.sqlite")


def test_a_full_disk_is_one_line_and_loses_nothing_older(path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal.open(path) as journal:
        of = keep(journal, RAW)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        try:
            writes = [journal.keep(answer(str(n), "x" * 50_000), numbered(n), HERE) for n in range(20)]
            errors = [write.exception(10) for write in writes]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        error = errors[-1]
        assert isinstance(error, RunFolderError)
        assert "\n" not in str(error)
        assert "run again" in str(error)
        kept = [str(n) for n, error in enumerate(errors) if error is None]
        assert isinstance(journal.get(of), Completion)
        assert all(isinstance(journal.get(one), Completion) for one in kept)
        keep(journal, CHAT)  # space came back
        assert journal.counts()["answers"] == len(kept) + 2


@contextmanager
def without_permissions(folder: Path) -> Iterator[None]:
    """Nothing in the folder can be written meanwhile, not even by root."""
    for item in (*folder.iterdir(), folder):
        item.chmod(0o555 if item.is_dir() else 0o444)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


def test_a_folder_without_permissions_can_be_read_and_not_written() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "journal.sqlite"
        with Journal.open(path) as journal:
            of = keep(journal, RAW)
        with without_permissions(folder):
            with Journal.open(path, read_only=True) as journal:
                assert isinstance(journal.get(of), Completion)
            assert "permissions" in refused(path)


# --- accounts


def test_what_sends_became_is_told_by_stage_role_model_and_outcome(path: Path) -> None:
    with Journal.open(path) as journal:

        def send(of: str, model: str = "m", stage: str = "collect") -> int:
            most = Bill(100, 10, 0.5)
            return journal.write(intention(of, 1, stage=stage, role="teacher", model=model, most=most)).result(5)

        of = keep(journal, RAW)
        kept, failed_once, lost, wrong = send(of), send(of), send(of), send("another")
        journal.write((settled(kept, Bill(3, 2, 0.01), "kept"),)).result(5)
        journal.write((settled(failed_once, None, "charged"),)).result(5)
        journal.write((settled(wrong, Bill(0, 0, 0.0), "free"),)).result(5)
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


EARLIER = """
CREATE TABLE answers (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, endpoint TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL,
    finish TEXT NOT NULL, usage TEXT, raw TEXT NOT NULL, loglikelihood REAL, stage TEXT NOT NULL, created TEXT NOT NULL
);
CREATE TABLE failures (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, endpoint TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
    attempts INTEGER NOT NULL, permanent INTEGER NOT NULL, stage TEXT NOT NULL, created TEXT NOT NULL
);
CREATE TABLE intents (key TEXT NOT NULL, attempt INTEGER NOT NULL, stage TEXT NOT NULL, created TEXT NOT NULL);
CREATE INDEX intents_key ON intents (key);
PRAGMA user_version = 1;
"""


def earlier(path: Path) -> str:
    """A journal as version 1 wrote it: one answer after two sends, and one send that brought nothing."""
    of, now = key(RAW, HERE), "2026-01-01T00:00:00.000+00:00"
    connection = sqlite3.connect(path)
    connection.executescript(EARLIER)
    row = (
        of,
        canonical(RAW),
        canonical(HERE),
        "answer",
        "hello",
        "stop",
        '{"prompt_tokens": 3, "completion_tokens": 2}',
    )
    connection.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, '{}', NULL, 'collect', ?)", (*row, now))
    sends = [(of, 1), (of, 2), ("lost", 1)]
    connection.executemany(f"INSERT INTO intents VALUES (?, ?, 'collect', '{now}')", sends)
    connection.commit()
    connection.close()
    return of


def test_an_earlier_journal_is_migrated_with_its_answers_and_its_accounts(path: Path) -> None:
    of = earlier(path)
    for _ in range(2):
        with Journal.open(path) as journal:
            assert isinstance(journal.get(of), Completion)
            assert journal.counts() == {"answers": 1, "failures": 0, "intents": 3}
            by = {cost.outcome: cost for cost in journal.costs()}
            assert {outcome: cost.sends for outcome, cost in by.items()} == {"kept": 1, "retried": 1, "wasted": 1}
            assert by["kept"].unpriced == Usage(3, 2)
            assert (by["kept"].role, by["kept"].model) == ("teacher", "m")
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_an_earlier_journal_is_read_as_it_stands(path: Path) -> None:
    of = earlier(path)
    with Journal.open(path, read_only=True) as journal:
        assert isinstance(journal.get(of), Completion)
        assert (journal.costs(), journal.batches()) == ([], [])
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()


def test_a_network_file_system_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    share = tmp_path / "my share"
    share.mkdir()
    escaped = str(share).replace(" ", "\\040")
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nhost:/x {escaped} nfs4 rw 0 0\n", encoding="utf-8")
    assert file_system(share / "runs" / "journal.sqlite", mounts) == "nfs4"
    assert file_system(tmp_path / "journal.sqlite", mounts) == "ext4"
    assert file_system(share, tmp_path / "none") is None
    assert file_system(Path("/")) is not None, "this machine's own mounts can be read"
    monkeypatch.setattr("distill.engine.journal.schema.MOUNTS", mounts)
    with pytest.raises(RunFolderError, match=r"network file system \(nfs4\).*needs memory that processes share"):
        Journal.open(share / "journal.sqlite")
    assert list(share.iterdir()) == []


def test_trimming_gives_pages_back_and_loses_nothing(path: Path) -> None:
    with Journal.open(path) as journal:
        for number in range(200):
            journal.keep(answer(key(numbered(number), HERE), "x" * 2000), numbered(number), HERE)
        of = keep(journal, RAW)
        freed = journal.trim()
        assert freed > 10_000
        assert isinstance(journal.get(of), Completion)
        assert journal.counts()["answers"] == 201
        assert not Path(f"{path}-wal").exists() or Path(f"{path}-wal").stat().st_size == 0
