"""Journals that cannot be used: one line each, and nothing lost; earlier versions are migrated."""

from __future__ import annotations

import os
import resource
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from distill.core.hashing import canonical
from distill.engine.journal.keys import key
from distill.engine.journal.records import intention
from distill.engine.journal.schema import NETWORK_FILE_SYSTEMS, VERSION, file_system
from distill.engine.journal.store import Journal
from distill.errors import RunFolderError
from distill.types import Completion, Usage
from tests.support.engine.journal_rows import CHAT, HERE, RAW, answer, keep, numbered, write_answer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


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
        error = journal.write(intention("k", 1)).exception(5)
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
        assert "newer distill (version 4, this one knows 3); upgrade" in refused(path, read_only=read_only)


def test_a_damaged_journal_is_one_line(path: Path) -> None:
    with Journal.open(path) as journal:
        for number in range(200):
            write_answer(journal, answer(key(numbered(number), HERE), "x" * 2000), numbered(number), HERE)
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
            writes = [write_answer(journal, answer(str(n), "x" * 50_000), numbered(n), HERE) for n in range(20)]
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


class Exhausting:
    """A value for whose conversion there is no memory."""

    def __conform__(self, protocol: object) -> object:
        raise MemoryError


def test_a_write_without_memory_fails_alone_and_ends_no_other(path: Path) -> None:
    with Journal.open(path) as journal:
        change = (("DELETE FROM failures WHERE key = ?", (Exhausting(),)),)
        error = journal.write(change).exception(5)
        assert isinstance(error, RunFolderError)
        assert "free some memory" in str(error)
        of = keep(journal, RAW)
        assert isinstance(journal.get(of), Completion)


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


@pytest.mark.parametrize("kind", NETWORK_FILE_SYSTEMS)
def test_a_network_file_system_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    assert file_system(Path("/")) is not None, "this machine's own mounts can be read"
    share = tmp_path / "my share"
    share.mkdir()
    (tmp_path / "link").symlink_to(share)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    assert file_system(share) is None
    mounts = tmp_path / "proc" / "self" / "mounts"
    mounts.parent.mkdir(parents=True)
    escaped = str(share).replace(" ", "\\040")
    lines = ("/dev/vda / ext4", f"host:/x {escaped} ext3", f"host:/x {escaped} {kind}", "tmpfs /dev tmpfs")
    mounts.write_text("".join(f"{line} rw 0 0\n" for line in lines), encoding="utf-8")
    assert file_system(share / "runs" / "journal.sqlite") == kind
    assert file_system(tmp_path / "link" / "journal.sqlite") == kind
    assert file_system(tmp_path / "journal.sqlite") == "ext4"
    with pytest.raises(RunFolderError, match=rf"network file system \({kind}\).*needs memory that processes share"):
        Journal.open(share / "journal.sqlite")
    assert list(share.iterdir()) == []
