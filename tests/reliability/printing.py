"""What a trainer might print that is no tidy text: `python -m tests.reliability.printing KIND` prints it."""

import random
import sys
from collections.abc import Callable, Iterator, Mapping

MEGABYTE = 1 << 20


def _without_newlines() -> Iterator[bytes]:
    for _ in range(10):
        yield b"x" * MEGABYTE


def _carriage_returns() -> Iterator[bytes]:
    for start in range(0, 1_000_000, 10_000):
        yield b"".join(b"\r%7d of 1000000" % number for number in range(start, start + 10_000))
    yield b"\n"


def _newlines() -> Iterator[bytes]:
    for _ in range(10):
        yield b"\n" * MEGABYTE


def _no_text() -> Iterator[bytes]:
    dice = random.Random(0)
    for _ in range(10):
        yield dice.randbytes(MEGABYTE)


def _colours() -> Iterator[bytes]:
    for start in range(0, 100_000, 10_000):
        yield b"".join(b"\x1b[1;31mstep %d\x1b[0m\x1b[K\n" % number for number in range(start, start + 10_000))


def _gigabyte() -> Iterator[bytes]:
    lines = b"".join(b"%03d %s\n" % (number, b"y" * 1000) for number in range(1000))
    for _ in range(1000):
        yield lines + b"z" * (MEGABYTE - len(lines) - 1) + b"\n"


KINDS: Mapping[str, Callable[[], Iterator[bytes]]] = {
    "10 MB without a newline": _without_newlines,
    "a million carriage returns": _carriage_returns,
    "10 MB of newlines": _newlines,
    "10 MB that are no UTF-8": _no_text,
    "colours": _colours,
    "1 GB": _gigabyte,
}

if __name__ == "__main__":
    for piece in KINDS[sys.argv[1]]():
        sys.stdout.buffer.write(piece)
