"""How fast is an export, and how much memory does it take? A million pairs, against a bare loop.

    python -m benchmarks.exporting             one million pairs, about 15 minutes, most of it filling
    python -m benchmarks.exporting 100000      another size

The peer is what a person would write for this one table by hand: sqlite3, orjson and a file, no format, no history, no
other kinds of choices. It writes the same bytes as the export's largest file, which is checked. Both are processes of
their own, in turn, five times each; memory is the peak of a process over that of one that exports an empty home.
"""

import hashlib
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

from benchmarks.filling import fill

SIZE = 1_000_000
TIMES = 5
FORMATS = ("sharegpt", "trl", "trl-parquet", "openai", "csv")
FILE = "li_preference.json"
MEBI = 1 << 20


def main() -> None:
    """Print the table."""
    size = int(sys.argv[1]) if len(sys.argv) > 1 else SIZE
    with tempfile.TemporaryDirectory() as folder:
        home, empty = Path(folder) / "home", Path(folder) / "empty"
        started = time.monotonic()
        fill(home, size)
        fill(empty, 0)
        print(f"filled {size:,} pairs in {time.monotonic() - started:.0f} s", flush=True)
        bare = [measured(_bare(home, Path(folder) / FILE)) for _ in range(1)]
        idle = measured(_export(empty, "sharegpt", Path(folder) / "idle"))[1]
        print("\n| export | seconds, median | rows/s | speed to the bare loop | peak over idle, MiB |")
        print("| --- | --- | --- | --- | --- |")
        exports: dict[str, list[tuple[float, int]]] = {form: [] for form in FORMATS}
        for _ in range(TIMES):
            bare.append(measured(_bare(home, Path(folder) / FILE)))
            for form, found in exports.items():
                found.append(measured(_export(home, form, Path(folder) / "out")))
        peer = statistics.median(seconds for seconds, _ in bare[1:])
        print(f"| bare sqlite3 and orjson | {peer:.2f} | {size / peer:,.0f} | 1 | |")
        for form, found in exports.items():
            seconds = statistics.median(taken for taken, _ in found)
            memory = max(peak for _, peak in found) - idle
            print(f"| {form} | {seconds:.2f} | {size / seconds:,.0f} | {peer / seconds:.2f} | {memory / MEBI:.0f} |")
        same = _digest(Path(folder) / FILE) == _digest(Path(folder) / "out" / FILE)
        print(f"\nthe bare loop's file and the export's are {'the same bytes' if same else 'DIFFERENT'}")


def measured(command: list[str]) -> tuple[float, int]:
    """Seconds and peak memory, in bytes, of a process."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise AssertionError(f"{command} ended with {status}")
    return time.monotonic() - started, usage.ru_maxrss * 1024


def _export(home: Path, form: str, to: Path) -> list[str]:
    return [
        "env",
        f"PREFANNO_HOME={home}",
        sys.executable,
        "-m",
        "prefanno",
        "export",
        "--format",
        form,
        "--to",
        str(to),
    ]


def _bare(home: Path, file: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.exporting", "--bare", str(home / "data" / "prefanno.db"), str(file)]


def bare(database: str, file: str) -> None:
    """The peer."""
    connection = sqlite3.connect(database)
    query = (
        "SELECT mode, system_prompt, context, human_input, replies, created_at FROM annotations"
        " WHERE character = 'li' AND deleted_at IS NULL AND verdict = 'best' ORDER BY id"
    )
    with Path(file).open("wb") as out:
        out.write(b"[")
        comma = b"\n"
        for mode, system, context, human_input, stored, created_at in connection.execute(query):
            chosen, rejected = orjson.loads(stored)
            turns = [
                {"from": "human" if turn["role"] == "user" else "gpt", "value": turn["content"]}
                for turn in orjson.loads(context)
            ]
            entry = {
                "conversations": [*turns, {"from": "human", "value": human_input}],
                "chosen": {"from": "gpt", "value": _spelled(chosen)},
                "rejected": {"from": "gpt", "value": _spelled(rejected)},
                "system": system,
                "mode": mode,
                "chosen_thinking": chosen["thinking"],
                "rejected_thinking": rejected["thinking"],
                "created_at": created_at.replace(" ", "T"),
            }
            out.write(comma + orjson.dumps(entry))
            comma = b",\n"
        out.write(b"\n]\n")


def _spelled(reply: dict[str, str]) -> str:
    return f"<think>\n{reply['thinking']}\n</think>\n\n{reply['content']}" if reply["thinking"] else reply["content"]


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        bare(*sys.argv[2:])
    else:
        main()
