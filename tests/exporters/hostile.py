"""Hostile files, and a program that reads a group of them and prints what became of it, and of its memory.

`python -m tests.exporters.hostile FORMAT GROUP MEGABYTES FOLDER`: each file is written, read and removed in turn.
Without a GROUP, as "", the files that lie in the folder are: making some of them takes more memory than reading them.
"""

import io
import json
import pickle
import sqlite3
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from pathlib import Path
from types import ModuleType
from typing import Any

from exporters import openai, sharegpt, spreadsheet, trl, trl_parquet
from exporters.containers import LONGEST
from prefanno import text
from prefanno.rows import REASON, Fault, Row

Files = Iterator[tuple[str, Iterable[bytes]]]

FORMATS: dict[str, ModuleType] = {
    "sharegpt": sharegpt,
    "trl": trl,
    "openai": openai,
    "csv": spreadsheet,
    "trl-parquet": trl_parquet,
}
TEXT_FORMATS = ("sharegpt", "trl", "openai", "csv")

_SAID = [{"role": "user", "content": "Ç’est qui, 离?"}]
_REPLY = [{"role": "assistant", "content": "Ich bin Lí. 我叫离~"}]
GOOD = {
    "sharegpt": json.dumps(
        [{"conversations": [{"from": "human", "value": "离?"}, {"from": "gpt", "value": "Lí"}]}], ensure_ascii=False
    ),
    "trl": json.dumps({"prompt": _SAID, "chosen": _REPLY, "rejected": _REPLY}, ensure_ascii=False) + "\n",
    "openai": json.dumps(
        {"input": {"messages": _SAID}, "preferred_output": _REPLY, "non_preferred_output": _REPLY}, ensure_ascii=False
    ),
    "csv": "human_input,chosen,rejected\r\n离?,Lí,AI\r\n",
}
OPENING = {"sharegpt": b"[", "csv": b"human_input,chosen\r\n"}
KEYS = b",".join(b'"%d":0' % number for number in range(700_000))

# Each begins somehow and goes on without end.
ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "line": (b"", b"a"),
    "string": (b'{"conversations": "', b"a"),
    "cell": (b'"', b"a"),
    "lists": (b"", b"["),
    "objects in objects": (b"", b'{"prompt":'),
    "lists in a row": (b'{"conversations":', b"["),
    "integer": (b'{"weight": ', b"9"),
    "fraction": (b'{"weight": 0.', b"1"),
    "exponent": (b'{"weight": 1e', b"9"),
    "signs": (b"", b"-"),
    "row of empty objects": (b'{"prompt": [', b"{},"),
    "row of objects": (b'{"prompt": [', b'{"":0},'),
    "row of lists": (b'{"prompt": [', b"[],"),
    "row of floats": (b'{"prompt": [', b"1.5,"),
    "row of strings": (b'{"prompt": [', '"谜",'.encode()),
    "keys": (b"{", KEYS),
    "escapes": (b'{"prompt": "', rb"\u8c1c"),
    "surrogates": (b'{"prompt": "', rb"\ud83d"),
    "backslashes": (b'"', b"\\"),
    "foxes": (b'"', "🦊".encode()),
    "doubled quotes": (b'"', b'""'),
    "empty cells": (b"", b","),
    "cells": (b"", "谜,".encode()),
    "cells of two": (b"", "谜谜,".encode()),
    "quote over lines": (b'"', b"a" * 999 + b"\n"),
    "NULs": (b"", b"\0"),
    "spaces": (b"", b" "),
    "carriage returns": (b"", b"\r"),
    "not UTF-8": (b"", b"\xff"),
    "not UTF-8 in a string": (b'"', b"\xff"),
}
# So are these, but each is an entry of its own, and takes its time.
ENDLESS_ENTRIES: dict[str, tuple[bytes, bytes]] = {
    "objects": (b"", b"{},"),
    "objects, one a line": (b"", b"{}\n"),
    "letters, one a line": (b"", b"a\n"),
    "quotes, one a line": (b"", b'a"\n"'),
    "empty lines": (b"", b"\n"),
    "numbers": (b"", b"1,"),
}


