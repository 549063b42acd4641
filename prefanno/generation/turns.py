"""Jobs that wait for the engine, one of each client in turn."""

from collections import OrderedDict, deque
from collections.abc import Iterator

from prefanno.generation.job import Job

LIMIT = 64  # jobs that wait; a batch takes about eight of them


class Turns:
    """The waiting jobs; those that were cancelled are passed over."""

    def __init__(self) -> None:
        self._again: deque[Job] = deque()  # had their turn, and are not complete
        self._clients: OrderedDict[str | None, deque[Job]] = OrderedDict()  # whoever is next comes first

    def __iter__(self) -> Iterator[Job]:
        for jobs in (self._again, *self._clients.values()):
            yield from (job for job in jobs if not job.cancelled)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def is_full(self) -> bool:
        """Whether no other job may queue up."""
        return len(self) >= LIMIT

    def add(self, job: Job) -> None:
        """Queue up."""
        self._clients.setdefault(job.request.client, deque()).append(job)

    def add_again(self, job: Job) -> None:
        """Go on with a job before all others."""
        self._again.append(job)

    def take(self) -> Job | None:
        """The next job; its client is the last to have another turn."""
        while self._again:
            if not (job := self._again.popleft()).cancelled:
                return job
        while self._clients:
            client, jobs = self._clients.popitem(last=False)
            job = jobs.popleft()
            if jobs:
                self._clients[client] = jobs
            if not job.cancelled:
                return job
        return None

    def position(self, job: Job) -> int:
        """How many jobs have their turns before this one, if nobody else comes."""
        clients = list(self._clients)
        if (client := job.request.client) not in clients or job not in self._clients[client]:
            return 0
        place, turn = clients.index(client), self._clients[client].index(job)
        before = sum(min(turn + 1, len(self._clients[other])) for other in clients[:place])
        after = sum(min(turn, len(self._clients[other])) for other in clients[place + 1 :])
        return len(self._again) + before + turn + after
