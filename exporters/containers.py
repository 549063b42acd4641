"""Files of many entries, written and read one entry at a time, whatever their size.

An entry that is longer than `LONGEST` is refused before it is parsed. One that is nothing but empty objects takes forty
times as much once it is parsed, so only one is in memory at a time.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import orjson

from prefanno.rows import Fault, Line

# Bytes of one entry, in UTF-8. The API takes bodies of 1 MiB: a persona, the earlier turns, the question and the
# replies may have come in one each, and a thought is written twice.
LONGEST = 6 << 20
CHUNK = 1 << 16
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # Windows programs begin a file with it
PARQUET = b"PAR1"  # a parquet file begins with it
WHITE = re.compile(r"[ \t\r\n]*")

Entries = Iterator[tuple[int, Any]]  # the line where it begins, and the parsed entry or a Fault


class Sink(Protocol):
    """A file that takes entries."""

    name: str
    count: int

    def add(self, entry: dict[str, Any]) -> None:
        """Write an entry."""

    def close(self) -> None:
        """End the file."""


class JsonLines:
    """One JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.name, self.count = path.name, 0
        self._file = path.open("xb", buffering=CHUNK)

    def add(self, entry: dict[str, Any]) -> None:
        """Write an entry."""
        self._file.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
        self.count += 1

    def close(self) -> None:
        """End the file."""
        self._file.close()


class JsonArray:
    """A JSON list, one entry a line."""

    def __init__(self, path: Path) -> None:
        self.name, self.count = path.name, 0
        self._file = path.open("xb", buffering=CHUNK)
        self._file.write(b"[")

    def add(self, entry: dict[str, Any]) -> None:
        """Write an entry."""
        self._file.write(b",\n" if self.count else b"\n")
        self._file.write(orjson.dumps(entry))
        self.count += 1

    def close(self) -> None:
        """End the list and the file."""
        self._file.write(b"\n]\n")
        self._file.close()


def json_lines(file: Path) -> Entries:
    """The entries of a file of JSON lines; empty lines are passed over. Another format is one fault, not one a line."""
    with file.open("rb") as stream:
        start = stream.peek().removeprefix(BYTE_ORDER_MARK).lstrip()
        if start.startswith(PARQUET):
            yield 1, looks_like("parquet", "parquet 文件")
        elif start.startswith(b"["):
            yield 1, looks_like("a JSON list", "JSON 数组")
        else:
            yield from parsed_lines(stream)


def parsed_lines(stream: IO[bytes]) -> Entries:
    """As `json_lines`, of an open file."""
    for number, line in _lines(stream):
        if line is None:
            yield number, too_long()
        elif text := line.removeprefix(BYTE_ORDER_MARK if number == 1 else b"").strip():
            yield number, _parsed(text)


def json_array(file: Path) -> Entries:
    """The entries of a JSON list. After broken JSON the next entry cannot be told, so it ends there."""
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        scanner = _Scanner(stream)
        try:
            yield from scanner.entries()
        except RecursionError:
            yield scanner.place, _too_deep()
        except Fault as fault:
            yield scanner.place, Fault(str(fault), fault.detail)  # without the frames that it was raised in


def json_entries(file: Path) -> Entries:
    """The entries of a JSON list or of JSON lines, whichever the file begins as."""
    with file.open("rb") as stream:
        start = stream.read(CHUNK).removeprefix(BYTE_ORDER_MARK).lstrip()
    return json_lines(file) if start.startswith(b"{") else json_array(file)


def too_long() -> Fault:
    """An entry takes more than memory is meant for."""
    size = LONGEST >> 20
    return Fault(f"is longer than {size} MiB; split it", f"超过 {size} MiB，请拆分")


def not_utf8() -> Fault:
    """A file in another encoding."""
    return Fault("is not UTF-8; save the file as UTF-8", "不是 UTF-8 编码，请将文件另存为 UTF-8")


def looks_like(english: str, chinese: str) -> Fault:
    """A file of another format."""
    return Fault(f"this looks like {english}; choose another --format", f"文件看起来是 {chinese}，请选择其他 format")


