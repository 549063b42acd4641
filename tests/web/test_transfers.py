"""Data in and out over HTTP: formats, archives, files as bodies."""

import asyncio
import io
import json
import re
import zlib
from collections.abc import AsyncIterator, Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from aiohttp import FormData

from prefanno import snapshot
from prefanno.annotation.export import export
from prefanno.keys import LOOP
from prefanno.rows import GROUP
from prefanno.web import annotation_answers, answers, transfer_answers, transfers
from tests.annotation.test_dataset import rows
from tests.conftest import Client
from tests.web.choosing import UNDO, add
from tests.web.conftest import PAIR, MakeTrainer, accepted, counts, faults, refused, shared, until
from tests.web.transferring import (
    READABLE,
    WRITABLE,
    downloaded,
    found,
    imported,
    left_over,
    pair,
    posted,
    spelled,
    table,
    unpacked,
)

FOREIGN = [({"Host": "evil.example"}, 421), ({"Origin": "http://evil.example"}, 403)]


@shared
async def test_formats_are_listed(standing: Client) -> None:
    """Every installed format is there, once, with what it can; each can one of both."""
    items = (await accepted(await standing.get("/api/formats"), transfer_answers.Formats))["data"]["items"]
    assert [item["name"] for item in items] == sorted(entry.name for entry in entry_points(group=GROUP))
    assert [item["name"] for item in items if item["export"]] == WRITABLE
    assert [item["name"] for item in items if item["import"]] == READABLE
    assert {"sharegpt", "trl", "csv"} <= set(WRITABLE) & set(READABLE)
    assert all(item["export"] or item["import"] for item in items)


@pytest.mark.parametrize("form", WRITABLE)
async def test_an_export_is_an_archive_of_one_snapshot(client: Client, tmp_path: Path, form: str) -> None:
    """It holds what an export to a folder does, its manifest fits, and asked for again it is the same, byte by byte."""
    await add(client, 2)
    await export(client.app[LOOP].database, form, tmp_path / "expected", "li")
    answer = await client.get("/api/export", params={"format": form})
    archive = await answer.read()
    assert answer.headers["Content-Disposition"] == f'attachment; filename="li.{form}.zip"'
    contents = unpacked(archive, tmp_path / "found")
    assert contents == {path.name: path.read_bytes() for path in (tmp_path / "expected").iterdir()}
    assert snapshot.verified(tmp_path / "found").format == form
    await asyncio.sleep(1.1)  # another second: a time in a file would differ
    assert await downloaded(client, format=form) == archive
    await add(client, chosen="another")
    assert await downloaded(client, format=form) != archive  # control
    assert await left_over(client) == []


