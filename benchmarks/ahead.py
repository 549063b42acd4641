"""Does anybody wait for a prompt that was known? A person who reads, against the same person without a queue.

    python -m benchmarks.ahead                 50 prompts, 8 s to read each: 7 minutes, and as long again for each peer
    python -m benchmarks.ahead 6 2             6 prompts, 2 s each
    python -m benchmarks.ahead 50 8 1          the first row of the table only; 2 the second, 3 the third

A real server with the demo model, N=4, at most 96 tokens, thinking off: the prompts are queued up, then the person
takes one after the other and reads. The first is not counted: nothing can be written before it is asked for. The peer
asks the same as live requests. At last the queue once more, with the default settings: 512 tokens, thinking on.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.serving import Server, running

PROMPTS, READS_S = 50, 8.0
THINGS = (
    "a riddle",
    "the oldest book",
    "rain",
    "a customer who never pays",
    "dust",
    "maps",
    "letters",
    "tea",
    "winter",
)
SHORT = {"enable_thinking": False, "max_new_tokens": 96}
Ask = Callable[[Server, str], Any]


def main() -> None:
    """Print the table."""
    prompts, reads_s = (int(sys.argv[1]), float(sys.argv[2])) if len(sys.argv) > 2 else (PROMPTS, READS_S)
    print("| | p50 s | p95 s | max s |")
    print("| --- | --- | --- | --- |")
    row = int(sys.argv[3]) if len(sys.argv) > 3 else None
    for name, ask, settings in WAYS[row - 1 : row] if row else WAYS:
        with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as server:
            server.call("POST", "/api/model/load", settings)
            waits = person(server, ask, [question(number) for number in range(prompts)], reads_s)
        p95 = statistics.quantiles(waits, n=20)[-1]
        print(f"| {name} | {statistics.median(waits):.3f} | {p95:.3f} | {max(waits):.3f} |", flush=True)


def question(number: int) -> str:
    """No two are alike."""
    return f"Question {number}: tell me something about {THINGS[number % len(THINGS)]}."


def person(server: Server, ask: Ask, messages: list[str], reads_s: float) -> list[float]:
    """How long the person waited for each but the first."""
    if ask is taken:
        server.call("POST", "/api/prompts", {"prompts": [{"message": message} for message in messages]})
    waits = []
    for message in messages:
        started = time.monotonic()
        assert len(ask(server, message)["responses"]) == 4  # noqa: S101 - the default
        waits.append(time.monotonic() - started)
        time.sleep(reads_s)
    return waits[1:]


def taken(server: Server, message: str) -> Any:
    """The next prompt of the queue."""
    answer = server.call("POST", "/api/prompts/next")["data"]
    assert answer["prompt"]["message"] == message  # noqa: S101 - in the order given
    return answer


def asked(server: Server, message: str) -> Any:
    """A live request."""
    return server.call("POST", "/api/generate", {"message": message})


WAYS: tuple[tuple[str, Ask, dict[str, Any]], ...] = (
    ("from the queue", taken, SHORT),
    ("asked live", asked, SHORT),
    ("from the queue, default settings", taken, {}),
)

if __name__ == "__main__":
    main()
