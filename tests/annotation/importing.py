"""What the tests of imports share: files in ShareGPT's spelling, and a load of them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefanno.annotation import imports
from prefanno.annotation.imports import Options, Report, Source
from prefanno.db.engine import Database
from prefanno.rows import Row, reader, writer

READS = reader("sharegpt")
PERSONA = "你是离。"
PLAIN = Options()
GOOD = {
    "conversations": [{"from": "human", "value": "Hi"}],
    "chosen": {"from": "gpt", "value": "Ho"},
    "rejected": {"from": "gpt", "value": "No"},
}


def entry(said: str, chosen: str = "Ho", rejected: str = "No") -> dict[str, Any]:
    """A pair."""
    sides = {"chosen": {"from": "gpt", "value": chosen}, "rejected": {"from": "gpt", "value": rejected}}
    return {"conversations": [{"from": "human", "value": said}], **sides}


def lined(folder: Path, *entries: object, name: str = "rows.json") -> Path:
    """A file with an entry a line, the first in line 2."""
    file = folder / name
    file.write_text("[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n", encoding="utf-8")
    return file


def written(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """The files that an export of these rows would be."""
    folder.mkdir(exist_ok=True)
    with writer("sharegpt").writing(folder, "li") as writing:
        writing.write(rows)
    return [folder / name for name in writing.counts]


async def load(
    database: Database, *files: Path, options: Options = PLAIN, tell: Callable[[int], object] | None = None
) -> Report:
    """Import files for Li."""
    return await imports.load(database, Source(READS, files, "li", PERSONA), options, tell)