async def test_exports_follow_each_other_on_one_connection(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """The archive is gone after it was sent, and that is no fault: the connection stays, and nothing is logged."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    for method in (b"HEAD", b"GET", b"GET", b"HEAD"):
        writer.write(method + b" /api/export HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 200")
        length = re.search(r"Content-Length: (\d+)", head)
        assert length and int(length[1]) > 100
        if method == b"GET":
            assert (await reader.readexactly(int(length[1]))).startswith(b"PK")
    writer.close()
    await writer.wait_closed()
    assert caplog.records == [] and await left_over(client) == []


async def test_an_export_is_of_one_character(client: Client, tmp_path: Path) -> None:
    """The current one, or the one that is named; each has its own archive."""
    await client.post("/api/characters", json={"slug": "mei", "name": "Mei"})
    await add(client, chosen="Li's")
    await add(client, chosen="Mei's", character="mei")
    for query, slug, chosen in (({}, "li", "Li's"), ({"character": "mei"}, "mei", "Mei's")):
        contents = unpacked(await downloaded(client, **query), tmp_path / slug)
        (entry,) = json.loads(contents[f"{slug}_preference.json"])
        assert entry["chosen"]["value"] == chosen
    await client.post("/api/characters/mei/select")
    assert unpacked(await downloaded(client), tmp_path / "now") == unpacked(
        await downloaded(client, character="mei"), tmp_path / "mei"
    )


async def test_what_a_run_was_trained_on_is_given_back(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Whatever was added since, the run's data are the same; where a file was changed, that is said."""
    client = await make_trainer("true")
    trained_on = unpacked(await downloaded(client), tmp_path / "before")
    await accepted(await client.post("/api/train/start"), answers.Done)
    await until(lambda: not client.app[LOOP].training.running)
    await add(client, chosen="later")
    contents = unpacked(await downloaded(client, run="1"), tmp_path / "after")
    assert contents == {name: content for name, content in trained_on.items() if name != "dataset_info.json"}
    before = await left_over(client)
    data = client.app[LOOP].settings.runs / "1" / "data"
    (data / "li_preference.json").write_text("[]")
    await refused(await client.get("/api/export", params={"run": "1"}), 409, "快照已损坏：li_preference.json 已被修改")
    (data / "li_preference.json").unlink()
    await refused(await client.get("/api/export", params={"run": "1"}), 409, "快照已损坏：li_preference.json 缺失")
    await refused(await client.get("/api/export", params={"run": "2"}), 404, "未找到训练 2")
    (data.parent / "started").write_text("2020-01-02T03:04:05.000006")
    refusal = await client.get("/api/export", params={"run": "1"})
    await refused(refusal, 404, "未找到训练 1 的文件：目录不存在，或属于另一个数据库")
    assert await left_over(client) == before


@shared
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("format=nonsense", "format"),
        ("format=", "format"),
        ("format=../../etc", "format"),
        ("format=csv&format=trl", "format"),
        ("character=nobody", "character"),
        ("character=../li", "character"),
        ("x=1", "x"),
    ],
)
async def test_bad_parameters(standing: Client, query: str, field: str) -> None:
    """A format or character that is not there, a repeated or unknown parameter is named, in both directions."""
    assert await faults(await standing.get(f"/api/export?{query}")) == {field}
    assert await faults(await standing.post(f"/api/import?{query}", data=b"[]")) == {field}
    assert await left_over(standing) == []


@shared
@pytest.mark.parametrize("other", ["format", "character"])
async def test_a_run_has_its_own_format_and_character(standing: Client, other: str) -> None:
    """Its files are given as they were exported: a parameter that asks for others is named, not ignored."""
    assert await faults(await standing.get("/api/export", params={"run": "1", other: "li"})) == {other}


@shared
@pytest.mark.parametrize("value", ["", "x", "-1", "1.0", "١", "1/../2", "9" * 19])
async def test_a_run_is_a_number(standing: Client, value: str) -> None:
    """Nothing else leads to a folder."""
    assert await faults(await standing.get("/api/export", params={"run": value})) == {"run"}


@shared
async def test_each_format_has_its_directions(standing: Client) -> None:
    """A format that can only be read is not exported; the refusal names those that can be written."""
    only_read = next(form for form in READABLE if form not in WRITABLE)
    body = await refused(await standing.get("/api/export", params={"format": only_read}), 400)
    assert body["errors"] == {"format": [f"没有可导出的 {only_read} 格式，可用：{'、'.join(WRITABLE)}"]}
    body = await refused(await posted(standing, b"", "nonsense"), 400)
    assert body["errors"] == {"format": [f"没有可导入的 nonsense 格式，可用：{'、'.join(READABLE)}"]}


@shared
@pytest.mark.parametrize("name", ["dry_run", "skip_bad", "skip_near"])
@pytest.mark.parametrize("value", ["", "1", "yes", "True", "null"])
async def test_options_are_true_or_false(standing: Client, name: str, value: str) -> None:
    """Nothing else is taken for one of them, and the body is not looked at."""
    assert await faults(await posted(standing, table(("Hi", "Ho", "No")), **{name: value})) == {name}
    assert await counts(standing) == (0, 0)


@shared
@pytest.mark.parametrize(("headers", "status"), FOREIGN)
async def test_foreign_pages_get_nothing_in_or_out(standing: Client, headers: dict[str, str], status: int) -> None:
    """A foreign Host or Origin can neither read an export nor send an import."""
    await refused(await standing.get("/api/export", headers=headers), status)
    await refused(await standing.get("/api/formats", headers=headers), status)
    large = io.BytesIO(b"x" * 5_000_000)
    await refused(await standing.post("/api/import?format=csv", data=large, headers=headers), status)
    assert await counts(standing) == (0, 0) and await left_over(standing) == []


