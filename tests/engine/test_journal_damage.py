"""Damaged journals: bad rows are named and set aside, every other row stays, and an inspection says what is sound."""

from __future__ import annotations

import json
import random
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from distill.core import console
from distill.core.hashing import canonical
from distill.engine.budget import spent_usd
from distill.engine.journal import inspection
from distill.engine.journal.inspection import Inspection, inspect
from distill.engine.journal.keys import key
from distill.engine.journal.records import BatchRecord, Bill, batched, intention, settled
from distill.engine.journal.store import Journal
from distill.engine.providers.scripted import Scripted
from distill.errors import RunFolderError
from distill.types import Completion, Failure
from tests.support.engine.engines import engine, many, values
from tests.support.engine.journal_rows import HERE, RAW, answer, keep, numbered, write_answer, write_failure

COUNT = 40
LEAF = 0x0D
"""The first byte of a page with rows of a table (sqlite.org/fileformat2.html, section 1.6)."""
EARLIER = """
DROP TABLE damaged;
ALTER TABLE answers DROP COLUMN checksum;
ALTER TABLE failures DROP COLUMN checksum;
ALTER TABLE intents DROP COLUMN checksum;
ALTER TABLE batches DROP COLUMN checksum;
PRAGMA user_version = 2;
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of 40 answers, a failure, a batch and 40 sends."""
    path = tmp_path / "journal.sqlite"
    with Journal.open(path) as journal:
        for number in range(COUNT):
            send = journal.write(intention(key(numbered(number), HERE), 1, most=Bill(10, 10, 1.0))).result(5)
            journal.write((settled(send, Bill(3, 2, 0.25), "kept"),)).result(5)
            write_answer(journal, answer(key(numbered(number), HERE), f"answer {number} " * 30), numbered(number), HERE)
        write_failure(journal, Failure(key=key(RAW, HERE), reason="http_400", detail="no", transient=False), RAW)
        journal.write((batched(BatchRecord(name="collect-1", stage="collect", role="teacher", state="submitted")),))
    return path


