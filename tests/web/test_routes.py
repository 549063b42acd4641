"""Addresses, methods and query parameters."""

from typing import Any

import pytest

from prefanno.web.routes import ROUTES
from tests.conftest import Client
from tests.web.conftest import address, faults, refused, shared

LIMITS = [
    "١٠",
    "１０",
    "²",
    "+5",
    "1_0",
    "%205",
    "5%20",
    "5%00",
    "0x5",
    "1e1",
    "5,",
    "[5]",
    "%ff",
    "%ed%a0%80",
    "9" * 5000,
]


@shared
@pytest.mark.parametrize(
    ("query", "field"),
    [(f"limit={value}", "limit") for value in LIMITS]
    + [("limit=5&limit=6", "limit"), ("limit=5&limit=5", "limit"), ("dataset=roleplay&dataset=preference", "dataset")]
    + [("dataset=%00", "dataset"), ("dataset=%ff", "dataset"), ("dataset=preference%00", "dataset"), ("%00=1", "\0")]
    + [(f"{name}=1&{name}=2", shown) for name, shown in (("limit", "limit"), ("x", "x"), ("%0A", "\n"))],
    ids=lambda text: text[:40],
)
async def test_odd_query_parameters(standing: Client, query: str, field: str) -> None:
    """Digits that only Python takes for a number, a parameter given twice, and bytes that are no text are refused."""
    assert await faults(await standing.get(f"/api/dataset/list?{query}")) == {field}


@shared
@pytest.mark.parametrize(
    "path", ["/nowhere", "/api", "/api/dataset/", "/api/%ff", "/%00", "/api/../nowhere", "/HEALTH"]
)
async def test_an_unknown_address(standing: Client, path: str) -> None:
    """An address that is not there is 404, whatever is sent to it."""
    await refused(await standing.get(path), 404, "未找到")
    await refused(await standing.post(path, data=b"{", headers={"Content-Type": "application/json"}), 404, "未找到")


@shared
@pytest.mark.parametrize("route", [route for route in ROUTES if route.path.startswith(("/api", "/health"))], ids=str)
async def test_a_wrong_method(standing: Client, route: Any) -> None:
    """Another method than the route's is 405 and names what is allowed."""
    known = {other.method for other in ROUTES if other.path == route.path}
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - known:
        answer = await standing.request(method, address(route.path))
        await refused(answer, 405, "请求方法不允许")
        assert route.method in answer.headers["Allow"]
