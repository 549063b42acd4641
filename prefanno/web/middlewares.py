"""The one place that makes errors, and the walls around all routes: Host, Origin and Sec-Fetch-Site.

A foreign page cannot reach the API by DNS rebinding (Host), by a cross-site request or by a WebSocket (Origin), nor by
what browsers send without an Origin, such as an image (Sec-Fetch-Site): all are checked on every request, before
anything else is read.
"""

import errno
import logging
import math
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from aiohttp.typedefs import Middleware

from prefanno import errors
from prefanno.settings import MAX_PORT, Settings
from prefanno.web.endpoint import as_openai, reply

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
OWN_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
FOREIGN_SITES = ("cross-site", "same-site")  # of the same site are other ports, too

HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")

STATUSES: dict[type[errors.PrefannoError], int] = {
    errors.InvalidInput: 400,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.NotReady: 400,
    errors.QueueFull: 429,
    errors.Unavailable: 503,
    errors.StorageFull: 507,
}

SERVER_FAULT = 500
TEXTS = {
    400: "请求参数错误",
    403: "拒绝访问：来源（Origin）不在允许列表中；可通过 PREFANNO_CORS_ORIGINS 添加",
    404: "未找到：没有这个地址，可用接口见 /docs",
    405: "请求方法不允许",
    413: "请求体过大：JSON 上限为 1 MiB，导入文件上限为 4 GiB",
    415: "请求体必须是 application/json；导入时请直接发送文件本身（curl --data-binary @file），"
    "不要用表单（curl -F），也不要压缩（Content-Encoding）",
    421: "拒绝访问：Host 不在允许列表中；可通过 PREFANNO_ALLOWED_HOSTS 添加",
}


class HTTPForeignHost(web.HTTPClientError):
    """421 Misdirected Request, which aiohttp has no class for with a plain constructor."""

    status_code = 421


@web.middleware
async def one_error_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every exception into `{"detail": …}`, with `errors` for fields at fault and an incident id for a bug."""
    try:
        return await handler(request)
    except tuple(STATUSES) as error:
        return _failure(request, error)
    except web.HTTPException as error:
        if not isinstance(error, web.HTTPError):
            raise
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return _refusal(
            request, {"detail": TEXTS.get(error.status, f"请求失败（{error.status}）")}, error.status, allow
        )
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return _failure(request, errors.StorageFull())
        incident = secrets.token_hex(4)
        log.exception("incident %s in %s %s", incident, request.method, request.path)
        detail = f"服务器内部错误，请查看日志中的事件 {incident}"
        return _refusal(request, {"detail": detail, "incident": incident}, 500)


def walls(settings: Settings) -> Middleware:
    """Refuse a foreign Host (421), a foreign Origin and what a foreign page asks for without one (403)."""
    names = OWN_NAMES | {name.lower() for name in settings.allowed_hosts}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if _host_name(host) not in names:
            raise HTTPForeignHost
        origin = request.headers.get("Origin")
        if origin not in (None, f"http://{host}", *settings.cors_origins):
            raise web.HTTPForbidden
        if origin is None and request.headers.get("Sec-Fetch-Site") in FOREIGN_SITES and not _followed_link(request):
            raise web.HTTPForbidden
        return await handler(request)

    return check


def _followed_link(request: web.Request) -> bool:
    """Whether somebody follows a link to a page, such as `/` or `/docs`: it is shown in a tab of its own."""
    asked = [request.headers.get(f"Sec-Fetch-{name}") for name in ("Mode", "Dest")]
    return asked == ["navigate", "document"] and request.method == "GET" and not request.path.startswith("/api/")


def _host_name(host: str) -> str | None:
    """The name in a Host header, without its port; None where it is none."""
    found = HOST.fullmatch(host)
    if found is None or int(found[3] or 0) > MAX_PORT:
        return None
    return (found[1] or found[2]).lower()


def _failure(request: web.Request, error: errors.PrefannoError) -> web.Response:
    status = next(status for kind, status in STATUSES.items() if isinstance(error, kind))
    content: dict[str, object] = {"detail": error.detail}
    if isinstance(error, errors.InvalidInput):
        content["errors"] = error.fields
    if status >= SERVER_FAULT:
        log.log(logging.INFO if isinstance(error, errors.ClientGone) else logging.WARNING, "%s", error)
    wait = {"Retry-After": str(math.ceil(error.retry_after_s))} if isinstance(error, errors.QueueFull) else None
    return _refusal(request, content, status, wait)


def _refusal(
    request: web.Request, content: dict[str, object], status: int, headers: Mapping[str, str] | None = None
) -> web.Response:
    """In the one shape; under /v1 OpenAI's is beside it."""
    if request.path.startswith("/v1/"):
        content["error"] = as_openai(str(content["detail"]), client=status < SERVER_FAULT)
    return reply(content, status, headers)
