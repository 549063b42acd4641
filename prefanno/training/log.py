"""A run's log, read as it grows: bytes of `train.log` → lines with the time at which each began.

A line ends with a newline. Of one that is written over with carriage returns, as progress bars do, the last state
counts, and `progress` is what it says until it ends. Escape sequences and control characters are left out. What is
longer than `LONGEST` is split, so that output without newlines cannot fill the memory. The file keeps every byte.
"""

import contextlib
import os
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path

KEPT = 1000  # lines in memory, for new readers
LONGEST = 1 << 14  # bytes of a line
CHUNK = 1 << 17  # bytes read at once: not more lines than that
LATEST = 1 << 37  # seconds since the epoch that a time can be of
PIECE = re.compile(rb"[^\r\n]{1,%d}[\r\n]?|[\r\n]" % LONGEST)
CONTINUATION = range(0x80, 0xC0)  # bytes of a UTF-8 character behind its first
# ECMA-48: CSI sequences, strings such as OSC up to their end, other escapes; then what is left of C0 and C1, but tabs.
CONTROLS = re.compile(
    r"\x1b\[[0-?]*+[ -/]*+[@-~]|\x1b[PX\]^_][^\x07\x1b]*+(?:\x07|\x1b\\)|\x1b[ -/]*+[0-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


@dataclass(frozen=True)
class Line:
    """One line; `time` is local, in seconds: "2026-01-27T12:00:00"; `next` is the offset in the file behind it."""

    time: str
    message: str
    next: int


class RunLog:
    """Reads one run's folder; `poll` returns what is new since the last call, `lines` holds the last that were kept.

    `after` is the offset to begin at, that of a line. Up to `kept_to` the lines were kept.
    """

    def __init__(self, folder: Path, after: int = 0) -> None:
        self._log, self._times_file = folder / "train.log", folder / "train.times"
        self._read = self._began = self.kept_to = after
        self._pending = b""
        self._times: list[tuple[int, int]] = []
        self._times_read = 0
        self.lines: deque[Line] = deque(maxlen=KEPT)
        self.count = 0
        self.at_end = False

    def skip(self) -> None:
        """Begin so that of what is there only the last `KEPT` lines are read; the others are counted. Blocks."""
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - KEPT * LONGEST)
            file.seek(start)
            offset = _last_lines(file.read(), whole=start == 0)
            begins = self.count = file.seek(0)
            for at in range(0, start, CHUNK):
                piece = file.read(min(CHUNK, start - at))
                self.count += piece.count(b"\n")
                begins = at + place + 1 if (place := piece.rfind(b"\n")) >= 0 else begins
            if offset is not None:  # else the last line began before
                self.count += file.read(offset).count(b"\n")
                begins = start + offset
            self._read = self._began = self.kept_to = begins

    def poll(self, final: bool = False, until: int | None = None) -> list[Line]:
        """The lines completed in the next `CHUNK` bytes; with `final`, at the end of the file, also one without end.

        `until` is an offset to stop at. `at_end` says whether that was all there is; a trainer that prints without end
        is thus read step by step. Blocks.
        """
        size = CHUNK if until is None else max(0, min(CHUNK, until - self._read))
        chunk = self._next_chunk(size)
        self.at_end = len(chunk) < size or (until is not None and self._read + size >= until)
        self._read_times()
        new = [line for piece in PIECE.findall(chunk) for line in self._take(piece)]
        if final and self.at_end and self._pending:
            new.append(self._line(self._pending, self._read))
            self._pending = b""
        return new

    def keep(self, lines: list[Line]) -> None:
        """Take what `poll` returned into `lines` and `count`: apart from the reading, which runs in another thread."""
        self.lines.extend(lines)
        self.count += len(lines)
        if lines:
            self.kept_to = lines[-1].next

    @property
    def progress(self) -> str:
        """What the line that has not ended yet says, as of the last `poll`."""
        return _text(self._pending)

    def _next_chunk(self, size: int) -> bytes:
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as file:
            if self._read < file.seek(0, os.SEEK_END):  # an offset that a client made up may be beyond any file
                file.seek(self._read)
                return file.read(size)
        return b""

    def _read_times(self) -> None:
        with contextlib.suppress(FileNotFoundError), self._times_file.open() as file:
            file.seek(self._times_read)
            for entry in file.read().splitlines(keepends=True):
                if entry.endswith("\n"):
                    self._times_read += len(entry)
                    with contextlib.suppress(ValueError):  # train.sh works beside this file and may write to it
                        offset, second = entry.split()
                        self._times.append((int(offset), min(max(int(second), 0), LATEST)))

    def _take(self, piece: bytes) -> Iterator[Line]:
        """The lines that end in this piece; it has one carriage return or newline at most, at its end."""
        self._read += len(piece)
        if self._pending.endswith(b"\r"):
            if piece == b"\r":
                return
            if piece != b"\n":  # it writes over what was there
                self._pending = b""
        self._pending += piece
        while len(self._pending) > LONGEST and len(self._pending.rstrip(b"\r\n")) > LONGEST:
            cut = _boundary(self._pending, LONGEST)
            line, self._pending = self._pending[:cut], self._pending[cut:]
            yield self._line(line, self._read - len(self._pending))
        if piece.endswith(b"\n"):
            yield self._line(self._pending, self._read)
            self._pending = b""

    def _line(self, raw: bytes, end: int) -> Line:
        position = bisect_right(self._times, (self._began, 1 << 62)) - 1
        second = self._times[position][1] if position >= 0 else 0
        self._began = end
        return Line(_local(second), _text(raw), end)


@lru_cache(maxsize=16)
def _local(second: int) -> str:
    return datetime.fromtimestamp(second).astimezone().replace(tzinfo=None).isoformat(timespec="seconds")


def _text(raw: bytes) -> str:
    return CONTROLS.sub("", raw.rstrip(b"\r\n").decode(errors="replace"))


def _last_lines(tail: bytes, *, whole: bool) -> int | None:
    """Where the last `KEPT` lines begin, or the first of them where there are fewer; None where none does."""
    found = [place + 1 for place in islice(_newlines(tail), KEPT + 1)]
    if len(found) <= KEPT and whole:
        return 0
    return found[-1] if found else None


def _newlines(tail: bytes) -> Iterator[int]:
    """Their places, from the last on."""
    place = len(tail)
    while (place := tail.rfind(b"\n", 0, place)) >= 0:
        yield place


def _boundary(raw: bytes, most: int) -> int:
    """Where to cut so that no UTF-8 character is cut, at `most` or up to three bytes before it."""
    return next((cut for cut in range(most, most - 4, -1) if raw[cut] not in CONTINUATION), most)
