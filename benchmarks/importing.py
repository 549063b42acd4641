"""Does an import take longer for each row as the file grows? 10,000, 30,000 and 100,000 rows, many of them duplicates.

    python -m benchmarks.importing

Each file has, for every three rows, one that stands in it again word for word, and one that does but for its case and a
full stop. Every size is imported into an empty home, five times, in turn; and the largest once more, when all is there.
Time and peak memory are those of the whole command.
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.exporting import MEBI, measured
from benchmarks.filling import pair

SIZES = (10_000, 30_000, 100_000)
TIMES = 5
LIMIT = 1.3  # time per row of the largest against the smallest; the start of the process is taken away


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        files = {size: _file(Path(folder) / f"{size}.json", size) for size in SIZES}
        found: dict[int, list[tuple[float, int]]] = {size: [] for size in SIZES}
        idle = [_imported(Path(folder) / f"idle-{turn}", _file(Path(folder) / "one.json", 1)) for turn in range(TIMES)]
        start, memory = statistics.median(taken for taken, _ in idle), max(peak for _, peak in idle)
        for turn in range(TIMES):
            for size, file in files.items():
                found[size].append(_imported(Path(folder) / f"{size}-{turn}", file))
        print("| rows | seconds, median | µs a row | against the smallest | peak over idle, MiB |")
        print("| --- | --- | --- | --- | --- |")
        smallest = None
        for size, runs in found.items():
            seconds = statistics.median(taken for taken, _ in runs) - start
            row = seconds / size
            smallest = smallest or row
            peak = (max(peak for _, peak in runs) - memory) / MEBI
            print(
                f"| {size:,} | {seconds:.2f} | {row * 1e6:.0f} | {row / smallest:.2f} (at most {LIMIT}) | {peak:.0f} |"
            )
        again, _ = _imported(Path(folder) / f"{SIZES[-1]}-0", files[SIZES[-1]])
        print(f"\nall {SIZES[-1]:,} once more, all of them duplicates: {again:.1f} s; a process alone: {start:.1f} s")


def _file(path: Path, rows: int) -> Path:
    words = random.Random(rows)
    entries = []
    for number in range(rows):
        if number % 3 == 0 or rows == 1:
            texts = pair(words, ("English", "Chinese")[number % 2])
        elif number % 3 == 2:
            texts = texts | {"chosen": texts["chosen"].upper() + "."}
        entries.append(
            {
                "conversations": [{"from": "human", "value": texts["human_input"]}],
                "chosen": {"from": "gpt", "value": texts["chosen"]},
                "rejected": {"from": "gpt", "value": texts["rejected"]},
            }
        )
    path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return path


def _imported(home: Path, file: Path) -> tuple[float, int]:
    command = ["env", f"PREFANNO_HOME={home}", sys.executable, "-m", "prefanno"]
    if not home.exists():
        subprocess.run([*command, "db", "upgrade"], check=True, stdout=subprocess.DEVNULL)
    return measured([*command, "import", str(file)])


if __name__ == "__main__":
    main()
