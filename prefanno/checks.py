"""What `prefanno doctor` looks at: each check says what is so, or what is wrong and how to mend it."""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prefanno import home
from prefanno.db import file, upgrade
from prefanno.errors import HomeInUse, PrefannoError
from prefanno.generation import base_model
from prefanno.generation.model import device
from prefanno.settings import DEMO, Postgres, Settings
from prefanno.training.keepers import train_script
from prefanno.web.docs import STATIC

FREE_GB = 2.0  # an adapter, its run's folder and the demo model


@dataclass(frozen=True)
class Check:
    """One finding; `text` holds the cure where it is not ok."""

    name: str
    ok: bool
    text: str


def run(settings: Settings) -> Iterator[Check]:
    """All checks, in the order in which a person would mend them."""
    checks: dict[str, Callable[[Settings], str]] = {
        "python": _python,
        "home": _home,
        "disk": _disk,
        "database": _database,
        "base model": _base_model,
        "device": lambda _settings: device(),
        "train script": _train_script,
        "API page": _api_page,
    }
    for name, check in checks.items():
        try:
            yield Check(name, True, check(settings))
        except (PrefannoError, OSError) as error:
            yield Check(name, False, str(error))


def _python(_settings: Settings) -> str:
    return sys.version.split()[0]


def _home(settings: Settings) -> str:
    try:
        with home.owned(settings):
            return f"{settings.home} can be written"
    except HomeInUse:
        return f"{settings.home} is in use by a running prefanno"


def _disk(settings: Settings) -> str:
    free = shutil.disk_usage(settings.home).free / 1e9
    if free < FREE_GB:
        raise PrefannoError(f"{free:.1f} GB are free at {settings.home}; training needs about {FREE_GB:.0f} GB")
    return f"{free:.0f} GB free"


def _database(settings: Settings) -> str:
    where = settings.database
    if (revision := upgrade.revision(where)) is None:
        return "none yet; `prefanno serve` makes it"
    if revision != file.HEAD:
        raise PrefannoError(f"schema {revision}, not {file.HEAD}; run `prefanno db upgrade`")
    if isinstance(where, Postgres):
        return f"schema {revision}, {where}"
    file.verify(where)
    return f"schema {revision}, sound"


def _base_model(settings: Settings) -> str:
    if settings.model == DEMO:
        return f"demo, from {base_model.demo_file()}"
    return settings.model


def _train_script(settings: Settings) -> str:
    script = train_script(settings)
    if not script.is_file():
        raise PrefannoError(f"{script} is missing; set PREFANNO_TRAIN_SCRIPT")
    return str(script)


def _api_page(_settings: Settings) -> str:
    if not (STATIC / "swagger-ui-bundle.js").is_file():
        raise PrefannoError("Swagger UI's files are missing; `make serve` fetches them")
    return "Swagger UI is there"
