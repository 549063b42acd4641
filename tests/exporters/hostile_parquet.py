"""Parquet files that lie, break off, or ask for gigabytes.

`python -m tests.exporters.hostile_parquet GROUP MEGABYTES FOLDER` writes a group of them.
"""

import io
import random
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Files = Iterator[tuple[str, list[bytes]]]

SAID = [{"role": "user", "content": "Hi"}]
REPLY = [{"role": "assistant", "content": "Ho"}]
ENTRY: dict[str, Any] = {"prompt": SAID, "chosen": REPLY, "rejected": REPLY}


def good() -> bytes:
    """A small good file."""
    import pyarrow as pa

    return _bytes(pa.Table.from_pylist([ENTRY] * 20))


def bombs(size: int) -> Files:
    """Small files that unpack to `size` bytes or more."""
    import pyarrow as pa

    offsets, letters = pa.py_buffer(struct.pack("<qq", 0, size)), pa.py_buffer(b"a" * size)
    text = pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, letters])
    for codec in ("zstd", "gzip", "brotli", "none"):
        yield f"page, {codec}", [_bytes(pa.table({"prompt": text}), compression=codec, use_dictionary=False)]
    page = _bytes(pa.table({"prompt": text}), use_dictionary=False)
    yield "page that says it is small", [_lying(page, size, b"\xe4\x80\x80\x80\x00")]
    yield "page that says it has 2 GB", [_lying(page, size, b"\xfe\xff\xff\xff\x0f")]
    said = pa.StructArray.from_arrays([pa.array(["user"]), text], ["role", "content"])
    yield "page in a list", [_bytes(pa.table({"prompt": _in_one_row(said)}), use_dictionary=False)]
    many, long = size >> 20, "a" * (3 << 20)
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * many * 9, pa.int32()), pa.array([long]))
    yield "dictionary", [_bytes(pa.table({"prompt": repeated}))]
    padded = pa.table({"prompt": repeated}).replace_schema_metadata({"more": "bytes than rows" * 9999})
    yield "dictionary, padded", [_bytes(padded)]
    prefixes = pa.table({"prompt": [long] * (many // 3 + 1)})
    yield "prefixes", [_bytes(prefixes, use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")]
    for kind in ("null", "int8", "bool_", "string"):
        nulls = pa.nulls(size // 8, getattr(pa, kind)())
        yield f"row of {kind}", [_bytes(pa.table({"prompt": _in_one_row(nulls)}))]
        yield f"rows of {kind}", [_bytes(pa.table({"prompt": nulls}))]
    yield "columns", [_bytes(pa.table({f"column{at}": [1] for at in range(2000)}))]


def footers(size: int) -> Files:
    """Files whose index at the end asks for more than it is long."""
    count = size // 4
    chunks = b"\x26\x00\x00" * count  # ColumnChunk with file_offset 0 and nothing else
    group = b"\x19" + b"\xfc" + _varint(count) + chunks + b"\x16\x00\x16\x00\x00"
    schema = b"\x19\x2c\x48\x04root\x15\x02\x00\x15\x0c\x25\x02\x18\x01a\x00"
    yield "column chunks", [_file(b"\x15\x04" + schema + b"\x16\x00" + b"\x19\x1c" + group + b"\x00")]
    elements = b"\x48\x01a\x00" * count
    yield "schema elements", [_file(b"\x15\x04\x19\xfc" + _varint(count) + elements + b"\x16\x00\x19\x0c\x00")]
    deep = b"\x48\x01a\x15\x02\x00" * count
    yield "schema in schema", [_file(b"\x15\x04\x19\xfc" + _varint(count) + deep + b"\x16\x00\x19\x0c\x00")]
    yield "list of 2 billion", [_file(b"\x15\x04\x19\xfc\xff\xff\xff\xff\x07")]
    yield "string of 2 billion", [_file(b"\x15\x04\x19\x1c\x48\xff\xff\xff\xff\x07")]
    yield "nested structs", [_file(b"\x1c" * count)]
    yield "index of 4 GB", [b"PAR1" + bytes(100) + struct.pack("<I", 0xFFFFFFFF) + b"PAR1"]
    yield "index of nothing", [b"PAR1" + struct.pack("<I", 0) + b"PAR1"]
    yield "encrypted", [b"PARE" + bytes(100) + struct.pack("<I", 50) + b"PARE"]


def broken(size: int) -> Files:
    """A good file, cut or with random bytes in it; ten of them, and five more for each megabyte."""
    content = good()
    chance = random.Random(size)
    for at in range(5 + 2 * (size >> 20)):
        yield f"cut {at}", [content[: chance.randrange(len(content))]]
        yield f"cut, with its index {at}", [content[chance.randrange(4, len(content)) :]]
        changed = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 8))):
            changed[chance.randrange(4, len(changed) - 8)] = chance.randrange(256)
        yield f"changed {at}", [bytes(changed)]


GROUPS: dict[str, Callable[[int], Files]] = {
    "bombs": bombs,
    "footers": footers,
    "broken": broken,
}


def _bytes(table: Any, **options: Any) -> bytes:
    from pyarrow import parquet

    target = io.BytesIO()
    one_page = {"data_page_size": 1 << 31, "row_group_size": 1 << 30, "write_statistics": False}
    parquet.write_table(table, target, **{"compression": "zstd", **one_page, **options})
    return target.getvalue()


def _lying(content: bytes, size: int, instead: bytes) -> bytes:
    """The file with another number wherever it gives the size of its one page, which is a little more than its text."""
    said = next(number for number in (_varint(2 * (size + more)) for more in range(99)) if number in content)
    return content.replace(said, instead)


def _in_one_row(items: Any) -> Any:
    import pyarrow as pa

    return pa.LargeListArray.from_arrays(pa.array([0, len(items)]), items)


def _file(footer: bytes) -> bytes:
    return b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def main(group: str, megabytes: str, folder: str) -> None:
    """Write a group."""
    for name, blocks in GROUPS[group](int(megabytes) << 20):
        (Path(folder) / name).write_bytes(b"".join(blocks))


if __name__ == "__main__":
    main(*sys.argv[1:])
