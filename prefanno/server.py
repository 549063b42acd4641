"""Bring the server up: own the home, migrate, listen on both loopbacks, say what to open."""

import errno
import logging
import socket

from aiohttp import web

from prefanno import home
from prefanno.app import create_app
from prefanno.db import upgrade
from prefanno.errors import InvalidSetting
from prefanno.settings import MAX_PORT, Settings

BACKLOG = 128


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM. Raises InvalidSetting (port taken), HomeInUse or DatabaseUnavailable."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    with home.owned(settings):
        done = upgrade.upgrade(settings.database)
        if done and done.backup:
            print(f"the database had schema {done.before} and was upgraded; a backup is at {done.backup}", flush=True)
        sockets = listening(settings)
        print(f"prefanno is at http://localhost:{settings.port} — the API's page is /docs; Ctrl-C ends it", flush=True)
        web.run_app(create_app(settings), sock=sockets, print=None, shutdown_timeout=5.0, access_log=None)


def listening(settings: Settings) -> list[socket.socket]:
    """One socket for each address that this machine has. Raises InvalidSetting."""
    sockets: list[socket.socket] = []
    for address in settings.host:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            sockets.append(socket.create_server((address, settings.port), family=family, backlog=BACKLOG))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for opened in sockets:
                    opened.close()
                raise InvalidSetting(_refusal(settings, address, error)) from None
    if not sockets:
        raise InvalidSetting(f"this machine has none of the addresses {', '.join(settings.host)}; set PREFANNO_HOST")
    return sockets


def _refusal(settings: Settings, address: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        other = settings.port + 1 if settings.port < MAX_PORT else settings.port - 1
        return f"port {settings.port} is taken; set another, for example: PREFANNO_PORT={other}"
    return f"cannot listen on {address}, port {settings.port}: {error.strerror}"
