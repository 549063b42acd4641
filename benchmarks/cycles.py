"""Does memory stay flat? A tiny model is loaded, writes, and is unloaded, 500 times; exit code 1 where memory grows.

    python -m benchmarks.cycles            500 cycles, about two minutes
    python -m benchmarks.cycles 50         fewer

The engine of the server, without the server. The first tenth warms up; after it the process may grow by GROWTH.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import psutil

from prefanno.generation.config import GenerationConfig, Request
from prefanno.generation.engine import Engine
from prefanno.settings import Settings
from tests import tiny

CYCLES = 500
GROWTH = 8 * 2**20  # bytes, from the end of the first tenth to the end
CONFIG = GenerationConfig("You are Li.", enable_thinking=False, max_new_tokens=64, num_responses=2)


def main() -> None:
    """Print what the process has in memory, and judge it."""
    cycles = int(sys.argv[1]) if len(sys.argv) > 1 else CYCLES
    with tempfile.TemporaryDirectory() as folder:
        model = tiny.save(Path(folder) / "tiny")
        settings = Settings(home=Path(folder), model=str(model), cache=Path(folder) / "cache")
        sizes = asyncio.run(_repeat(settings, cycles))
    grown = sizes[-1] - sizes[cycles // 10 - 1]
    print("| cycle | memory, MiB |\n| --- | --- |")
    for number in (1, cycles // 10, cycles // 2, cycles):
        print(f"| {number} | {sizes[number - 1] / 2**20:.1f} |")
    print(f"grown since cycle {cycles // 10}: {grown / 2**20:.1f} MiB (at most {GROWTH / 2**20:.0f})")
    sys.exit(grown > GROWTH)


async def _repeat(settings: Settings, cycles: int) -> list[int]:
    process, sizes, started = psutil.Process(), [], time.monotonic()
    engine = Engine(settings)
    for number in range(cycles):
        await engine.load(CONFIG, None)
        await engine.submit(Request("hello", [], number, CONFIG)).replies()
        await engine.unload()
        sizes.append(process.memory_info().rss)
    await engine.close()
    print(f"{cycles} cycles in {time.monotonic() - started:.0f} s")
    return sizes


if __name__ == "__main__":
    main()
