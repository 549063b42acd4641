"""A run in the terminal: its log on the screen, Ctrl-C to stop it."""

import asyncio
import contextlib
import signal

from prefanno.app import opened
from prefanno.errors import NoTraining
from prefanno.settings import Settings
from prefanno.training.log import Line
from prefanno.training.supervisor import Status, Supervisor


async def train(settings: Settings) -> int:
    """Train on all annotations and show the log; return the exit code: 0 where an adapter was made."""
    async with opened(settings) as loop:
        loop.training.follow(_show)
        await loop.start_training()
        interrupted = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
        stopping = asyncio.create_task(_stop_when(interrupted, loop.training))
        await loop.training.wait()
        stopping.cancel()
        run = loop.training.last_run
        assert run is not None  # noqa: S101 - it was started above
        print(
            f"adapter: {settings.outputs / str(run.adapter)}"
            if run.state == "succeeded"
            else f"{run.state}: {run.reason}"
        )
        return 0 if run.state == "succeeded" else 1


def _show(news: Line | Status) -> None:
    if isinstance(news, Line):
        print(f"{news.time}  {news.message}", flush=True)


async def _stop_when(interrupted: asyncio.Event, training: Supervisor) -> None:
    await interrupted.wait()
    print("stopping the run", flush=True)
    with contextlib.suppress(NoTraining):
        await training.stop()
