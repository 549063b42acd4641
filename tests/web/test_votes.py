"""Votes over HTTP: blind, once for each round, with their pair or not at all; promotion by votes."""

import asyncio
import json
from typing import Any

import pytest

from prefanno.annotation import history
from prefanno.annotation.erasing import erase
from prefanno.db import comparisons
from prefanno.db.models import Annotation, Round
from prefanno.keys import LOOP
from prefanno.training import registry
from tests.conftest import Client, MakeClient
from tests.looping import everything, put_adapter
from tests.web.comparing import COMPARISONS, following, for_adapter, rounds, standing, stored, vote
from tests.web.conftest import counts, faults, refused

NEW = "li-simpo-1"


def _put(client: Client) -> None:
    settings = client.app[LOOP].settings
    put_adapter(settings, NEW, settings.model)


async def _win(client: Client, number: int) -> dict[str, Any]:
    """Vote for the adapter; what the answer says."""
    one = await following(client, number)
    voted: dict[str, Any] = (await vote(client, number, one["round"], await for_adapter(client, one["round"])))["data"]
    return voted


async def test_a_vote_is_a_pair(client: Client) -> None:
    """The preferred reply over the other, with thought, context and persona, by this annotator; undo takes it back."""
    number = await stored(client, 2)
    one = await following(client, number)
    assert one["left"] == {"content": "新 1", "thinking": "想"} and one["right"] == {"content": "旧 1"}
    voted = await vote(client, number, one["round"], "left", annotator="Ann")
    assert voted["message"] == "已记录投票，还有 1 轮"
    (pair,) = await everything(client.app[LOOP].database, Annotation)
    assert voted["data"] == {"id": pair.id, "round": one["round"], "remaining": 1, "promoted": False}
    assert (pair.mode, pair.verdict, pair.listed, pair.annotator) == ("single", "best", True, "Ann")
    assert (pair.system_prompt, pair.human_input) == ("你是离。", "问题 1？")
    assert pair.context == [{"role": "assistant", "content": "嗯"}] and pair.adapter is None
    said = [(reply["content"], reply["thinking"], reply["rank"]) for reply in pair.replies]
    assert said == [("新 1", "想", 1), ("旧 1", None, 2)]
    first = (await rounds(client))[0]
    assert (first.vote, first.annotation_id, first.annotator) == ("adapter", pair.id, "Ann")
    await client.post("/api/history/undo")
    assert await counts(client) == (0, 0) and (await standing(client, number))["votes"]["won"] == 1


async def test_each_side_and_a_tie_count_as_what_they_are(client: Client) -> None:
    """Left and right mean what was shown there, swapped or not; a tie is no pair."""
    number = await stored(client, 5)
    for choice in ("left", "left", "right", "right", "tie"):
        await vote(client, number, (await following(client, number))["round"], choice)
    assert [one.vote for one in await rounds(client)] == ["adapter", "against", "against", "adapter", "tie"]
    data = await standing(client, number)
    assert (data["votes"], data["win_rate"]) == ({"won": 2, "lost": 2, "tied": 1}, 0.5)
    assert data["interval"][0] < 0.5 < data["interval"][1] and data["verdict"] == "undecided"
    chosen = [pair.replies[0]["content"] for pair in await everything(client.app[LOOP].database, Annotation)]
    assert chosen == ["新 1", "旧 2", "旧 3", "新 4"] and await counts(client) == (4, 0)


async def test_nothing_tells_whose_reply_is_whose(client: Client) -> None:
    """Swapped, a round looks the same but for its texts, which change places; a vote's answer names no side."""
    number = await stored(client, 2, settings={"enable_thinking": True, "show_thinking": False})
    straight = json.dumps(await following(client, number), ensure_ascii=False)

    async def swap(session: Any) -> None:
        (await session.get(Round, 1)).swapped = True

    await client.app[LOOP].database.write(swap)
    swapped = json.dumps(await following(client, number), ensure_ascii=False)
    assert straight != swapped and "想" not in straight
    assert straight.replace("新", "?").replace("旧", "新").replace("?", "旧") == swapped
    voted = [await vote(client, number, (await following(client, number))["round"], "left") for _ in range(2)]
    for told in map(json.dumps, voted):
        assert not any(word in told for word in ("won", "lost", "adapter", NEW, "base", "win", "verdict"))