def bombs(form: str, size: int) -> Files:
    """What would fill the memory of a reader that wants the whole of a line, a string, a cell or a row."""
    for kinds, length in ((ENDLESS, size), (ENDLESS_ENTRIES, size // 10)):
        for name, (head, unit) in kinds.items():
            block = unit * max(1, (1 << 18) // len(unit))
            yield name, chain([OPENING.get(form, b"") + head], repeat(block, length // len(block) + 1))


def longest(form: str, _size: int) -> Files:
    """Rows that are just short enough to be parsed, and hold as much as fits."""
    fitting = LONGEST - (1 << 14)
    for name, inner in {
        "empty objects": b"{},",
        "objects": b'{"":0},',
        "keys in objects": b'{"a":0,"b":0},',
        "empty lists": b"[],",
        "lists of one": b"[0],",
        "integers": b"1234,",
        "floats": b"1.5,",
        "strings": '"谜",'.encode(),
        "longer strings": '"谜谜",'.encode(),
        "escapes": rb'"\ud83e\udd8a",',
        "one string": b"",
        "messages": b'{"role":"","content":""},',
        "turns": b'{"from":"","value":""},',
    }.items():
        count = fitting // len(inner) if inner else 0
        row = b'{"conversations": [%b0], "prompt": [%b0]}' % ((inner * (count // 2),) * 2)
        if not inner:
            row = json.dumps({"prompt": "🦊" + "a" * (fitting - 100)}, ensure_ascii=False).encode()
        yield name, [row, b"\n", row] if form != "sharegpt" else [b"[", row, b",", row, b"]"]
    if form == "csv":
        for name, cell in {
            "empty cells": b",",
            "letters": "谜,".encode(),
            "words": b"ab,",
            "cell": b"a",
            "foxes": "🦊".encode(),
        }.items():
            yield name, [OPENING["csv"], *[cell * (fitting // len(cell)), b"\n"] * 2]
    else:
        keys = b"{" + KEYS[: fitting - 100].rpartition(b",")[0] + b"}"
        yield "keys", [keys, b"\n", keys] if form != "sharegpt" else [b"[", keys, b",", keys, b"]"]


def encodings(form: str, _size: int) -> Files:
    """A good file in other encodings than UTF-8."""
    content = GOOD[form]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "gbk", "gb18030", "big5", "latin-1"):
        yield encoding, [content.encode(encoding, "replace" if encoding in ("latin-1", "gbk", "big5") else "strict")]
    yield "CESU-8", [content.replace("离", "🦊").encode("utf-16", "surrogatepass").decode("utf-16").encode("utf-16-le")]
    yield "a surrogate", [content.replace("离", "\ud800").encode("utf-8", "surrogatepass")]
    yield "NULs between", [b"\0".join(content[at : at + 1].encode() for at in range(len(content)))]
    yield "two byte order marks", [b"\xef\xbb\xbf\xef\xbb\xbf" + content.encode()]
    yield (
        "a byte order mark in the middle",
        [content.encode().replace(b'"', b"\xef\xbb\xbf").replace(b",", b"\xef\xbb\xbf")],
    )
    yield "cut in a character", [content.encode().partition("离".encode())[0] + "离".encode()[:2]]


def kinds(_form: str, _size: int) -> Files:
    """Files of another kind."""
    archive, tar = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("xl/worksheets/sheet1.xml", "<a>" * 1000)
    with tarfile.open(fileobj=tar, mode="w:gz"):
        pass
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 1 << 30, 1 << 30, 8, 6, 0, 0, 0)
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE a (b)")
    yield from {
        "zip": [archive.getvalue()],
        "tar": [tar.getvalue()],
        "png": [b"\x89PNG\r\n\x1a\n", struct.pack(">I", 13), chunk, struct.pack(">I", zlib.crc32(chunk))],
        "sqlite": [database.serialize()],
        "pickle": [pickle.dumps([{"conversations": []}])],
        "elf": [b"\x7fELF\x02\x01\x01" + bytes(57)],
        "pdf": [b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n"],
        "html": [b"<!DOCTYPE html>\n<title>Sign in</title>\n"],
        "yaml": [b"- conversations:\n  - from: human\n    value: Hi\n"],
        "xml": [b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "&c;&c;">]><a>&b;</a>'],
        "parquet's magic": [b"PAR1" + bytes(100) + b"PAR1"],
        "git-lfs pointer": [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"],
        "empty": [],
        "a byte": [b"\x00"],
        "a byte order mark": [b"\xef\xbb\xbf"],
    }.items()
    database.close()


def values(form: str, _size: int) -> Files:
    """Rows whose every place holds a value of every type."""
    if form == "csv":
        for cell in ("=cmd|' /C calc'!A0", "[[[", "1e999", "\0", "{}", "null", "-1", "true", '"', "a" * 200):
            for column in ("mode", "context", "created_at", "weight", "chosen_thinking,mode", cell):
                yield f"{column[:20]} {cell[:20]!r}", [f"human_input,{column},chosen\nHi,{cell},\n".encode()]
        return
    good = json.loads(GOOD[form])
    everything: list[Any] = [None, True, 0, -1, 10**300, 1e308, "", "\x00\x1b[2J", [], [[]], [None], {}, {"": {}}]
    for path in places(good):
        for value in everything:
            changed = placed(good, path, value)
            yield f"{path} {str(value)[:20]!r}", [json.dumps(changed).encode()]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to each value inside a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def placed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value there."""
    changed: Any = json.loads(json.dumps(value))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return changed


def read(form: str, files: Files, folder: Path) -> dict[str, dict[str, Any]]:
    """What became of each file: rows, faults, and whatever is wrong with these."""
    found = {}
    for name, blocks in files:
        file = folder / "..rows [hostile]"
        with file.open("wb") as target:
            target.writelines(blocks)
        found[name] = outcome(form, file)
        file.unlink()
    return found


def outcome(form: str, file: Path) -> dict[str, Any]:
    """Rows, faults, and whatever is wrong with these; a row that an import refuses counts as a fault."""
    rows, faults, wrong, last = 0, 0, "", 0
    for line, one in FORMATS[form].reading(file):
        if isinstance(one, Fault):
            faults += 1
            wrong = wrong or wrong_with(one)
        elif refused(one):
            faults += 1
        else:
            rows += 1
        wrong = wrong if line >= last else f"line {line} after {last}"
        last = line
    return {"rows": rows, "faults": faults, "wrong": wrong}


def wrong_with(fault: Fault) -> str:
    """What is wrong with a reason, if anything: it shall be short, and printable on any terminal."""
    for message in (str(fault), fault.detail):
        if not 0 < len(message) <= REASON:
            return f"{len(message)} characters: {message[:200]!a}"
        if not message.isprintable():
            return f"not printable: {message!a}"
    return ""


def refused(row: Row) -> bool:
    """Whether an import refuses the row, since a text of it cannot be stored."""
    texts = [row.human_input, row.chosen, row.rejected, row.chosen_thinking, row.rejected_thinking]
    texts += [row.system_prompt or None, *(turn["content"] for turn in row.context)]
    nothing = row.chosen is None and (row.mode == "multi" or row.rejected is None)
    return nothing or any(one is not None and text.fault(one) is not None for one in texts)


def peak() -> int:
    """The most megabytes that this process, and the largest of those it started, had in memory."""
    import resource

    status = Path("/proc/self/status").read_text()
    own = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return (own + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) >> 10


def main(form: str, group: str, megabytes: str, folder: str) -> None:
    """Read a group, and print what became of it."""
    groups = {"bombs": bombs, "longest": longest, "encodings": encodings, "kinds": kinds, "values": values}
    if group:
        found = read(form, groups[group](form, int(megabytes) << 20), Path(folder))
    else:
        found = {file.name: outcome(form, file) for file in sorted(Path(folder).iterdir())}
    sys.stdout.write(json.dumps({"peak": peak(), "files": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
