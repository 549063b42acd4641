"""The application: its parts, brought up in order and torn down in reverse."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp_cors
from aiohttp import WSCloseCode, web

from prefanno.ahead import Ahead
from prefanno.comparing import ENDED
from prefanno.db.engine import Database
from prefanno.generation.engine import Engine
from prefanno.keys import CLOSING, LOOP, SOCKETS
from prefanno.loop import Loop
from prefanno.settings import Settings
from prefanno.training.supervisor import Supervisor
from prefanno.voting import promote_all_due
from prefanno.web.body import MAX_BYTES
from prefanno.web.middlewares import one_error_shape, walls
from prefanno.web.routes import ROUTES

CLOSE_S = 2.0  # for a client that never reads; it is cut off


def create_app(settings: Settings) -> web.Application:
    """The server, for a home that is owned and whose database has the newest schema."""
    app = web.Application(middlewares=[one_error_shape, walls(settings)], client_max_size=MAX_BYTES)
    app[CLOSING], app[SOCKETS] = asyncio.Event(), {}

    async def stations(app: web.Application) -> AsyncIterator[None]:
        async with opened(settings) as loop:
            app[LOOP] = loop
            yield

    app.cleanup_ctx.append(stations)
    app.on_shutdown.append(_let_go)
    app.add_routes(ROUTES)
    _allow_origins(app, settings.cors_origins)
    return app


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Loop]:
    """The stations of the loop, ready; also for the command line, without a server."""
    async with Database.open(settings.database) as database, contextlib.AsyncExitStack() as parts:
        engine = Engine(settings)
        parts.push_async_callback(engine.close)
        training = Supervisor(settings, database)
        parts.push_async_callback(training.close)
        await training.adopt()
        await database.take_training()  # else the server that has it trains
        ahead = await parts.enter_async_context(Ahead.running(settings, database, engine))
        loop = Loop(settings, database, engine, ahead, training)
        parts.push_async_callback(loop.handover.close)
        parts.push_async_callback(loop.comparing.give_way, ENDED)
        await loop.comparing.recover()
        await promote_all_due(settings, database)
        loop.handover.adopt()
        yield loop


async def _let_go(app: web.Application) -> None:
    """An open WebSocket, a long generation or an import would keep the server alive after it was told to end."""
    app[CLOSING].set()
    await app[LOOP].comparing.give_way(ENDED)
    await app[LOOP].engine.unload()
    sockets = app[SOCKETS]
    closing = [socket.close(code=WSCloseCode.GOING_AWAY) for socket in sockets]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await asyncio.gather(*closing, return_exceptions=True)
    for handler in list(sockets.values()):
        handler.cancel()


def _allow_origins(app: web.Application, origins: tuple[str, ...]) -> None:
    """CORS for the listed origins, on every route but the WebSocket's, which browsers do not ask for."""
    options = aiohttp_cors.ResourceOptions(  # type: ignore[no-untyped-call]
        allow_headers="*", expose_headers="*", max_age=600
    )
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(origins, options))
    for route in list(app.router.routes()):
        if route.method != "HEAD" and not str(route.resource).endswith("/ws/train/logs>"):
            cors.add(route)
