"""The datasets of `trl` as parquet: `<character>_<dataset>.trl.parquet`, with the same columns.

Parquet says how large a column is before it is read, so one that would not fit is refused by what it says.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefanno.rows import Fault, Found

from .containers import Entries
from .datasets import DATASETS, DatasetWriter
from .trl import SPELL, rows

if TYPE_CHECKING:
    import pyarrow as pa

GROUP = 1000  # rows; what is held in memory, both ways


class Table:
    """A parquet file, written a group of rows at a time."""

    def __init__(self, path: Path, schema: "pa.Schema") -> None:
        from pyarrow import parquet

        self.name, self.count = path.name, 0
        self._entries: list[dict[str, Any]] = []
        self._schema, self._file = schema, parquet.ParquetWriter(path, schema)

    def add(self, entry: dict[str, Any]) -> None:
        """Write an entry, together with those that follow."""
        self._entries.append(entry)
        self.count += 1
        if len(self._entries) == GROUP:
            self._flush()

    def close(self) -> None:
        """End the file."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._entries:
            self._file.write_table(pa.Table.from_pylist(self._entries, schema=self._schema))
            self._entries = []


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
    return rows(_entries(file))


def _entries(file: Path) -> Entries:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(file, buffer_size=1 << 20) as table:
            for batch in table.iter_batches(batch_size=GROUP):
                for number, entry in enumerate(batch.to_pylist(), number + 1):  # noqa: B020 - goes on counting
                    yield number, entry
    except (pa.ArrowException, OSError) as error:
        yield number + 1, Fault(f"the file is no parquet: {error}", f"不是有效的 parquet 文件：{error}")


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
