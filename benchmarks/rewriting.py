"""The peer of `growth.py`: a server that keeps its annotations in one JSON file and writes all of it at each add."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import requests
from aiohttp import web

from benchmarks.filling import pair
from benchmarks.serving import free_port


@contextlib.contextmanager
def running(file: Path, size: int) -> Iterator[str]:
    """The URL of such a server with this many annotations."""
    words = random.Random(0)
    file.write_text(json.dumps([pair(words, ("English", "Chinese")[number % 2]) for number in range(size)]))
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.rewriting", str(file), str(port)])
    try:
        url = f"http://127.0.0.1:{port}"
        while True:
            with contextlib.suppress(requests.ConnectionError):
                requests.get(url, timeout=600)
                break
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def serve(file: Path, port: int) -> None:
    """Serve adds: each is in the file, and the file on the disk, before it is answered."""
    annotations = json.loads(file.read_text())

    async def add(request: web.Request) -> web.Response:
        annotations.append(await request.json())
        temporary = file.with_suffix(".new")
        with temporary.open("w", encoding="utf-8") as whole:
            json.dump(annotations, whole, ensure_ascii=False)
            whole.flush()
            os.fsync(whole.fileno())
        temporary.replace(file)
        return web.json_response({"total": len(annotations)})

    app = web.Application()
    app.router.add_post("/api/dataset/add", add)
    web.run_app(app, host="127.0.0.1", port=port, print=None)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
