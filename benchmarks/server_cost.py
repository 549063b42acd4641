"""What the server costs around the bare loop, whether it stays awake, when the first word comes, what memory it takes.

    python -m benchmarks.server_cost

The demo model as one that never ends a turn, N = 4, 128 tokens. The bare loop is prefanno's own decode loop, called
directly: neither HTTP, nor queue, nor database. Lag is how much later than asked for a sleep of 5 ms on the event loop
ends; memory is what the server's process has resident.
"""

import asyncio
import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import requests
from aiohttp import web

from benchmarks import direct
from benchmarks.direct import CONFIG, ROWS, SAMPLING
from benchmarks.serving import ANSWER_S, Server, free_port, running
from prefanno.app import create_app
from prefanno.db import upgrade
from prefanno.generation.batch import Batch
from prefanno.generation.config import Request
from prefanno.generation.model import LocalModel
from prefanno.settings import Settings

LENGTH = 128
TURNS = {"short": 0, "long": 13}  # of conversation before the question: about 30 and 800 tokens
QUESTION = "What do you sell?"
LOAD = {**SAMPLING, "num_responses": ROWS, "max_new_tokens": LENGTH, "enable_thinking": False}
TICK_S = 0.005


def main() -> None:
    """Print the tables."""
    print(direct.machine())
    with tempfile.TemporaryDirectory() as folder:
        model = direct.endless(Path(folder))
        bare = LocalModel(str(model))
        with running(Path(folder) / "home", MODEL=str(model)) as server:
            _memory(server)
            _cost(server, bare)
        bare.free()
        asyncio.run(_lag(Settings(home=Path(folder) / "lag", model=str(model))))


def _cost(server: Server, bare: LocalModel) -> None:
    print("\n| N = 4, 128 tokens | bare loop, s | server, s | cost |\n| --- | --- | --- | --- |")
    server.call("POST", "/api/model/load", {**LOAD, "system_prompt": CONFIG.system_prompt})
    for name, turns in TURNS.items():
        works: dict[str, Callable[[], Any]] = {
            "bare": lambda turns=turns: _write(bare, turns),  # type: ignore[misc]
            "server": lambda turns=turns: server.call("POST", "/api/generate", _asked(turns)),  # type: ignore[misc]
        }
        _row(f"{name} prompt, all words", direct.by_turns(works))
    for name, turns in TURNS.items():
        works = {
            "bare": lambda turns=turns: _write(bare, turns, steps=1),  # type: ignore[misc]
            "server": lambda turns=turns: _first_word(server, turns),  # type: ignore[misc]
        }
        _row(f"{name} prompt, first word", direct.by_turns(works))


def _write(bare: LocalModel, turns: int, steps: int | None = None) -> None:
    """All steps of a request, or its first ones only."""
    batch = Batch(bare.weights, bare.vocabulary.ends)
    prompt = bare.prompt(Request(QUESTION, direct.talk(turns), 7, CONFIG))
    batch.add(prompt, direct.rows(bare, replace(CONFIG, max_new_tokens=steps or LENGTH), ROWS))
    while batch.is_going:
        batch.step()


def _first_word(server: Server, turns: int) -> None:
    """Until the first text of any candidate comes; going away then cancels the rest."""
    url = f"{server.url}/api/generate/stream"
    with requests.post(url, json=_asked(turns), stream=True, timeout=ANSWER_S) as answer:
        for line in answer.iter_lines():
            if line == b"event: delta":
                return
    raise AssertionError("no word came")


def _memory(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    server.call("GET", "/health")
    sizes = {"started": process.memory_info().rss}
    server.call("POST", "/api/model/load", {**LOAD, "system_prompt": CONFIG.system_prompt})
    sizes["loaded"] = process.memory_info().rss
    for name, clients in (("writing, one client, 800-token prompt", 1), ("writing, eight of them", 8)):
        with _peak(process) as peak, ThreadPoolExecutor(clients) as threads:
            list(threads.map(lambda _: server.call("POST", "/api/generate", _asked(TURNS["long"])), range(clients)))
        sizes[name] = max(peak)
    server.call("POST", "/api/model/unload")
    sizes["unloaded"] = process.memory_info().rss
    print("\n| the server's memory | MiB |\n| --- | --- |")
    for name, size in sizes.items():
        print(f"| {name} | {size / 2**20:.0f} |")


@contextlib.contextmanager
def _peak(process: psutil.Process) -> Any:
    sizes, ended = [process.memory_info().rss], threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            sizes.append(process.memory_info().rss)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield sizes
    finally:
        ended.set()
        looking.join()


async def _lag(settings: Settings) -> None:
    """The application on this loop, its client in a thread."""
    for folder in (settings.data, settings.outputs, settings.runs):
        folder.mkdir(parents=True, exist_ok=True)
    upgrade.upgrade(settings.database)
    runner, port = web.AppRunner(create_app(settings)), free_port()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    server = Server(None, f"http://127.0.0.1:{port}", settings.home)  # type: ignore[arg-type]
    load = {**LOAD, "system_prompt": CONFIG.system_prompt}
    print("\n| the event loop's lag, ms | p50 | p99 | max |\n| --- | --- | --- | --- |")
    async with _ticking("idle"):
        await asyncio.sleep(3)
    async with _ticking("the first load, torch included"):
        await asyncio.to_thread(server.call, "POST", "/api/model/load", load)
    async with _ticking("four requests, 800-token prompts, streamed"):
        await asyncio.gather(*(asyncio.to_thread(_read_all, server) for _ in range(4)))
    await runner.cleanup()


@contextlib.asynccontextmanager
async def _ticking(name: str) -> AsyncIterator[None]:
    lags: list[float] = []

    async def tick() -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(TICK_S)
            lags.append((time.perf_counter() - started - TICK_S) * 1000)

    ticking = asyncio.create_task(tick())
    yield
    ticking.cancel()
    p99 = statistics.quantiles(lags, n=100, method="inclusive")[98]
    print(f"| {name} | {statistics.median(lags):.1f} | {p99:.1f} | {max(lags):.1f} |", flush=True)


def _read_all(server: Server) -> None:
    url = f"{server.url}/api/generate/stream"
    with requests.post(url, json=_asked(TURNS["long"]), stream=True, timeout=ANSWER_S) as answer:
        last = [line for line in answer.iter_lines() if line.startswith(b"event: ")][-1]
    if last != b"event: done":
        raise AssertionError(last)


def _asked(turns: int) -> dict[str, Any]:
    return {"message": QUESTION, "context": direct.talk(turns)}


def _row(name: str, taken: dict[str, list[float]]) -> None:
    bare, server = (statistics.median(taken[name]) for name in ("bare", "server"))
    print(f"| {name} | {bare:.3f} | {server:.3f} | {server / bare - 1:+.1%} |", flush=True)


if __name__ == "__main__":
    main()