@pytest.mark.parametrize("form", READABLE)
async def test_each_format_can_be_sent(client: Client, tmp_path: Path, form: str) -> None:
    """The body is the file as it is; what it says is stored, once."""
    body = spelled(tmp_path / "spelled", form, pair("Hi"))
    assert await imported(client, body, form) == found(added=1)
    (row,) = await rows(client.app[LOOP].database)
    assert (row.human_input, row.chosen, row.rejected) == ("Hi", "Ho", "No")
    assert await imported(client, body, form) == found(duplicates=1)
    assert await left_over(client) == []


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 100_000):
        yield body[start : start + 100_000]


BODIES: dict[str, tuple[Callable[[bytes], Any], dict[str, str]]] = {
    "whole": (io.BytesIO, {}),
    "in chunks": (_chunks, {"Content-Type": "text/csv"}),
    "said to be as it is": (io.BytesIO, {"Content-Encoding": "identity", "Content-Type": "application/json"}),
    "as curl says by itself": (io.BytesIO, {"Content-Type": "application/x-www-form-urlencoded"}),
}


@pytest.mark.parametrize(("sent", "headers"), BODIES.values(), ids=BODIES)
async def test_a_body_comes_in_any_way(client: Client, sent: Callable[[bytes], Any], headers: dict[str, str]) -> None:
    """Larger than what other routes take, in chunks, of any type: what is in it counts."""
    body = table(*((str(number), "离" * 1000, "No") for number in range(700)))
    assert len(body) > 2 << 20
    answer = await client.post("/api/import?format=csv", data=sent(body), headers=headers)
    assert (await accepted(answer, transfer_answers.Imported))["data"] == found(added=700)
    assert await counts(client) == (700, 0) and await left_over(client) == []


@shared
async def test_a_form_is_no_file(standing: Client) -> None:
    """What `curl -F` sends is refused with what to send, and nothing of it is read as rows."""
    form = FormData()
    form.add_field("file", table(("Hi", "Ho", "No")), filename="rows.csv", content_type="text/csv")
    refusal = await refused(await posted(standing, form), 415)
    assert "curl --data-binary @file" in refusal["detail"]
    assert await counts(standing) == (0, 0) and await left_over(standing) == []


@shared
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, gzip", "nonsense"])
async def test_a_compressed_body_is_refused(standing: Client, encoding: str) -> None:
    """Where it is cut off, at the end of a line, it would pass for a whole one, and half of the rows be stored."""
    compressor = zlib.compressobj(wbits=31)
    cut = compressor.compress(table(("Hi", "Ho", "No"))) + compressor.flush(zlib.Z_FULL_FLUSH)
    headers = {"Content-Encoding": encoding, "Connection": "close"}
    answer = await standing.post("/api/import?format=csv", data=io.BytesIO(cut), headers=headers)
    assert "不要压缩（Content-Encoding）" in (await refused(answer, 415))["detail"]
    assert await counts(standing) == (0, 0) and await left_over(standing) == []


