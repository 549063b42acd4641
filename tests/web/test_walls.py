"""Host, Origin and CORS: who may call at all."""

import asyncio
from dataclasses import replace

import pytest
from aiohttp import WSServerHandshakeError

from prefanno.settings import DEV_ORIGINS, Settings
from prefanno.web.routes import ROUTES
from tests.conftest import Client, MakeClient
from tests.web.conftest import PAIR, address, counts, refused, shared

OWN_HOSTS = [
    *("localhost", "LocalHost", "LOCALHOST:1", "localhost:80", "localhost:65535"),
    *("127.0.0.1", "127.0.0.1:9", "[::1]", "[::1]:8000"),
]
FOREIGN_HOSTS = [
    *("evil.example", "evil.example:8000", "localhost.evil.example", "evil-localhost", "localhost.", "xlocalhost"),
    *("127.0.0.1.evil", "127.0.0.1.evil.example:8000", "127.0.0.2", "127.1", "2130706433", "0x7f.1", "0"),
    *("localhost@evil.example", "localhost:80@evil.example", "evil.example@localhost", "@localhost", "a:b@localhost"),
    *("localhost:80:80", "localhost:x", "localhost:99999", "localhost:-1", "localhost:+80", "localhost:8_0"),
    *("localhost/evil.example", "localhost#evil.example", "localhost?evil.example", "localhost\\evil.example"),
    *("localhost,evil.example", "localhost evil.example", "localhost;", "%6cocalhost", "ⓛocalhost", "localhost:８０"),
    *("", ":8000", "::1", "[::1", "::1]", "[::]", "[::2]:8000", "[::1]evil", "[::1]:8000:1", "[::1%25lo]"),
    *("null", "*", "books.example", "*.localhost", "a.localhost"),
]
FOREIGN_ORIGINS = [
    *("null", "", "*", "http://evil.example", "http://localhost", "http://127.0.0.1:1", "http://[::1]:5173"),
    *("https://localhost:5173", "http://localhost:51730", "http://localhost:517", "http://localhost:5173/"),
    *("http://localhost:5173.evil.example", "http://localhost:5173@evil.example", "http://evil.example:5173"),
    *(
        "http://evil.example/http://localhost:5173",
        "xhttp://localhost:5173",
        "localhost:5173",
        "file://",
        "//localhost",
    ),
    *("http://localhost:5173 http://evil.example", "http://localhost:5173,http://evil.example", "http:localhost:5173"),
]
PATHS = sorted({route.path for route in ROUTES})
LOGS = "/ws/train/logs"


def _own(client: Client) -> str:
    return f"http://127.0.0.1:{client.port}"


@shared
@pytest.mark.parametrize("host", OWN_HOSTS)
async def test_the_machines_own_names_are_served(standing: Client, host: str) -> None:
    """Each name of the loopback is served, on any port, over HTTP and WebSocket, also with itself as the origin."""
    assert (await standing.get("/health", headers={"Host": host})).status == 200
    assert (await standing.get("/health", headers={"Host": host, "Origin": f"http://{host}"})).status == 200
    await (await standing.ws_connect(LOGS, headers={"Host": host})).close()


@shared
@pytest.mark.parametrize("host", FOREIGN_HOSTS, ids=lambda host: host or "empty")
async def test_a_foreign_host_is_refused(standing: Client, host: str) -> None:
    """A name that is not the machine's is refused on every kind of route, and nothing is done."""
    before = await counts(standing)
    headers = {"Host": host}
    for path in ("/health", "/docs", "/nowhere", "/api/train/start"):
        await refused(await standing.get(path, headers=headers), 421, "拒绝访问")
    await refused(await standing.post("/api/dataset/add", json=PAIR, headers=headers), 421, "拒绝访问")
    with pytest.raises(WSServerHandshakeError) as caught:
        await standing.ws_connect(LOGS, headers=headers)
    assert caught.value.status == 421
    assert await counts(standing) == before


async def test_a_listed_host_is_served(make_client: MakeClient, settings: Settings) -> None:
    """A name that the operator lists is served in any case and on any port, and no name around it is."""
    client = await make_client(replace(settings, allowed_hosts=("Books.example",)))
    for host in ("books.example", "BOOKS.EXAMPLE:8000", "localhost:1"):
        assert (await client.get("/health", headers={"Host": host})).status == 200
    for host in ("a.books.example", "books.example.evil", "xbooks.example", "books.exampl"):
        await refused(await client.get("/health", headers={"Host": host}), 421)


@shared
@pytest.mark.parametrize(
    "hosts", [b"", b"Host: localhost\r\nHost: evil.example\r\n", b"Host: evil.example\r\nHost: localhost\r\n"]
)
async def test_a_request_has_exactly_one_host(standing: Client, hosts: bytes) -> None:
    """A request that names no host, or two, is not served."""
    reader, writer = await asyncio.open_connection("127.0.0.1", standing.port)
    writer.write(b"GET /health HTTP/1.1\r\n" + hosts + b"Connection: close\r\n\r\n")
    status = (await reader.readline()).split()[1]
    writer.transport.abort()
    assert status in (b"400", b"421")


