"""What the tests of choices share: candidates to choose from, and what is stored afterwards."""

from pathlib import Path
from typing import Any

from prefanno.annotation.export import export
from prefanno.db.models import Candidate, Generation
from prefanno.keys import LOOP
from prefanno.web import annotation_answers, answers
from tests.conftest import Client
from tests.web.conftest import PAIR, accepted

CHOICES, ANNOTATIONS = "/api/choices", "/api/annotations"
DELETE, RESTORE, UNDO, REDO = (
    "/api/annotations/delete",
    "/api/annotations/restore",
    "/api/history/undo",
    "/api/history/redo",
)
SHORT = {"system_prompt": "你是离。", "max_new_tokens": 64, "num_responses": 3}
ADDED: dict[str, Any] = {
    "verdict": "best",
    "reasons": [],
    "note": None,
    "annotator": None,
    "adapter": None,
    "generation_id": None,
}


async def generated(client: Client, body: dict[str, Any] | None = None, **settings: Any) -> Any:
    """Load with these settings, and generate."""
    await accepted(await client.post("/api/model/load", json=SHORT | settings), answers.Loaded)
    answer = await client.post("/api/generate", json={"message": "你是谁？", "seed": 7} | (body or {}))
    return await accepted(answer, answers.Generated)


async def chosen(client: Client, generation: str, **choice: Any) -> dict[str, Any]:
    """Choose among the candidates of a generation; the answer's data."""
    answer = await client.post(CHOICES, json={"generation_id": generation} | choice)
    data: dict[str, Any] = (await accepted(answer, annotation_answers.Chosen))["data"]
    return data


async def one(client: Client, number: int) -> dict[str, Any]:
    """All of an annotation."""
    data: dict[str, Any] = (await accepted(await client.get(f"{ANNOTATIONS}/{number}"), annotation_answers.One))["data"]
    return data


async def found(client: Client, **query: Any) -> list[int]:
    """The ids that a search finds, in its order."""
    body = await accepted(await client.get(ANNOTATIONS, params=query), annotation_answers.Found)
    return [item["id"] for item in body["data"]["items"]]


async def changed(client: Client, path: str, body: dict[str, Any]) -> int:
    """How many annotations a deletion or restoration changed."""
    answered = await accepted(await client.post(path, json=body), annotation_answers.Changed)
    number: int = answered["data"]["changed"]
    said = f"已删除 {number} 条，可撤销" if path == DELETE else f"已恢复 {number} 条"
    if not number:
        said = f"没有可{'删除' if path == DELETE else '恢复'}的标注，未作更改"
    assert answered["message"] == said
    return number


async def happened(client: Client, number: int) -> list[dict[str, Any]]:
    """The events of an annotation."""
    body = await accepted(await client.get(f"{ANNOTATIONS}/{number}/history"), annotation_answers.History)
    events: list[dict[str, Any]] = body["data"]["events"]
    return events


async def exported(client: Client, folder: Path, slug: str = "li") -> tuple[int, ...]:
    """How many rows an export writes to preference, roleplay and unpaired."""
    manifest = await export(client.app[LOOP].database, "sharegpt", folder, slug)
    return tuple(file.rows for file in manifest.files.values())


async def stored(client: Client, *contents: str, adapter: str | None = None) -> str:
    """A generation with these candidates, as an adapter made it."""

    async def work(session: Any) -> int:
        settings = {"mode": "single", "system_prompt": "你是离。"}
        turn = Generation(message="?", context=[], settings=settings, base_model="m", adapter=adapter, seed=1)
        session.add(turn)
        await session.flush()
        for ordinal, content in enumerate(contents, 1):
            made = {"content": content, "finish_reason": "stop", "tokens": 1}
            session.add(Candidate(generation_id=turn.id, ordinal=ordinal, **made))
        return turn.id

    return str(await client.app[LOOP].database.write(work))


async def added(client: Client, **fields: Any) -> int:
    """The id of a new annotation."""
    number: int = (await accepted(await client.post("/api/dataset/add", json=PAIR | fields), answers.Added))["data"][
        "id"
    ]
    return number


async def add(client: Client, number: int = 1, **fields: Any) -> None:
    """Add this many annotations."""
    for _ in range(number):
        await added(client, **fields)
