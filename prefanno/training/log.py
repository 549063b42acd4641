"""A run's log, read as it grows: bytes of `train.log` → lines with the time at which each began.

A line ends with a newline; of a line that was written over with carriage returns, as progress bars do, the last state
counts. What is longer than `LONGEST` is split, so that output without newlines cannot fill the memory. The file keeps
every byte.
"""

import codecs
import contextlib
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

KEPT = 1000  # lines in memory, for new readers
LONGEST = 1 << 16  # bytes of a line
CHUNK = 1 << 20  # bytes read at once


@dataclass(frozen=True)
class Line:
    """One line; `time` is local, in seconds: "2026-01-27T12:00:00"."""

    time: str
    message: str


class RunLog:
    """Reads one run's folder; `poll` returns what is new since the last call, `lines` holds the last that were kept."""

    def __init__(self, folder: Path) -> None:
        self._log, self._times_file = folder / "train.log", folder / "train.times"
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._read_bytes = 0
        self._line_start = 0
        self._pending = ""
        self._times: list[tuple[int, int]] = []
        self._times_read = 0
        self.lines: deque[Line] = deque(maxlen=KEPT)
        self.count = 0
        self.at_end = False

    def poll(self, final: bool = False) -> list[Line]:
        """The lines completed in the next `CHUNK` bytes; with `final`, at the end of the file, also one without end.

        `at_end` says whether that was all there is; a trainer that prints without end is thus read step by step.
        """
        chunk = self._next_chunk()
        self.at_end = len(chunk) < CHUNK
        self._read_times()
        new = self._complete(chunk)
        if final and self.at_end and (rest := self._pending + self._decoder.decode(b"", final=True)):
            self._pending = ""
            new.append(self._line(rest))
        return new

    def keep(self, lines: list[Line]) -> None:
        """Take what `poll` returned into `lines` and `count`: apart from the reading, which runs in another thread."""
        self.lines.extend(lines)
        self.count += len(lines)

    def _next_chunk(self) -> bytes:
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as file:
            file.seek(self._read_bytes)
            return file.read(CHUNK)
        return b""

    def _read_times(self) -> None:
        with contextlib.suppress(FileNotFoundError), self._times_file.open() as file:
            file.seek(self._times_read)
            for entry in file.read().splitlines(keepends=True):
                if entry.endswith("\n"):
                    offset, second = entry.split()
                    self._times.append((int(offset), int(second)))
                    self._times_read += len(entry)

    def _complete(self, chunk: bytes) -> list[Line]:
        """The lines that end in this chunk. Offsets are of bytes, so the chunk is cut before it is decoded."""
        new = []
        start = 0
        while start < len(chunk):
            longest = start + LONGEST - (self._read_bytes - self._line_start)
            end = chunk.find(b"\n", start, longest) + 1 or min(longest, len(chunk))
            self._read_bytes += end - start
            self._pending += self._decoder.decode(chunk[start:end])
            if chunk[end - 1 : end] == b"\n" or end == longest:
                new.append(self._line(self._pending))
                self._pending, self._line_start = "", self._read_bytes
            start = end
        return new

    def _line(self, text: str) -> Line:
        text = text.rstrip("\r\n")
        position = bisect_right(self._times, (self._line_start, 1 << 62)) - 1
        second = self._times[position][1] if position >= 0 else 0
        return Line(
            datetime.fromtimestamp(second).astimezone().replace(tzinfo=None).isoformat(timespec="seconds"),
            text.rpartition("\r")[2],
        )
