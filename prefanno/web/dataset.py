"""Adding and listing annotations."""

from pathlib import Path
from typing import Any

from aiohttp import web

from prefanno.annotation import dataset
from prefanno.db.models import DEFAULT_CHARACTER, Annotation, now
from prefanno.keys import LOOP
from prefanno.rows import Mode, Row
from prefanno.settings import Settings
from prefanno.web import answers
from prefanno.web.endpoint import done, endpoint
from prefanno.web.schemas import AnnotationSchema, ListSchema

DATASETS: dict[Mode, str] = {"single": "preference", "multi": "roleplay"}
MODES: dict[str, Mode] = {dataset: mode for mode, dataset in DATASETS.items()}
ADDED = {"single": "已添加偏好数据，当前共 {} 条", "multi": "已添加多轮对话数据，当前共 {} 条"}


@endpoint("Add an annotation", body=AnnotationSchema, answer=answers.Added, failures=(503, 507))
async def add(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Store a choice with the persona in force."""
    loop = request.app[LOOP]
    total = await dataset.add(loop.database, Row(**body, system_prompt=loop.system_prompt, created_at=now()))
    return done(ADDED[body["mode"]].format(total), {"total": total, "file": str(_file(loop.settings, body["mode"]))})


@endpoint("How many annotations there are", answer=answers.Stats, failures=(503,))
async def stats(request: web.Request) -> web.Response:
    """File and count of each dataset."""
    loop = request.app[LOOP]
    counts = await dataset.counts(loop.database)
    sizes = {name: {"file": str(_file(loop.settings, mode)), "count": counts[mode]} for mode, name in DATASETS.items()}
    return done("数据集统计", sizes)


@endpoint("The newest annotations", query=ListSchema, answer=answers.Items, failures=(503,))
async def show(request: web.Request, query: dict[str, Any]) -> web.Response:
    """Newest first."""
    total, newest = await dataset.newest(request.app[LOOP].database, MODES[query["dataset"]], query["limit"])
    return done("最近数据", {"total": total, "items": [_item(annotation) for annotation in newest]})


def _file(settings: Settings, mode: Mode) -> Path:
    return settings.data / f"{DEFAULT_CHARACTER}_{DATASETS[mode]}.json"


def _item(annotation: Annotation) -> dict[str, Any]:
    row = {name: getattr(annotation, name) for name in ("id", "mode", "human_input", "chosen", "chosen_thinking")}
    row |= {name: getattr(annotation, name) for name in ("rejected", "rejected_thinking", "context")}
    return row | {"created_at": annotation.created_at.isoformat(timespec="seconds") + "Z"}
