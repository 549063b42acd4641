"""Listening on the loopbacks."""

import gc
import socket
from dataclasses import replace

import pytest

from prefanno import server
from prefanno.errors import HomeInUse, InvalidSetting
from prefanno.home import owned
from prefanno.settings import LOOPBACKS, Settings

pytestmark = pytest.mark.sqlite_only  # no database is opened


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no ::1")


def _taken(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, 0), family=family)


@needs_ipv6
def test_both_loopbacks_are_listened_on(settings: Settings) -> None:
    """A client reaches the same port by IPv4 and by IPv6."""
    with _taken("127.0.0.1") as probe:
        port = probe.getsockname()[1]
    sockets = server.listening(replace(settings, port=port))
    try:
        assert [opened.getsockname()[:2] for opened in sockets] == [(address, port) for address in LOOPBACKS]
        for address in LOOPBACKS:
            socket.create_connection((address, port), timeout=10).close()
    finally:
        for opened in sockets:
            opened.close()


@pytest.mark.parametrize("address", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_a_taken_port_is_one_line_with_the_cure(settings: Settings, address: str) -> None:
    """A port that is taken on either loopback ends the start with one line that names another; nothing stays open."""
    with _taken(address) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidSetting) as caught:
            server.listening(replace(settings, port=port))
        assert str(caught.value) == f"port {port} is taken; set another, for example: PREFANNO_PORT={port + 1}"
        del caught
        gc.collect()  # a socket that was left open would warn here


def test_the_last_port_has_a_cure_too(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The port that is proposed in the place of 65535 is one that there is."""

    def taken(*_: object, **__: object) -> socket.socket:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(socket, "create_server", taken)
    with pytest.raises(InvalidSetting) as caught:
        server.listening(replace(settings, port=65535))
    assert "PREFANNO_PORT=65536" not in str(caught.value)


def test_a_machine_without_ipv6_listens_on_ipv4(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that the machine has not is left out; without any the start ends with one line."""
    create = socket.create_server

    def without_ipv6(address: tuple[str, int], *, family: int, backlog: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(99, "Cannot assign requested address")
        return create((address[0], 0), family=family, backlog=backlog)

    monkeypatch.setattr(socket, "create_server", without_ipv6)
    [only] = server.listening(settings)
    only.close()
    with pytest.raises(InvalidSetting, match="PREFANNO_HOST"):
        server.listening(replace(settings, host=("::1",)))


def test_a_port_that_is_not_ours_to_take(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another reason than a taken port is named."""

    def forbidden(*_: object, **__: object) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", forbidden)
    with pytest.raises(InvalidSetting, match=r"127\.0\.0\.1, port 80: Permission denied"):
        server.listening(replace(settings, port=80))


def test_a_second_server_on_a_home_is_refused(settings: Settings) -> None:
    """While a process owns the home, another one's start ends with one line, before it listens or migrates."""
    with owned(settings), pytest.raises(HomeInUse, match="PREFANNO_HOME"):
        server.serve(settings)
    assert not settings.database_file.exists()
