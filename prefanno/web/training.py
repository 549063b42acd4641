"""Checking, starting and stopping a run, and what it measured."""

import asyncio
from dataclasses import asdict, fields
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, cast

from aiohttp import web

from prefanno.db import characters, runs
from prefanno.db.models import Run
from prefanno.errors import NotFound
from prefanno.keys import LOOP
from prefanno.training import metrics, run_folder
from prefanno.training.config import SAVED, Plan
from prefanno.training.run_folder import folder_of
from prefanno.web import answers, training_answers
from prefanno.web.endpoint import done, endpoint
from prefanno.web.training_answers import MESSAGES
from prefanno.web.training_schemas import MetricsSchema, PlanSchema, RunsSchema, StartSchema, StopSchema

RECENT = 50  # lines in the status


@endpoint(
    "Start training",
    body=StartSchema,
    body_required=False,
    answer=answers.Done,
    failures=(404, 409, 503, 507),
    keyed=False,
)
async def start(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Export all choices of the character and train on them; or train again what a run trained, or let one go on."""
    handover, moves = request.app[LOOP].handover, {"unload": body["unload_model"], "reload": body["reload_model"]}
    if body["rebuild"] is not None:
        await handover.rebuild(body["rebuild"], **moves)
    elif body["resume"] is not None:
        await handover.resume(body["resume"], **moves)
    else:
        await handover.start(_plan(body), body["character"], **moves)
    return done("训练已启动，请通过 WebSocket /ws/train/logs 获取实时日志")


@endpoint(
    "Check before training",
    body=PlanSchema,
    body_required=False,
    answer=training_answers.Checked,
    failures=(409, 503, 507),
    keyed=False,
)
async def check(request: web.Request, body: dict[str, Any]) -> web.Response:
    """What a run would be trained on, without training: each finding, what is left out, and what the run will take."""
    report = await request.app[LOOP].handover.check(_plan(body), body["character"])
    for stage in report["stages"]:
        for finding in stage["findings"]:
            finding["message"] = MESSAGES[finding["code"]]
    return done("训练数据检查完成" if report["ok"] else "没有可训练的数据：所有数据都被排除", report)


@endpoint("What a run measured", query=MetricsSchema, answer=training_answers.Metrics, failures=(404,))
async def measured(request: web.Request, query: dict[str, Any]) -> web.Response:
    """Steps, evaluations, probes and alarms in their order; `next` is where the next call goes on."""
    loop = request.app[LOOP]
    last = loop.training.last_run
    if query["run"] is None and last is None:
        raise NotFound("there is no run yet", "还没有训练记录")
    number = query["run"] or cast(Run, last).id
    folder = await folder_of(loop.settings, loop.database, number)
    items, behind = await asyncio.to_thread(metrics.read, folder, query["after"], query["limit"])
    return done("训练指标", {"run": number, "items": items, "next": behind})


def _plan(body: dict[str, Any]) -> Plan:
    return Plan(**{field.name: body[field.name] for field in fields(Plan)})


@endpoint("Stop training", body=StopSchema, body_required=False, answer=answers.Done, failures=(503, 507))
async def stop(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Answered when no process of the run is alive; with `save` the run saves a checkpoint first, to be resumed."""
    run = await request.app[LOOP].training.stop(save=body["save"])
    if not body["save"]:
        return done("训练已停止")
    if run.state == "succeeded":
        return done("训练已完成")
    return done(f"训练已停止，{'检查点已保存' if run.exit_code == SAVED else '未能保存检查点'}")


@endpoint("Whether a run is under way", answer=training_answers.TrainStatus)
async def status(request: web.Request) -> web.Response:
    """State, the last lines, and how the last run ended."""
    training = request.app[LOOP].training
    lines = training.news.log.lines
    recent = islice(lines, max(0, len(lines) - RECENT), None)
    return done(
        "running" if training.running else "idle",
        {
            "running": training.running,
            "log_count": training.news.log.count,
            "recent_logs": [asdict(line) for line in recent],
            "last_run": await asyncio.to_thread(_view, request.app[LOOP].settings.runs, training.last_run),
        },
    )


@endpoint("Runs", query=RunsSchema, answer=training_answers.Runs)
async def show(request: web.Request, query: dict[str, Any]) -> web.Response:
    """The character's, the last first: how each ended, and whether it can be resumed."""
    loop = request.app[LOOP]
    async with loop.database.read() as session:
        slug = (await characters.get(session, query["character"])).slug
        found = await runs.of_character(session, slug, query["limit"])
    items = await asyncio.to_thread(lambda: [_view(loop.settings.runs, run) for run in found])
    return done("训练记录", {"character": slug, "items": items})


def _view(folders: Path, run: Run | None) -> dict[str, Any] | None:
    if run is None:
        return None
    return {
        "id": run.id,
        "state": run.state,
        "character": run.character,
        "base_model": run.base_model,
        "resumable": run_folder.resumable(folders, run),
        "started": _time(run.started_at),
        "resumed": _time(run.resumed_at) if run.resumed_at else None,
        "ended": _time(run.ended_at) if run.ended_at else None,
        "exit_code": run.exit_code,
        "reason": run.reason,
        "adapter": run.adapter if run.state == "succeeded" else None,
    }


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds") + "Z"
