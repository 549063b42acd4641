"""Comparisons over HTTP with a real engine: replies of both sides, prompts that are found, and what ends it early."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.comparing import ENDED, STOPPED, UNLOADED
from prefanno.db.models import Run
from prefanno.keys import LOOP
from prefanno.training.held_out import FILE, key
from prefanno.training.run_folder import STARTED
from tests import tiny
from tests.conftest import Client, MakeClient
from tests.web.comparing import COMPARISONS, begun, ended, following, for_adapter, load, made, rounds, standing, vote
from tests.web.conftest import counts, faults, refused, until

# peft asks transformers by a name that it has given up; neither is ours
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

MANY = 60  # prompts, so that it is not over at once


@pytest.fixture(scope="module")
def tiny_adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter of the tiny model."""
    return tiny.adapt(tmp_path_factory.mktemp("adapters") / "adapter", tiny_model)


@pytest.fixture
def new(client: Client, tiny_adapter: Path) -> str:
    """The one adapter of the client's server."""
    return made(client, 1, tiny_adapter)


@pytest.mark.usefixtures("new")
async def test_a_comparison_from_start_to_verdict(client: Client) -> None:
    """Both sides answer each prompt, votes become pairs of the preferred reply, and the verdict follows."""
    await load(client, adapter="base")
    number = await begun(client)
    data = await ended(client, number)
    assert (data["state"], data["reason"], data["adapter"], data["against"]) == ("open", None, "li-simpo-1", "base")
    assert data["progress"] == {"prompts": 3, "answered": 3, "replies": 6, "left_out": 0}
    assert (data["win_rate"], data["verdict"]) == (None, "undecided")
    stored = await rounds(client)
    for left, choice in ((3, "left"), (2, "right"), (1, "tie")):
        one = await following(client, number)
        assert one["remaining"] == left
        replied = stored[3 - left]
        side = await for_adapter(client, one["round"])
        assert one[side]["content"] == replied.adapter_reply != replied.against_reply
        await vote(client, number, one["round"], choice)
    assert await counts(client) == (2, 0)
    loaded = client.app[LOOP].engine.loaded
    assert loaded is not None and loaded.adapter is None


@pytest.mark.usefixtures("new")
async def test_the_same_seed_gives_the_same_replies(client: Client) -> None:
    """Made again, a comparison has the same replies, word for word; the sides are drawn anew."""
    await load(client)
    for _ in range(2):
        await ended(client, await begun(client, seed=7))
    first, second = (await rounds(client))[:3], (await rounds(client))[3:]
    assert [(one.adapter_reply, one.against_reply) for one in first] == [
        (one.adapter_reply, one.against_reply) for one in second
    ]


@pytest.mark.usefixtures("new")
async def test_sides_are_drawn_by_lot(client: Client) -> None:
    """Over 400 rounds each side is on the left about as often: within four standard deviations."""
    for _ in range(2):
        number = await begun(client, 200)
        await client.post(f"{COMPARISONS}/{number}/stop")
    assert abs(sum(one.swapped for one in await rounds(client)) - 200) <= 40


async def test_prompts_are_those_that_no_side_was_trained_on(client: Client, tiny_adapter: Path) -> None:
    """What the adapter's run held out, then the queue, without what either side or its ancestors were trained on."""
    for number, start in ((1, None), (2, "li-simpo-1"), (3, None)):
        made(client, number, tiny_adapter, start)
        await _run(client, number)
    _wrote(client, 1, [], ["seen by the parent"])
    _wrote(client, 2, ["held out", "seen by the parent", "seen by the other"], ["seen by itself"])
    _wrote(client, 3, ["held out by the other"], ["seen by the other"])
    queue = [{"message": said} for said in ("queued", "seen by itself", "held out", "later")]
    await client.post("/api/prompts", json={"prompts": queue})
    number = await begun(client, adapter="li-simpo-2", against="li-simpo-3", prompts=None, count=2)
    await client.post(f"{COMPARISONS}/{number}/stop")
    assert [one.message for one in await rounds(client)] == ["held out", "queued"]
    assert (await (await client.get("/api/prompts")).json())["data"]["counts"]["waiting"] == 4


