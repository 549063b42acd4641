"""The OpenAPI 3.1 document, made from the endpoints' declarations: what validates also describes."""

import re
from functools import cache
from typing import Any

from aiohttp import web
from marshmallow import Schema

from prefanno import __version__
from prefanno.web import answers
from prefanno.web.endpoint import SPEC, Spec
from prefanno.web.writing import HEADER

REFUSALS = {
    400: "请求参数错误，或当前状态不允许",
    403: "来源（Origin）不允许",
    404: "未找到",
    409: "与当前状态冲突，或 Idempotency-Key 已用于另一个请求",
    413: "请求体过大",
    415: "请求体不是 application/json；导入的文件放在了表单中，或带有 Content-Encoding",
    421: "Host 不允许",
    429: "等待生成的请求过多，请在 Retry-After 秒后重试",
    500: "内部错误，带事件编号",
    503: "推理引擎或数据库暂时不可用",
    507: "磁盘已满，未保存任何内容",
}


CONFLICT = 409


@cache
def document(application: web.Application) -> dict[str, Any]:
    """The document of this application's routes."""
    # apispec is imported with the first request for the document: /health need not wait for it.
    from apispec import APISpec
    from apispec.ext.marshmallow import MarshmallowPlugin

    spec = APISpec(
        title="prefanno",
        version=__version__,
        openapi_version="3.1.0",
        plugins=[MarshmallowPlugin(schema_name_resolver=_name)],
    )
    for route in application.router.routes():
        declared: Spec | None = getattr(route.handler, SPEC, None)
        if declared is not None and route.resource is not None and route.method in ("GET", "POST"):
            path, method = route.resource.canonical, route.method.lower()
            spec.path(path=path, operations={method: _operation(declared, path, method)})
    return spec.to_dict()


def _operation(declared: Spec, path: str, method: str) -> dict[str, Any]:
    # Every GET is answered by HEAD, too, but only by aiohttp's own routing; the document names what clients call.
    statuses = {403, 421, 500, *declared.failures}
    name = "_".join([method, *re.findall(r"\w+", path)])
    operation: dict[str, Any] = {"summary": declared.summary, "operationId": name, "parameters": []}
    for place in re.findall(r"{(\w+)}", path):
        operation["parameters"].append({"in": "path", "name": place, "required": True, "schema": {"type": "string"}})
    if CONFLICT in declared.failures and declared.keyed:  # it writes
        operation["parameters"].append({"in": "header", "name": HEADER, "schema": {"type": "string"}})
    if declared.body is not None:
        statuses |= {400, 413, 415}
        operation["requestBody"] = {"required": declared.body_required, **_json(declared.body)}
    if declared.upload:
        operation["requestBody"] = {"required": True, **_file("application/octet-stream")}
    if declared.query is not None:
        statuses |= {400}
        operation["parameters"].append({"in": "query", "schema": declared.query})
    answer = _json(declared.answer) if declared.answer else _file(declared.download) if declared.download else {}
    failures = {str(status): {"description": REFUSALS[status], **_json(answers.Failure)} for status in sorted(statuses)}
    operation["responses"] = {"200": {"description": "成功", **answer}, **failures}
    return operation


def _json(schema: type[Schema]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _file(content_type: str) -> dict[str, Any]:
    return {"content": {content_type: {"schema": {"type": "string", "format": "binary"}}}}


def _name(schema: Any) -> str:
    kind = schema if isinstance(schema, type) else type(schema)
    return str(kind.__name__).removesuffix("Schema")