def is_utf8(text: str) -> bool:
    """Whether a text that was decoded with `surrogateescape` came from UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _size(text: str) -> int:
    return len(text.encode(errors="surrogateescape"))


def _too_deep() -> Fault:
    return Fault("is nested too deeply", "嵌套过深")


def _broken(cause: str) -> Fault:
    return Fault(f"is no JSON: {cause}", f"不是有效的 JSON：{cause}")


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Each line with its number, from 1; None for one that is too long."""
    number = 0
    while line := stream.readline(LONGEST + 1):
        number += 1
        yield number, line if len(line) <= LONGEST else None
        while len(line) > LONGEST and not line.endswith(b"\n"):
            line = stream.readline(LONGEST + 1)


def _parsed(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        try:
            text.decode()
        except UnicodeDecodeError:
            return not_utf8()
        return _too_deep() if "depth limit" in str(error) else _broken(str(error))


class _Scanner:
    """Cuts a JSON list into its entries, with a buffer of about one entry; `line` is where it stands.

    `row` is the number of the entry where its line does not tell which it is.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._decoder = stream, json.JSONDecoder()
        self._buffer, self._at, self.line = "", 0, 1
        self.row: int | None = None

    @property
    def place(self) -> int:
        """The line, with the row where that is needed."""
        return self.line if self.row is None else Line(self.line, self.row)

    def entries(self) -> Entries:
        """The entries. Raises Fault or RecursionError where the list is broken."""
        if (mark := self._next()) != "[":
            if self._buffer.startswith(PARQUET.decode(), self._at):
                raise looks_like("parquet", "parquet 文件")
            no_list = Fault("the file must hold a JSON list of rows", "文件必须是由各行组成的 JSON 数组")
            raise no_list if is_utf8(mark) else not_utf8()
        self._at += 1
        number, before = 0, self.line
        mark = self._next()
        while mark != "]":
            number += 1
            self.row = None if self.line > before else number
            yield self.place, self._entry()  # no name keeps it while the next one is parsed
            before = self.line
            mark = self._next()
            if mark == ",":
                self._at += 1
                self._next()
            elif mark != "]":
                raise _broken(f"',' or ']' is expected, not {mark!r}" if mark else "the list does not end")
        self._at += 1
        if rest := self._next():
            raise _broken(f"{rest!r} stands after the end of the list")

    def _next(self) -> str:
        """The next character that is no white space, which is not passed; empty at the end."""
        while True:
            found = WHITE.match(self._buffer, self._at)
            self._pass(found.end() if found else self._at)
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._read(CHUNK):
                return ""

    def _entry(self) -> Any:
        """One JSON value; more is read until it is whole."""
        while True:
            try:
                entry, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                self._go_on(error)
            except ValueError as error:  # an integer of thousands of digits
                raise _broken(str(error)) from None
            else:
                begin = self._at
                self._pass(end)
                if not is_utf8(text := self._buffer[begin:end]):
                    return not_utf8()
                return entry if _size(text) <= LONGEST else too_long()

    def _go_on(self, error: json.JSONDecodeError) -> None:
        """Read on where the value is only cut off by the end of the buffer. Raises Fault where it is broken."""
        length = len(self._buffer) - self._at
        if length > LONGEST or _size(self._buffer[self._at :]) > LONGEST:
            raise too_long()
        cut_off = error.msg.startswith("Unterminated string") or error.pos > len(self._buffer) - len(r"\u0000false")
        size = min(max(CHUNK, length), LONGEST + 1 - length)  # twice as much each time: linear in all
        if not (cut_off and self._read(size)):
            self._pass(error.pos)
            raise _broken(error.msg)

    def _pass(self, end: int) -> None:
        self.line += self._buffer.count("\n", self._at, end)
        self._at = end

    def _read(self, size: int) -> bool:
        """Drop what was passed and read on; return whether there was more."""
        more = self._stream.read(size)
        self._buffer, self._at = self._buffer[self._at :] + more, 0
        return bool(more)