async def test_of_many_votes_on_a_round_at_once_one_counts(client: Client) -> None:
    """The others are told that it has its vote; there is one pair."""
    number = await stored(client, 1)
    body = {"round": 1, "vote": "left"}
    answered = await asyncio.gather(*(client.post(f"{COMPARISONS}/{number}/votes", json=body) for _ in range(8)))
    assert sorted(answer.status for answer in answered) == [200] + 7 * [409]
    await refused(next(answer for answer in answered if answer.status == 409), 409, "轮次 1 已投票")
    assert await counts(client) == (1, 0)


async def test_a_vote_sent_again_with_its_key_is_one(client: Client) -> None:
    """The answer is the first one; another vote under the key is refused."""
    number = await stored(client, 2)
    send = {"path": f"{COMPARISONS}/{number}/votes", "headers": {"Idempotency-Key": "k"}}
    bodies = [await (await client.post(**send, json={"round": 1, "vote": "left"})).json() for _ in range(2)]  # type: ignore[arg-type]
    assert bodies[0] == bodies[1] and bodies[0]["status"] == "success"
    await refused(await client.post(**send, json={"round": 2, "vote": "left"}), 409, "该 Idempotency-Key")  # type: ignore[arg-type]
    assert await counts(client) == (1, 0)


async def test_vote_and_pair_come_together_or_not_at_all(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the pair cannot be stored, the round has no vote either, and can be voted on again."""
    number = await stored(client, 1)

    async def fails(*_given: object, **_more: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(history, "add", fails)
        answer = await client.post(f"{COMPARISONS}/{number}/votes", json={"round": 1, "vote": "left"})
        assert answer.status == 500
    assert [one.vote for one in await rounds(client)] == [None] and await counts(client) == (0, 0)
    await vote(client, number, 1, "left")


async def test_what_is_not_there_is_refused(client: Client) -> None:
    """A comparison, a round, a round of another comparison, one that is not answered; a vote that is none."""
    number, other = await stored(client, 1), await stored(client, 1)

    async def unanswered(session: Any) -> None:
        (await session.get(Round, 2)).against_reply = None

    await client.app[LOOP].database.write(unanswered)
    for path, asked, status in ((f"{number}", 2, 404), (f"{number}", 9, 404), ("9", 1, 404), (f"{other}", 2, 409)):
        body = {"round": asked, "vote": "left"}
        await refused(await client.post(f"{COMPARISONS}/{path}/votes", json=body), status)
    assert await faults(await client.post(f"{COMPARISONS}/1/votes", json={"round": 1, "vote": "both"})) == {"vote"}
    for path in ("9", "9/next", "99999999999999999999"):
        await refused(await client.get(f"{COMPARISONS}/{path}"), 404)
    await refused(await client.get(f"{COMPARISONS}/{other}/next"), 409, "对比 2 没有可投票的轮次")
    waiting = await stored(client, 0, state="answering")
    await refused(await client.get(f"{COMPARISONS}/{waiting}/next"), 409, f"对比 {waiting} 暂无可投票的轮次")


async def test_the_adapter_is_promoted_once_when_it_is_better(client: Client) -> None:
    """By the vote that decides it, where that was asked for; rolled back, further votes do not promote it again."""
    _put(client)
    number = await stored(client, 60, promotes=True)
    promoted = [(await _win(client, number))["promoted"] for _ in range(40)]
    decided = promoted.index(True)
    assert 4 < decided < 30 and all(promoted[decided:])
    settings = client.app[LOOP].settings
    where = (settings.outputs, "li", settings.model)
    data = await standing(client, number)
    assert (data["verdict"], data["promoted"]) == ("better", True)
    assert data["message"].startswith(f"{NEW} 优于 base（胜率 100%，95% 区间 ")
    assert registry.read(settings.outputs).of(*where[1:]) == [NEW]
    await client.post("/api/adapters/rollback")
    await _win(client, number)
    assert registry.read(settings.outputs).of(*where[1:]) == []


async def test_without_being_asked_nothing_is_promoted(client: Client) -> None:
    """However clear the votes are."""
    _put(client)
    number = await stored(client, 40)
    assert not any([(await _win(client, number))["promoted"] for _ in range(40)])
    settings = client.app[LOOP].settings
    assert (await standing(client, number))["verdict"] == "better"
    assert registry.read(settings.outputs).promotions == []


async def test_who_loses_is_said_plainly(client: Client) -> None:
    """Worse, undecided with about how many more votes, and nothing voted yet."""
    number = await stored(client, 40)
    assert (await standing(client, number))["message"] == "尚无投票，无法判断"
    for _ in range(3):
        one = await following(client, number)
        shown = await for_adapter(client, one["round"])
        await vote(client, number, one["round"], "left" if shown == "right" else "right")
    data = await standing(client, number)
    assert data["more_votes"] and data["message"].startswith(f"尚无定论：约需再投 {data['more_votes']} 票（胜率 0%")
    for _ in range(37):
        one = await following(client, number)
        shown = await for_adapter(client, one["round"])
        await vote(client, number, one["round"], "left" if shown == "right" else "right")
    data = await standing(client, number)
    assert (data["verdict"], data["more_votes"]) == ("worse", 0)
    assert data["message"].startswith(f"{NEW} 不如 base（胜率 0%")


async def test_a_promotion_that_was_due_at_a_kill_is_made_at_the_next_start(
    client: Client, make_client: MakeClient
) -> None:
    """The vote was stored and the file not yet changed: the next server changes it; one that is gone has failed."""
    _put(client)
    kept, gone = await stored(client, 1, promotion="due"), await stored(client, 1, promotion="due", adapter="li-sft-9")
    settings = client.app[LOOP].settings
    await client.close()
    client = await make_client(settings)
    assert registry.read(settings.outputs).of("li", settings.model) == [NEW]
    assert (await standing(client, kept))["promoted"] and not (await standing(client, gone))["promoted"]
    database = client.app[LOOP].database
    async with database.read() as session:
        assert [one.id for one in await comparisons.due(session)] == ([gone] if database.shared else [])


async def test_a_promotion_waits_for_a_registry_that_can_be_read(client: Client) -> None:
    """The vote is stored, the answer says why nothing was promoted, and the next vote promotes."""
    _put(client)
    number = await stored(client, 2, promotes=True, promotion="due")
    file = client.app[LOOP].settings.outputs / registry.FILE
    file.write_text("{")
    await refused(await client.post(f"{COMPARISONS}/{number}/votes", json={"round": 1, "vote": "tie"}), 503, "adapters")
    assert (await standing(client, number))["votes"]["tied"] == 1
    file.unlink()
    assert (await vote(client, number, 2, "tie"))["data"]["promoted"]


@pytest.mark.postgresql_only
async def test_an_adapter_of_another_servers_home_stays_due(client: Client) -> None:
    """Here nothing is promoted; there the next vote, or start, promotes."""
    number = await stored(client, 2, promotes=True, promotion="due")
    assert (await vote(client, number, 1, "tie"))["data"]["promoted"] is False
    _put(client)
    assert (await vote(client, number, 2, "tie"))["data"]["promoted"] is True


@pytest.mark.sqlite_only
async def test_an_adapter_that_is_gone_is_not_promoted(client: Client) -> None:
    """The answer says so; the votes stay readable."""
    number = await stored(client, 1, promotes=True, promotion="due")
    voted = await vote(client, number, 1, "tie")
    assert voted["message"] == f"已记录投票，还有 0 轮；{NEW} 未能启用：已不存在"
    assert voted["data"]["promoted"] is False and (await standing(client, number))["votes"]["tied"] == 1


async def test_comparisons_are_listed_newest_first(client: Client) -> None:
    """The character's, each as it is by itself; of another character none."""
    numbers = [await stored(client, count) for count in (1, 2, 3)]
    await client.post("/api/characters", json={"slug": "mia", "name": "Mia"})
    body = await (await client.get(COMPARISONS, params={"limit": "2"})).json()
    assert [one["id"] for one in body["data"]["items"]] == numbers[:0:-1]
    assert body["data"]["items"][0] == await standing(client, numbers[2])
    body = await (await client.get(COMPARISONS, params={"character": "mia"})).json()
    assert body["data"] == {"character": "mia", "items": []}
    assert await faults(await client.get(COMPARISONS, params={"limit": "0"})) == {"limit"}


async def test_what_is_erased_is_gone_from_rounds_too(client: Client) -> None:
    """The round of the pair, and others that ask the same, say nothing any more; the votes stay."""
    number, other = await stored(client, 1), await stored(client, 2)
    pair = (await vote(client, number, 1, "left"))["data"]["id"]

    await client.app[LOOP].database.write(lambda session: erase(session, [pair]))
    first, last = await rounds(client)
    assert (first.vote, first.message, first.adapter_reply, first.annotation_id) == ("adapter", "", "", None)
    assert (last.comparison_id, last.message) == (other, "问题 2？")
    assert (await standing(client, number))["votes"]["won"] == 1
