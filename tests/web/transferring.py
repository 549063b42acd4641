"""What the tests of files in and out share: rows as files of each format, an import, an export, what is left over."""

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

from aiohttp import ClientResponse

from prefanno.files import STAGE
from prefanno.keys import LOOP
from prefanno.rows import Row, formats, writer
from prefanno.web import transfer_answers
from tests.annotation.test_dataset import SINGLE
from tests.conftest import Client
from tests.web.conftest import accepted, until

WRITABLE = [form for form, can in formats().items() if can["export"]]
READABLE = [form for form, can in formats().items() if can["import"]]
TASK = {
    "id": 7,
    "data": {"prompt": "Hi", "answer1": "Ho", "answer2": "No"},
    "annotations": [{"result": [{"from_name": "pick", "type": "pairwise", "value": {"selected": "left"}}]}],
}
RECORD: dict[str, Any] = {"id": "r1", "prompt": "Hi", "response1": "No", "response2": "Ho"}
RECORD |= {
    f"best.responses{end}": [value] for end, value in (("", "response2"), (".users", "x"), (".status", "submitted"))
}


def pair(said: str, chosen: str = "Ho", rejected: str = "No") -> Row:
    """A pair without earlier turns, under Li's persona in the tests."""
    return Row("single", "你是离。", [], said, chosen, None, rejected, None, SINGLE.created_at)


def spelled(folder: Path, form: str, *rows: Row) -> bytes:
    """The pairs as a file of this format."""
    if form == "labelstudio":
        return json.dumps([TASK]).encode()
    if form == "argilla":
        return json.dumps([RECORD]).encode()
    folder.mkdir(exist_ok=True)
    with writer(form).writing(folder, "li") as writing:
        writing.write(rows)
    (name,) = [name for name, count in writing.counts.items() if count]
    content = (folder / name).read_bytes()
    for name in writing.counts:
        (folder / name).unlink()
    return content


def table(*rows: tuple[str, str, str]) -> bytes:
    """A CSV file of (human_input, chosen, rejected), the first row in line 2."""
    file = io.StringIO()
    csv.writer(file).writerows([("human_input", "chosen", "rejected"), *rows])
    return file.getvalue().encode()


async def posted(client: Client, body: Any, form: str = "csv", **query: str) -> ClientResponse:
    """An import."""
    return await client.post("/api/import", params={"format": form} | query, data=body)


async def imported(client: Client, body: Any, form: str = "csv", **query: str) -> dict[str, Any]:
    """The data of an import that succeeded."""
    answer = await accepted(await posted(client, body, form, **query), transfer_answers.Imported)
    data: dict[str, Any] = answer["data"]
    return data


def found(**counted: Any) -> dict[str, Any]:
    """What an import says, where not named otherwise nothing."""
    nothing = {"dry_run": False, "added": 0, "duplicates": 0, "near_duplicates": 0, "bad": 0}
    return {**nothing, "near_lines": [], "bad_lines": [], **counted}


async def downloaded(client: Client, **query: str) -> bytes:
    """The archive of an export."""
    answer = await client.get("/api/export", params=query)
    content = await answer.read()
    assert answer.status == 200, content
    assert answer.content_type == "application/zip"
    return content


def unpacked(archive: bytes, folder: Path) -> dict[str, bytes]:
    """The files of the archive, also put into the folder."""
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        assert packed.testzip() is None
        packed.extractall(folder)
        return {name: packed.read(name) for name in packed.namelist()}


async def left_over(client: Client) -> list[str]:
    """What lies in the data folder beside the database, once nobody writes there any more."""
    data = client.app[LOOP].settings.data
    await until(lambda: not list(data.glob(f"{STAGE}*")))
    return sorted(path.name for path in data.iterdir() if not path.name.startswith("prefanno.db"))
