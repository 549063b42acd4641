"""Choices, and what can be done with them afterwards: read, search, edit, delete, restore, undo, redo."""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation import choices, dataset, history
from prefanno.db import annotations, characters, steps
from prefanno.db.annotations import Filters
from prefanno.db.models import Annotation, Event, Step
from prefanno.keys import LOOP
from prefanno.web import annotation_answers as answers
from prefanno.web.dataset import MODES, item
from prefanno.web.endpoint import done, endpoint, number
from prefanno.web.schemas import BulkSchema, CharacterSchema, ChoiceSchema, EditSchema, SearchSchema
from prefanno.web.writing import written

KINDS = {
    "add": "添加",
    "choose": "选择",
    "edit": "修改",
    "delete": "删除",
    "restore": "恢复",
    "import": "导入",
}


@endpoint("Choose among candidates", body=ChoiceSchema, answer=answers.Chosen, failures=(404, 409, 503, 507))
async def choose(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Store the choice; a second one for the same generation takes the place of the first."""
    generation = body.pop("generation_id")

    async def work(session: AsyncSession) -> dict[str, Any]:
        annotation, changed = await dataset.choose(session, generation, **body)
        counts = await annotations.counts(session, annotation.character)
        replies = history.replies(annotation)
        return {
            "id": annotation.id,
            "pairs": len(choices.pairs(annotation.verdict, replies)),
            "unpaired": len(choices.unpaired(annotation.verdict, replies)),
            "total": counts[annotation.mode],
            "changed": int(changed),
        }

    data = await written(request, work)
    return done("已记录选择" if data["changed"] else "与现有选择相同，未作更改", data)


@endpoint("Search annotations", query=SearchSchema, answer=answers.Found, failures=(503,))
async def search(request: web.Request, query: dict[str, Any]) -> web.Response:
    """Newest first; the next page is below `next`."""
    before, limit = query.pop("before", None), query.pop("limit")
    async with request.app[LOOP].database.read() as session:
        found = await annotations.page(session, await _filters(session, query), before, limit + 1)
    following = found[limit - 1].id if len(found) > limit else None
    return done("标注", {"items": [view(annotation) for annotation in found[:limit]], "next": following})


@endpoint("One annotation", answer=answers.One, failures=(404, 503))
async def read(request: web.Request) -> web.Response:
    """Also where it is deleted."""
    async with request.app[LOOP].database.read() as session:
        return done("标注", view(await annotations.get(session, number(request))))


@endpoint("What happened to an annotation", answer=answers.History, failures=(404, 503))
async def show_history(request: web.Request) -> web.Response:
    """Oldest first; each with the changed fields before and after."""
    annotation_id = number(request)
    async with request.app[LOOP].database.read() as session:
        await annotations.get(session, annotation_id)
        happened = await steps.of_annotation(session, annotation_id)
    return done("历史", {"events": [_event(event, step) for event, step in happened]})


@endpoint("Edit an annotation", body=EditSchema, answer=answers.One, failures=(404, 409, 503, 507))
async def edit(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Change the fields given."""
    annotation_id = number(request)

    async def work(session: AsyncSession) -> dict[str, Any]:
        return view(await dataset.edit(session, annotation_id, body))

    return done("已修改", await written(request, work))


@endpoint("Delete annotations", body=BulkSchema, answer=answers.Changed, failures=(404, 409, 503, 507))
async def delete(request: web.Request, body: dict[str, Any]) -> web.Response:
    """In one step, which can be undone; nothing is erased."""
    data = await written(request, lambda session: _set_deleted(session, body, deleted=True))
    return done(f"已删除 {data['changed']} 条，可撤销" if data["changed"] else "没有可删除的标注，未作更改", data)


@endpoint("Restore annotations", body=BulkSchema, answer=answers.Changed, failures=(404, 409, 503, 507))
async def restore(request: web.Request, body: dict[str, Any]) -> web.Response:
    """In one step, which can be undone."""
    data = await written(request, lambda session: _set_deleted(session, body, deleted=False))
    return done(f"已恢复 {data['changed']} 条" if data["changed"] else "没有可恢复的标注，未作更改", data)


@endpoint(
    "Undo the last step",
    body=CharacterSchema,
    body_required=False,
    answer=answers.Undone,
    failures=(409, 503, 507),
)
async def undo(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Take back the character's last step."""
    return await _moved(request, body["character"], history.undo, "已撤销")


@endpoint(
    "Redo what was undone last",
    body=CharacterSchema,
    body_required=False,
    answer=answers.Undone,
    failures=(409, 503, 507),
)
async def redo(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Do again what was undone last."""
    return await _moved(request, body["character"], history.redo, "已重做")


async def _moved(
    request: web.Request,
    character: str | None,
    move: Callable[[AsyncSession, str], Awaitable[tuple[Step, int]]],
    done_what: str,
) -> web.Response:
    async def work(session: AsyncSession) -> dict[str, Any]:
        step, changed = await move(session, (await characters.get(session, character)).slug)
        return {"character": step.character, "step": step.id, "kind": step.kind, "changed": changed}

    data = await written(request, work)
    return done(f"{done_what}：{KINDS[data['kind']]} {data['changed']} 条", data)


def view(annotation: Annotation) -> dict[str, Any]:
    """All of an annotation."""
    generation = annotation.generation_id
    return item(annotation) | {
        "character": annotation.character,
        "system_prompt": annotation.system_prompt,
        "verdict": annotation.verdict,
        "replies": [reply._asdict() for reply in history.replies(annotation)],
        "reasons": annotation.reasons,
        "note": annotation.note,
        "annotator": annotation.annotator,
        "adapter": annotation.adapter,
        "generation_id": None if generation is None else str(generation),
        "deleted": annotation.deleted_at is not None,
    }


async def _filters(session: AsyncSession, asked: dict[str, Any]) -> Filters:
    """What was asked for, of the character asked for, else of the current one."""
    slug = (await characters.get(session, asked["character"])).slug
    mode = MODES[asked["dataset"]] if "dataset" in asked else None
    others = {name: value for name, value in asked.items() if name not in ("character", "dataset")}
    return Filters(character=slug, mode=mode, **others)


async def _set_deleted(session: AsyncSession, body: dict[str, Any], *, deleted: bool) -> dict[str, Any]:
    ids = body["ids"]
    if body["where"] is not None:
        ids = await annotations.ids(session, await _filters(session, body["where"] | {"deleted": not deleted}))
    return {"changed": await dataset.set_deleted(session, ids, deleted)}


def _event(event: Event, step: Step) -> dict[str, Any]:
    return {
        "step": step.id,
        "kind": step.kind,
        "annotator": step.annotator,
        "before": event.before,
        "after": event.after,
        "created_at": step.created_at.isoformat(timespec="seconds") + "Z",
    }
