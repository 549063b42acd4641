"""An engine for comparisons: each reply says which adapter wrote it, and may be held back."""

from pathlib import Path
from typing import cast

from prefanno.ahead import Ahead
from prefanno.db.engine import Database
from prefanno.errors import GenerationCancelled, InvalidInput, PrefannoError
from prefanno.generation.config import Finished, GenerationConfig, Reply, Request
from prefanno.generation.engine import Engine, Loaded
from prefanno.generation.job import Job
from prefanno.loop import Loop
from prefanno.settings import Settings
from prefanno.training.supervisor import Supervisor
from tests.looping import Voice

TOO_LONG = "too long"  # a message that no model can read
SAME = "same"  # a message that every adapter answers alike


class Speaker(Voice):
    """Stands in for the engine. While it `holds`, jobs wait in `held`; `loads` has the names that were loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.holds = False
        self.held: list[Job] = []
        self.loads: list[str | None] = []
        self.requests: list[Request] = []
        self.refuses: PrefannoError | None = None  # to load

    @property
    def name(self) -> str | None:
        """The loaded adapter's name."""
        return Path(self.loaded.adapter).name if self.loaded and self.loaded.adapter else None

    async def load(self, config: GenerationConfig, adapter: str | None, character: str) -> Loaded:
        """Load; what is held back is cancelled."""
        if self.refuses is not None:
            raise self.refuses
        self._cancel()
        loaded = await super().load(config, adapter, character)
        self.loads.append(self.name)
        return loaded

    async def unload(self) -> None:
        """Unload; what is held back is cancelled."""
        self._cancel()
        await super().unload()

    def submit(self, request: Request) -> Job:
        """One reply, now or when it is released."""
        self.requests.append(request)
        job = Job(request)
        if self.holds:
            self.held.append(job)
        else:
            self._answer(job)
        return job

    def release(self, number: int | None = None) -> None:
        """Answer the first of those held back, or all of them, and hold nothing back from then on."""
        self.holds = number is not None
        for job in self.held[:number]:
            self._answer(job)
        self.held = self.held[number:] if number is not None else []

    def _answer(self, job: Job) -> None:
        request = job.request
        if self.fault is not None or TOO_LONG in request.message:
            job.fail(self.fault or InvalidInput({"message": ["太长"]}))
            return
        content = SAME if SAME in request.message else f"{self.name or 'base'}: {request.message} {request.seed}"
        job.put(Finished(1, Reply("hm", content, "stop", 5, 0, None)))
        job.put(None)

    def _cancel(self) -> None:
        for job in self.held:
            job.fail(GenerationCancelled())
        self.held.clear()


def looped(settings: Settings, database: Database, speaker: Speaker) -> Loop:
    """The stations around this engine, with nobody who writes ahead."""
    engine = cast(Engine, speaker)
    return Loop(settings, database, engine, Ahead(settings, database, engine), Supervisor(settings, database))
