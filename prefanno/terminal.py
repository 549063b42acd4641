"""What a command does in the terminal: a run with its log on the screen, an erasure that asks first."""

import asyncio
import contextlib
import signal
import sys
from typing import Any

import click

from prefanno.annotation import erasing
from prefanno.app import opened
from prefanno.db import annotations, backup, characters, copying, upgrade
from prefanno.db.annotations import Filters
from prefanno.db.engine import Database
from prefanno.errors import DatabaseUnavailable, NotFound, NoTraining, StorageFull, printable
from prefanno.settings import Postgres, Settings
from prefanno.training.config import Plan
from prefanno.training.findings import FINDINGS
from prefanno.training.log import Line
from prefanno.training.news import News
from prefanno.training.supervisor import Supervisor

SHOWN = 10  # lines of a finding


async def check(settings: Settings, plan: Plan, slug: str | None) -> int:
    """Say what a run of this plan would be trained on; return the exit code: 0 where there is something."""
    async with opened(settings) as loop:
        report = await loop.handover.check(plan, slug)
    for stage in report["stages"]:
        _describe(stage)
    needs = report["estimate"]
    print(f"needs about {needs['memory_gb']:g} GB of memory, {needs['disk_gb']:g} GB of disk, {needs['seconds']:.0f} s")
    return 0 if report["ok"] else 1


async def train(
    settings: Settings, plan: Plan, slug: str | None, *, rebuild: int | None = None, resume: int | None = None
) -> int:
    """Train on all of the character's annotations, or a run again or on; show the log; 0 with an adapter, else 1."""
    async with opened(settings) as loop:
        loop.training.follow(_show)
        if rebuild is not None:
            await loop.handover.rebuild(rebuild)
        elif resume is not None:
            await loop.handover.resume(resume)
        else:
            await loop.handover.start(plan, slug)
        interrupted = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
        stopping = asyncio.create_task(_stop_when(interrupted, loop.training))
        await loop.training.wait()
        stopping.cancel()
        run = loop.training.last_run
        assert run is not None  # noqa: S101 - it was started above
        if run.state != "succeeded":
            print(f"{run.state}: {run.reason}")
            return 1
        print(*filter(None, (run.reason, f"adapter: {settings.outputs / str(run.adapter)}")), sep="\n")
        return 0


async def erase(settings: Settings, numbers: list[int], slug: str | None, *, ask: bool) -> None:
    """Erase these annotations; of none named, all that are deleted. Says first what, and afterwards what is left."""
    async with Database.open(settings.database) as database:
        if not numbers:
            async with database.read() as session:
                filters = Filters((await characters.get(session, slug)).slug, deleted=True)
                numbers = list(await annotations.ids(session, filters))
        if not numbers:
            _rewrite(settings)  # an erasing before this one may have ended before that
            print("nothing is deleted")
            return
        try:
            async with database.read() as session:
                async for _ in annotations.parts(session, numbers):
                    pass  # all of them are there, else it says so before it asks
        except NotFound:
            _rewrite(settings)  # it may have been erased, and then this is what is left to do
            raise
        if ask:
            question = f"Erase {len(numbers)} annotations for good, with their history and candidates?"
            click.confirm(question, abort=True)
        erased = await database.write(lambda session: erasing.erase(session, numbers))
    print(
        f"erased {erased.annotations} annotations, {erased.events} events of their history, {erased.generations} "
        f"generations with their candidates; {erased.kept} generations stay: later turns or other choices need them",
        flush=True,
    )
    _rewrite(settings)
    for folder in (settings.data, settings.data / backup.FOLDER):
        backup.clear(folder)
    print(f"not touched: exported files, copies in {settings.runs}, backups in {settings.data / 'backups'}, adapters")


def copy(settings: Settings, server: Postgres) -> None:
    """Copy the SQLite file to the server, with a bar on a terminal; print what each table holds on both sides."""
    file = settings.database_file
    if not file.exists():
        raise DatabaseUnavailable(f"there is no database {file} to copy")
    for where in (file, server):
        upgrade.upgrade(where)
    rows = asyncio.run(copying.size(file))
    hidden = not sys.stderr.isatty()
    with click.progressbar(length=rows, label="copying", file=sys.stderr, hidden=hidden) as bar:
        copied = asyncio.run(copying.copy(file, server, bar.update))
    print(f"{'table':<18}{'rows':>10}  sha256, the same on both sides")
    for name, found in copied.items():
        print(f"{name:<18}{found.rows:>10}  {found.sha256}")
    print(f"copied {file} to {server}; the file is left as it is")


def _describe(stage: dict[str, Any]) -> None:
    tokens = stage["tokens"]
    print(
        f"{stage['method']} on {stage['dataset']}: {stage['examples']} examples of {stage['rows']} rows, "
        f"{stage['steps']} steps; {tokens['prompt']} tokens of prompts, {tokens['chosen']} chosen, "
        f"{tokens['rejected']} rejected; {tokens['left_out']} tokens left out, none cut"
    )
    for code, count in sorted(stage["counts"].items()):
        action, text = FINDINGS[code]
        print(f"  {action.replace('_', ' ')}: {count} × {text}")
        for one in [one for one in stage["findings"] if one["code"] == code and one["line"]][:SHOWN]:
            print(f"    line {one['line']}, {printable(one['said'])!r} {printable(one['detail'])}".rstrip())
    for example in stage["rendered"]:
        print(f"  line {example['line']}, {example['tokens']} tokens:")
        for part in ("prompt", "chosen", "rejected"):
            if part in example:
                print(f"    {part}: {printable(repr(example[part]))}")


def _rewrite(settings: Settings) -> None:
    """Else the words of what was erased would lie in the database until something is written over them."""
    try:
        upgrade.rewrite(settings.database)
    except (DatabaseUnavailable, StorageFull) as error:
        raise DatabaseUnavailable(
            f"the words of what was erased may still lie in {settings.database}, which could not be written anew: "
            f"{error}. Then run the same `prefanno erase` again: it does what is left, also where nothing is to erase"
        ) from error


def _show(news: News) -> None:
    if isinstance(news, Line):
        print(f"{news.time}  {printable(news.message)}", flush=True)


async def _stop_when(interrupted: asyncio.Event, training: Supervisor) -> None:
    """The first Ctrl-C lets the run save, the second does not."""
    async with asyncio.TaskGroup() as stops:
        for save in (True, False):
            await interrupted.wait()
            interrupted.clear()
            print("stopping the run", *["when it has saved; Ctrl-C again: at once"] * save, flush=True)
            stops.create_task(_stop(training, save))


async def _stop(training: Supervisor, save: bool) -> None:
    with contextlib.suppress(NoTraining):
        await training.stop(save=save)
