"""Does an add, a list, a search cost more as the data grows? At 1 thousand, 100 thousand and 1 million annotations.

    python -m benchmarks.growth                   all three sizes, about half an hour, most of it filling
    python -m benchmarks.growth 1000 10000        other sizes

Real servers, one for each size, all in the same run; every request goes to each of them in turn, so that noise hits all
alike. Beside them a server that keeps a list and writes its whole JSON file at each add, as small tools do: the peer.
Texts are words of English and characters of Chinese by their frequency; the word that is searched is in one of 1,000.
"""

import contextlib
import http.client
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks import rewriting
from benchmarks.filling import RARE, fill, pair
from benchmarks.serving import running

SIZES = (1_000, 100_000, 1_000_000)
CALLS = 300  # of each kind, to each server
PEER_CALLS = {1_000: 50, 100_000: 20}  # a rewrite of a million rows takes seconds
LIMITS = {"add": 1.3, "list": 1.3, "stats": 1.3}  # p50 at the largest size, against the smallest; searches: 3


def main() -> None:
    """Print the table."""
    sizes = [int(size) for size in sys.argv[1:]] or list(SIZES)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as servers:
        homes = {size: Path(folder) / str(size) for size in sizes}
        for size, home in homes.items():
            started = time.monotonic()
            fill(home, size)
            print(f"filled {size:,} in {time.monotonic() - started:.0f} s, {_megabytes(home):,.0f} MB", flush=True)
        urls = {size: servers.enter_context(running(home)).url for size, home in homes.items()}
        peers = {size: servers.enter_context(rewriting.running(Path(folder) / f"{size}.json", size)) for size in sizes}
        print("\n| p50, ms | " + " | ".join(f"{size:,}" for size in sizes) + " | ratio | at most |")
        print("| --- |" + " --- |" * (len(sizes) + 2))
        for name, call in calls().items():
            _row(name, _measured(urls, call, dict.fromkeys(sizes, CALLS)), LIMITS.get(name, 3))
        times = {size: PEER_CALLS.get(size, 5) for size in sizes}
        _row("add, by a server that rewrites its file", _measured(peers, calls()["add"], times), None)


Call = Callable[[http.client.HTTPConnection], None]


def calls() -> dict[str, Call]:
    """What a client does, by name."""
    words = random.Random(1)
    return {
        "add": lambda connection: _call(connection, "POST", "/api/dataset/add", pair(words)),
        "list": lambda connection: _call(connection, "GET", "/api/dataset/list?limit=10"),
        "stats": lambda connection: _call(connection, "GET", "/api/dataset/stats"),
        **{
            f"search, {language}": lambda connection, word=word: _call(  # type: ignore[misc]
                connection, "GET", f"/api/annotations?q={quote(word)}"
            )
            for language, word in RARE.items()
        },
    }


def _call(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> None:
    content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
    connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != http.client.OK or (b'"items": []' in text and "q=" in path):
        raise AssertionError(f"{method} {path}: {answer.status} {text[:500]!r}")


def _measured(urls: dict[int, str], call: Call, times: dict[int, int]) -> dict[int, float]:
    """The p50 of each server, in milliseconds."""
    taken: dict[int, list[float]] = {size: [] for size in urls}
    with contextlib.ExitStack() as open_connections:
        connections = {size: open_connections.enter_context(_connected(url)) for size, url in urls.items()}
        for turn in range(max(times.values())):
            for size, connection in connections.items():
                if turn < times[size]:
                    started = time.perf_counter()
                    call(connection)
                    taken[size].append(time.perf_counter() - started)
    return {size: statistics.median(seconds) * 1000 for size, seconds in taken.items()}


@contextlib.contextmanager
def _connected(url: str) -> Iterator[http.client.HTTPConnection]:
    with contextlib.closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=600)) as connection:
        yield connection


def _row(name: str, medians: dict[int, float], limit: float | None) -> None:
    first, *_, last = medians.values()
    cells = " | ".join(f"{median:.2f}" for median in medians.values())
    print(f"| {name} | {cells} | {last / first:.2f} | {limit or ''} |", flush=True)


def _megabytes(home: Path) -> float:
    return sum(file.stat().st_size for file in (home / "data").glob("prefanno.db*")) / 1e6


if __name__ == "__main__":
    main()
