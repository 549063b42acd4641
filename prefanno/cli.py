"""The command line: each command is a few lines over one call."""

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from prefanno import __version__, home, settings
from prefanno.adapter_commands import adapters
from prefanno.database_commands import db
from prefanno.db import file, upgrade
from prefanno.errors import DatabaseUnavailable, PrefannoError, printable


def main() -> None:
    """Run the command; an error that prefanno knows is one line, not a traceback."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (PrefannoError, ValueError, OSError) as error:
        said = error.strerror if isinstance(error, OSError) and not error.filename else None
        sys.exit("prefanno: " + printable(" ".join((said or str(error)).split())))


@click.group(epilog="Settings: " + "; ".join(f"{name} ({text})" for name, _, text in settings.describe()))
@click.version_option(__version__)
def cli() -> None:
    """Turn taste into a model: generate, choose, train, reload, on one machine."""


cli.add_command(adapters)
cli.add_command(db)


@cli.command()
def serve() -> None:
    """Start the server on http://localhost:8000."""
    from prefanno import server

    server.serve(settings.read())


@cli.command("export")
@click.option("--format", "form", show_default="sharegpt", help="A format (see docs/exporters.md).")
@click.option("--to", type=click.Path(path_type=Path, file_okay=False), help="Folder; default: the home's data/.")
@click.option("--character", help="A character's slug; default: the current one.")
@click.option(
    "--run", type=click.IntRange(1, 10**18 - 1), help="The data that this run was trained on, verified; needs --to."
)
def export_command(form: str | None, to: Path | None, character: str | None, run: int | None) -> None:
    """Write a character's annotations to files, from one snapshot; works while the server runs."""
    from prefanno import transfers

    current = settings.read()
    if run is not None and to is None:
        raise click.UsageError("--run needs --to, the folder for its files")
    if run is not None and (form or character):
        raise click.UsageError(
            "--run gives the files as they were exported: it goes with neither --format nor --character"
        )
    if upgrade.revision(current.database) != file.HEAD:
        raise DatabaseUnavailable(f"no up-to-date database at {current.database}; run `prefanno db upgrade` first")
    if run is not None and to is not None:
        asyncio.run(transfers.give_back(current, run, to))
    else:
        asyncio.run(transfers.write_files(current, form or "sharegpt", to or current.data, character))


@cli.command("import")
@click.option("--format", "form", default="sharegpt", show_default=True, help="A format (see docs/exporters.md).")
@click.option("--character", help="A character's slug; default: the current one.")
@click.option("--dry-run", is_flag=True, help="Only say what is in the files.")
@click.option("--skip-bad", is_flag=True, help="Store the good rows of files with bad ones.")
@click.option("--skip-near", is_flag=True, help="Leave out near duplicates, too.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def import_command(form: str, character: str | None, files: tuple[Path, ...], **options: bool) -> None:
    """Add the annotations of these FILES as one step, all or none; those already there are left out."""
    from prefanno import transfers
    from prefanno.annotation.imports import Options

    with _writing() as current:
        whole = asyncio.run(transfers.read_files(current, form, files, character, Options(**options)))
    sys.exit(0 if whole else 1)


@cli.group("prompts")
def prompts_group() -> None:
    """The queue of prompts."""


@prompts_group.command("import")
@click.option("--format", "form", type=click.Choice(("text", "jsonl")), help="Default: jsonl for *.jsonl, else text.")
@click.option("--character", help="A character's slug; default: the current one.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def prompts_import(form: str | None, character: str | None, files: tuple[Path, ...]) -> None:
    """Queue up the prompts of these FILES, all or none; those in the queue already are left out."""
    from prefanno import transfers

    with _writing() as current:
        whole = asyncio.run(transfers.queue_up(current, form, files, character))
    sys.exit(0 if whole else 1)


@cli.command()
@click.argument("ids", nargs=-1, type=click.IntRange(1, 10**18 - 1))
@click.option("--deleted", is_flag=True, help="All annotations of the character that are deleted.")
@click.option("--character", help="A character's slug; default: the current one.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def erase(ids: tuple[int, ...], deleted: bool, character: str | None, yes: bool) -> None:
    """Remove annotations for good, with their history and the candidates they were chosen from."""
    from prefanno import terminal

    if bool(ids) == deleted:
        raise click.UsageError("name annotations by their ids, or all deleted ones by --deleted")
    if ids and character:
        raise click.UsageError("--character goes with --deleted; an id needs no character")
    with _writing() as current:
        asyncio.run(terminal.erase(current, list(dict.fromkeys(ids)), character, ask=not yes))


@cli.command()
@click.option("--character", help="A character's slug; default: the current one.")
@click.option("--method", "methods", multiple=True, help="A stage's method; more than one: stages in this order.")
@click.option("--set", "values", multiple=True, metavar="NAME=VALUE", help="A hyperparameter of every stage.")
@click.option("--adapter", help="Go on from this adapter; default: fresh from the base model.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1))
@click.option("--no-guard", is_flag=True, help="Do not stop a run that breaks the model.")
@click.option("--checkpointing", is_flag=True, help="Keep less for the backward pass: less memory, more time.")
@click.option("--rebuild", type=click.IntRange(1, 10**18 - 1), metavar="RUN", help="Train again what this run trained.")
@click.option("--resume", type=click.IntRange(1, 10**18 - 1), metavar="RUN", help="Go on from its last checkpoint.")
@click.option("--check", is_flag=True, help="Only say what would be trained on.")
def train(  # noqa: PLR0913, PLR0917 - the options
    character: str | None,
    methods: tuple[str, ...],
    values: tuple[str, ...],
    adapter: str | None,
    seed: int,
    no_guard: bool,
    checkpointing: bool,
    rebuild: int | None,
    resume: int | None,
    check: bool,
) -> None:
    """Train on all of a character's annotations, without a server; Ctrl-C stops the run after it has saved."""
    from prefanno import terminal
    from prefanno.training.config import Plan, asked

    if (rebuild or resume) and (
        character or methods or values or adapter or seed or no_guard or checkpointing or check or (rebuild and resume)
    ):
        raise click.UsageError("--rebuild and --resume train a run as it was: they go with no other option")
    stages = asked(methods, values)
    plan = Plan(stages, adapter, seed=seed, guard=not no_guard, activation_checkpointing=checkpointing)
    with _owned() as current:
        if check:
            sys.exit(asyncio.run(terminal.check(current, plan, character)))
        sys.exit(asyncio.run(terminal.train(current, plan, character, rebuild=rebuild, resume=resume)))


@cli.command()
def doctor() -> None:
    """Check this machine and this home, and say what to mend."""
    from prefanno import checks

    failed = False
    for check in checks.run(settings.read()):
        failed = failed or not check.ok
        click.echo(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.text}")
    sys.exit(1 if failed else 0)


@contextlib.contextmanager
def _owned() -> Iterator[settings.Settings]:
    """The settings, with the home owned and its database at the newest schema."""
    current = settings.read()
    with home.owned(current):
        upgrade.upgrade(current.database)
        yield current


@contextlib.contextmanager
def _writing() -> Iterator[settings.Settings]:
    """The settings, for a command that writes to the database only: PostgreSQL lets one write beside a server."""
    current = settings.read()
    if isinstance(current.database, Path):
        with _owned():
            yield current
    else:
        upgrade.upgrade(current.database)
        yield current
