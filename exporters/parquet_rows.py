"""The rows of the parquet file on stdin as JSON lines on stdout: a program of its own, which has little memory.

A parquet file of 400 bytes can ask for gigabytes: one long text that a dictionary repeats, a page that says it unpacks
to 1 GB, a billion nulls that are stored as their number. Nothing in its metadata tells, and pyarrow believes the
headers of pages. So the system bounds the memory of the process that reads them (on Linux; elsewhere nothing does),
and a file that breaks the reader breaks this process only. A JSON string stands for a row, or the rest of the file,
that cannot be read, and says why.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

MEMORY = 128 << 20  # bytes over what the libraries take
BATCH_ROWS, BATCH_BYTES = 1000, 4 << 20  # what is decoded at once, by the sizes that the metadata says


def main() -> None:
    """Print the rows."""
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())  # others reserve more than they use
    pa.set_cpu_count(1)
    _limit_memory()
    try:
        for row in _rows():
            sys.stdout.buffer.write(_line(row))
    except MemoryError:
        sys.stdout.buffer.write(orjson.dumps("it unpacks to too much at once; write it with smaller row groups"))
    except (pa.ArrowException, OSError, ValueError) as error:  # OSError is pyarrow's for what is broken, too
        sys.stdout.buffer.write(orjson.dumps(_reason(error)))


def _limit_memory() -> None:
    with contextlib.suppress(OSError):
        import resource

        status = Path("/proc/self/status").read_text()
        used = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))


def _rows() -> Iterator[Any]:
    from pyarrow import parquet

    size = os.fstat(0).st_size
    with os.fdopen(0, "rb") as file, parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as table:
        if table.metadata.num_rows > size:
            raise ValueError(f"it says that it has {table.metadata.num_rows} rows, in {size} bytes")
        for batch in table.iter_batches(_batch(table.metadata), use_threads=False):
            try:
                yield from batch.to_pylist()
            except ValueError:  # one of them has a text that is not UTF-8, or a time that there is not
                yield from (_row(batch.slice(at, 1)) for at in range(batch.num_rows))


def _batch(metadata: Any) -> int:
    groups = (metadata.row_group(at) for at in range(metadata.num_row_groups))
    heaviest = max((group.total_byte_size / group.num_rows for group in groups if group.num_rows > 0), default=0)
    return int(min(BATCH_ROWS, max(1, BATCH_BYTES / max(heaviest, 1))))


def _row(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except ValueError as error:
        return _reason(error)


def _line(row: Any) -> bytes:
    try:
        return orjson.dumps(row, default=_no_json, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError as error:  # an integer of more than 64 bits, a key that is no string
        return orjson.dumps(str(error), option=orjson.OPT_APPEND_NEWLINE)


def _reason(error: Exception) -> str:
    """What it says, on one printable line: it may quote the file."""
    return f"{str(error).partition(chr(10))[0]:.200}".encode("unicode_escape").decode()


def _no_json(value: Any) -> list[str]:
    """What no field of a row takes, so its reader says what the field must be."""
    return [type(value).__name__]


if __name__ == "__main__":
    main()
