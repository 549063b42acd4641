"""Swagger UI: from this machine only."""

import re
from pathlib import Path

import pytest
from yarl import URL

from prefanno.web import docs
from tests.conftest import Client
from tests.web.conftest import refused, shared

FOREIGN_URL = re.compile(r"""(?:https?:|wss?:)?//[^\s"'/]""")
TRAVERSALS = [
    *("..%2Fschemas.py", "..%2F..%2Fsettings.py", "%2e%2e%2fswagger%2fstart.js", "%2Fetc%2Fpasswd", "..%5Cdocs.py"),
    *(
        "swagger-ui.css%00",
        "swagger-ui.css/",
        "SWAGGER-UI.CSS",
        "%20swagger-ui.css",
        ".%2Fswagger-ui.css",
        ".",
        "%2e%2e",
    ),
    *("secret.txt", "index.html", "swagger-ui-bundle.js.map", "start.js%2F..%2Fsecret.txt", "swagger-ui.css%3Fx"),
]


@pytest.fixture
def static(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of Swagger UI's, with its files and one more."""
    folder = tmp_path / "web" / "static" / "swagger"
    folder.mkdir(parents=True)
    for name in (*docs.ASSETS, "secret.txt"):
        (folder / name).write_text(f"/* {name} */")
    (folder.parent / "schemas.py").write_text("# secret")
    monkeypatch.setattr(docs, "STATIC", folder)
    return folder


@shared
async def test_the_page_asks_no_other_host(standing: Client) -> None:
    """Page and start script name no other host, and the online validator is off."""
    page = await (await standing.get("/docs")).text()
    start = await (await standing.get("/docs/start.js")).text()
    assert not FOREIGN_URL.search(page) and not FOREIGN_URL.search(start)
    assert "validatorUrl: null" in start and '"/openapi.json"' in start
    assert FOREIGN_URL.search('<script src="//cdn.example/x.js">') and FOREIGN_URL.search("url('https://a.example')")


@shared
@pytest.mark.parametrize("path", ["/docs", "/docs/start.js"])
async def test_the_browser_is_told_to_stay(standing: Client, path: str) -> None:
    """The policy allows this server's own scripts only: no inline ones, no eval, no other host, no frame."""
    headers = (await standing.get(path)).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
    assert set(policy.get("script-src", "'self'").split()) == {"'self'"}
    assert not re.search(r"https?:|\*|unsafe-eval", headers["Content-Security-Policy"])
    assert headers["X-Content-Type-Options"] == "nosniff"


@shared
async def test_the_page_has_no_inline_script(standing: Client) -> None:
    """Every script of the page is a file, since the policy would refuse others."""
    page = await (await standing.get("/docs")).text()
    assert re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL) == [
        (' src="/docs/swagger-ui-bundle.js"', ""),
        (' src="/docs/start.js"', ""),
    ]
    assert not re.search(r"\son\w+=", page)


async def test_assets_are_served_by_their_names(client: Client, static: Path) -> None:
    """Each of Swagger UI's files that the page needs comes with the type that browsers insist on, and the policy."""
    types = {".css": "text/css", ".js": "javascript", ".png": "image/png"}
    for name in docs.ASSETS:
        answer = await client.get(f"/docs/{name}")
        assert answer.status == 200 and types[Path(name).suffix] in answer.headers["Content-Type"], name
        assert "Content-Security-Policy" in answer.headers
    assert await (await client.get("/docs/swagger-ui.css")).text() == (static / "swagger-ui.css").read_text()


@pytest.mark.usefixtures("static")
@pytest.mark.parametrize("name", TRAVERSALS)
async def test_no_other_name_is_served(client: Client, name: str) -> None:
    """A name that leads elsewhere, or to a file that is not the page's, is unknown."""
    await refused(await client.get(URL(f"/docs/{name}", encoded=True)), 404, "未找到")


@pytest.mark.usefixtures("static")
async def test_without_its_files_the_page_says_what_to_do(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Swagger UI was not fetched, its files are unknown and the page names the cure and the document."""
    monkeypatch.setattr(docs, "STATIC", Path("/nowhere"))
    await refused(await client.get("/docs/swagger-ui.css"), 404, "未找到")
    page = await (await client.get("/docs")).text()
    assert "make serve" in page and "/openapi.json" in page
