"""CSV for spreadsheet programs: `<character>.csv`, one row for each pair, conversation or unpaired reply.

UTF-8 with a byte order mark, without which Excel guesses the encoding. A cell that a spreadsheet would take for a
formula (it begins with = + - @, a tab, a line end, or the full-width forms that some editions take, too) gets a '
before it, as OWASP advises against CSV injection, and so does one that begins with ' itself; so reading takes away
exactly what writing put there. `context` holds the earlier turns as JSON.
"""

import codecs
import contextlib
import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import orjson

from prefanno.prompting import Message
from prefanno.rows import Fault, Found, Row

from .containers import LONGEST, PARQUET, is_utf8, looks_like, not_utf8, too_long
from .values import Entry, alternating, must_be, no_weight, shown, without_trace

COLUMNS = (
    "mode",
    "system_prompt",
    "context",
    "human_input",
    "chosen",
    "chosen_thinking",
    "rejected",
    "rejected_thinking",
    "created_at",
    "weight",
)
FORMULA = tuple("=+-@\t\r\n＝＋－＠'")
SAVE = 'save it as "CSV UTF-8 (comma delimited)"', "请另存为“CSV UTF-8（逗号分隔）”"  # as Excel calls it
CELL = 32_767  # UTF-16 units that a cell of Excel holds, an emoji being two or more; it cuts off the rest

csv.field_size_limit(LONGEST)  # the module's own limit is 131,072


class Writer:
    """Writes rows; `losses` has those with a cell that Excel would cut."""

    def __init__(self, name: str, file: IO[str]) -> None:
        self._name, self._count, self._csv = name, 0, csv.writer(file, quoting=csv.QUOTE_ALL)
        self.losses: Counter[str] = Counter()
        self._csv.writerow(COLUMNS)

    @property
    def counts(self) -> dict[str, int]:
        """Rows in the file."""
        return {self._name: self._count}

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        for row in rows:
            cells = [_safe(cell) for cell in _cells(row)]
            self._csv.writerow(cells)
            self._count += 1
            if any(_units(cell) > CELL for cell in cells):
                self.losses["long_cell"] += 1


@contextlib.contextmanager
def writing(folder: Path, character: str) -> Iterator[Writer]:
    """One file."""
    path = folder / f"{character}.csv"
    with path.open("x", encoding="utf-8-sig", newline="") as file:
        yield Writer(path.name, file)


def reading(file: Path) -> Iterator[Found]:
    """The rows of a file with these columns; only human_input and chosen or rejected are needed."""
    with file.open("rb") as stream:
        lines = _Lines(stream)
        records = _records(lines)
        try:
            _begins_as_csv(stream.peek())
            header = _header(next(records, (1, []))[1])
        except Fault as fault:
            yield 1, without_trace(fault)
            return
        for line, record in records:
            if isinstance(record, Fault) or any(record):
                yield line, _row_or_fault(header, record)
            del record  # it may be large, and the next one is parsed now


