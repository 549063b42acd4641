"""How the server is."""

import asyncio

from aiohttp import web

from prefanno import __version__
from prefanno.db import characters
from prefanno.errors import PrefannoError
from prefanno.keys import LOOP
from prefanno.web import answers
from prefanno.web.endpoint import endpoint, reply

DATABASE_S = 3.0  # who asks how the server is wants an answer


@endpoint("How the server is", answer=answers.Health)
async def show(request: web.Request) -> web.Response:
    """200 as soon as the server accepts connections; "degraded" with a reason where a part is down."""
    loop = request.app[LOOP]
    reason, trains = None, False
    try:
        async with asyncio.timeout(DATABASE_S), loop.database.read() as session:
            await characters.get(session, None)
            trains = await loop.database.may_train()
    except PrefannoError as error:
        reason = error.detail
    except TimeoutError:
        reason = f"数据库暂时不可用：{DATABASE_S:.0f} 秒内没有响应"
    failure = loop.engine.failure.detail if loop.engine.failure else None
    return reply(
        {
            "status": "degraded" if reason or failure else "ok",
            "reason": "；".join(filter(None, (reason, failure))) or None,
            "version": __version__,
            "database": "unavailable" if reason else "ok",
            "engine": loop.engine.state,
            "training": "running" if loop.training.running else "idle",
            "trains": trains,
        }
    )
