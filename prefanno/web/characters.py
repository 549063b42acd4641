"""Characters: who there is, a new one, its name and persona, and which is the current one."""

from typing import Any

from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno import persona
from prefanno.db import annotations, characters
from prefanno.db.models import Character
from prefanno.keys import LOOP
from prefanno.settings import Settings
from prefanno.web import annotation_answers as answers
from prefanno.web.endpoint import done, endpoint
from prefanno.web.fields import Nothing
from prefanno.web.schemas import CharacterEditSchema, NewCharacterSchema
from prefanno.web.writing import written


@endpoint("All characters", answer=answers.Characters, failures=(503,))
async def show(request: web.Request) -> web.Response:
    """In the order they were made, and which is the current one."""
    loop = request.app[LOOP]
    async with loop.database.read() as session:
        found = [await _view(session, loop.settings, one) for one in await characters.everyone(session)]
        current = (await characters.get(session, None)).slug
    return done("角色", {"current": current, "items": found})


@endpoint("A new character", body=NewCharacterSchema, answer=answers.OneCharacter, failures=(409, 503, 507))
async def create(request: web.Request, body: dict[str, Any]) -> web.Response:
    """With data, files and adapters of its own; the current character stays what it is."""
    settings = request.app[LOOP].settings

    async def work(session: AsyncSession) -> dict[str, Any]:
        return await _view(session, settings, await characters.create(session, **body))

    return done(f"已创建角色 {body['name']}", await written(request, work))


@endpoint("Edit a character", body=CharacterEditSchema, answer=answers.OneCharacter, failures=(404, 409, 503, 507))
async def edit(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Its name or persona; a model that is loaded keeps its persona until the next load."""
    settings = request.app[LOOP].settings

    async def work(session: AsyncSession) -> dict[str, Any]:
        character = await characters.named(session, request.match_info["slug"])
        for name, value in body.items():
            setattr(character, name, value)
        return await _view(session, settings, character)

    return done("已修改角色", await written(request, work))


@endpoint(
    "Make a character the current one",
    body=Nothing,
    body_required=False,
    answer=answers.OneCharacter,
    failures=(404, 409, 503, 507),
)
async def select(request: web.Request, _body: dict[str, Any]) -> web.Response:
    """Requests that name no character mean this one from now on."""
    settings = request.app[LOOP].settings

    async def work(session: AsyncSession) -> dict[str, Any]:
        character = await characters.named(session, request.match_info["slug"])
        await characters.select_current(session, character)
        return await _view(session, settings, character)

    data = await written(request, work)
    return done(f"当前角色：{data['name']}", data)


async def _view(session: AsyncSession, settings: Settings, character: Character) -> dict[str, Any]:
    counts = await annotations.counts(session, character.slug)
    return {
        "slug": character.slug,
        "name": character.name,
        "system_prompt": persona.of(character, settings),
        "preference": counts["single"],
        "roleplay": counts["multi"],
    }
