"""Servers that can be killed at any moment, lean clients, and the check of what the clients were told.

A client here is one keep-alive connection that asks one thing at a time and does no more work than it must, so that
the server is measured and not its clients.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ADD = "/api/dataset/add"
ANSWER_S = 10.0  # then a client asks again
START_S = 60.0
PAUSE_S = 0.05  # before a client asks again
UNAVAILABLE = 503
BROKEN = (OSError, EOFError, TimeoutError)

# A server with a constant of the database changed: there is no switch for it, on purpose.
DRIVER = "from prefanno.db import engine, sqlite\n{}\nfrom prefanno.cli import main\nmain()"


def environment(home: Path, port: int, url: str = "") -> dict[str, str]:
    """The process's own, with these settings and no others of prefanno's."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFANNO_")}
    ours = {"PREFANNO_HOME": str(home), "PREFANNO_PORT": str(port), "PREFANNO_DATABASE_URL": url}
    return own | ours | {"HF_HUB_OFFLINE": "1"}


def start(  # noqa: PLR0913 - all but the first three are for one kind of test each
    home: Path, port: int, log: Path, change: str = "", prefix: Sequence[str] = (), *, url: str = ""
) -> subprocess.Popen[bytes]:
    """A server process that is starting; its output goes to the end of `log`."""
    program = ["-c", DRIVER.format(change)] if change else ["-m", "prefanno"]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*prefix, sys.executable, *program, "serve"],
            env=environment(home, port, url),
            stdout=output,
            stderr=output,
            cwd=Path(__file__).parents[2],
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL; returns when the process is gone."""
    process.kill()
    process.wait(timeout=START_S)


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process for the block, and whatever it runs; ended with SIGTERM."""
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):  # a tracer ends when what it traces does
            for child in psutil.Process(process.pid).children():
                child.send_signal(signal.SIGTERM)
        process.terminate()
        process.wait(timeout=START_S)


async def healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait for the first 200 of /health. Raises NotStarted."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        connection = Connection(port)
        with contextlib.suppress(*BROKEN), contextlib.closing(connection):
            if (await connection.ask("GET", "/health"))[0] == 200:
                return
        await asyncio.sleep(0.01)
    raise NotStarted(log)


class NotStarted(Exception):
    """The server ended, or took too long."""

    def __init__(self, log: Path) -> None:
        super().__init__(log.read_text())


class Connection:
    """One connection, kept alive; opened when it is first used, and again after it broke."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: Any = None, key: str | None = None) -> tuple[int, Any]:
        """Status and body of the answer. Raises one of BROKEN where there was none in time."""
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self._port}", f"Content-Length: {len(content)}"]
        lines += ["Content-Type: application/json"] if content else []
        lines += [f"Idempotency-Key: {key}"] if key else []
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._answer("\r\n".join([*lines, "\r\n"]).encode() + content)
        except BROKEN:
            self.close()
            raise

    async def _answer(self, request: bytes) -> tuple[int, Any]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        return int(head[9:12]), json.loads(await reader.readexactly(length))

    def close(self) -> None:
        """Cut it off."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


def texts(number: int) -> list[str]:
    """As many texts as adds, each other than all others."""
    return [f"add-{ordinal:06}-{random.getrandbits(32):08x}" for ordinal in range(number)]


def row(text: str) -> dict[str, str]:
    """What is added."""
    return {"mode": "single", "human_input": text, "chosen": f"{text} yes", "rejected": f"{text} no"}


@dataclass
class Adders:
    """Clients that add each text, again until it is acknowledged; `told` gets the id that the answer named.

    `lost` is the share of answers that do not arrive: the client asks again. Without `keys` each attempt has a new
    key, as if there were none. `patient` clients ask again after a 503, too, and count them.
    """

    port: int
    keys: bool = True
    lost: float = 0.0
    patient: bool = False
    unavailable: int = 0
    told: dict[str, int] = field(default_factory=dict)

    async def add(self, wanted: Iterable[str], clients: int) -> None:
        """Many clients share the work."""
        left = iter(wanted)
        await asyncio.gather(*(self._one_client(left) for _ in range(clients)))

    async def _one_client(self, left: Iterator[str]) -> None:
        with contextlib.closing(Connection(self.port)) as connection:
            for text in left:
                answers: list[int] = []
                while not answers or random.random() < self.lost:
                    with contextlib.suppress(*BROKEN):
                        answers.append(await self._once(connection, text))
                        continue
                    await asyncio.sleep(PAUSE_S * random.uniform(0.5, 1.5))
                assert not self.keys or len(set(answers)) == 1, f"{text} got several answers: {answers}"
                self.told[text] = answers[-1]

    async def _once(self, connection: Connection, text: str) -> int:
        key = text if self.keys else f"{text}-{random.getrandbits(64)}"
        status, answer = await connection.ask("POST", ADD, row(text), key)
        if self.patient and status == UNAVAILABLE:
            self.unavailable += 1
            raise ConnectionError(answer["detail"])
        assert status == 200, answer
        return int(answer["data"]["id"])