async def _run(client: Client, number: int) -> None:
    """This run is one of this database."""
    run = Run(base_model="base", state="succeeded")

    async def add(session: AsyncSession) -> None:
        session.add(run)

    loop = client.app[LOOP]
    await loop.database.write(add)
    assert run.id == number
    (loop.settings.runs / str(number) / STARTED).write_text(run.started_at.isoformat())


def _wrote(client: Client, run: int, held_out: list[str], trained: list[str]) -> None:
    """As the recipe writes it."""
    rows = [{"system_prompt": "p", "context": [], "message": said} for said in held_out]
    folder = client.app[LOOP].settings.runs / str(run)
    (folder / FILE).write_text(json.dumps({"held_out": rows, "trained": [key(said, []) for said in trained]}))


@pytest.mark.usefixtures("new")
async def test_without_any_prompt_it_is_refused(client: Client) -> None:
    """The text says what to do; nothing is loaded."""
    body = await refused(
        await client.post(COMPARISONS, json={"adapter": "li-simpo-1"}), 409, "没有双方都未训练过的提示"
    )
    assert "prompts" in body["detail"] and client.app[LOOP].engine.loaded is None
    assert await faults(await client.post(COMPARISONS, json={"adapter": "li-simpo-1", "prompts": []})) == {"prompts"}
    assert await faults(await client.post(COMPARISONS, json={"adapter": "li-simpo-1", "count": 201})) == {"count"}


@pytest.mark.usefixtures("new")
async def test_nobody_talks_to_it_meanwhile(client: Client) -> None:
    """Generating and chatting are 503, the status names the comparison, a second one is 409; then all work."""
    await load(client)
    number = await begun(client, MANY)
    chat = {"messages": [{"role": "user", "content": "你好"}]}
    for path, body in (("/api/generate", {"message": "你好"}), ("/v1/chat/completions", chat)):
        await refused(await client.post(path, json=body), 503, "正在为对比生成回复")
    assert (await (await client.get("/api/model/status")).json())["data"]["comparison"] == number
    await refused(
        await client.post(COMPARISONS, json={"adapter": "li-simpo-1", "prompts": [{"message": "a"}]}), 409, "另一个对比"
    )
    await refused(await client.post("/api/adapters/delete", json={"adapter": "li-simpo-1"}), 409)
    assert (await client.post(f"{COMPARISONS}/{number}/stop")).status == 200
    data = await standing(client, number)
    assert (data["state"], data["reason"]) == ("failed", STOPPED)
    assert (await client.post("/api/generate", json={"message": "你好"})).status == 200
    await refused(await client.post(f"{COMPARISONS}/{number}/stop"), 409)


@pytest.mark.usefixtures("new")
async def test_an_unload_ends_it_and_what_is_answered_stays(client: Client) -> None:
    """Rounds that both sides have answered can be voted on, also after the end."""
    await load(client)
    number = await begun(client, MANY)
    await until(lambda: client.app[LOOP].engine.state == "loaded")
    while (await standing(client, number))["progress"]["answered"] < 3:
        pass
    await client.post("/api/model/unload")
    data = await standing(client, number)
    assert (data["state"], data["reason"]) == ("failed", UNLOADED) and data["progress"]["answered"] < MANY
    assert client.app[LOOP].engine.loaded is None
    await vote(client, number, (await following(client, number))["round"], "left")


@pytest.mark.usefixtures("new")
async def test_a_server_that_ends_says_so(client: Client, make_client: MakeClient) -> None:
    """After a restart it has failed, and what was answered is there; the new server compares."""
    await load(client)
    number = await begun(client, MANY)
    while not (await standing(client, number))["progress"]["replies"]:
        pass
    settings = client.app[LOOP].settings
    await client.close()
    client = await make_client(settings)
    data = await standing(client, number)
    assert (data["state"], data["reason"]) == ("failed", ENDED) and data["progress"]["replies"]
    await load(client)
    assert (await ended(client, await begun(client)))["state"] == "open"


@pytest.mark.usefixtures("new")
async def test_what_is_too_long_is_left_out(client: Client) -> None:
    """A prompt that the model cannot read is counted, and the others are answered."""
    await load(client)
    asked: list[dict[str, Any]] = [{"message": "你好"}, {"message": "长" * 2000}]
    data = await ended(client, await begun(client, prompts=asked))
    assert (data["state"], data["progress"]["answered"], data["progress"]["left_out"]) == ("open", 1, 1)