@shared
async def test_a_body_that_is_none(standing: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty or too large: refused as a whole, and nothing is left of it."""
    assert await faults(await posted(standing, b"")) == {"body"}
    monkeypatch.setattr(transfers, "LARGEST", 100_000)
    await refused(await posted(standing, b"x" * 100_001), 413, "请求体过大")
    await refused(await posted(standing, _chunks(b"x" * 300_000)), 413, "请求体过大")
    assert await counts(standing) == (0, 0) and await left_over(standing) == []


async def test_bad_rows_are_named_by_their_line(client: Client) -> None:
    """Each bad row is in `errors` with its line, in Chinese; nothing is stored, unless the good rows are asked for."""
    body = table(("1", "Ho", "No"), ("", "Ho", "No"), ("2", "a\0", "No"), ("3", "", ""), ("4", "Ho", "No"))
    refusal = await refused(
        await posted(client, body), 400, "请求参数错误：文件中有 3 行有错误，未导入任何内容；加 skip_bad=true"
    )
    assert set(refusal["errors"]) == {"第 3 行", "第 4 行", "第 5 行"}
    assert "NUL" in refusal["errors"]["第 4 行"][0]
    assert await counts(client) == (0, 0)
    lines = [{"line": line, "reason": refusal["errors"][f"第 {line} 行"][0]} for line in (3, 4, 5)]
    said = {"bad": 3, "bad_lines": lines}
    assert await imported(client, body, dry_run="true") == found(dry_run=True, **said)
    skipping = await imported(client, body, dry_run="true", skip_bad="true")
    assert skipping == found(dry_run=True, added=2, **said)
    assert await counts(client) == (0, 0)
    assert await imported(client, body, skip_bad="true") == found(added=2, **said)
    assert await counts(client) == (2, 0)


@shared
async def test_bad_rows_of_one_line_are_named_by_their_number(standing: Client) -> None:
    """Where a list's entries share a line, the reason begins with the entry's number."""
    entries = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": said}]} for said in "ab "]
    refusal = await refused(await posted(standing, json.dumps([*entries, 5]).encode(), "sharegpt"), 400)
    (reasons,) = refusal["errors"].values()
    assert [reason.partition("：")[0] for reason in reasons] == ["第 3 行数据", "第 4 行数据"]


@shared
async def test_of_many_bad_rows_the_first_are_named(standing: Client) -> None:
    """A thousand are listed, and how many there are besides."""
    body = table(*[("", "Ho", "No")] * 1003)
    refusal = await refused(await posted(standing, body), 400, "请求参数错误：文件中有 1003 行有错误")
    assert len(refusal["errors"]) == 1001 and refusal["errors"]["body"] == ["另有 3 行有错误"]


@shared
@pytest.mark.parametrize("form", READABLE)
@pytest.mark.parametrize("body", [b"\x00\xff\x00", b"PK\x03\x04", b"[" * 100_000, b'{"a": ', b"<html>", b"PAR1"])
async def test_a_file_of_something_else(standing: Client, form: str, body: bytes) -> None:
    """Whatever is sent, it is refused with a line and a reason, and never a bug."""
    refusal = await refused(await posted(standing, body, form), 400, "请求参数错误")
    assert refusal["errors"] and all(re.fullmatch(r"第 \d+ 行|body", name) for name in refusal["errors"])
    assert await counts(standing) == (0, 0) and await left_over(standing) == []


async def test_near_duplicates_are_named_by_their_line(client: Client) -> None:
    """They are stored and named, or left out and named; a dry run says so before."""
    await imported(client, table(("Who are you?", "Ho", "No")))
    body = table(("who are you", "Ho", "No"), ("Hi", "Ho", "No"), ("Ｈｉ！", "Ho", "No"))
    near = {"near_duplicates": 2, "near_lines": [2, 4]}
    assert await imported(client, body, dry_run="true") == found(dry_run=True, added=3, **near)
    assert await imported(client, body, skip_near="true") == found(added=1, **near)
    assert await imported(client, body) == found(added=2, duplicates=1, **near)


async def test_an_import_is_one_step_of_one_character(client: Client) -> None:
    """Rows go to the character that is named, under its persona, and one undo takes them back."""
    await client.post("/api/characters", json={"slug": "mei", "name": "Mei", "system_prompt": "You are Mei."})
    await client.post("/api/dataset/add", json=PAIR)
    body = table(*((str(number), "Ho", "No") for number in range(600)))
    assert await imported(client, body, character="mei") == found(added=600)
    found_rows = await rows(client.app[LOOP].database, "mei")
    assert len(found_rows) == 600 and {row.system_prompt for row in found_rows} == {"You are Mei."}
    answer = await client.post(UNDO, json={"character": "mei"})
    assert (await accepted(answer, annotation_answers.Undone))["data"]["changed"] == 600
    assert await rows(client.app[LOOP].database, "mei") == [] and await counts(client) == (1, 0)


async def test_imports_of_the_same_file_at_once_store_it_once(client: Client) -> None:
    """Of several at once each row is added by one, and each is answered."""
    body = table(*((str(number), "Ho", "No") for number in range(1200)))
    reports = await asyncio.gather(*(imported(client, body) for _ in range(4)))
    assert sum(report["added"] for report in reports) == 1200
    assert await counts(client) == (1200, 0) and await left_over(client) == []
