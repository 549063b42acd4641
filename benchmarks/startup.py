"""Is the server there before torch would be? Time to the first 200 of /health against `python -c "import torch"`.

    python -m benchmarks.startup                five runs of each, in turn

Both as whole processes on the same machine in the same run; the home is new for the first run only, as with a person's
own. Whether torch was loaded is read from the server's memory map, on Linux.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.serving import running

RUNS = 5


def main() -> None:
    """Print the table."""
    health, torch = [], []
    with tempfile.TemporaryDirectory() as folder:
        first, mapped = serve_once(Path(folder))
        for _ in range(RUNS):
            seconds, mapped_again = serve_once(Path(folder))
            health.append(seconds)
            mapped = mapped or mapped_again
            torch.append(import_torch_once())
    print("| | median s | min | max |")
    print("| --- | --- | --- | --- |")
    print(f"| first start, new database | {first:.2f} | | |")
    for name, figures in (("first 200 of /health", health), ('python -c "import torch"', torch)):
        print(f"| {name} | {statistics.median(figures):.2f} | {min(figures):.2f} | {max(figures):.2f} |")
    print(f"ratio of the medians: {statistics.median(health) / statistics.median(torch):.2f}; torch loaded: {mapped}")


def serve_once(home: Path) -> tuple[float, bool]:
    """Seconds from the start of the process to the first 200, and whether torch's libraries are in its memory."""
    started = time.monotonic()
    with running(home) as server:
        seconds = time.monotonic() - started
        maps = Path(f"/proc/{server.process.pid}/maps")
        return seconds, maps.exists() and "libtorch" in maps.read_text()


def import_torch_once() -> float:
    """Seconds of a whole process that imports torch."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
