"""How the server is."""

from aiohttp import web

from prefanno import __version__
from prefanno.db import characters
from prefanno.errors import PrefannoError
from prefanno.keys import LOOP
from prefanno.web import answers
from prefanno.web.endpoint import endpoint, reply


@endpoint("How the server is", answer=answers.Health)
async def show(request: web.Request) -> web.Response:
    """200 as soon as the server accepts connections; "degraded" with a reason where a part is down."""
    loop = request.app[LOOP]
    reason = None
    try:
        async with loop.database.read() as session:
            await characters.get(session, None)
    except PrefannoError as error:
        reason = error.detail
    return reply(
        {
            "status": "degraded" if reason else "ok",
            "reason": reason,
            "version": __version__,
            "database": "unavailable" if reason else "ok",
            "engine": loop.engine.state,
            "training": "running" if loop.training.running else "idle",
        }
    )
