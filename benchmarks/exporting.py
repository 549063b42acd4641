"""How fast is an export, and how much memory does it take? A million pairs, against a bare loop.

    python -m benchmarks.exporting             one million pairs, about 15 minutes, most of it filling
    python -m benchmarks.exporting 100000      another size

The peer is what a person would write for this one table by hand: sqlite3, orjson and a file, no format, no history, no
other kinds of choices. It writes the same bytes as the export's largest file, which is checked. All are processes of
their own, in turn, five times each; memory is the peak of a process over that of one that exports an empty home in the
same format.
"""

import hashlib
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
MEASURE = """
import resource, subprocess, sys, time
started = time.monotonic()
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
print(time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def main() -> None:
    """Print the table."""
    size = int(sys.argv[1]) if len(sys.argv) > 1 else SIZE
    with tempfile.TemporaryDirectory() as folder:
        home, empty = Path(folder) / "home", Path(folder) / "empty"
        started = time.monotonic()
        fill(home, size)
        fill(empty, 0)
        print(f"filled {size:,} pairs in {time.monotonic() - started:.0f} s", flush=True)
        bare = _bare(home, Path(folder) / FILE)
        measured(bare)  # once, so that the file is in the system's cache
        idle = {form: measured(_export(empty, form, Path(folder) / "idle"))[1] for form in FORMATS}
        peer: list[float] = []
        exports: dict[str, list[tuple[float, int]]] = {form: [] for form in FORMATS}
        for _ in range(TIMES):
            for form, found in exports.items():
                peer.append(measured(bare)[0])
                found.append(measured(_export(home, form, Path(folder) / "out")))
        alone = statistics.median(peer)
        print("\n| export | seconds, median | rows/s | speed to the bare loop | peak over idle, MiB |")
        print("| --- | --- | --- | --- | --- |")
        print(f"| bare sqlite3 and orjson | {alone:.2f} | {size / alone:,.0f} | 1 | |")
        for form, found in exports.items():
            seconds = statistics.median(taken for taken, _ in found)
            memory = (max(peak for _, peak in found) - idle[form]) / MEBI
            print(f"| {form} | {seconds:.2f} | {size / seconds:,.0f} | {alone / seconds:.2f} | {memory:.0f} |")
        same = _digest(Path(folder) / FILE) == _digest(Path(folder) / "out" / FILE)
        print(f"\nthe bare loop's file and the export's are {'the same bytes' if same else 'DIFFERENT'}")


def measured(command: list[str]) -> tuple[float, int]:
    """Seconds and peak memory, in bytes, of a process.

    A small process starts it: what a process had in memory before its program began counts, and this one is large.
    """
    ran = subprocess.run([sys.executable, "-c", MEASURE, *command], stdout=subprocess.PIPE, check=True)
    seconds, kibibytes = ran.stdout.split()
    return float(seconds), int(kibibytes) * 1024


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
                "created_at": created_at.replace(" ", "T").removesuffix(".000000"),
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
