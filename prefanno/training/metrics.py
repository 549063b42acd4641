"""What a run measured, read from its metrics.jsonl while it is written: the cursor is an offset in bytes."""

import contextlib
import os
from pathlib import Path
from typing import Any

import orjson

FILE = "metrics.jsonl"
MOST = 1 << 20  # bytes read at once


def read(folder: Path, after: int, limit: int) -> tuple[list[dict[str, Any]], int]:
    """At most so many entries from the offset on, and the offset behind them. Blocks.

    An offset inside an entry begins at the next one. A line that is not complete yet is left for the next call, and
    what is no JSON object is passed over: train.sh is the user's to change.
    """
    found: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError), (folder / FILE).open("rb") as file:
        if after > file.seek(0, os.SEEK_END):
            return [], after
        file.seek(max(after - 1, 0))
        after = max(after, file.tell() + len(file.readline(MOST))) if after else 0
        file.seek(after)
        chunk = file.read(MOST)
        *lines, rest = chunk.split(b"\n")
        if not lines and len(rest) == MOST:  # longer than anything that is read at once: passed over
            return [], after + MOST
        for line in lines[:limit]:
            after += len(line) + 1
            with contextlib.suppress(orjson.JSONDecodeError):
                entry = orjson.loads(line)
                found += [entry] if isinstance(entry, dict) else []
    return found, after
