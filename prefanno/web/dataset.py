"""The two datasets of a character: adding, counting, listing."""

from pathlib import Path
from typing import Any

from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation import dataset
from prefanno.db import annotations, characters
from prefanno.db.models import Annotation, now
from prefanno.keys import LOOP
from prefanno.rows import Mode, Row
from prefanno.settings import Settings
from prefanno.web import answers
from prefanno.web.endpoint import done, endpoint
from prefanno.web.schemas import AnnotationSchema, CharacterSchema, ListSchema
from prefanno.web.writing import written

DATASETS: dict[Mode, str] = {"single": "preference", "multi": "roleplay"}
MODES: dict[str, Mode] = {dataset: mode for mode, dataset in DATASETS.items()}
ADDED = {"single": "已添加偏好数据，当前共 {} 条", "multi": "已添加多轮对话数据，当前共 {} 条"}


@endpoint("Add an annotation", body=AnnotationSchema, answer=answers.Added, failures=(409, 503, 507))
async def add(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Store a choice with the persona in force."""
    loop, slug, mode = request.app[LOOP], body.pop("character"), body["mode"]

    async def work(session: AsyncSession) -> dict[str, Any]:
        character = await characters.get(session, slug)
        row = Row(**body, system_prompt=loop.persona(character), created_at=now())
        annotation = await dataset.add(session, character.slug, row)
        total = (await annotations.counts(session, character.slug))[mode]
        return {"total": total, "file": str(_file(loop.settings, character.slug, mode)), "id": annotation.id}

    data = await written(request, work)
    return done(ADDED[mode].format(data["total"]), data)


@endpoint("How many annotations there are", query=CharacterSchema, answer=answers.Stats, failures=(503,))
async def stats(request: web.Request, query: dict[str, Any]) -> web.Response:
    """File and count of each dataset."""
    loop = request.app[LOOP]
    async with loop.database.read() as session:
        slug = (await characters.get(session, query["character"])).slug
        counts = await annotations.counts(session, slug)
    files = {mode: str(_file(loop.settings, slug, mode)) for mode in DATASETS}
    return done("数据集统计", {name: {"file": files[mode], "count": counts[mode]} for mode, name in DATASETS.items()})


@endpoint("The newest annotations", query=ListSchema, answer=answers.Items, failures=(503,))
async def show(request: web.Request, query: dict[str, Any]) -> web.Response:
    """Newest first."""
    mode = MODES[query["dataset"]]
    async with request.app[LOOP].database.read() as session:
        slug = (await characters.get(session, query["character"])).slug
        total = (await annotations.counts(session, slug))[mode]
        newest = await annotations.newest(session, slug, mode, query["limit"])
    return done("最近数据", {"total": total, "items": [item(annotation) for annotation in newest]})


def item(annotation: Annotation) -> dict[str, Any]:
    """The choice as one pair: the best reply, and the first that it is better than."""
    best, worse = dataset.sides(annotation)
    return {
        "id": annotation.id,
        "mode": annotation.mode,
        "human_input": annotation.human_input,
        "chosen": best.content if best else None,
        "chosen_thinking": best.thinking if best else None,
        "rejected": worse.content if worse else None,
        "rejected_thinking": worse.thinking if worse else None,
        "context": annotation.context,
        "created_at": annotation.created_at.isoformat(timespec="seconds") + "Z",
    }


def _file(settings: Settings, slug: str, mode: Mode) -> Path:
    return settings.data / f"{slug}_{DATASETS[mode]}.json"
