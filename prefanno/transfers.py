"""What commands that export or import do in the terminal: show progress, say what was written and what is wrong."""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, repeat
from pathlib import Path

import click

from prefanno import persona, prompt_files, prompts, snapshot
from prefanno.annotation import imports
from prefanno.annotation.export import export
from prefanno.annotation.imports import Options, Place, Report, Source
from prefanno.db import annotations, characters
from prefanno.db.engine import Database
from prefanno.errors import ImportStopped, InvalidInput, printable
from prefanno.rows import Fault, reader, writer
from prefanno.settings import Settings
from prefanno.snapshot import Manifest
from prefanno.training.run_folder import folder_of

SHOWN = 20  # bad rows on the terminal: a file read as another format is bad in every line


async def write_files(settings: Settings, form: str, folder: Path, slug: str | None) -> None:
    """Export a character's annotations and say what was written."""
    writer(form)  # an unknown one is told before anything is read
    _collect_seldom()
    async with Database.open(settings.database) as database:
        async with database.read() as session:
            character = (await characters.get(session, slug)).slug
            size = await annotations.undeleted(session, character)
        with _bar("exporting", size) as tell:
            manifest = await export(database, form, folder, character, tell=tell)
    _say(folder, manifest)


async def give_back(settings: Settings, run: int, folder: Path) -> None:
    """Copy the data that a run was trained on, verified, and say what was written."""
    async with Database.open(settings.database) as database:
        data = (await folder_of(settings, database, run)) / "data"
    _say(folder, snapshot.give_back(data, folder))


async def read_files(settings: Settings, form: str, files: Sequence[Path], slug: str | None, options: Options) -> bool:
    """Import files, say what was found; return whether all of it could be used. Ctrl-C stops it, nothing is stored."""
    reads = reader(form)
    for file in files:
        if not file.is_file():  # it is read twice
            fault = "不是普通文件，请先将内容保存为文件"
            english = f"{file} is no regular file, such as a pipe; save it to a file first"
            raise InvalidInput({str(file): [fault]}, english=english)
    _collect_seldom()
    async with Database.open(settings.database) as database:
        async with database.read() as session:
            character = await characters.get(session, slug)
        source = Source(reads, files, character.slug, persona.of(character, settings))
        with _bar("rows compared and stored", None) as tell, _interruptible(tell) as stoppable:
            report = await imports.load(database, source, options, stoppable)
    _tell_bad(report, form)
    _tell_near(report, options)
    stored = "would be added" if options.dry_run else "annotations added"
    click.echo(f"{report.added} {stored}, {report.duplicates} were there already, or twice in the files")
    whole = options.skip_bad or not report.bad
    if not whole:
        click.echo("nothing is stored because of the bad rows; --skip-bad stores the others", err=True)
    return whole


async def queue_up(settings: Settings, form: str | None, files: Sequence[Path], slug: str | None) -> bool:
    """Queue up the prompts of files, say what was found; return whether all of it could be used, else nothing is."""
    lines = ((Place(file, line), one) for file in files for line, one in prompt_files.read(file, form))
    found = list(islice(lines, prompts.MOST + 1))  # more can never be queued, and a file may have no end
    bad = [(place, one) for place, one in found if isinstance(one, Fault)]
    asked = [one for _, one in found if not isinstance(one, Fault)]
    _tell_bad(Report(bad=len(bad), bad_rows=bad, good=len(asked)), form or "prompts")
    if bad:
        click.echo("nothing is queued because of these", err=True)
        return False
    async with Database.open(settings.database) as database:
        async with database.read() as session:
            character = (await characters.get(session, slug)).slug
        added = await database.write(lambda session: prompts.add(session, character, asked))
    click.echo(f"{len(added.ids)} prompts queued, {added.duplicates} were there already, or twice in the files")
    return True


def _say(folder: Path, manifest: Manifest) -> None:
    for name, file in manifest.files.items():
        click.echo(f"{file.rows} rows in {folder / name}")
    for loss, rows in manifest.losses.items():
        click.echo(f"the format {manifest.format} cannot hold `{loss}`: {rows} rows (see docs/exporters.md)")
    click.echo(f"manifest: {folder / manifest.name}")


def _tell_bad(report: Report, form: str) -> None:
    for place, fault in report.bad_rows[:SHOWN]:
        click.echo(f"{_at(place)}: {fault}", err=True)
    if report.bad > SHOWN:
        click.echo(f"and {report.bad - SHOWN} bad rows more", err=True)
    if report.bad and not report.good:
        click.echo(f"read as {form}; is --format right?", err=True)


def _tell_near(report: Report, options: Options) -> None:
    for place in report.near_rows:
        click.echo(f"{_at(place)}: near duplicate", err=True)
    if report.near:
        click.echo(
            f"{report.near} near duplicates (but for case, punctuation, white space) were "
            + ("left out" if options.skip_near else "not left out; --skip-near leaves them out")
        )


def _collect_seldom() -> None:
    """Rows come and go without cycles: looking for these every 700 objects took a quarter of a large export."""
    gc.freeze()
    gc.set_threshold(20_000)


def _at(place: Place) -> str:
    return f"{printable(str(place.file))}, line {place.line}"


@contextmanager
def _bar(label: str, length: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, nothing elsewhere; where the length is not known, a counter."""
    hidden, endless = not sys.stderr.isatty(), repeat(None) if length is None else None
    with click.progressbar(endless, length, label, show_pos=True, file=sys.stderr, hidden=hidden) as bar:
        yield bar.update


@contextmanager
def _interruptible(tell: Callable[[int], None]) -> Iterator[Callable[[int], None]]:
    """`tell`, which raises ImportStopped after Ctrl-C: a transaction under way must be undone, not cut off."""
    loop, interrupted = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, interrupted.set)

    def stoppable(rows: int) -> None:
        if interrupted.is_set():
            raise ImportStopped
        tell(rows)

    try:
        yield stoppable
    finally:
        loop.remove_signal_handler(signal.SIGINT)