class _Lines:
    """Lines as text; `length` is that of all since it was last set to 0, which a quoted cell may go over."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.length, self.number = stream, 0, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        """The next line. Raises Fault where the record is too long; the line after it can be read."""
        line = self._stream.readline(LONGEST + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.length += len(line)
        if self.length > LONGEST:
            while line and not line.endswith(b"\n"):
                line = self._stream.readline(LONGEST)
            raise too_long()
        return line.decode("utf-8-sig" if self.number == 1 else "utf-8", "surrogateescape")


def _records(lines: _Lines) -> Iterator[tuple[int, list[str] | Fault]]:
    """Each record with the line where it begins."""
    reader = csv.reader(lines, strict=True)
    while True:
        lines.length, line = 0, lines.number + 1
        try:
            yield line, _checked(next(reader))
        except StopIteration:
            return
        except Fault as fault:
            yield line, without_trace(fault)
        except csv.Error as error:
            yield line, _no_csv(str(error))


def _checked(record: list[str]) -> list[str] | Fault:
    return record if is_utf8("".join(record)) else not_utf8()


def _no_csv(cause: str) -> Fault:
    if cause.startswith("new-line character"):
        english = "has a line end of old Mac programs, a carriage return alone"
        chinese = "含有旧版 Mac 的换行符（单独的 CR）"
        return Fault(f"{english}; {SAVE[0]}", f"{chinese}，{SAVE[1]}")
    return Fault(f"is no CSV: {cause}", f"不是有效的 CSV：{cause}")


def _begins_as_csv(start: bytes) -> None:
    """Raise Fault for what a spreadsheet program may have saved instead, or another format."""
    if start.startswith(PARQUET):
        raise looks_like("parquet", "parquet 文件")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Fault(f"is UTF-16, not UTF-8; {SAVE[0]}", f"是 UTF-16 编码，不是 UTF-8，{SAVE[1]}")


def _header(record: list[str] | Fault) -> list[str]:
    """The names of the columns; spreadsheet programs also write columns without a name, which are empty."""
    if isinstance(record, Fault):
        raise record
    record = [name.strip() for name in record]
    if len(record) == 1 and (";" in record[0] or "\t" in record[0]):
        raise Fault(f"the columns must be separated by commas; {SAVE[0]}", f"各列必须用逗号分隔，{SAVE[1]}")
    if unknown := [name for name in record if name and name not in COLUMNS]:
        known = ", ".join(COLUMNS)
        name = shown(unknown[0])
        raise Fault(f"there is no column {name}; the columns are {known}", f"没有 {name} 列，可用的列：{known}")
    if "human_input" not in record or not {"chosen", "rejected"}.intersection(record):
        needed = "human_input, chosen, rejected"
        raise Fault(f"the first line must name the columns {needed}", f"第一行必须是列名：{needed}")
    names = [name for name in record if name]
    if len(set(names)) < len(names):
        raise Fault("a column is named twice", "列名重复")
    return record


def _cells(row: Row) -> list[str]:
    context = orjson.dumps(row.context).decode() if row.context else ""
    sides = (row.chosen, row.chosen_thinking, row.rejected, row.rejected_thinking)
    about = (row.created_at.isoformat(), str(row.weight))
    return [row.mode, row.system_prompt, context, row.human_input, *(text or "" for text in sides), *about]


def _units(cell: str) -> int:
    return len(cell) if 2 * len(cell) <= CELL else len(cell.encode("utf-16-le")) // 2  # few are long enough to matter


def _safe(cell: str) -> str:
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def _plain(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


def _row_or_fault(header: list[str], record: list[str] | Fault) -> Row | Fault:
    try:
        return record if isinstance(record, Fault) else _row(header, record)
    except Fault as fault:
        return without_trace(fault)


def _row(header: list[str], record: list[str]) -> Row:
    if len(record) != len(header):
        english = f"has {len(record)} cells where the first line names {len(header)}"
        raise Fault(english, f"有 {len(record)} 个单元格，但第一行有 {len(header)} 列")
    cells = {name: _plain(cell) for name, cell in zip(header, record, strict=True) if cell}
    if "" in cells:
        raise Fault(f"{shown(cells[''])} stands in a column without a name", f"{shown(cells[''])} 所在的列没有列名")
    entry = Entry(cells)
    context, human_input = _turns(entry)
    return Row(
        mode=entry.mode("mode") or "single",
        system_prompt=entry.optional("system_prompt") or "",
        context=context,
        human_input=human_input,
        chosen=entry.optional("chosen"),
        chosen_thinking=entry.optional("chosen_thinking"),
        rejected=entry.optional("rejected"),
        rejected_thinking=entry.optional("rejected_thinking"),
        created_at=entry.time("created_at"),
        weight=_weight(entry.optional("weight")),
    )


def _turns(entry: Entry) -> tuple[list[Message], str]:
    said = ("user", entry.text("human_input"))
    if (text := entry.optional("context")) is None:
        return alternating([said])
    try:
        context = Entry({"context": orjson.loads(text)}).entries("context")
    except orjson.JSONDecodeError:
        raise must_be("context", "a JSON list of turns", "由各轮对话组成的 JSON 数组") from None
    return alternating([*((turn.text("role"), turn.text("content")) for turn in context), said])


def _weight(cell: str | None) -> float:
    try:
        return Entry({"weight": float(cell or 1)}).weight("weight")
    except ValueError:
        raise no_weight("weight", cell) from None
