"""What the tests of runs share: stub scripts in place of a training, and a supervisor on a home."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

from prefanno.db.engine import Database
from prefanno.db.models import Run
from prefanno.settings import Settings
from prefanno.snapshot import Manifest
from prefanno.training.config import LORA, RunConfig
from prefanno.training.supervisor import Supervisor

WAIT_S = 60.0

GOOD = """
echo training
mkdir adapter
echo '{}' > adapter/adapter_config.json
echo weights > adapter/adapter_model.safetensors
echo made it
"""
# Goes on when a file named `go` lies in its folder.
PATIENT = "echo waiting; while [ ! -e go ]; do sleep 0.05; done\n" + GOOD

# Saves when a file named `save` lies in its folder, as the recipe does.
SAVES = """
echo started
while [ ! -e save ]; do sleep 0.05; done
mkdir -p checkpoints/1/checkpoint-2
touch checkpoints/1/checkpoint-2/complete
echo saved
exit 75
"""
# Saves the first time; where it finds a checkpoint it goes on from there.
RESUMABLE = f"if [ -d checkpoints ]; then echo goes on{GOOD}exit 0; fi{SAVES}"

NOTHING = (Path("/nowhere"), Manifest("sharegpt", "li", "0002", None, {}, {}))  # a snapshot without files


def config_of(adapter: str = "li-simpo-1") -> RunConfig:
    """What a run is told."""
    return RunConfig(
        character="li",
        base_model="base",
        base_model_path="base",
        adapter=adapter,
        stages=[{"method": "simpo"}],
        lora=LORA,
    )


async def until(true: Callable[[], object]) -> None:
    """Wait, not for ever."""
    async with asyncio.timeout(WAIT_S):
        while not true():  # noqa: ASYNC110 - a file or another process sets no event
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def supervising(settings: Settings, database: Database, script: str | None = None) -> AsyncIterator[Supervisor]:
    """A supervisor that has adopted what there was; its runs are done by this script."""
    if script is not None:
        file = settings.home / "stub.sh"
        file.write_text(script)
        settings = replace(settings, train_script=str(file))
    training = Supervisor(settings, database)
    try:
        await training.adopt()
        yield training
    finally:
        await training.close()


async def run_to_end(training: Supervisor, config: RunConfig | None = None) -> Run:
    """A run from start to end."""
    await training.start(config or config_of(), *NOTHING)
    async with asyncio.timeout(WAIT_S):
        await training.wait()
    assert training.last_run is not None
    return training.last_run
