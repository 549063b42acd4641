"""Every key of the aiohttp application."""

from aiohttp import web

from prefanno.loop import Loop

LOOP = web.AppKey("loop", Loop)
SOCKETS = web.AppKey("sockets", set[web.WebSocketResponse])
