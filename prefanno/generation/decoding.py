"""A batch in the engine's thread, and the jobs whose rows it writes."""

from collections.abc import Callable

from prefanno.errors import InvalidInput
from prefanno.generation.batch import Batch
from prefanno.generation.job import Job
from prefanno.generation.model import LocalModel

ROWS = 32  # of a batch: eight requests of four candidates


class Decoding:
    """Jobs that are written together; `ahead` says that nobody waits for them yet."""

    def __init__(self, *, ahead: bool) -> None:
        self.jobs: list[Job] = []
        self.ahead = ahead
        self._batch: Batch | None = None

    @property
    def takes_more(self) -> bool:
        """Whether another job fits in; one that needs much memory is alone."""
        if any(job.is_alone for job in self.jobs) or sum(len(job.writing) for job in self.jobs) >= ROWS:
            return False
        return self._batch is None or self._batch.takes_more

    def read(self, model: LocalModel | None, job: Job) -> None:
        """Read the job's prompt. A client whose prompt cannot be answered is told so."""
        if model is None or job.cancelled:
            return
        try:
            prompt = model.prompt(job.request)
        except InvalidInput as error:
            job.fail(error)
            return
        if rows := job.next_rows(model.vocabulary):
            self._batch = self._batch or Batch(model.weights, model.vocabulary.ends)
            self._batch.add(prompt, rows)

    def write(self, shall_pause: Callable[[], bool]) -> bool:
        """Write until all rows have ended, or until it shall pause; return whether they have ended."""
        while self._batch is not None and self._batch.is_going:
            if shall_pause():
                return False
            self._batch.step()
            for job in self.jobs:
                job.tell()
        self._batch = None
        for job in self.jobs:
            job.finish()
        return True

    def drop(self) -> None:
        """Let go of the memory."""
        self._batch = None
