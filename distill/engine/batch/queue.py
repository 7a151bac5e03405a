"""Tracks a stage's batches between journal and provider; no question is ever in two batches at once.

Each step is in the journal before the next begins: a batch is `prepared` with its sends and their reserved cost,
`uploaded`, `submitted`, and at last `ingested`. After a kill, the provider is searched by name for the next step's file
or batch.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from itertools import islice
from secrets import token_hex
from typing import Any

from distill.core import console
from distill.engine import StoppedByEndpoint, StoppedShort, Tally
from distill.engine.batch.client import BYTES_A_BATCH, REQUESTS_A_BATCH, BatchJobs, BatchRefusal, BatchStatus, Result
from distill.engine.batch.questions import (
    PENDING,
    QUEUE_FULL,
    Line,
    PendingQuestion,
    commit_groups,
    progress_of,
    questions_of,
)
from distill.engine.budget import Budget, within_bounds
from distill.engine.journal.records import (
    BatchRecord,
    Bill,
    Change,
    Statement,
    answered,
    batched,
    failed,
    intention,
    prepared,
    settled,
)
from distill.engine.journal.store import Journal
from distill.engine.policy import completion_of
from distill.engine.providers import ProviderError, Reply
from distill.engine.providers.replies import cut_at_stop
from distill.types import Failure

_UNASKED = ProviderError("refused", "nothing was generated, and nothing is charged")


class Batches:
    """A stage's batches at its providers. Belongs to one run of the stage; keeps `tally` and `budget` up to date.

    Batches that earlier processes left open are taken over at once: their worst case, which the journal's accounts
    charge in full, moves from the spent to the reserved part of `budget`. A question that fails transiently is sent
    `attempts` times before it counts as a failure.
    """

    def __init__(
        self,
        journal: Journal,
        jobs: Mapping[str, BatchJobs],
        *,
        stage: str,
        budget: Budget,
        tally: Tally,
        attempts: int,
        requests_a_batch: int = REQUESTS_A_BATCH,
        bytes_a_batch: int = BYTES_A_BATCH,
    ) -> None:
        self._journal = journal
        self._jobs = jobs
        self._stage = stage
        self._budget = budget
        self._tally = tally
        self._attempts = attempts
        self._requests = requests_a_batch
        self._bytes = bytes_a_batch
        self._new: set[str] = set()
        """Batches that the provider cannot know yet."""
        self._refusals = 0
        self._is_queue_full = False
        """Whether a provider has refused a batch because its queue was full."""
        self._hopeless = ""
        """Why no request can succeed."""
        self._refusal, self._has_answers = "", False  # a refusal that may concern all requests
        self._statuses: dict[str, BatchStatus] = {}
        every = journal.batches(stage)
        self._times = Counter(of for batch in every for of in batch.sends)
        """In how many batches each question has been."""
        rest = [batch for batch in every if batch.state != "ingested"]
        self._questions = questions_of(journal, {of for batch in rest for of in batch.sends}) if rest else {}
        # a question that is damaged in the journal cannot take its answer in, and is asked again
        rest = [
            replace(batch, sends={of: batch.sends[of] for of in batch.sends if of in self._questions}) for batch in rest
        ]
        self._open = {batch.name: batch for batch in rest if batch.sends and self._is_reachable(batch)}
        self._most = self._taken_over(journal.unsettled(stage)) if rest else {}
        """The worst case of each unsettled send."""
        self.failed: dict[str, Failure] = {}
        """Failures recorded by this process, by key."""
        self.asked: set[str] = set()
        """Keys of questions that this process sent or whose results it took in."""
        self.unaffordable: Bill | None = None
        """The worst case of the first question that did not fit under the cap at the last submission."""

    @property
    def count(self) -> int:
        """Number of open batches."""
        return len(self._open)

    def note(self) -> str:
        """The state of open batches in a few words; empty where none is open."""
        return progress_of([*self._open.values()], [one for name, one in self._statuses.items() if name in self._open])

    # --- taking over

    def _is_reachable(self, batch: BatchRecord) -> bool:
        if self._jobs_of(batch) is not None or batch.state == "prepared":
            return True
        url = self._questions[next(iter(batch.sends))].endpoint.url
        console.warn(f"batch {batch.batch_id or batch.name} is still at {url}, which the recipe no longer names")
        return False

    def _jobs_of(self, batch: BatchRecord) -> BatchJobs | None:
        """The jobs of a batch's provider: with the same identity, else at the same address."""
        endpoint = self._questions[next(iter(batch.sends))].endpoint
        by_name = sorted(self._jobs.items(), key=lambda pair: pair[0] != batch.role)
        same = [jobs for _, jobs in by_name if jobs.endpoint == endpoint]
        near = [jobs for _, jobs in by_name if jobs.endpoint.url == endpoint.url]
        return next(iter((same or near) if batch.state != "prepared" else same), None)

    def _taken_over(self, unsettled: Mapping[int, Bill]) -> dict[int, Bill]:
        sends = {send for batch in self._open.values() for send in batch.sends.values()}
        worst_cases = {send: most for send, most in unsettled.items() if send in sends}
        for most in worst_cases.values():
            self._budget.earlier_usd -= most.usd or 0.0
            self._budget.reserved_usd += most.usd or 0.0
            self._budget.in_flight += 1
        return worst_cases

    # --- sending

    async def submit(self, misses: Mapping[str, PendingQuestion]) -> None:
        """Send the questions that are in no open batch, as far as the budget goes; sets `unaffordable`.

        Once a provider's queue was full, one batch at a time. Raises `StoppedByEndpoint`.
        """
        self.unaffordable = None
        if self._is_queue_full and self._open:
            return
        open_keys = {of for batch in self._open.values() for of in batch.sends}
        with closing(self._chunks([miss for of, miss in misses.items() if of not in open_keys])) as chunks:
            for lines in islice(chunks, 1 if self._is_queue_full else None):
                await self._prepare(lines)
        await self.forward()

    def _chunks(self, misses: Sequence[PendingQuestion]) -> Generator[list[Line], None, None]:
        """Lines with their cost reserved, in chunks within the limits of a batch, of one model and one method each."""
        chunks: dict[tuple[str, str], list[Line]] = {}
        sizes: Counter[tuple[str, str]] = Counter()
        try:
            for line in map(self._line, misses):
                if not self._budget.reserve(line.most):
                    self.unaffordable = line.most
                    break
                to = line.miss.name, line.path
                full, chunk = None, chunks.setdefault(to, [])
                if chunk and (len(chunk) >= self._requests or sizes[to] + line.size > self._bytes):
                    full, chunk = chunk, []
                    chunks[to], sizes[to] = chunk, 0
                chunk.append(line)
                sizes[to] += line.size
                if full:
                    yield full
            while chunks:
                yield chunks.pop(next(iter(chunks)))
        finally:
            for line in (line for chunk in chunks.values() for line in chunk):
                self._budget.settle_error(line.most, _UNASKED)

    def _line(self, miss: PendingQuestion) -> Line:
        path, data = self._jobs[miss.name].line(miss.question.key, miss.question.request)
        return Line(miss, path, len(data), self._budget.most(miss.name, miss.question.request))

    async def _prepare(self, lines: Sequence[Line]) -> None:
        """Write a batch, its sends and its questions, so that another process can take in the answers."""
        name = f"{self._stage or 'stage'}-{token_hex(8)}"
        batch = BatchRecord(name=name, stage=self._stage, role=lines[0].miss.name, state="prepared")
        await self._journal.commit(prepared(batch, [self._intention(line, name) for line in lines]))
        (self._open[name],) = self._journal.batches(name=name)
        self._new.add(name)
        for line in lines:
            of = line.miss.question.key
            self._questions[of] = line.miss.question
            self._most[self._open[name].sends[of]] = line.most
            self._times[of] += 1
            self._tally.asked += of not in self.asked
            self._tally.retried += of in self.asked
            self.asked.add(of)

    def _intention(self, line: Line, batch: str) -> Change:
        question, name = line.miss.question, line.miss.name
        attempt = self._times[question.key] + 1
        intent = intention(
            question.key, attempt, stage=self._stage, role=name, model=question.endpoint.model, most=line.most
        )
        pending = Failure(
            key=question.key, reason=PENDING, detail=f"in batch {batch}", transient=True, attempts=attempt
        )
        return *intent, *failed(pending, question.request_json, question.endpoint, stage=self._stage)

    async def forward(self) -> None:
        """Upload and submit every batch that is not submitted yet. Raises `StoppedByEndpoint`."""
        for batch in self._unsubmitted():
            try:
                await self._forward(batch)
            except ProviderError as error:
                if not error.transient:
                    await self._undo(self._open[batch.name], error.detail)
                raise StoppedByEndpoint(f"{error.detail}; run again to go on") from error

    def _unsubmitted(self) -> list[BatchRecord]:
        return [batch for batch in self._open.values() if batch.state != "submitted"]

    async def _forward(self, batch: BatchRecord) -> None:
        """Upload and submit, unless a process that was killed has done so already."""
        if (jobs := self._jobs_of(batch)) is None:
            await self._undo(batch, "never submitted, and the recipe's model has another identity now")
            return
        is_new = batch.name in self._new
        self._new.discard(batch.name)
        if batch.state == "prepared":
            file_id = None if is_new else await jobs.find_file(batch.name)
            file_id = file_id or await jobs.upload(batch.name, [line for _, line in self._lines(jobs, batch)])
            batch, is_new = await self._moved(batch, state="uploaded", file_id=file_id), True
        batch_id = None if is_new else await jobs.find_batch(batch.name)
        if batch_id is None:
            path, _ = next(self._lines(jobs, batch))
            batch_id = await jobs.create(batch.name, str(batch.file_id), path)
        await self._moved(batch, state="submitted", batch_id=batch_id)

    def _lines(self, jobs: BatchJobs, batch: BatchRecord) -> Iterator[tuple[str, bytes]]:
        return (jobs.line(of, self._questions[of].request) for of in batch.sends)

    async def _moved(self, batch: BatchRecord, **changes: Any) -> BatchRecord:
        self._open[batch.name] = batch = replace(batch, **changes)
        await self._journal.commit((batched(batch),))
        return batch

    async def _undo(self, batch: BatchRecord, why: str, change: Change = ()) -> None:
        """Close a batch of which nothing was answered: its sends are free, and its questions can be sent again."""
        for of, send in batch.sends.items():
            self._times[of] -= 1
            change += self._free(send)
        await self._close(batch, (*change, batched(replace(batch, state="ingested", sends={}, detail=why))))

    # --- taking in

    async def take_in(self) -> bool:
        """Read every batch's status and take in those that are over; returns whether there was one.

        Raises `StoppedByEndpoint` where no request can succeed, and `StoppedShort` for a batch that someone cancelled.
        """
        ended, cancelled = False, ""
        for batch in [batch for batch in self._open.values() if batch.state == "submitted"]:
            was_seen = batch.name in self._statuses
            self._statuses[batch.name] = status = await self._jobs_here(batch).status(str(batch.batch_id))
            if status.is_over:
                ended = True
                await (self._refused if status.status == "failed" else self._ingest)(batch, status)
                cancelled = str(batch.batch_id) if was_seen and status.status == "cancelled" else cancelled
        if why := self._hopeless or ("" if self._has_answers else self._refusal):
            raise StoppedByEndpoint(why)
        if cancelled:
            raise StoppedShort(f"batch {cancelled} was cancelled; what it had finished is kept; run again to go on")
        return ended

    def _jobs_here(self, batch: BatchRecord) -> BatchJobs:
        jobs = self._jobs_of(batch)
        assert jobs is not None  # only such batches are open
        return jobs

    async def _ingest(self, batch: BatchRecord, status: BatchStatus) -> None:
        """Take in both files, then the questions that neither has. A repetition changes nothing."""
        missing = dict(batch.sends)
        for file_id in (status.output_file, status.error_file):
            if file_id is not None:
                await self._ingest_file(batch, file_id, missing)
        never = ProviderError("unfinished", f"the batch was {status.status} before it was answered", transient=True)
        change: Change = ()
        for of, send in missing.items():
            change += self._result_change(batch.role, of, send, never)
        done = f"{status.status}: {len(batch.sends) - len(missing)} of {len(batch.sends)} came back"
        await self._close(batch, (*change, batched(replace(batch, state="ingested", detail=done))))

    async def _ingest_file(self, batch: BatchRecord, file_id: str, missing: dict[str, int]) -> None:
        async with aclosing(self._jobs_here(batch).output(file_id)) as lines:
            async for group in commit_groups(lines, most=2 * len(batch.sends)):
                await self._commit(self._of_lines(batch, group, missing))

    async def _commit(self, changes: Iterable[Change]) -> None:
        """Commit each change by itself, so that one that cannot be stored affects no other."""
        await asyncio.gather(*(self._journal.commit(change) for change in changes if change))

    def _of_lines(self, batch: BatchRecord, lines: Sequence[bytes], missing: dict[str, int]) -> Iterator[Change]:
        jobs = self._jobs_here(batch)
        for line in lines:
            of, result = jobs.result(line) or ("", _UNASKED)
            if (send := missing.pop(of, None)) is not None:
                yield self._result_change(batch.role, of, send, result)

    def _result_change(self, name: str, of: str, send: int, result: Result) -> Change:
        """The journal's change for a question's result."""
        self.asked.add(of)
        if isinstance(result, ProviderError):
            return self._failure_change(of, send, result)
        most = self._most.pop(send, None)
        return () if most is None else self._answer_change(name, of, send, most, result)

    def _answer_change(self, name: str, of: str, send: int, most: Bill, reply: Reply) -> Change:
        reply, self._has_answers = within_bounds(reply, most), True
        bill = self._budget.settle(name, most, reply.usage)
        self._tally.usd = self._budget.usd
        self._tally.count(reply.usage)
        question = self._questions[of]
        reply = cut_at_stop(reply, question.request.sampling.stop)
        change = answered(
            completion_of(of, reply),
            question.request_json,
            question.request.kind,
            question.endpoint,
            stage=self._stage,
        )
        return *change, settled(send, bill, "kept")

    def _failure_change(self, of: str, send: int, error: ProviderError) -> Change:
        """The journal's change for an error, which is free unless an answer came that cannot be read."""
        change = self._free(send, error)
        if error.reply:
            self._refusal = error.detail
        elif error.transient and self._times[of] % self._attempts:
            return change
        detail, is_transient = error.reply or error.detail, error.transient or bool(error.reply)
        return *change, *self._given_up(of, error.reason, detail, transient=is_transient)

    def _free(self, send: int, error: ProviderError = _UNASKED) -> Change:
        if (most := self._most.pop(send, None)) is None:
            return ()
        bill = self._budget.settle_error(most, error if error.reason in {"malformed", "aborted"} else _UNASKED)
        self._tally.usd = self._budget.usd
        return (settled(send, bill, "charged" if bill is most else "free"),)

    def _given_up(self, of: str, reason: str, detail: str, *, transient: bool) -> Change:
        self._tally.failed += of not in self.failed
        self.failed[of] = failure = Failure(
            key=of, reason=reason, detail=detail, transient=transient, attempts=self._times[of]
        )
        question = self._questions[of]
        return failed(failure, question.request_json, question.endpoint, stage=self._stage)

    async def _refused(self, batch: BatchRecord, status: BatchStatus) -> None:
        """Handle a batch that was refused as a whole: because of a full queue, of single lines, or permanently."""
        reply = status.refusals or (BatchRefusal("failed", "without a reason"),)
        why = f"{reply[0].code}: {reply[0].message}"
        keys, change = list(batch.sends), list[Statement]()
        at_fault = {keys[one.line - 1]: one for one in reply if one.line is not None and 1 <= one.line <= len(keys)}
        self._refusals += 1
        if any(one.code == QUEUE_FULL for one in reply) and (len(keys) > 1 or self.count > 1):
            self._requests = self._requests if self.count > 1 else len(keys) // 2
            self._is_queue_full = True
        elif at_fault and self._refusals <= self._attempts:
            for of, one in at_fault.items():
                change += self._given_up(of, one.code or "refused", one.message, transient=False)
        else:
            self._hopeless = f"{self._jobs_here(batch).url} refused a batch: {why}"
        await self._undo(batch, f"refused: {why}", tuple(change))

    async def _close(self, batch: BatchRecord, change: Change) -> None:
        await self._journal.commit(change)
        del self._open[batch.name]
        self._statuses.pop(batch.name, None)
        for of in batch.sends:
            self._questions.pop(of, None)

    async def cancel(self) -> int:
        """Cancel every open batch; returns how many the providers still had."""
        for batch in self._unsubmitted():
            jobs = self._jobs_of(batch)
            batch_id = await jobs.find_batch(batch.name) if jobs and batch.state == "uploaded" else None
            if batch_id is None:
                await self._undo(batch, "cancelled before it was submitted")
            else:
                await self._moved(batch, state="submitted", batch_id=batch_id)
        for batch in self._open.values():
            if not (await self._jobs_here(batch).status(str(batch.batch_id))).is_over:
                await self._jobs_here(batch).cancel(str(batch.batch_id))
        return self.count