def execute(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


def kept(path: Path) -> set[int]:
    """The numbers of the questions whose answers the journal has."""
    with Journal.open(path) as journal:
        return {number for number in range(COUNT) if isinstance(journal.get(key(numbered(number), HERE)), Completion)}


@contextmanager
def one_line_at_most() -> Iterator[None]:
    try:
        yield
    except RunFolderError as error:
        if "\n" in str(error):
            raise AssertionError(str(error)) from error


def damaged(found: Inspection) -> dict[str, tuple[str, ...]]:
    return {table.name: table.damaged for table in found.tables if table.damaged}


def warnings(path: Path) -> list[str]:
    lines: list[str] = []
    with console.observed(lines.append):
        kept(path)
    return lines


# --- single rows


def test_a_whole_journal_is_sound(path: Path) -> None:
    found = inspect(path)
    assert found.is_sound
    assert [(table.name, table.rows, table.unchecked) for table in found.tables] == [
        ("answers", COUNT, 0), ("failures", 1, 0), ("intents", COUNT, 0), ("batches", 1, 0),
    ]  # fmt: skip
    assert kept(path) == set(range(COUNT))


def test_a_changed_letter_of_an_answer_is_named_and_set_aside_and_the_rest_stays(path: Path) -> None:
    of = key(numbered(7), HERE)
    execute(path, f"UPDATE answers SET text = 'b' || substr(text, 2) WHERE key = '{of}'")
    assert damaged(inspect(path)) == {"answers": (of[:12],)}
    [line] = warnings(path)
    assert of[:12] in line
    assert "set aside" in line
    assert kept(path) == set(range(COUNT)) - {7}
    after = inspect(path)
    assert (after.is_sound, after.set_aside) == (True, 1)
    with closing(sqlite3.connect(path)) as connection:
        [(text,)] = connection.execute("SELECT text FROM damaged").fetchall()
    assert text.startswith("bnswer 7")


@pytest.mark.parametrize(
    "change",
    [
        "usage = '{\"prompt_tokens\": 3'", "usage = '[1, 2]'", "usage = x'ff00'", "raw = x'789c00'", "raw = 'no'",
        "text = CAST(x'ff41' AS TEXT)", "text = x'41'", "finish = 'stopped'", "loglikelihood = 1.5", "request = ''",
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_old", [False, True])
def test_no_damage_inside_a_row_costs_another_row(path: Path, change: str, is_old: bool) -> None:
    if is_old and change in ("loglikelihood = 1.5", "request = ''"):
        pytest.skip("shows only by a checksum")
    execute(path, f"{EARLIER if is_old else ''} UPDATE answers SET {change} WHERE key = '{key(numbered(3), HERE)}'")
    assert not inspect(path).is_sound
    assert kept(path) == set(range(COUNT)) - {3}
    assert inspect(path).is_sound


def test_a_damaged_answer_is_bought_again(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal.sqlite") as journal:
        provider = Scripted(lambda request: f"answer to {request.prompt}")
        before = values(engine(journal, provider).run(many(3)))
    execute(tmp_path / "journal.sqlite", "UPDATE answers SET text = 'x' WHERE text LIKE '%q1'")
    with Journal.open(tmp_path / "journal.sqlite") as journal:
        assert values(engine(journal, provider).run(many(3))) == before
    assert len(provider.requests) == 4
    assert inspect(tmp_path / "journal.sqlite").is_sound


def test_reading_alone_leaves_a_damaged_row_out_and_writes_nothing(path: Path) -> None:
    execute(path, f"UPDATE answers SET text = 'x' WHERE key = '{key(numbered(7), HERE)}'")
    lines: list[str] = []
    with console.observed(lines.append), Journal.open(path, read_only=True) as journal:
        assert [journal.get(key(numbered(7), HERE)) for _ in range(3)] == [None] * 3
        assert len(list(journal.questions())) == COUNT
    assert len(lines) == 1
    assert "left out" in lines[0]
    assert damaged(inspect(path)) == {"answers": (key(numbered(7), HERE)[:12],)}


@pytest.mark.parametrize("table", ["failures", "intents", "batches"])
def test_damage_in_other_tables_is_named(path: Path, table: str) -> None:
    execute(path, f"UPDATE {table} SET created = 'never'")
    found = damaged(inspect(path))
    assert list(found) == [table]
    assert len(found[table]) == (COUNT if table == "intents" else 1)
    assert kept(path) == set(range(COUNT))


@pytest.mark.parametrize("column", ["prompt_tokens", "completion_tokens", "usd"])
@pytest.mark.parametrize("value", ["9e999", "-9e999", "'many'", "x'ff'"])
def test_absurd_numbers_of_sends_end_no_account(path: Path, column: str, value: str) -> None:
    execute(path, f"UPDATE intents SET {column} = {value} WHERE id = 3; UPDATE answers SET usage = '[' WHERE rowid = 2")
    with Journal.open(path) as journal:
        assert 0 <= spent_usd(journal.costs(), {}) < 1e9
        assert journal.tokens().prompt_tokens == 3 * (COUNT - 1)
        assert sum(sends.sends for sends in journal.sent().values()) == COUNT


def test_a_batch_that_cannot_be_read_is_named_and_left_out(path: Path) -> None:
    execute(path, "UPDATE batches SET sends = '{'")
    lines: list[str] = []
    with console.observed(lines.append), Journal.open(path) as journal:
        assert journal.batches() == []
    assert "collect-1" in lines[0]


# --- compression and versions


def test_responses_are_kept_compressed_and_read_back(tmp_path: Path) -> None:
    raw = {"choices": [{"message": {"content": "word " * 2000}}]}
    with Journal.open(tmp_path / "journal.sqlite") as journal:
        whole = Completion(key=key(RAW, HERE), text="t", finish="stop", raw=raw)
        write_answer(journal, whole, RAW).result(5)
        assert journal.get(whole.key) == whole
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as connection:
        [(data,)] = connection.execute("SELECT raw FROM answers").fetchall()
    assert json.loads(zlib.decompress(data)) == raw
    assert len(data) < 500


def test_a_response_that_unpacks_to_gigabytes_is_damaged(path: Path) -> None:
    bomb = zlib.compress(b'"' + b"0" * 80_000_000 + b'"', 9).hex()
    execute(path, f"{EARLIER} UPDATE answers SET raw = x'{bomb}' WHERE key = '{key(numbered(3), HERE)}'")
    assert damaged(inspect(path)) == {"answers": (key(numbered(3), HERE)[:12],)}


def test_rows_of_an_earlier_version_are_read_as_before_and_counted_as_unchecked(path: Path) -> None:
    execute(path, EARLIER)
    texts = json.dumps({"text": "plain"})
    execute(path, f"UPDATE answers SET raw = '{texts}'")
    before = inspect(path)
    assert [table.unchecked for table in before.tables] == [COUNT, 1, COUNT, 1]
    with Journal.open(path, read_only=True) as journal:
        assert isinstance(journal.get(key(RAW, HERE)), Failure)
        assert len(journal.batches()) == 1
    assert kept(path) == set(range(COUNT))
    with Journal.open(path) as journal:
        found = journal.get(key(numbered(5), HERE))
        assert isinstance(found, Completion)
        assert found.raw == {"text": "plain"}
        keep(journal, RAW)
    after = inspect(path)
    assert after.is_sound
    unchecked = [(table.rows, table.unchecked) for table in after.tables]
    assert unchecked == [(COUNT + 1, COUNT), (0, 0), (COUNT, COUNT), (1, 1)]


# --- whole pages


@pytest.mark.parametrize("seed", range(6))
def test_of_a_file_with_destroyed_pages_every_readable_row_is_saved(path: Path, seed: int) -> None:
    data = bytearray(path.read_bytes())
    leaves = [page for page in range(1, len(data) // 4096) if data[page * 4096] == LEAF]
    assert len(leaves) > 5
    for page in random.Random(seed).sample(leaves, 2):
        data[page * 4096 : (page + 1) * 4096] = random.Random(seed).randbytes(4096)
    path.write_bytes(bytes(data))
    before = inspect(path)
    assert not before.is_sound
    lines: list[str] = []
    with console.observed(lines.append):
        saved = kept(path)
    assert "the damaged file is damaged-1.sqlite" in lines[0]
    assert len(saved) >= COUNT - 20  # a page holds at most ten answers
    assert (path.parent / "damaged-1.sqlite").read_bytes() == bytes(data)
    assert inspect(path).faults == ()
    assert kept(path) == saved
    assert sorted(file.name for file in path.parent.iterdir()) == ["damaged-1.sqlite", "journal.sqlite"]


def test_a_large_file_is_checked_once_its_damage_was_met(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "CHECKED_BYTES", 0)
    data = bytearray(path.read_bytes())
    for page in range(1, len(data) // 4096):
        if data[page * 4096] == LEAF and b"answer 7 " in data[page * 4096 : (page + 1) * 4096]:
            data[page * 4096 : (page + 1) * 4096] = bytes(4096)
    path.write_bytes(bytes(data))
    with pytest.raises(RunFolderError, match="run again, which saves every row"):
        kept(path)
    assert len(kept(path)) >= COUNT - 10
    assert sorted(file.name for file in path.parent.iterdir()) == ["damaged-1.sqlite", "journal.sqlite"]


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bytes_anywhere_are_never_a_traceback_and_never_a_wrong_answer(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 10, 100])):
        data[chance.randrange(100, len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data))
    with one_line_at_most():
        inspect(path).lines()
        with Journal.open(path) as journal:
            for number in range(COUNT):
                found = journal.get(key(numbered(number), HERE))
                assert found is None or (isinstance(found, Completion) and found.text == f"answer {number} " * 30)
            journal.costs(), journal.sent(), journal.batches(), journal.tokens(), list(journal.questions())


def test_a_canonical_request_is_what_the_journal_keeps(path: Path) -> None:
    with Journal.open(path) as journal:
        assert next(journal.questions())[1] == canonical(numbered(0))
