"""How many annotations a second does one server store, from 1, 8 and 50 clients, and how long does each wait?

    python -m benchmarks.adding                   five runs of each

A real server with a new home for each run; each client asks one thing at a time over its own connection, and every
answer comes after the sync of its commit. For scale: Label Studio 1.23 on SQLite stored 26.6, 15.7 and 6.0 a second
from as many clients on a machine of this size (p50 7.8 s at 50).
"""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp

from benchmarks.serving import running

CLIENTS = (1, 8, 50)
ADDS = 1_000  # in a run, after as many as there are clients have warmed it up
RUNS = 5
PAIR = {
    "mode": "single",
    "human_input": "Who are you?",
    "chosen": "I am Li. I look after the old books here.",
    "rejected": "I am an AI assistant.",
}


def main() -> None:
    """Print the table."""
    print("| clients | annotations/s, median | min | max | p50 ms | p99 ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for clients in CLIENTS:
        rates, waits = [], []
        for _ in range(RUNS):
            with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as server:
                rate, waited = asyncio.run(add(server.url, clients))
            rates.append(rate)
            waits += waited
        p50, p99 = (statistics.quantiles(waits, n=100)[number - 1] * 1000 for number in (50, 99))
        figures = " | ".join(f"{figure:.0f}" for figure in (statistics.median(rates), min(rates), max(rates)))
        print(f"| {clients} | {figures} | {p50:.1f} | {p99:.1f} |", flush=True)


async def add(url: str, clients: int) -> tuple[float, list[float]]:
    """Annotations in a second, and the seconds that each answer took."""
    waited: list[float] = []
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client(adds: int) -> None:
            for _ in range(adds):
                started = time.perf_counter()
                async with session.post("/api/dataset/add", json=PAIR) as answer:
                    answer.raise_for_status()
                    await answer.read()
                waited.append(time.perf_counter() - started)

        await asyncio.gather(*(client(1) for _ in range(clients)))
        waited.clear()
        started = time.perf_counter()
        await asyncio.gather(*(client(ADDS // clients) for _ in range(clients)))
        return len(waited) / (time.perf_counter() - started), waited


if __name__ == "__main__":
    main()
