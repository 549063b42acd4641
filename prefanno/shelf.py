"""What the commands about adapters do in the terminal; they work while the server runs."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from prefanno.db import characters, upgrade
from prefanno.db.engine import Database
from prefanno.db.file import HEAD
from prefanno.errors import DatabaseUnavailable, TrainingRunning, printable
from prefanno.generation import base_model
from prefanno.settings import Settings
from prefanno.training import adapters, merging, registry, run_folder

MEGABYTE = 1e6


async def show(settings: Settings, slug: str | None) -> None:
    """One line for each adapter of the character."""
    slug = await _slug(settings, slug)
    items = registry.listed(settings.outputs, slug, settings.model)
    for item in items:
        one = item.adapter
        promoted = ["promoted"] if item.promoted else []
        facts = [f"run {one.run}", f"on {one.base_model}", f"{one.bytes / MEGABYTE:.1f} MB", *promoted]
        note = f" – {printable(item.note)}" if item.note else ""
        click.echo(f"{'*' if item.chosen else ' '} {one.name}: {', '.join(facts)}{note}")
    if not any(item.chosen for item in items):
        click.echo(f"* {registry.BASE}: {settings.model} without an adapter")


async def promote(settings: Settings, slug: str | None, name: str) -> None:
    """Promote, and say what is in force."""
    await _change(settings, slug, partial(registry.promote, name=name))


async def roll_back(settings: Settings, slug: str | None) -> None:
    """Take the last promotion back, and say what is in force."""
    await _change(settings, slug, registry.roll_back)


def delete(settings: Settings, name: str) -> None:
    """Delete an adapter. Raises TrainingRunning where a run that outlived its server may go on from it."""
    for folder in settings.runs.iterdir():
        if not (folder / "exit.json").exists() and run_folder.may_go_on(folder):
            raise TrainingRunning
    shutil.rmtree(registry.take_away(settings.outputs, name))


def export(settings: Settings, name: str, folder: Path, *, gguf: bool) -> None:
    """Write an adapter merged into the base model that it was trained on, whichever the settings name."""
    adapter = adapters.get(settings.outputs, name)
    converter = merging.converter() if gguf else None
    base = base_model.resolve(replace(settings, model=adapter.base_model))
    merging.merge(adapter, base, folder)
    click.echo(f"model: {folder}")
    if converter is not None:
        click.echo("converting it for llama.cpp")
        click.echo(f"GGUF: {merging.convert(converter, folder, name)}")


async def _change(settings: Settings, slug: str | None, change: Callable[..., None]) -> None:
    where = settings.outputs, await _slug(settings, slug), settings.model
    change(*where)
    chosen = registry.chosen(*where)
    click.echo(f"the next load of {where[1]} takes {chosen.name if chosen else registry.BASE}")


async def _slug(settings: Settings, slug: str | None) -> str:
    if upgrade.revision(settings.database) != HEAD:
        raise DatabaseUnavailable(f"no up-to-date database at {settings.database}; run `prefanno db upgrade` first")
    async with Database.open(settings.database) as database, database.read() as session:
        return (await characters.get(session, slug)).slug
