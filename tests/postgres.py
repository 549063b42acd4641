"""A PostgreSQL of the tests' own, from the programs of this machine: made, started, emptied, killed, removed.

It listens on a free port of 127.0.0.1. PostgreSQL refuses to run as root; then it runs as the user `postgres`. On Linux
it ends when its parent ends, however that ends.
"""

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import psutil

from benchmarks.serving import free_port

T = TypeVar("T")

START_S = 60.0
USER = "postgres"  # where the tests run as root
ROLE = "prefanno"
PR_SET_PDEATHSIG = 1
PROGRAMS = ("initdb", "postgres", "pg_isready", "psql")
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum=off")  # what tests can do without
LARGE = 1 << 20  # bytes of a table, from which on it is truncated

LAST_ASKED = """
SELECT state_change FROM pg_stat_activity JOIN pg_locks USING (pid)
WHERE locktype = 'advisory' AND datname = current_database()
"""  # when who writes has asked something last


@cache
def programs() -> Path | None:
    """The folder of initdb and postgres, of the newest version there is."""
    on_path = shutil.which("postgres")
    places = [Path(on_path).resolve().parent] if on_path else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name))
    return next((place for place in places if all((place / name).exists() for name in PROGRAMS)), None)


class Postgres:
    """One server in a folder of its own."""

    def __init__(self, options: Sequence[str] = FAST) -> None:
        found = programs()
        assert found is not None
        self._programs, self._options, self.port = found, options, free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="prefanno-postgres-"))
        if os.geteuid() == 0:
            shutil.chown(self._folder, USER, USER)
        self._process: subprocess.Popen[bytes] | None = None
        self._names = 0
        authentication = ("--auth=trust", f"--username={ROLE}")
        text = ("--encoding=UTF8", "--locale=C.UTF-8" if sys.platform == "linux" else "--locale=C")
        self._run("initdb", *authentication, *text, "--no-sync", f"--pgdata={self._folder / 'data'}").wait()

    def start(self) -> None:
        """Start it, and wait until it serves."""
        options = [f"port={self.port}", f"unix_socket_directories={self._folder}", "listen_addresses=127.0.0.1"]
        arguments = [part for option in (*options, *self._options) for part in ("-c", option)]
        self._process = self._run("postgres", "-D", str(self._folder / "data"), *arguments)
        deadline = time.monotonic() + START_S
        while subprocess.run([self._programs / "pg_isready", "-q", *self._address()], check=False).returncode:
            assert self._process.poll() is None and time.monotonic() < deadline, self._log.read_text(errors="replace")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL to the postmaster; its children end by themselves then, in whatever they are at."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._end(signal.SIGKILL)
        _, left = psutil.wait_procs(children, timeout=START_S)
        assert not left, left

    def stop(self) -> None:
        """End it, as an administrator would who cannot wait."""
        self._end(signal.SIGINT)

    def remove(self) -> None:
        """End it, and leave nothing."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, name: str) -> str:
        """As PREFANNO_DATABASE_URL has it."""
        return f"postgresql://{ROLE}@127.0.0.1:{self.port}/{name}"

    def make(self, template: str = "template1") -> str:
        """The URL of a new database."""
        self._names += 1
        name = f"prefanno_{self._names}"
        self.execute("postgres", f"CREATE DATABASE {name} TEMPLATE {template} ENCODING 'UTF8'")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Drop a database, whoever uses it."""
        self.execute("postgres", f"DROP DATABASE {name_of(url)} WITH (FORCE)")

    def execute(self, name: str, statements: str) -> None:
        """Run these statements."""
        command: list[str | Path] = [
            self._programs / "psql",
            *self._address(),
            "-d",
            name,
            "-q",
            "-X",
            "-v",
            "ON_ERROR_STOP=1",
        ]
        subprocess.run([*command, "-c", statements], check=True, stdout=subprocess.DEVNULL)

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _address(self) -> tuple[str, ...]:
        return ("-h", "127.0.0.1", "-p", str(self.port), "-U", ROLE)

    def _end(self, by: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(by)
            self._process.wait(timeout=START_S)

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        as_user: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": ()} if os.geteuid() == 0 else {}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [self._programs / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,  # Ctrl-C is for pytest, which ends this afterwards
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - one system call
                **as_user,
            )


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)


def name_of(url: str) -> str:
    """The database's name."""
    return url.rpartition("/")[2]


class Asker:
    """Asks a database from synchronous code, over one connection."""

    def __init__(self, url: str) -> None:
        import asyncpg

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="asker", daemon=True)
        self._thread.start()
        self._connection = self._wait(asyncpg.connect(url))

    def fetch(self, query: str) -> list[tuple[Any, ...]]:
        """The rows."""
        return [tuple(row) for row in self._wait(self._connection.fetch(query))]

    def execute(self, statements: str) -> None:
        """Run these statements."""
        self._wait(self._connection.execute(statements))

    def close(self) -> None:
        """Close the connection."""
        self._wait(self._connection.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


@contextlib.contextmanager
def asking(url: str) -> Iterator[Asker]:
    """An asker for the block."""
    asker = Asker(url)
    try:
        yield asker
    finally:
        asker.close()


class Refilled:
    """A database at the newest schema that is emptied for each test: faster than to make one for each.

    Rows are deleted, which takes 3 ms; to truncate small tables takes 50, since each gets new files.
    """

    def __init__(self, url: str, asker: Asker) -> None:
        self.url, self._asker = url, asker
        asker.execute("CREATE SCHEMA fresh")
        for table in ("characters", "counts"):
            asker.execute(f"CREATE TABLE fresh.{table} AS SELECT * FROM public.{table}")
        tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename != 'alembic_version'"
        self._tables = [table for (table,) in asker.fetch(tables)]
        sequences = asker.fetch("SELECT sequencename FROM pg_sequences WHERE schemaname = 'public'")
        self._restart = ";".join(f"SELECT setval('{sequence}', 1, false)" for (sequence,) in sequences)

    def refill(self) -> None:
        """Cut off who still uses it, and leave in it what a migration does."""
        others = "datname = current_database() AND pid != pg_backend_pid()"
        self._asker.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
        largest = "SELECT max(pg_relation_size(relid)) FROM pg_stat_user_tables WHERE schemaname = 'public'"
        if self._asker.fetch(largest)[0][0] >= LARGE:
            emptied = f"TRUNCATE {', '.join(self._tables)}"
        else:
            emptied = ";".join(f"DELETE FROM {table}" for table in self._tables)
        self._asker.execute(
            f"SET session_replication_role = replica; {emptied}; SET session_replication_role = origin;"
            f"{self._restart};"
            "INSERT INTO characters SELECT * FROM fresh.characters; INSERT INTO counts SELECT * FROM fresh.counts"
        )
