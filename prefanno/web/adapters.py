"""A character's adapters: what there is, which is loaded by itself, notes, and the end of one."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from prefanno.db import characters
from prefanno.keys import LOOP
from prefanno.training import registry
from prefanno.training.registry import Listed
from prefanno.web import answers, training_answers
from prefanno.web.endpoint import done, endpoint
from prefanno.web.schemas import CharacterSchema
from prefanno.web.training_schemas import AdapterSchema, NoteSchema, PromoteSchema


@endpoint("Adapters", query=CharacterSchema, answer=training_answers.Adapters, failures=(503,), keyed=False)
async def show(request: web.Request, query: dict[str, Any]) -> web.Response:
    """The character's, the newest first: where each comes from, what it measured, and which a load takes by itself."""
    where = await _where(request, query["character"])
    return done("adapter 列表", await asyncio.to_thread(_listed, *where))


@endpoint(
    "Promote an adapter", body=PromoteSchema, answer=training_answers.InForce, failures=(409, 503, 507), keyed=False
)
async def promote(request: web.Request, body: dict[str, Any]) -> web.Response:
    """A load takes this one from now on, or "base", the base model as it is; what is loaded stays."""
    where = await _where(request, body["character"])
    await asyncio.to_thread(registry.promote, *where, body["adapter"])
    return done(f"已启用 adapter {body['adapter']}", await _in_force(where))


@endpoint(
    "Roll back",
    body=CharacterSchema,
    body_required=False,
    answer=training_answers.InForce,
    failures=(409, 503, 507),
    keyed=False,
)
async def roll_back(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Take the last promotion back; the one before is in force again, and without one the newest adapter."""
    where = await _where(request, body["character"])
    await asyncio.to_thread(registry.roll_back, *where)
    data = await _in_force(where)
    return done(f"已回退，当前 adapter：{data['adapter'] or '无'}", data)


@endpoint("Note on an adapter", body=NoteSchema, answer=answers.Done, failures=(404, 409, 503, 507), keyed=False)
async def note(request: web.Request, body: dict[str, Any]) -> web.Response:
    """In place of the note before; null is none."""
    await asyncio.to_thread(registry.note, request.app[LOOP].settings.outputs, body["adapter"], body["note"] or "")
    return done("备注已保存")


@endpoint("Delete an adapter", body=AdapterSchema, answer=answers.Done, failures=(404, 409, 503, 507), keyed=False)
async def delete(request: web.Request, body: dict[str, Any]) -> web.Response:
    """For good; refused where it is loaded or promoted, and while a run is under way."""
    await request.app[LOOP].delete(body["adapter"])
    return done(f"已删除 adapter {body['adapter']}")


async def _where(request: web.Request, slug: str | None) -> tuple[Path, str, str]:
    """Where adapters lie, and the character and base model that are meant."""
    loop = request.app[LOOP]
    async with loop.database.read() as session:
        character = await characters.get(session, slug)
    return loop.settings.outputs, character.slug, loop.settings.model


async def _in_force(where: tuple[Path, str, str]) -> dict[str, Any]:
    chosen = await asyncio.to_thread(partial(registry.chosen, *where))
    return {"character": where[1], "adapter": chosen.name if chosen else None}


def _listed(outputs: Path, slug: str, base_model: str) -> dict[str, Any]:
    items = registry.listed(outputs, slug, base_model)
    chosen = next((item.adapter.name for item in items if item.chosen), None)
    return {"character": slug, "adapter": chosen, "items": [_view(item) for item in items]}


def _view(item: Listed) -> dict[str, Any]:
    one = item.adapter
    return {
        "name": one.name,
        "method": one.method,
        "base_model": one.base_model,
        "run": one.run,
        "parent": one.card.get("start"),
        "seed": one.card.get("seed"),
        "created_at": one.card.get("created_at"),
        "snapshot": one.card.get("snapshot"),
        "metrics": one.card.get("metrics"),
        "bytes": one.bytes,
        "note": item.note,
        "promoted": item.promoted,
        "chosen": item.chosen,
    }
