"""What must hold after every invocation, and once a run is finished; each function yields what does not."""

from __future__ import annotations

import hashlib
import html
import json
import re
import signal
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psutil

from distill.engine.journal.store import Journal, to_request
from tests.benchmarks.stress.endpoint import Sale
from tests.benchmarks.stress.harm import Invocation, Site

GRACE_SECONDS = 0.5
"""From a signal until nothing more is sent; and from an answer's end until it is on the disk."""
SECOND_SIGNAL_SECONDS = 2.0
"""From the second signal to the end; one second is promised, the rest is for a busy machine."""
ORPHAN_SECONDS = 8.0
"""For children to notice that their parent was killed."""
UNREAD = ("bulky.jsonl", "tokenizer.json", ".safetensors")
"""Ends of the names of files that no text of an endpoint reaches, and that take long to search."""
MOST_SEARCHED = 2_000_000
"""Characters of a text in which escapes are undone; a longer one is searched as it is."""


def after_each(site: Site, invocation: Invocation) -> Iterator[str]:
    """What is wrong after an invocation, however it was ended."""
    yield from _end(invocation)
    yield from _orphans(site)
    yield from _unreadable(site.run_dir)
    yield from _journal(site)
    yield from _secrets(site, invocation.output)
    yield from _money(site, invocation)
    if invocation.signals and invocation.code != 0:
        late = [sale for sale in site.endpoint.ledger if sale.started > invocation.signals[0] + GRACE_SECONDS]
        yield from [f"{len(late)} requests were sent over {GRACE_SECONDS} s after the signal"] if late else []


def _end(invocation: Invocation) -> Iterator[str]:
    last = (invocation.output.strip().splitlines() or ["nothing"])[-1]
    if invocation.code is None:
        yield f"it hung; its last line: {last}"
    elif invocation.code not in invocation.allowed and not _is_pythons_own(invocation):
        yield f"exit {invocation.code}, not one of {invocation.allowed}: {last}"
    if "Traceback" in invocation.output and not invocation.is_early:
        yield f"a traceback (exit {invocation.code}): {last}"
    if len(invocation.signals) > 1 and invocation.ended - invocation.signals[1] > SECOND_SIGNAL_SECONDS:
        yield f"it ended {invocation.ended - invocation.signals[1]:.1f} s after the second signal"


def _is_pythons_own(invocation: Invocation) -> bool:
    """Whether a signal met Python before it ran any code of ours, or after all of it; no handler is in place then."""
    is_over = any(words in invocation.output for words in ("report: /", "error: interrupted"))
    by_signal = invocation.code in {-signal.SIGINT, -signal.SIGTERM}
    return bool(invocation.signals) and (invocation.is_early or (is_over and by_signal))


