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

    def has_room(self, client: str | None) -> bool:
        """Whether another job may queue up; where the places are taken, a client that has none still finds one."""
        waiting, own = len(self), self._clients.get(client, ())
        return waiting < LIMIT or (waiting < 2 * LIMIT and all(job.cancelled for job in own))

    def add(self, job: Job) -> None:
        """Queue up."""
        jobs = self._clients.setdefault(job.client, deque())
        for left in [other for other in jobs if other.cancelled]:  # who asks and leaves again and again fills nothing
            jobs.remove(left)
        jobs.append(job)

    def add_again(self, job: Job) -> None:
        """Go on with a job before all others."""
        self._again.append(job)

    def remove(self, job: Job) -> bool:
        """Take it out; return whether it was here."""
        for jobs in (self._again, *self._clients.values()):
            if job in jobs:
                jobs.remove(job)
                return True
        return False

    def take(self) -> Job | None:
        """The next job; its client is the last to have another turn."""
        while self._again:
            if not (job := self._again.popleft()).cancelled:
                return job
        while self._clients:
            client, jobs = self._clients.popitem(last=False)
            while jobs and jobs[0].cancelled:
                jobs.popleft()
            if not jobs:
                continue
            job = jobs.popleft()
            if jobs:
                self._clients[client] = jobs
            return job
        return None

    def position(self, job: Job) -> int:
        """How many jobs have their turns before this one, if nobody else comes."""
        lines = {client: [each for each in jobs if not each.cancelled] for client, jobs in self._clients.items()}
        turn, clients = lines[job.client].index(job), list(lines)
        place = clients.index(job.client)
        before = sum(min(turn + 1, len(lines[other])) for other in clients[:place])
        after = sum(min(turn, len(lines[other])) for other in clients[place + 1 :])
        return sum(1 for each in self._again if not each.cancelled) + before + turn + after
