"""Rules on a row in several processes: the same bytes as in one, and no process left behind whatever happens."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core import assets
from distill.core.jsonl import write_rows
from distill.core.registry import part
from distill.curate.filters import FILTERS
from distill.curate.filters.length import Length
from distill.curate.rows import CHUNK_CHARACTERS, CHUNK_ROWS, MANY_CHARACTERS, MOST_PROCESSES, _chunks, sift
from distill.curate.stage import curate
from distill.errors import ModelError
from distill.types import Message, Session
from tests.support.odd_rules import Deadly, Rooted, Where, row

OPTIONS = {
    "length": {"min_words": 3},
    "empty": {},
    "truncated": {},
    "format": {},
    "refusal": {"drop": True},
    "pii": {"action": "mask"},
    "keyword": {"words": ["graph"]},
    "language": {"on": "both"},
    "repetition": {},
    "contamination": {"files": [str(assets.find("prompts/seeds/general.jsonl"))]},
    "near_duplicate": {},
}
PIECES = (
    "Write to anna.smith@mail.net or call 212-736-5000.",
    "I'm sorry, but I can't help with that.",
    "The graph shows\u2028three rivers, and a é in 😀 text.",
    "Schreibe bitte ein kurzes Gedicht über den Frühling in der Stadt.",
    "say it again " * 40,
    "### Instruction: go on",
    "",
    "A plain and honest answer about boats.",
)


def sessions(count: int) -> list[Session]:
    rng = random.Random(5)
    found = []
    for number in range(count):
        texts = [f"{rng.choice(PIECES)} {number} {rng.choice(PIECES)}".strip() for _ in range(2)]
        turns = (Message("user", texts[0]), Message("assistant", rng.choice(PIECES) or texts[1]))
        found.append(Session(f"s{number:05}", turns, {"truncated": rng.random() < 0.1, "score": rng.random()}))
    return found


def rules():
    shelf = {name: part(FILTERS, name, kind="filter") for name in OPTIONS}
    return [(name, rule(rule.Options(**OPTIONS[name]))) for name, rule in shelf.items()]


@pytest.mark.slow
def test_one_process_and_two_write_the_same_bytes(tmp_path):
    written, filters = [], rules()
    for processes in (1, 2):  # the same rules: what one has read and cached is no hindrance
        folder = tmp_path / str(processes)
        folder.mkdir()
        write_rows(folder / "sessions.jsonl", sessions(700))
        counts = curate(folder, filters=filters, test=20, seed=7, processes=processes)
        files = {name: (folder / f"{name}.jsonl").read_bytes() for name in ("kept", "test", "dropped")}
        written.append((counts, files))
    assert written[0] == written[1]
    counts, files = written[0]
    assert b"[EMAIL]" in b"".join(files.values())
    assert len(counts["by_rule"]) >= 6
    assert all(files.values())


def test_little_text_is_measured_here():
    rows = [row(number) for number in range(40)]
    sift(rows, [("where", Where())])
    assert {each.verdicts[0].value for each in rows} == {os.getpid()}


def test_much_text_is_measured_by_processes_of_its_own_one_for_each_core_up_to_four():
    text = "much " * 50_000
    rows = [row(number, text) for number in range(MANY_CHARACTERS // len(text) + 1)]
    sift(rows, [("where", Where())])
    found = {each.verdicts[0].value for each in rows}
    cores = min(MOST_PROCESSES, len(os.sched_getaffinity(0)))
    if cores == 1:
        assert found == {os.getpid()}
    else:
        assert os.getpid() not in found
        assert len(found) <= cores


def test_a_rule_that_cannot_leave_its_process_keeps_all_in_it():
    rows = [row(number) for number in range(40)]
    sift(rows, [("where", Where()), ("rooted", Rooted())], processes=2)
    assert {verdict.value for each in rows for verdict in each.verdicts} == {os.getpid()}


@pytest.mark.slow
def test_what_a_rule_raises_elsewhere_is_raised_here(tmp_path):
    length = Length(Length.Options(max_tokens=9, tokenizer=str(tmp_path)))
    with pytest.raises(ModelError, match="tokenizer") as raised:
        sift([row(1)], [("length", length)], processes=2)
    assert "\n" not in str(raised.value)


def test_rows_that_a_dead_process_leaves_undone_are_done_here(capsys):
    rows = [row(number) for number in range(3 * CHUNK_ROWS)]
    sift(rows, [("deadly", Deadly())], processes=2)
    assert [each.verdicts[0].value for each in rows] == [os.getpid()] * len(rows)
    assert "a process that measured rows has died" in capsys.readouterr().err


@given(st.lists(st.integers(0, 3 * CHUNK_CHARACTERS), max_size=30))
def test_chunks_hold_every_row_in_order_and_stay_small(lengths):
    rows = [row(number, "x" * length) for number, length in enumerate(lengths)]
    chunks = list(_chunks(rows))
    assert [each for chunk in chunks for each in chunk] == rows
    for chunk in chunks:
        before_last = sum(len(each.session.messages[1].content) for each in chunk[:-1])
        assert before_last < CHUNK_CHARACTERS
        assert len(chunk) <= CHUNK_ROWS


# --- ends


@contextmanager
def measuring(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A process that measures with two others, as soon as both of those do."""
    command = [sys.executable, "-m", "tests.support.odd_rules", str(folder), "100000", "0.002"]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            limit = time.monotonic() + 60
            while len(marks := list(folder.iterdir())) < 2:
                assert process.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.05)
            yield process, [psutil.Process(int(mark.name)) for mark in marks]
        finally:
            process.kill()


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_only_the_first_speaks(tmp_path):
    with measuring(tmp_path) as (process, others):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        _, complaint = process.communicate(timeout=60)
        _, alive = psutil.wait_procs(others, timeout=20)
    assert complaint.count("Traceback") == 1
    assert complaint.rstrip().endswith("KeyboardInterrupt")
    assert alive == []


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(tmp_path):
    with measuring(tmp_path) as (process, others):
        process.kill()
        _, alive = psutil.wait_procs(others, timeout=20)
    assert alive == []
