"""Swagger UI from the package's own files: no request leaves the machine."""

from importlib.resources import files
from pathlib import Path

from aiohttp import web

from prefanno.web import openapi as documents
from prefanno.web.endpoint import reply

STATIC = Path(str(files("prefanno"))) / "web" / "static" / "swagger"
ASSETS = ("swagger-ui.css", "swagger-ui-bundle.js", "start.js", "favicon-32x32.png")

START = """\
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger",
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  validatorUrl: null,
});
"""

PAGE = """\
<!doctype html>
<html lang="zh-CN">
<head>
<meta charset="utf-8">
<title>prefanno API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" href="/docs/favicon-32x32.png">
</head>
<body>
<div id="swagger">正在加载 Swagger UI；若一直没有内容，请运行 make serve 以下载其文件。
规范见 <a href="/openapi.json">/openapi.json</a>。</div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""

# Swagger UI sets inline styles and shows its icons as data: URLs; scripts come from this server only.
POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}


async def openapi(request: web.Request) -> web.Response:
    """The OpenAPI document."""
    return reply(documents.document(request.app))


async def show(_request: web.Request) -> web.Response:
    """Swagger UI."""
    return web.Response(text=PAGE, content_type="text/html", headers=HEADERS)


async def asset(request: web.Request) -> web.StreamResponse:
    """One of Swagger UI's files, by its exact name."""
    name = request.match_info["name"]
    if name == "start.js":
        return web.Response(text=START, content_type="text/javascript", headers=HEADERS)
    if name not in ASSETS or not (STATIC / name).is_file():
        raise web.HTTPNotFound
    return web.FileResponse(STATIC / name, headers=HEADERS)


async def home(_request: web.Request) -> web.Response:
    """Until there is a page to annotate on, the API's."""
    raise web.HTTPFound("/docs")
