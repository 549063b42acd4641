"""Which jobs are written next: those that somebody waits for, a client in turn, else those that are written ahead.

    add ─▶ turns ─▶ begin, take … ─▶ Decoding ─▶ ended ─▶ (a candidate is drawn again) ─▶ turns
                       ▲                └─(somebody came)─▶ paused ─┐
                       └────────────────────────────────────────────┘

The engine asks it, in the event loop, and says how each batch went; the thread asks `shall_pause` only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prefanno.errors import Conflict, OutOfMemory, PrefannoError, QueueFull
from prefanno.generation.config import Queued
from prefanno.generation.decoding import Decoding
from prefanno.generation.job import Job
from prefanno.generation.turns import Turns


@dataclass(frozen=True)
class Queue:
    """How many requests wait, how many are written, and how many nobody waits for; how long a new one would take."""

    waiting: int
    writing: int
    ahead: int
    wait_s: float | None


class Schedule:
    """All jobs of the engine: those that wait, those that are written, and those that were paused."""

    def __init__(self) -> None:
        self._live, self._ahead = Turns(), Turns()
        self._source = self._live  # of the batch that is written
        self._writing: Decoding | None = None
        self._paused: Decoding | None = None
        self._pace = Pace()
        self._came = False  # somebody waits who came after the batch had begun

    def __bool__(self) -> bool:
        return bool(self._live or self._paused or self._ahead)

    def __iter__(self) -> Iterator[Job]:
        for job in (*self._begun, *self._live, *self._ahead):
            if not job.is_over and not job.cancelled:
                yield job

    @property
    def queue(self) -> Queue:
        """How it stands."""
        live = sum(1 for job in self if job.is_waited_for)
        writing = sum(1 for job in self._writing.jobs if job.is_waited_for) if self._writing is not None else 0
        return Queue(live - writing, writing, sum(1 for _ in self) - live, self._pace.wait_s(live))

    def find(self, request_id: str) -> Job | None:
        """The job of this id, while it is not over."""
        return next((job for job in self if job.id == request_id), None)

    @property
    def _begun(self) -> list[Job]:
        return [job for decoding in (self._writing, self._paused) if decoding is not None for job in decoding.jobs]

    def add(self, job: Job) -> None:
        """Queue up. Raises QueueFull, and Conflict where one of its id is under way."""
        if self.find(job.id) is not None:
            raise Conflict(f"a request {job.id!r} is under way", f"与当前状态冲突：请求 {job.id} 正在进行中")
        turns = self._turns(job)
        if not turns.has_room(job.client):
            raise QueueFull(self._pace.wait_s(len(turns)))
        self._queue_up(job)

    def hurry(self, job: Job, client: str, streams: bool) -> None:
        """From now on this client waits for a job that was to be written ahead of time."""
        job.client, job.streams = client, streams
        if job.is_waited_for and self._ahead.remove(job):
            self._queue_up(job)
        else:
            job.queued = Queued(0, self._pace.wait_s(0), job.id)

    def _queue_up(self, job: Job) -> None:
        turns = self._turns(job)
        turns.add(job)
        position = turns.position(job) + sum(1 for other in self._begun if other.is_waited_for)
        job.queued = Queued(position, self._pace.wait_s(position), job.id)
        self._came = self._came or turns is self._live

    def _turns(self, job: Job) -> Turns:
        return self._ahead if job.client is None else self._live

    def begin(self) -> Decoding:
        """What is written next: what was paused, unless only others are waited for, else a new batch."""
        if self._paused is not None and not (self._paused.is_ahead and self._live):
            self._writing, self._paused = self._paused, None
            self._source, self._came = self._turns_of(self._writing), bool(self._live)
        else:
            self._writing = Decoding()
            self._source, self._came = self._live or self._ahead, False
        return self._writing

    def _turns_of(self, decoding: Decoding) -> Turns:
        return self._ahead if decoding.is_ahead else self._live

    def take(self) -> Job | None:
        """The next job for the batch that has begun, where there is room."""
        if self._writing is None or not self._writing.takes_more or self.shall_pause():
            return None
        job = self._source.take()
        if job is not None:
            self._writing.jobs.append(job)
        return job

    def shall_pause(self) -> bool:
        """Whether what is written lets somebody go first. The thread may ask."""
        return self._came and self._paused is None and self._writing is not None and self._writing.is_ahead

    def paused(self) -> None:
        """The batch has let somebody go first; it keeps its memory, unless its jobs were cancelled meanwhile."""
        decoding, self._writing = self._writing, None
        if decoding is not None and any(not job.cancelled for job in decoding.jobs):
            self._paused = decoding

    def ended(self) -> None:
        """The batch is written; jobs that are not complete have to draw a candidate again."""
        decoding, self._writing = self._writing, None
        if decoding is not None:
            self._pace.took(decoding.seconds, len(decoding.jobs))
            self._add_again(decoding)

    def failed(self, error: PrefannoError) -> None:
        """The batch broke off. For want of memory it is tried again: without what was paused, then with less."""
        decoding, self._writing = self._writing, None
        if decoding is None:
            return
        decoding.drop()
        if not isinstance(error, OutOfMemory):
            _fail(decoding.jobs, error)
        elif self._paused is not None:
            self._paused.drop()
            self._add_again(self._paused)
            self._paused = None
        else:
            _fail([job for job in decoding.jobs if not job.ask_less()], error)
        self._add_again(decoding)

    def _add_again(self, decoding: Decoding) -> None:
        for job in decoding.jobs:
            if not job.is_over:
                self._turns(job).add_again(job)

    def cancel(self, error: PrefannoError) -> None:
        """End all jobs with this error."""
        _fail(list(self), error)
        self._paused = None


def _fail(jobs: Sequence[Job], error: PrefannoError) -> None:
    for job in jobs:
        if not job.is_over:
            job.fail(error)


class Pace:
    """How long batches take, from those that were: what a waiting person is told."""

    def __init__(self) -> None:
        self._batch_s: float | None = None
        self._jobs = 1.0

    def took(self, seconds: float, jobs: int) -> None:
        """Learn from a batch; recent ones count most."""
        share = 1.0 if self._batch_s is None else 0.3
        self._batch_s = (self._batch_s or 0.0) * (1 - share) + seconds * share
        self._jobs = self._jobs * (1 - share) + jobs * share

    def wait_s(self, position: int) -> float | None:
        """About how long until a job is written that has so many before it; None before any was."""
        return None if self._batch_s is None else round(self._batch_s * (1 + position / max(self._jobs, 1.0)), 1)
