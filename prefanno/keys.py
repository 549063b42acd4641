"""Every key of the aiohttp application."""

import asyncio

from aiohttp import web

from prefanno.loop import Loop

LOOP = web.AppKey("loop", Loop)
SOCKETS = web.AppKey("sockets", dict[web.WebSocketResponse, asyncio.Task[object]])  # with their handlers
