"""What the tests of comparisons share: adapters of the tiny model, a comparison on the way, votes."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db.models import Comparison, Round
from prefanno.db.prompts import digest
from prefanno.keys import LOOP
from prefanno.training import adapters
from prefanno.training.config import LORA, RunConfig
from prefanno.web import answers
from prefanno.web import comparison_answers as compared
from tests.conftest import Client
from tests.web.conftest import WAIT_S, accepted

COMPARISONS = "/api/comparisons"
SHOWS = {"enable_thinking": True, "show_thinking": True}
SHORT = {"max_new_tokens": 64, "num_responses": 2}


def made(client: Client, number: int, adapter: Path, start: str | None = None) -> str:
    """An adapter of the tiny model, as if run `number` had made it, going on from `start`."""
    settings, name = client.app[LOOP].settings, f"li-simpo-{number}"
    run = settings.runs / str(number)
    shutil.copytree(adapter, run / "adapter")
    config = RunConfig("li", settings.model, settings.model, name, stages=[{"method": "simpo"}], lora=LORA)
    folder = adapters.publish(number, run, settings.outputs, config)
    card = json.loads((folder / adapters.CARD).read_text())
    (folder / adapters.CARD).write_text(json.dumps(card | {"start": start}))
    return name


async def load(client: Client, **fields: Any) -> None:
    """Load with few tokens, so that a comparison is short, too."""
    await accepted(await client.post("/api/model/load", json=SHORT | fields), answers.Loaded)


async def begun(client: Client, many: int = 3, **fields: Any) -> int:
    """A comparison of li-simpo-1 on as many prompts, unless it is told otherwise; its id."""
    asked = {"adapter": "li-simpo-1", "prompts": [{"message": f"问题 {number}？"} for number in range(many)]} | fields
    given = {name: value for name, value in asked.items() if value is not None}
    body = await accepted(await client.post(COMPARISONS, json=given), compared.Begun)
    return int(body["data"]["id"])


async def stored(client: Client, count: int, **fields: Any) -> int:
    """An open comparison of li-simpo-1 with base, as if this many rounds had been answered; its id."""
    names = {"character": "li", "adapter": "li-simpo-1", "against": "base", "seed": 0, "promotes": False}
    made = {**names, "base_model": client.app[LOOP].settings.model, "settings": SHOWS, "state": "open"} | fields

    async def work(session: AsyncSession) -> int:
        comparison = Comparison(**made)
        session.add(comparison)
        await session.flush()
        session.add_all([answered(comparison.id, number) for number in range(1, count + 1)])
        return comparison.id

    return await client.app[LOOP].database.write(work)


def answered(comparison: int, ordinal: int) -> Round:
    """A round whose replies say whose they are; each second one is swapped."""
    return Round(
        comparison_id=comparison,
        ordinal=ordinal,
        message=f"问题 {ordinal}？",
        context=[{"role": "assistant", "content": "嗯"}],
        system_prompt="你是离。",
        digest=digest(f"问题 {ordinal}？", [{"role": "assistant", "content": "嗯"}]),
        adapter_reply=f"新 {ordinal}",
        adapter_thinking="想",
        against_reply=f"旧 {ordinal}",
        swapped=ordinal % 2 == 0,
    )


async def standing(client: Client, number: int) -> dict[str, Any]:
    """All of the comparison."""
    body = await accepted(await client.get(f"{COMPARISONS}/{number}"), compared.OneComparison)
    data: dict[str, Any] = body["data"]
    assert body["message"] == data["message"]
    return data


async def ended(client: Client, number: int) -> dict[str, Any]:
    """The comparison, when its replies are written and the engine is given back."""
    loop = client.app[LOOP]
    async with asyncio.timeout(WAIT_S):
        while loop.comparing.answering is not None:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
    return await standing(client, number)


async def following(client: Client, number: int) -> dict[str, Any]:
    """The next round."""
    body = await accepted(await client.get(f"{COMPARISONS}/{number}/next"), compared.NextRound)
    data: dict[str, Any] = body["data"]
    return data


async def vote(client: Client, number: int, asked: int, choice: str, **fields: Any) -> dict[str, Any]:
    """Vote; the whole answer."""
    body = {"round": asked, "vote": choice} | fields
    answer = await client.post(f"{COMPARISONS}/{number}/votes", json=body)
    voted: dict[str, Any] = await accepted(answer, compared.Voted)
    return voted


async def rounds(client: Client) -> list[Round]:
    """All rounds, as they are stored."""
    async with client.app[LOOP].database.read() as session:
        return list(await session.scalars(select(Round).order_by(Round.id)))


async def for_adapter(client: Client, asked: int) -> str:
    """The side on which the adapter's reply of this round is shown."""
    async with client.app[LOOP].database.read() as session:
        return "right" if (await session.get_one(Round, asked)).swapped else "left"
