"""The operator's settings: one frozen, typed table, read from PREFANNO_* variables.

The docs and `prefanno serve --help` read the same table (`describe`). An unknown PREFANNO_ name is an error, because a
misspelt setting that is silently ignored costs an evening.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prefanno.errors import InvalidSetting

PREFIX = "PREFANNO_"
LOOPBACKS = ("127.0.0.1", "::1")
DEV_ORIGINS = tuple(f"http://{host}:{port}" for host in ("localhost", "127.0.0.1") for port in (5173, 3000, 8080))
DEMO = "demo"
MAX_PORT = 65535
RANGES = {"PREFANNO_PORT": (1, MAX_PORT), "PREFANNO_PROMPTS_AHEAD": (0, 10_000)}
HERE = Path()
UNENCODED = re.compile(r"(@|%(?![0-9A-Fa-f]{2})).*@")  # before the host: a password as it is


def _setting(default: Any, text: str, *, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"help": text})


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL database; as text it has no password, so that it can stand in an error and in a log."""

    url: str = field(repr=False)

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"PostgreSQL {parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclass(frozen=True)
class Settings:
    """Every setting, with its default and what it is for."""

    host: tuple[str, ...] = _setting(LOOPBACKS, "addresses to listen on; only loopback addresses are accepted")
    port: int = _setting(8000, "port to listen on, 1-65535")
    home: Path = _setting(HERE, "folder with data/, outputs/ and runs/; default: the current folder")
    model: str = _setting(DEMO, "base model: a folder, a hub id, or `demo` (SmolLM2-135M-Instruct)")
    database_url: str = _setting("", "postgresql://user:password@host/name; default: an SQLite file", secret=True)
    system_prompt: str = _setting("", "the persona's text; default: 离, in the base model's language")
    train_script: str = _setting("", "script that trains; default: the train.sh that comes with prefanno")
    allowed_hosts: tuple[str, ...] = _setting((), "further names that the Host header may carry, comma-separated")
    cors_origins: tuple[str, ...] = _setting(DEV_ORIGINS, "origins whose pages may call the API, comma-separated")
    prompts_ahead: int = _setting(100, "queued prompts whose candidates are kept ready, 0-10000")
    cache: Path = _setting(HERE, "folder for the converted demo model; default: ~/.cache/prefanno")

    @property
    def data(self) -> Path:
        """Folder of the database and the exported files."""
        return self.home / "data"

    @property
    def database(self) -> Path | Postgres:
        """Where choices are stored: the SQLite file, or what the URL names."""
        return Postgres(self.database_url) if self.database_url else self.database_file

    @property
    def database_file(self) -> Path:
        """The SQLite file."""
        return self.data / "prefanno.db"

    @property
    def outputs(self) -> Path:
        """Folder of the adapters."""
        return self.home / "outputs"

    @property
    def runs(self) -> Path:
        """Folder of the runs."""
        return self.home / "runs"


def read(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings. Raises InvalidSetting, naming the variable and the cure."""
    known = {PREFIX + spec.name.upper(): spec for spec in fields(Settings)}
    values: dict[str, Any] = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX):
            continue
        if name not in known:
            raise InvalidSetting(f"unknown setting {name}; the settings are: {', '.join(known)}")
        if environ[name] != "":
            values[known[name].name] = _parse(name, environ[name], known[name].default)
    values["home"] = Path(values.get("home", Path())).expanduser().absolute()
    values["cache"] = Path(values.get("cache", "~/.cache/prefanno")).expanduser().absolute()
    _check_database_url(values.get("database_url", ""))
    values["model"] = _base_model(str(values.get("model", DEMO)))
    return Settings(**values)


def describe() -> Iterator[tuple[str, str, str]]:
    """Each setting's variable, default and meaning."""
    for spec in fields(Settings):
        default = ",".join(spec.default) if isinstance(spec.default, tuple) else str(spec.default)
        yield PREFIX + spec.name.upper(), default.removeprefix("."), spec.metadata["help"]


def _parse(name: str, text: str, default: Any) -> Any:
    if isinstance(default, tuple):
        items = tuple(item.strip() for item in text.split(",") if item.strip())
        return _loopbacks(items) if name == "PREFANNO_HOST" else items
    if isinstance(default, int):
        return _number(name, text, *RANGES[name])
    return Path(text) if isinstance(default, Path) else text


def _number(name: str, text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(high)) and low <= int(text) <= high):
        raise InvalidSetting(f"{name} must be a number from {low} to {high}, not {text!r}")
    return int(text)


def _loopbacks(hosts: tuple[str, ...]) -> tuple[str, ...]:
    resolved = tuple(address for host in hosts for address in (LOOPBACKS if host == "localhost" else (host,)))
    for address in resolved:
        if address not in LOOPBACKS:
            raise InvalidSetting(
                f"PREFANNO_HOST={address} would open the server to others, and prefanno has no tokens yet; "
                f"use {' or '.join(LOOPBACKS)} and, from elsewhere, an SSH tunnel"
            )
    return resolved


def _check_database_url(url: str) -> None:
    """Refuse what cannot be one, without a word of it: it may hold a password."""
    if not url:
        return
    try:
        parts = urlsplit(url)
        encoded = ("@" in parts.netloc or "@" not in url) and not UNENCODED.search(parts.netloc)
        whole = encoded and bool(parts.path.strip("/")) and parts.port != 0
    except ValueError:
        whole = False
    if not whole or parts.scheme not in ("postgresql", "postgres"):
        raise InvalidSetting(
            "PREFANNO_DATABASE_URL must look like postgresql://user:password@host/name, with / @ : # ? % of the "
            "password percent-encoded; without it, prefanno uses an SQLite file in PREFANNO_HOME"
        )
    if find_spec("asyncpg") is None:
        raise InvalidSetting("PREFANNO_DATABASE_URL needs a driver: pip install 'prefanno[postgresql]'")


def _base_model(name: str) -> str:
    """A folder becomes its absolute path, so that an adapter finds its base model from any working folder."""
    folder = Path(name).expanduser()
    return str(folder.absolute()) if name != DEMO and folder.is_dir() else name
