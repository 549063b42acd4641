"""Group commit: no add is answered before it is synced, one sync serves many adds, and that pays."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.serving import free_port
from tests.reliability import clients, tracing
from tests.reliability.checking import faults
from tests.reliability.conftest import Say

CLIENTS = 50
NORMAL = "sqlite.DURABILITY = 'NORMAL'"


async def _traced(folder: Path, adds: int, change: str = "") -> tuple[tracing.Gate, dict[str, int]]:
    """The trace of a server that answered these adds, from 50 clients."""
    trace, log, port = folder / "trace", folder / "server.log", free_port()
    prefix = (*tracing.STRACE, "-o", str(trace), "-e", tracing.CALLS)
    adders = clients.Adders(port)
    with clients.ended(clients.start(folder, port, log, change, prefix)) as process:
        await clients.healthy(process, port, log)
        await adders.add(clients.texts(adds), CLIENTS)
    with trace.open(encoding="ascii") as lines:
        return tracing.Gate({number: text for text, number in adders.told.items()}).read(lines), adders.told


@pytest.mark.needs("strace")
@pytest.mark.parametrize("adds", [300, pytest.param(5_000, marks=pytest.mark.long)])
async def test_no_add_is_answered_before_its_commit_is_synced(adds: int, tmp_path: Path, say: Say) -> None:
    """Each answer follows a sync of the log that follows the add's commit; at 50 clients a sync serves 5 adds."""
    gate, told = await _traced(tmp_path, adds)
    say(f"{len(gate.answered)} adds, {gate.syncs} syncs of the log: {len(gate.answered) / gate.syncs:.1f} adds a sync")
    assert gate.answered == set(told) and gate.early == []
    assert len(gate.answered) >= 5 * gate.syncs
    assert faults(tmp_path / "data" / "prefanno.db", told) == []


@pytest.mark.needs("strace")
async def test_the_gate_catches_a_server_that_does_not_sync(tmp_path: Path) -> None:
    """Control: with synchronous=NORMAL adds are answered before they are synced, and the gate names them."""
    gate, told = await _traced(tmp_path, 300, NORMAL)
    assert gate.answered == set(told) and len(gate.early) > 200


def test_the_gate_tells_a_commit_from_a_sync_and_from_its_order() -> None:
    """Control: a sync before the commit's last page, or one that ends after the answer, is not enough."""
    text = "add-000001-00000000"
    frames = [
        _write(b"\0" * 24),
        _write(b"x" + text.encode()),
        _write(b"\0\0\0\1\0\0\0\7" + bytes(16)),
        _write(b"last"),
    ]
    sync = ["1 1.0 fdatasync(7</home/prefanno.db-wal>) = 0"]
    begun = ["1 1.0 fdatasync(7</home/prefanno.db-wal> <unfinished ...>"]
    ended = ["1 1.2 <... fdatasync resumed>) = 0"]
    answer = [f'2 1.1 sendto(9<socket:[1]>, "{_hex(b"""{"id": 5}""")}", 9, 0, NULL, 0) = 9']
    for trace, early in (
        ([*frames, *sync, *answer], []),
        ([*frames, *begun, *ended, *answer], []),
        ([*frames, *begun, *answer, *ended], [text]),
        ([*frames[:2], *sync, *frames[2:], *answer], [text]),
        ([*frames, *answer, *sync], [text]),
    ):
        assert tracing.Gate({5: text}).read(trace).early == early


def _hex(content: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in content)


def _write(content: bytes) -> str:
    return f'1 1.0 pwrite64(7</home/prefanno.db-wal>, "{_hex(content)}", 24, 0) = 24'


async def _throughput(home: Path, group: int, adds: int, slower: Sequence[str]) -> float:
    """Answered adds in a second, at 50 clients, from a fresh home."""
    log, port = home.with_suffix(".log"), free_port()
    adders = clients.Adders(port)
    with clients.ended(clients.start(home, port, log, f"engine.GROUP = {group}", slower)) as process:
        await clients.healthy(process, port, log)
        await adders.add(clients.texts(CLIENTS), CLIENTS)  # connections and caches are warm
        begun = time.monotonic()
        await adders.add(clients.texts(adds), CLIENTS)
        return adds / (time.monotonic() - begun)


async def _medians(folder: Path, say: Say, disk: str, slower: Sequence[str]) -> tuple[float, float]:
    """Adds in a second in groups and one by one, of 7 runs each, in turn."""
    rates: dict[int, list[float]] = {256: [], 1: []}
    cpu, begun = time.process_time(), time.monotonic()
    for ordinal in range(7):
        for group, found in rates.items():
            found.append(await _throughput(folder / f"{ordinal}-{group}", group, 2_000, slower))
    busy = (time.process_time() - cpu) / (time.monotonic() - begun)
    grouped, single = (statistics.median(rates[group]) for group in (256, 1))
    say(f"{disk}: adds/s, medians of 7: {grouped:.0f} in groups, {single:.0f} alone, {grouped / single:.2f} times")
    say(f"all: { {group: [round(rate) for rate in found] for group, found in rates.items()} }; clients' CPU {busy:.0%}")
    return grouped, single


@pytest.mark.long
@pytest.mark.needs("strace")
async def test_a_group_commit_at_least_doubles_the_throughput(tmp_path: Path, say: Say) -> None:
    """At 50 clients over HTTP, groups of up to 256 answer twice as many adds as groups of one; a sync takes 2 ms here.

    That is what it takes a usual SSD; the delay is put into the system call, and both sides pay it.
    """
    slower = ("strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync,fsync")
    inject = ("-e", "inject=fdatasync,fsync:delay_exit=2000")
    grouped, single = await _medians(tmp_path, say, "a sync takes 2 ms more", (*slower, *inject))
    assert grouped >= 2 * single


@pytest.mark.long
async def test_a_group_commit_is_faster_on_this_disk(tmp_path: Path, say: Say) -> None:
    """On this machine's own disk, however fast it syncs, groups answer more; docs/reliability.md has how many."""
    grouped, single = await _medians(tmp_path, say, "this disk", ())
    assert grouped > single
