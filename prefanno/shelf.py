"""What the commands about adapters do in the terminal; they work while the server runs."""

from collections.abc import Callable
from functools import partial

import click

from prefanno.db import characters
from prefanno.db.engine import Database
from prefanno.errors import printable
from prefanno.settings import Settings
from prefanno.training import adapters, registry

MEGABYTE = 1e6


async def show(settings: Settings, slug: str | None) -> None:
    """One line for each adapter of the character."""
    slug = await _slug(settings, slug)
    chosen = registry.chosen(settings.outputs, slug, settings.model)
    said = registry.read(settings.outputs)
    mine = [one for one in adapters.every(settings.outputs) if one.character == slug]
    for one in sorted(mine, key=lambda one: one.number, reverse=True):
        mark = "*" if chosen is not None and chosen.name == one.name else " "
        promoted = ["promoted"] if said.of(slug, one.base_model)[-1:] == [one.name] else []
        facts = [f"run {one.run}", f"on {one.base_model}", f"{one.bytes / MEGABYTE:.1f} MB", *promoted]
        click.echo(f"{mark} {one.name}: {', '.join(facts)}" + _note(said.notes.get(one.name)))
    if chosen is None:
        click.echo(f"* {registry.BASE}: {settings.model} without an adapter")


async def promote(settings: Settings, slug: str | None, name: str) -> None:
    """Promote, and say what is in force."""
    await _change(settings, slug, partial(registry.promote, name=name))


async def roll_back(settings: Settings, slug: str | None) -> None:
    """Take the last promotion back, and say what is in force."""
    await _change(settings, slug, registry.roll_back)


async def _change(settings: Settings, slug: str | None, change: Callable[..., None]) -> None:
    where = settings.outputs, await _slug(settings, slug), settings.model
    change(*where)
    chosen = registry.chosen(*where)
    click.echo(f"the next load of {where[1]} takes {chosen.name if chosen else registry.BASE}")


async def _slug(settings: Settings, slug: str | None) -> str:
    async with Database.open(settings.database) as database, database.read() as session:
        return (await characters.get(session, slug)).slug


def _note(text: str | None) -> str:
    return f" – {printable(text)}" if text else ""
