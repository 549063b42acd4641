"""Adapters: folders `outputs/<character>-<method>-<n>`, complete or not there at all, never changed afterwards."""

import contextlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefanno import files
from prefanno.training.config import RunConfig

NAME = re.compile(r"(?P<character>[a-z0-9_]+)-(?P<method>[a-z]+)-(?P<number>[1-9][0-9]*)")
CARD = "prefanno.json"
WEIGHTS = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Adapter:
    """A complete adapter and where it comes from."""

    name: str
    number: int
    folder: Path
    base_model: str
    run: int


def newest(outputs: Path, character: str, base_model: str) -> Adapter | None:
    """The character's newest complete adapter among those trained on this base model."""
    fitting = [adapter for adapter in _all(outputs, character) if adapter.base_model == base_model]
    return max(fitting, key=lambda adapter: adapter.number, default=None)


def named(outputs: Path, character: str, base_model: str, name: str) -> Adapter | None:
    """The character's complete adapter of this name, where it was trained on this base model."""
    return next((one for one in _all(outputs, character) if (one.name, one.base_model) == (name, base_model)), None)


def next_name(outputs: Path, character: str, method: str, known: Iterable[str]) -> str:
    """`<character>-<method>-<n>`; n counts over all methods, and over earlier adapters (`known`) since deleted."""
    names = [*known, *(folder.name for folder in outputs.iterdir())]
    matches = [match for name in names if (match := NAME.fullmatch(name)) and match["character"] == character]
    return f"{character}-{method}-{max((int(match['number']) for match in matches), default=0) + 1}"


def publish(run: int, folder: Path, outputs: Path, config: RunConfig) -> Path:
    """Give the run's adapter its name, in one rename. Raises FileNotFoundError where the run wrote none."""
    made, published = folder / "adapter", outputs / config.adapter
    if published.exists() and _card(published)["run"] == run:
        return published  # the server ended between the rename and its note of it
    for name in WEIGHTS:
        if not (made / name).is_file():
            raise FileNotFoundError(f"train.sh ended well, but wrote no adapter/{name}")
    card = {
        "run": run,
        "character": config.character,
        "base_model": config.base_model,
        "start": Path(config.start).name if config.start else None,
        "seed": config.seed,
        "stages": config.stages,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (made / CARD).write_text(json.dumps(card, indent=2) + "\n")
    for file in made.iterdir():
        files.sync(file)
    files.sync(made)
    made.replace(published)
    files.sync(outputs)
    return published


def _all(outputs: Path, character: str) -> list[Adapter]:
    found = []
    for folder in outputs.iterdir():
        match = NAME.fullmatch(folder.name)
        if match and match["character"] == character and all((folder / name).is_file() for name in (CARD, *WEIGHTS)):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # somebody's own folder, not one of ours
                card = _card(folder)
                found.append(Adapter(folder.name, int(match["number"]), folder, card["base_model"], card["run"]))
    return found


def _card(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / CARD).read_text())
    return card
