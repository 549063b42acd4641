"""Every key of the aiohttp application."""

import asyncio

from aiohttp import web

from prefanno.loop import Loop

LOOP = web.AppKey("loop", Loop)
CLOSING = web.AppKey("closing", asyncio.Event)  # set when the server was told to end
SOCKETS = web.AppKey("sockets", dict[web.WebSocketResponse, asyncio.Task[object]])  # with their handlers