@shared
@pytest.mark.parametrize("origin", DEV_ORIGINS)
async def test_a_listed_origin_is_served(standing: Client, origin: str) -> None:
    """The development servers may call, read answers and errors, and open the WebSocket."""
    headers = {"Origin": origin}
    for path, status in (("/health", 200), ("/api/dataset/list?limit=0", 400)):
        answer = await standing.get(path, headers=headers)
        assert answer.status == status
        assert answer.headers["Access-Control-Allow-Origin"] == origin
    await (await standing.ws_connect(LOGS, headers=headers)).close()


@shared
async def test_the_own_origin_is_served(standing: Client) -> None:
    """A page of this server may call; its variants of another scheme or port may not."""
    own = _own(standing)
    assert (await standing.get("/health", headers={"Origin": own})).status == 200
    await (await standing.ws_connect(LOGS, headers={"Origin": own})).close()
    for origin in (own.replace("http:", "https:"), f"{own}0", f"{own}/", f"{own}.evil.example", own[:-1]):
        await refused(await standing.get("/health", headers={"Origin": origin}), 403, "拒绝访问")


@shared
@pytest.mark.parametrize("origin", FOREIGN_ORIGINS, ids=lambda origin: origin or "empty")
async def test_a_foreign_origin_is_refused(standing: Client, origin: str) -> None:
    """A page from elsewhere can neither read, nor write, nor connect, nor learn by CORS that it could."""
    before = await counts(standing)
    headers = {"Origin": origin}
    answer = await standing.get("/health", headers=headers)
    await refused(answer, 403, "拒绝访问")
    assert not any(name.startswith("Access-Control") for name in answer.headers)
    await refused(await standing.post("/api/dataset/add", json=PAIR, headers=headers), 403)
    await refused(await standing.post("/api/model/unload", headers=headers), 403)
    with pytest.raises(WSServerHandshakeError) as caught:
        await standing.ws_connect(LOGS, headers=headers)
    assert caught.value.status == 403
    assert await counts(standing) == before


@shared
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_what_foreign_pages_ask_for_without_an_origin_is_refused(standing: Client, site: str) -> None:
    """A GET for an image, a script or a frame has no Origin: it neither reads nor makes the server work."""
    image = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    for path in ("/api/export", "/health", "/docs", "/"):
        await refused(await standing.get(path, headers=image), 403, "拒绝访问")
        await refused(await standing.get(path, headers={**link, "Sec-Fetch-Dest": "iframe"}), 403, "拒绝访问")
        assert (await standing.get(path, headers={**image, "Sec-Fetch-Site": "same-origin"})).status == 200
        assert (await standing.get(path, headers={**link, "Sec-Fetch-Site": "none"})).status == 200
        listed = {**image, "Sec-Fetch-Mode": "cors", "Origin": DEV_ORIGINS[0]}
        assert (await standing.get(path, headers=listed)).status == 200
    for path in ("/docs", "/"):  # a link elsewhere shows the page
        assert (await standing.get(path, headers=link)).status == 200
    await refused(await standing.get("/api/export", headers=link), 403, "拒绝访问")
    await refused(await standing.post("/api/model/unload", headers=link), 403, "拒绝访问")


@shared
@pytest.mark.parametrize("path", [path for path in PATHS if path != LOGS])
async def test_preflight(standing: Client, path: str) -> None:
    """A listed origin's preflight is answered on every route; an unlisted one's is refused without any allowance."""
    method = "POST" if ("POST", path) in {(route.method, route.path) for route in ROUTES} else "GET"
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "content-type,idempotency-key"}
    answer = await standing.options(address(path), headers={"Origin": "http://localhost:5173", **asked})
    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "http://localhost:5173"
    assert method in answer.headers["Access-Control-Allow-Methods"]
    assert "content-type" in answer.headers["Access-Control-Allow-Headers"].lower()
    answer = await standing.options(address(path), headers={"Origin": "http://evil.example", **asked})
    await refused(answer, 403)
    assert not any(name.startswith("Access-Control") for name in answer.headers)


async def test_origins_are_the_operators_choice(make_client: MakeClient, settings: Settings) -> None:
    """With another list of origins, that one holds and the default one does not."""
    client = await make_client(replace(settings, cors_origins=("https://books.example",)))
    answer = await client.get("/health", headers={"Origin": "https://books.example"})
    assert answer.headers["Access-Control-Allow-Origin"] == "https://books.example"
    await refused(await client.get("/health", headers={"Origin": DEV_ORIGINS[0]}), 403)
