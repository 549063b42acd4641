"""The datasets of `trl` as parquet: `<character>_<dataset>.trl.parquet`, with the same columns.

A group of rows is small, also in bytes, so that a reader needs little memory, too. What one says of itself is nothing
to rely on: files are read by a program of their own, `parquet_rows.py`.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import orjson

from prefanno.rows import Fault, Found

from . import parquet_rows
from .containers import Entries, parsed_lines
from .datasets import DATASETS, DatasetWriter
from .trl import SPELL, row
from .values import rows

if TYPE_CHECKING:
    import pyarrow as pa

HELD = 3 << 20  # bytes
GROUP = 1000  # rows that are held in memory, fewer where they are longer than HELD together


class Table:
    """A parquet file, written a group of rows at a time."""

    def __init__(self, path: Path, schema: "pa.Schema") -> None:
        from pyarrow import parquet

        self.name, self.count = path.name, 0
        self._entries: list[dict[str, Any]] = []
        self._size = 0
        # Statistics would put the longest texts into the index at the file's end once more.
        self._schema, self._file = schema, parquet.ParquetWriter(path, schema, write_statistics=False)

    def add(self, entry: dict[str, Any]) -> None:
        """Write an entry, together with those that follow."""
        self._entries.append(entry)
        self._size += len(orjson.dumps(entry))
        self.count += 1
        if len(self._entries) == GROUP or self._size > HELD:
            self._flush()

    def close(self) -> None:
        """End the file."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._entries:
            self._file.write_table(pa.Table.from_pylist(self._entries, schema=self._schema))
            self._entries, self._size = [], 0


@contextlib.contextmanager
def writing(folder: Path, character: str) -> Iterator[DatasetWriter]:
    """Three files."""
    files = {name: Table(folder / f"{character}_{name}.trl.parquet", _schema(name)) for name in DATASETS}
    with contextlib.ExitStack() as closing:
        for file in files.values():
            closing.callback(file.close)
        yield DatasetWriter(files, SPELL)


def reading(file: Path) -> Iterator[Found]:
    """The rows of a file of any of the three, by their number."""
    return rows(_entries(file), row)


def _entries(file: Path) -> Entries:
    number = 0
    with file.open("rb") as stream, _reader(stream) as reader:
        for number, entry in parsed_lines(cast(IO[bytes], reader.stdout)):
            yield number, _unreadable(entry) if isinstance(entry, str) else entry
        if reader.wait():
            yield number + 1, _unreadable(f"it broke the reader ({reader.returncode})")


@contextlib.contextmanager
def _reader(stream: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The program that reads the file; it ends with the block."""
    command = [sys.executable, "-I", parquet_rows.__file__]
    with subprocess.Popen(command, stdin=stream, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
        try:
            yield reader
        finally:
            reader.kill()


def _unreadable(reason: str) -> Fault:
    return Fault(f"cannot be read as parquet: {reason}", f"无法按 parquet 读取：{reason}")


def _schema(dataset: str) -> "pa.Schema":
    import pyarrow as pa

    text = pa.string()
    messages = pa.list_(pa.struct([("role", text), ("content", text)]))
    own = [(name, text) for name in ("mode", "chosen_thinking", "rejected_thinking", "created_at")]
    columns = {
        "preference": [("prompt", messages), ("chosen", messages), ("rejected", messages)],
        "roleplay": [("messages", messages), ("rejected_content", text)],
        "unpaired": [("prompt", messages), ("completion", messages), ("label", pa.bool_())],
    }
    return pa.schema([*columns[dataset], *own, ("weight", pa.float64())])
