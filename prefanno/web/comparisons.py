"""Comparisons: two adapters answer the same prompts, and people vote without knowing whose reply is whose."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno import voting
from prefanno.arena import comparisons as arena
from prefanno.arena.comparisons import Reply, Standing
from prefanno.arena.interval import LEVEL
from prefanno.db import comparisons
from prefanno.db.comparisons import Tally
from prefanno.db.models import Comparison, Round
from prefanno.keys import LOOP
from prefanno.matchup import Asking
from prefanno.training.held_out import Asked
from prefanno.web import answers
from prefanno.web import comparison_answers as compared
from prefanno.web.comparison_schemas import CompareSchema, ComparisonsSchema, VoteSchema
from prefanno.web.endpoint import done, endpoint, number
from prefanno.web.fields import Nothing
from prefanno.web.writing import written

PROMOTIONS = {"done": "；{} 已启用", "failed": "；{} 未能启用：已不存在"}


@endpoint("Compare two adapters", body=CompareSchema, answer=compared.Begun, failures=(409, 503, 507), keyed=False)
async def start(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Both sides begin to answer; a round that both have answered can be voted on at once."""
    loop = request.app[LOOP]
    given, promotes = body.pop("prompts"), body.pop("promote")
    prompts = None if given is None else [Asked("", one["context"], one["message"]) for one in given]
    comparison = await loop.comparing.start(Asking(**body, prompts=prompts, promotes=promotes))
    async with loop.database.read() as session:
        tally = await comparisons.tally(session, comparison.id)
    names = {name: getattr(comparison, name) for name in ("id", "character", "adapter", "against")}
    return done(f"对比已开始：{comparison.adapter} 与 {comparison.against}", names | {"prompts": tally.rounds})


@endpoint("Comparisons", query=ComparisonsSchema, answer=compared.Comparisons, failures=(503,))
async def show(request: web.Request, query: dict[str, Any]) -> web.Response:
    """The character's, the newest first, with their verdicts."""
    loop = request.app[LOOP]
    async with loop.database.read() as session:
        slug = (await loop.meant(session, query["character"])).slug
        found = await comparisons.of_character(session, slug, query["limit"])
        tallies = await comparisons.tallies(session, [one.id for one in found])
    return done("对比列表", {"character": slug, "items": [_view(one, tallies[one.id]) for one in found]})


@endpoint("One comparison", answer=compared.OneComparison, failures=(404, 503))
async def read(request: web.Request) -> web.Response:
    """How far it is, the votes, and what they say."""
    async with request.app[LOOP].database.read() as session:
        comparison = await comparisons.get(session, number(request))
        view = _view(comparison, await comparisons.tally(session, comparison.id))
    return done(view["message"], view)


@endpoint("The next round to vote on", answer=compared.NextRound, failures=(404, 409, 503), keyed=False)
async def following(request: web.Request) -> web.Response:
    """What was asked, and both replies, on sides that were drawn by lot."""
    async with request.app[LOOP].database.read() as session:
        comparison = await comparisons.get(session, number(request))
        one, remaining = await arena.following(session, comparison.id)
    return done("请选择更好的回复", _round(one, comparison.settings) | {"remaining": remaining})


@endpoint("Vote on a round", body=VoteSchema, answer=compared.Voted, failures=(404, 409, 503, 507))
async def vote(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Store the vote, and the pair that follows from it; whose reply it was for is not said."""
    loop, comparison_id = request.app[LOOP], number(request)

    async def work(session: AsyncSession) -> dict[str, Any]:
        voted = (comparison_id, body["round"], body["vote"], body["annotator"])
        pair = await voting.vote(session, *voted)
        _, remaining = await comparisons.next_round(session, comparison_id)
        return {"id": pair, "round": body["round"], "remaining": remaining}

    data = await written(request, work)
    promotion = await voting.promote_due(loop.settings, loop.database, comparison_id)
    async with loop.database.read() as session:
        adapter = (await comparisons.get(session, comparison_id)).adapter
    message = f"已记录投票，还有 {data['remaining']} 轮{PROMOTIONS.get(promotion or '', '').format(adapter)}"
    return done(message, data | {"promoted": promotion == "done"})


@endpoint(
    "Stop a comparison",
    body=Nothing,
    body_required=False,
    answer=answers.Done,
    failures=(404, 409, 503, 507),
    keyed=False,
)
async def stop(request: web.Request, _body: dict[str, Any]) -> web.Response:
    """Write no more replies; the rounds that both sides have answered stay."""
    await request.app[LOOP].comparing.stop(number(request))
    return done("对比已停止，已完成的轮次仍可投票")


def _view(one: Comparison, tally: Tally) -> dict[str, Any]:
    standing = arena.standing(tally)
    return {
        "id": one.id,
        "character": one.character,
        "base_model": one.base_model,
        "adapter": one.adapter,
        "against": one.against,
        "seed": one.seed,
        "state": one.state,
        "reason": one.reason,
        "progress": {
            "prompts": tally.rounds,
            "answered": tally.answered,
            "replies": tally.replies,
            "left_out": one.left_out,
        },
        "votes": {"won": tally.won, "lost": tally.lost, "tied": tally.tied},
        "win_rate": standing.win_rate,
        "interval": [standing.interval.low, standing.interval.high],
        "level": LEVEL,
        "verdict": standing.verdict,
        "more_votes": standing.more_votes,
        "promote": one.promotes,
        "promoted": one.promotion == "done",
        "message": _said(one, standing),
        "created_at": _time(one.created_at),
        "ended_at": _time(one.ended_at) if one.ended_at else None,
    }


def _said(one: Comparison, standing: Standing) -> str:
    """The verdict, plainly."""
    low, high = (f"{bound:.0%}" for bound in (standing.interval.low, standing.interval.high))
    if standing.win_rate is None:
        return "尚无投票，无法判断"
    rate = f"胜率 {standing.win_rate:.0%}，{LEVEL:.0%} 区间 {low} 到 {high}"
    if standing.verdict != "undecided":
        return f"{one.adapter} {'优于' if standing.verdict == 'better' else '不如'} {one.against}（{rate}）"
    more = f"约需再投 {standing.more_votes} 票" if standing.more_votes else "双方相近，再投一千票也未必能分出高下"
    return f"尚无定论：{more}（{rate}）"


def _round(one: Round, settings: Mapping[str, Any]) -> dict[str, Any]:
    replies, (left, right) = arena.replies(one), arena.shown(one)
    thinks = bool(settings.get("enable_thinking") and settings.get("show_thinking"))
    return {
        "round": one.id,
        "message": one.message,
        "context": one.context,
        "left": _reply(replies[left], thinks=thinks),
        "right": _reply(replies[right], thinks=thinks),
    }


def _reply(reply: Reply, *, thinks: bool) -> dict[str, str]:
    return {"content": reply.content} | ({"thinking": reply.thinking} if thinks and reply.thinking else {})


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds") + "Z"
