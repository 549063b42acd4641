"""A real server process on a free port, for benchmarks and end-to-end tests; spoken to over HTTP only."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

START_S = 60.0
ANSWER_S = 600.0


@dataclass(frozen=True)
class Server:
    """A running server: `call` for a success, `ask` for any answer."""

    process: subprocess.Popen[bytes]
    url: str
    home: Path

    def ask(self, method: str, path: str, body: Any = None) -> requests.Response:
        """Send a request; a POST without a body carries no Content-Type."""
        return requests.request(method, self.url + path, json=body, timeout=ANSWER_S)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON answer of a request that must succeed."""
        answer = self.ask(method, path, body)
        if answer.status_code != requests.codes.ok:
            raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json()

    def wait_for_training(self) -> Any:
        """Wait for the end of the run; return `last_run`."""
        while (status := self.call("GET", "/api/train/status")["data"])["running"]:
            time.sleep(0.5)
        return status["last_run"]


@contextlib.contextmanager
def running(home: Path, **environment: str) -> Iterator[Server]:
    """A server on this home, with these PREFANNO_ settings (without the prefix); ended with SIGTERM."""
    port = free_port()
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFANNO_")}
    settings = {"PREFANNO_HOME": str(home), "PREFANNO_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    settings |= {f"PREFANNO_{name}": value for name, value in environment.items()}
    home.mkdir(parents=True, exist_ok=True)
    with (home / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefanno", "serve"], env=own | settings, stdout=log, stderr=log, cwd=home
        )
    try:
        yield Server(process, _ready(process, port, home), home)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def _ready(process: subprocess.Popen[bytes], port: int, home: Path) -> str:
    deadline = time.monotonic() + START_S
    url = f"http://127.0.0.1:{port}"
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(requests.ConnectionError):
            requests.get(url + "/health", timeout=START_S)
            return url
        time.sleep(0.05)
    raise AssertionError(f"the server did not start:\n{(home / 'server.log').read_text()}")
