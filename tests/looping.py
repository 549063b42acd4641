"""What the tests of the loop share: an engine that answers at once, runs of a stub script, adapters of no weights."""

import asyncio
import json
from typing import Any

from sqlalchemy import select

from prefanno.db.engine import Database
from prefanno.db.models import Run
from prefanno.errors import PrefannoError
from prefanno.generation.config import Finished, GenerationConfig, Reply, Request
from prefanno.generation.engine import Loaded
from prefanno.generation.job import Job
from prefanno.loop import Loop
from prefanno.settings import Settings
from prefanno.training import adapters

WAIT_S = 60.0
OPTIONS = {"system_prompt": "You are Mia.", "temperature": 0.5}
CONFIG = GenerationConfig(**OPTIONS)  # type: ignore[arg-type]
SCRIPT = """
while [ ! -e go ]; do sleep 0.05; done
mkdir adapter
echo '{}' > adapter/adapter_config.json
echo weights > adapter/adapter_model.safetensors
"""


class Voice:
    """Stands in for the engine: answers at once, always the same."""

    def __init__(self) -> None:
        self.state = "unloaded"
        self.loaded: Loaded | None = None
        self.fault: PrefannoError | None = None

    async def load(self, config: GenerationConfig, adapter: str | None, character: str) -> Loaded:
        """Load."""
        self.state, self.loaded = "loaded", Loaded(config, adapter, character, "cpu", 512)
        return self.loaded

    async def unload(self) -> None:
        """Unload."""
        self.state, self.loaded = "unloaded", None

    def submit(self, request: Request) -> Job:
        """Two replies."""
        job = Job(request)
        if self.fault:
            job.fail(self.fault)
            return job
        job.put(Finished(1, Reply("hm", f"{request.message} {request.seed}", "stop", 5, 2**62, -1.5)))
        job.put(Finished(2, Reply(None, "……", "length", 64, 1, None)))
        job.put(None)
        return job

    async def base_model(self) -> str:
        """Where the base model lies."""
        return "/cache/base"


async def everything(database: Database, table: type[Any]) -> list[Any]:
    """All rows of the table, oldest first."""
    async with database.read() as session:
        return list((await session.scalars(select(table).order_by(table.id))).all())


async def done(loop: Loop, run: Run) -> Run:
    """Let the run end well."""
    (loop.settings.runs / str(run.id) / "go").touch()
    async with asyncio.timeout(WAIT_S):
        await loop.training.wait()
    assert loop.training.last_run is not None
    return loop.training.last_run


def put_adapter(settings: Settings, name: str, base: str, run: int = 1) -> str:
    """A complete adapter of this base, as far as anybody looks; its folder."""
    folder = settings.outputs / name
    folder.mkdir()
    for file in adapters.WEIGHTS:
        (folder / file).write_text("{}")
    (folder / adapters.CARD).write_text(json.dumps({"run": run, "base_model": base}))
    return str(folder)
