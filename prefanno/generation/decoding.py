"""A batch in the engine's thread, and the jobs whose rows it writes."""

import asyncio
from collections.abc import Callable, Sequence

from prefanno.errors import ModelNotLoaded
from prefanno.generation.batch import Batch
from prefanno.generation.config import Event
from prefanno.generation.job import Job
from prefanno.generation.model import LocalModel

ROWS = 32  # of a batch: eight requests of four candidates


class Decoding:
    """Jobs that are written together. The event loop makes it and lets go of it; the thread reads and writes."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self._going: list[Job] = []  # those whose rows have not all ended
        self.seconds = 0.0  # that it took so far
        self._batch: Batch | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def is_ahead(self) -> bool:
        """Whether nobody waits for any of it."""
        return not any(job.is_waited_for for job in self.jobs)

    @property
    def takes_more(self) -> bool:
        """Whether another job fits in; one that needs much memory is alone."""
        if any(job.is_alone for job in self.jobs) or sum(len(job.writing) for job in self.jobs) >= ROWS:
            return False
        return self._batch is None or self._batch.takes_more

    def read(self, model: LocalModel | None, job: Job) -> None:
        """Read the job's prompt. Raises InvalidInput where it cannot be answered, ModelNotLoaded."""
        if job.cancelled:
            return
        if model is None:
            raise ModelNotLoaded
        prompt = model.prompt(job.request)
        job.prompt_tokens = len(prompt)
        if rows := job.next_rows(model.vocabulary):
            self._batch = self._batch or Batch(model.weights, model.vocabulary.ends)
            self._batch.add(prompt, rows)
            self._going.append(job)

    def write(self, shall_pause: Callable[[], bool]) -> bool:
        """Write until all rows have ended, or until it shall pause; return whether they have ended."""
        while self._batch is not None and self._batch.is_going:
            if shall_pause():
                return False
            self._batch.step()
            self._tell()
        self._batch = None
        return True

    def _tell(self) -> None:
        """Tell all clients what is new: the event loop is woken once for all of them."""
        told: list[tuple[Job, Event | None]] = []
        try:
            for job in self._going:
                told += [(job, event) for event in job.tell()]
        finally:  # whatever fails with one job, the others have what is theirs
            if told:
                self._loop.call_soon_threadsafe(_put, told)
        self._going = [job for job in self._going if job.is_going]

    def drop(self) -> None:
        """Let go of the memory."""
        self._batch = None


def _put(told: Sequence[tuple[Job, Event | None]]) -> None:
    for job, event in told:
        job.put(event)
