"""`prefanno adapters`: the commands about adapters; each is a few lines over one call."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import click

from prefanno import home, settings


@click.group()
def adapters() -> None:
    """What was trained: which there are, and which of them a load takes by itself."""


def _character(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--character", help="A character's slug; default: the current one.")(command)


@adapters.command("list")
@_character
def adapters_list(character: str | None) -> None:
    """The character's adapters, the newest first; * is the one that a load takes."""
    from prefanno import shelf

    asyncio.run(shelf.show(settings.read(), character))


@adapters.command("promote")
@_character
@click.argument("name")
def adapters_promote(name: str, character: str | None) -> None:
    """Let a load take this one from now on; "base" is the base model as it is."""
    from prefanno import shelf

    asyncio.run(shelf.promote(settings.read(), character, name))


@adapters.command("rollback")
@_character
def adapters_rollback(character: str | None) -> None:
    """Take the last promotion back."""
    from prefanno import shelf

    asyncio.run(shelf.roll_back(settings.read(), character))


@adapters.command("note")
@click.argument("name")
@click.argument("text")
def adapters_note(name: str, text: str) -> None:
    """Keep a note with an adapter, in place of the one before; an empty TEXT is none."""
    from prefanno.training import registry

    registry.note(settings.read().outputs, name, text)


@adapters.command("export")
@click.argument("name")
@click.option("--to", required=True, type=click.Path(path_type=Path, file_okay=False), help="A new folder.")
@click.option("--gguf", is_flag=True, help="Convert it for llama.cpp, too, by its own converter.")
def adapters_export(name: str, to: Path, gguf: bool) -> None:
    """Merge an adapter into its base model, for other programs; works while the server runs."""
    from prefanno import shelf

    shelf.export(settings.read(), name, to.resolve(), gguf=gguf)


@adapters.command("delete")
@click.argument("name")
def adapters_delete(name: str) -> None:
    """Delete an adapter for good; refused where it is promoted."""
    from prefanno import shelf

    current = settings.read()
    with home.owned(current):  # else it may be loaded
        shelf.delete(current, name)