def _orphans(site: Site) -> Iterator[str]:
    """Processes that outlive the command; they are ended here, so that each is reported once."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while (orphans := _processes(site)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in orphans:
        with suppress(psutil.Error):
            yield f"an orphan: {' '.join(process.cmdline())[:200]}"
            process.kill()


def _processes(site: Site) -> list[psutil.Process]:
    """Those that were started for this site, by themselves or by others."""
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("STRESS_FOLDER") == str(site.folder) and process.status() != "zombie":
                processes.append(process)
    return processes


def _unreadable(folder: Path) -> Iterator[str]:
    """JSON that is not whole: files are replaced, never written in place."""
    for path in sorted(path for path in folder.rglob("*.json*") if not path.name.startswith(".")):
        text = path.read_text("utf-8", "replace")
        try:
            for line in text.splitlines() if path.suffix == ".jsonl" else [text]:
                json.loads(line)
        except ValueError as error:
            yield f"{path.name} cannot be read: {error}"


def _journal(site: Site) -> Iterator[str]:
    """Whether SQLite finds the journal whole, and the journal itself can read every row."""
    try:
        if (path := site.journal()) is None:
            return
        with closing(sqlite3.connect(path)) as plain:
            if (verdict := plain.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
                yield f"the journal is not whole: {verdict[:3]}"
        with Journal.open(path, read_only=True) as journal:
            for key, request, endpoint in journal.questions():
                json.loads(endpoint)
                to_request(json.loads(request))
                journal.get(key)
            journal.costs(), journal.batches(), journal.tokens()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what this looks for
        yield f"the journal cannot be read: {type(error).__name__}: {error}"


def _secrets(site: Site, output: str) -> Iterator[str]:
    """Secrets in any spelling, in the output or in any file."""
    for name, text in [("the output", output), *_texts(site)]:
        plain = _decoded(text) if len(text) < MOST_SEARCHED else text
        for variable, secret in site.secrets.items():
            if (place := plain.find(secret.split()[-1])) >= 0:
                yield f"{variable} is in {name}: {plain[max(0, place - 60) : place + 40]!r}"


def _texts(site: Site) -> Iterator[tuple[str, str]]:
    """Every file, and every cell of the journal."""
    for path in sorted(path for path in site.folder.rglob("*") if path.is_file()):
        if not path.name.endswith(UNREAD):
            yield str(path.relative_to(site.folder)), path.read_bytes().decode("utf-8", "replace")
    if (copy := site.journal()) is None:
        return
    with closing(sqlite3.connect(copy)) as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in database.execute(f"SELECT * FROM {table}"):
                yield f"the table {table}", "\n".join(map(_text, row))


def _text(cell: Any) -> str:
    """A cell as text, unpacked where it is packed."""
    if isinstance(cell, bytes):
        with suppress(zlib.error):
            cell = zlib.decompress(cell)
        return cell.decode("utf-8", "replace")
    return str(cell)


def _decoded(text: str) -> str:
    """The text with every escape undone, however deeply nested: of JSON, of HTML, of URLs, of wide characters."""
    before = None
    while text != before:
        before = text
        text = text.replace("\0", "").replace("\\/", "/").replace("\\\\", "\\").replace('\\"', '"')
        text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)
        text = unquote(html.unescape(text))
    return text


def _money(site: Site, invocation: Invocation) -> Iterator[str]:
    """The journal counts no less than the endpoint charges, and no more than the budget."""
    charged, counted, cap = sum(sale.usd for sale in site.endpoint.ledger), site.spent_usd(), invocation.cap_usd
    if counted < charged - 1e-6:
        yield f"the endpoint charges {charged:.4f} USD, and the journal counts {counted:.4f}"
    if cap is not None and max(counted, charged) > cap + 1e-6:
        yield f"{counted:.4f} USD are counted and {charged:.4f} charged, of a budget of {cap:.4f}"


# once a run is finished


def when_finished(site: Site, reference: dict[str, str], invocations: Sequence[Invocation]) -> Iterator[str]:
    """What is wrong with a run beside the undisturbed one."""
    if invocations[-1].code != 0:
        yield f"it did not finish in {len(invocations)} invocations"
        return
    files = contents(site.run_dir)
    for name in sorted(name for name in files.keys() | reference.keys() if files.get(name) != reference.get(name)):
        yield f"{name} {'is missing' if name not in files else 'differs' if name in reference else 'was left behind'}"
    yield from (f"{path.name} was left in TMPDIR" for path in sorted((site.folder / "tmp").iterdir()))
    yield from _bought_twice(site.endpoint.ledger, invocations)


def _bought_twice(ledger: Sequence[Sale], invocations: Sequence[Invocation]) -> Iterator[str]:
    """Answers bought again although no kill can have lost them: each but the last must have been in flight at one."""
    losses = [(moment, moment) for invocation in invocations for moment in invocation.losses]
    losses += [(invocation.started, invocation.ended) for invocation in invocations if invocation.may_lose]
    final = {sale.question: sale for sale in ledger if sale.is_answer}
    for sale in ledger:
        latest = (sale.ended or sale.started) + GRACE_SECONDS
        is_lost = any(sale.started <= last and first <= latest for first, last in losses)
        if sale.is_answer and sale is not final[sale.question] and not is_lost:
            yield f"bought again though it was not in flight at a kill: {sale.question[-160:]}"


def contents(folder: Path) -> dict[str, str]:
    """A digest of each file of a finished run, without what tells of the clock, of attempts or of the machine."""
    return {str(path.relative_to(folder)): _digest(path) for path in folder.rglob("*") if path.is_file()}


def _digest(path: Path) -> str:
    if path.name in {"journal.sqlite", "run.log", "training.json", "train_log.jsonl"}:
        return ""
    counts = rb'"(?:attempts|bytes|tokens|tokens_per_second)": ?(?:[\d.]+|null)|budget_usd: .*'
    data = re.sub(counts, b'"counted":0', path.read_bytes())
    if path.suffix in {".html", ".md"}:
        data = re.sub(rb'[0-9a-f]{64}|(?:\d+ min )?[\d.,:]+|\?(?= tokens)| class="(?:alert)?"', b"#", data)
    if path.name == "run.json":
        stages = json.loads(data)["stages"]
        data = json.dumps({name: (stage["status"], stage["counts"]) for name, stage in stages.items()}).encode()
    return hashlib.sha256(data).hexdigest()
