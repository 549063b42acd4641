"""Data in and out over HTTP: an export as one archive, an import streamed from the body."""

import asyncio
import contextlib
import zipfile
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError

from prefanno import files, persona, snapshot
from prefanno.annotation import imports
from prefanno.annotation.export import export as export_files
from prefanno.annotation.imports import Options, Report, Source
from prefanno.db import characters
from prefanno.errors import ImportStopped, InvalidInput
from prefanno.keys import CLOSING, LOOP
from prefanno.rows import formats, reader
from prefanno.training.run_folder import folder_of
from prefanno.web import transfer_answers as answers
from prefanno.web.endpoint import done, endpoint
from prefanno.web.schemas import ExportSchema, ImportSchema

LARGEST = 4 << 30  # bytes of one import
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file knows: the same snapshot gives the same bytes


class _Sent(web.FileResponse):
    """A file that is sent by its handler: it is gone when aiohttp would open it once more."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Only once; a client that leaves meanwhile is no bug."""
        with contextlib.suppress(ConnectionError):
            return None if self.prepared else await super().prepare(request)
        return None


@endpoint("Formats", answer=answers.Formats)
async def show_formats(_request: web.Request) -> web.Response:
    """Each installed format, and whether it can be exported and imported."""
    return done("可用格式", {"items": [{"name": name, **can} for name, can in formats().items()]})


@endpoint("Export", query=ExportSchema, download="application/zip", failures=(404, 409, 503, 507), keyed=False)
async def export(request: web.Request, query: dict[str, Any]) -> web.StreamResponse:
    """A character's annotations in one format, or the data that a run was trained on; with their manifest."""
    loop = request.app[LOOP]
    async with files.staged(loop.settings.data) as stage:
        folder = stage / "files"
        if query["run"] is not None:
            data = (await folder_of(loop.settings, loop.database, query["run"])) / "data"
            manifest = await asyncio.to_thread(snapshot.give_back, data, folder)
        else:
            async with loop.database.read() as session:
                slug = (await characters.get(session, query["character"])).slug
            manifest = await export_files(loop.database, query["format"], folder, slug)
        archive = await asyncio.to_thread(_archive, folder, stage / "archive.zip")
        name = f"{manifest.character}.{manifest.format}.zip"
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Content-Type": "application/zip"}
        response = _Sent(archive, headers=headers)
        await response.prepare(request)  # all of it is sent here, while the file is there
    return response


@endpoint("Import", query=ImportSchema, upload=True, answer=answers.Imported, failures=(413, 415, 503, 507))
async def load(request: web.Request, query: dict[str, Any]) -> web.Response:
    """The rows of one file, sent as the body, as one step; a client that leaves stops it, and nothing is stored."""
    loop = request.app[LOOP]
    reads = reader(query["format"])
    if request.content_type.startswith("multipart/"):  # curl -F: the file would come with boundaries around it
        raise web.HTTPUnsupportedMediaType
    if request.headers.get("Content-Encoding", "identity") != "identity":  # one that is cut off would pass for whole
        raise web.HTTPUnsupportedMediaType
    async with loop.database.read() as session:
        character = await characters.get(session, query["character"])

    def tell(_rows: int) -> None:
        gone = request.transport is None or request.transport.is_closing()
        if gone or request.app[CLOSING].is_set():
            raise ImportStopped

    options = Options(**{name: query[name] for name in ("dry_run", "skip_bad", "skip_near")})
    async with files.staged(loop.settings.data) as stage:
        file = await _received(request, stage / "import", tell)
        source = Source(reads, [file], character.slug, persona.of(character, loop.settings))
        report = await imports.load(loop.database, source, options, tell)
    if report.bad and not (options.dry_run or options.skip_bad):
        raise InvalidInput(
            _bad_lines(report), f"文件中有 {report.bad} 行有错误，未导入任何内容；加 skip_bad=true 可只导入其余行"
        )
    return done(_message(report, options), _view(report, options))


async def _received(request: web.Request, path: Path, tell: imports.Tell) -> Path:
    """The body, in a file. Raises HTTPRequestEntityTooLarge, ImportStopped, or InvalidInput: empty or broken."""
    size = 0
    try:
        with path.open("xb") as file:
            async for chunk in request.content.iter_any():
                tell(0)
                size += len(chunk)
                if size > LARGEST:
                    raise web.HTTPRequestEntityTooLarge(LARGEST, size)
                await asyncio.to_thread(file.write, chunk)
    except ConnectionError:
        raise ImportStopped from None
    except (HttpProcessingError, web.RequestPayloadError):
        raise InvalidInput({"body": ["无法读取：内容与长度不符"]}) from None
    if not size:
        raise InvalidInput({"body": ["请求体为空；请将文件内容作为请求体发送"]})
    return path


def _archive(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "x") as archive:
        for file in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(file.name, EPOCH)
            with file.open("rb") as content, archive.open(entry, "w", force_zip64=True) as target:
                while chunk := content.read(1 << 20):
                    target.write(chunk)
    return path


def _bad_lines(report: Report) -> dict[str, list[str]]:
    lines: dict[str, list[str]] = {}
    for place, fault in report.bad_rows:
        lines.setdefault(f"第 {place.line} 行", []).append(fault.detail)
    if report.bad > len(report.bad_rows):
        lines["body"] = [f"另有 {report.bad - len(report.bad_rows)} 行有错误"]
    return lines


def _message(report: Report, options: Options) -> str:
    added = "试运行，未保存任何内容" if options.dry_run else f"已导入 {report.added} 条"
    return f"{added}；重复 {report.duplicates} 条，近似重复 {report.near} 条，错误 {report.bad} 行"


def _view(report: Report, options: Options) -> dict[str, Any]:
    return {
        "dry_run": options.dry_run,
        "added": report.added,
        "duplicates": report.duplicates,
        "near_duplicates": report.near,
        "bad": report.bad,
        "near_lines": [place.line for place in report.near_rows],
        "bad_lines": [{"line": place.line, "reason": fault.detail} for place, fault in report.bad_rows],
    }
