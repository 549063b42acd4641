"""A run's log as it grows, over a WebSocket, and as the file it is.

A client that says where it stands (`run` and `after`, as each line names them) gets what came since, from the file, and
then each line as it comes: however often it connects again it has every line once.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from prefanno.db.models import Run
from prefanno.errors import InvalidInput, NotFound
from prefanno.keys import LOOP, SOCKETS
from prefanno.training.log import Line, RunLog
from prefanno.training.news import News, Progress, Status
from prefanno.training.run_folder import folder_of
from prefanno.training.supervisor import Supervisor
from prefanno.web import body
from prefanno.web.endpoint import dumps, endpoint
from prefanno.web.training_schemas import LogFileSchema, LogsSchema

log = logging.getLogger(__name__)

BACKLOG = 10_000  # messages that wait for a slow client before it is cut off; it may connect again
HEARTBEAT_S = 30.0
AT_ONCE = 500  # lines in a message about what came since
LARGEST = 1 << 20  # characters in the history that a client gets who does not say where it stands
STALLED_S = 30.0  # after which a client that does not read what it asked for is cut off
HEARTBEAT = dumps({"type": "heartbeat"})


@endpoint("The log of a run as a file", query=LogFileSchema, download="text/plain", failures=(404,))
async def file(request: web.Request, query: dict[str, Any]) -> web.StreamResponse:
    """Every byte that the run printed until now; a `Range` header asks for a part of them."""
    number = query["run"] or _id(request.app[LOOP].training.last_run)
    if number is None:
        raise NotFound("there is no run yet", "还没有训练记录")
    path = await _folder(request, number) / "train.log"
    if not path.is_file():
        raise NotFound(f"run {number} has printed nothing", f"训练 {number} 没有日志")
    headers = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
    return web.FileResponse(path, headers=headers)


async def logs(request: web.Request) -> web.WebSocketResponse:
    """History, then status, then each line and change as it comes; no line is lost or doubled in between."""
    query = body.parameters(LogsSchema(), request.query)
    if query["run"] is not None:
        await _folder(request, query["run"])  # else there is no such run
    socket = web.WebSocketResponse()
    if not socket.can_prepare(request):
        raise InvalidInput({"Upgrade": ["请使用 WebSocket 连接"]})
    await socket.prepare(request)
    sockets, handler = request.app[SOCKETS], asyncio.current_task()
    assert handler is not None  # noqa: S101 - a handler runs in a task
    sockets[socket] = handler
    client = _Client(request.app[LOOP].training, handler, **query)
    try:
        with contextlib.suppress(
            ConnectionError, TimeoutError
        ):  # it left, or stalled, while it was told what it lacked
            await _serve(socket, client, request.app[LOOP].settings.runs)
    except Exception:
        log.exception("a bug in %s", request.path)
        await socket.close(code=WSCloseCode.INTERNAL_ERROR)  # an HTTP answer would be garbage amid the frames
    finally:
        client.training.leave(client.tell)
        del sockets[socket]
    return socket


class _Client:
    """Who follows, and the news that wait to be sent to it. Without `run` and `after` it knows nothing of offsets."""

    def __init__(self, training: Supervisor, handler: asyncio.Task[Any], run: int | None, after: int | None) -> None:
        self.training, self._handler = training, handler
        self.resumes = run is not None or after is not None
        self._run, self._after = run, after or 0
        self._has = 0  # the lines of the current run up to this offset
        self.news: asyncio.Queue[str] = asyncio.Queue()

    def lacks(self) -> list[tuple[int, int, int | None]]:
        """Runs whose lines it lacks, from which offset on, and up to which; what is beyond comes as news."""
        current = self.training.last_run
        if current is None:
            return []
        if self._run in (None, current.id):
            self._has = self._after
            return [(current.id, self._after, self.training.news.log.kept_to)]
        between = [(run, 0, None) for run in range(self._run + 1, current.id)]
        return [(self._run, self._after, None), *between, (current.id, 0, self.training.news.log.kept_to)]

    def tell(self, item: News) -> None:
        """Put it among the news; a client that cannot keep up is cut off, so that it costs the others nothing."""
        if isinstance(item, Status):
            self._has = 0  # what comes now is of another run
        if (isinstance(item, Line) and item.next <= self._has) or (isinstance(item, Progress) and not self.resumes):
            return
        if self.news.qsize() < BACKLOG:
            self.news.put_nowait(_text(item, _id(self.training.last_run)))
        else:
            self.training.leave(self.tell)
            self._handler.cancel()


async def _serve(socket: web.WebSocketResponse, client: _Client, runs: Path) -> None:
    lines, running = client.training.follow(client.tell)
    current, lacks = client.training.last_run, client.lacks()
    if client.resumes:
        for run, after, until in lacks:
            async for found in _read(runs / str(run), after, until):
                async with asyncio.timeout(STALLED_S):
                    await socket.send_str(_history(run, found))
    else:
        await socket.send_str(_history(_id(current), _newest(lines)))
    await socket.send_str(_text(Status(running), None))
    tasks = [asyncio.create_task(_send(socket, client.news)), asyncio.create_task(_beat(client.news))]
    try:
        async for message in socket:
            if message.type is WSMsgType.TEXT and message.data == "ping" and client.news.qsize() < BACKLOG:
                client.news.put_nowait(HEARTBEAT)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(folder: Path, after: int, until: int | None) -> AsyncIterator[list[Line]]:
    """The lines in this part of the file, some at once."""
    reader = RunLog(folder, after)
    while not reader.at_end:
        lines = await asyncio.to_thread(reader.poll, True, until)
        for start in range(0, len(lines), AT_ONCE):
            yield lines[start : start + AT_ONCE]


async def _send(socket: web.WebSocketResponse, news: asyncio.Queue[str]) -> None:
    """Send the news in their order."""
    with contextlib.suppress(ConnectionError):
        while True:
            await socket.send_str(await news.get())


async def _beat(news: asyncio.Queue[str]) -> None:
    """A heartbeat every `HEARTBEAT_S`, among the news."""
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        news.put_nowait(HEARTBEAT)


async def _folder(request: web.Request, run: int) -> Path:
    loop = request.app[LOOP]
    return await folder_of(loop.settings, loop.database, run)


def _newest(lines: Sequence[Line]) -> Sequence[Line]:
    """As many as one message can hold: clients refuse frames of several megabytes."""
    size = 0
    for place in range(len(lines), 0, -1):
        size += len(lines[place - 1].message)
        if size > LARGEST:
            return lines[place:]
    return lines


def _id(run: Run | None) -> int | None:
    return run.id if run else None


def _history(run: int | None, lines: Sequence[Line]) -> str:
    return dumps({"type": "history", "run": run, "logs": [asdict(line) for line in lines]})


@lru_cache(maxsize=AT_ONCE)  # all clients are told the same
def _text(item: News, run: int | None) -> str:
    if isinstance(item, Line):
        return dumps({"type": "log", "run": run, **asdict(item)})
    return dumps({"type": "status" if isinstance(item, Status) else "progress", **asdict(item)})
