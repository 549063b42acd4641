"""Adapters: folders `outputs/<character>-<method>-<n>`, complete or not there at all, never changed afterwards."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefanno import files
from prefanno.errors import NotFound
from prefanno.snapshot import ENDING
from prefanno.training.config import RunConfig

NAME = re.compile(r"(?P<character>[a-z0-9_]+)-(?P<method>[a-z]+)-(?P<number>[1-9][0-9]*)")
CARD = "prefanno.json"
ODD = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RecursionError)
WEIGHTS = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Adapter:
    """A complete adapter and where it comes from; `card` is all that was written down when it was made."""

    name: str
    character: str
    method: str
    number: int
    folder: Path
    base_model: str
    run: int
    card: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())


def newest(outputs: Path, character: str, base_model: str) -> Adapter | None:
    """The character's newest complete adapter among those trained on this base model."""
    return max(fitting(outputs, character, base_model), key=lambda adapter: adapter.number, default=None)


def named(outputs: Path, character: str, base_model: str, name: str) -> Adapter | None:
    """The character's complete adapter of this name, where it was trained on this base model."""
    return next((one for one in fitting(outputs, character, base_model) if one.name == name), None)


def get(outputs: Path, name: str) -> Adapter:
    """The complete adapter of this name, of whatever character and base model. Raises NotFound."""
    found = next((one for one in every(outputs) if one.name == name), None)
    if found is None:
        raise NotFound(f"there is no adapter {name}", f"未找到 adapter：{name}")
    return found


def fitting(outputs: Path, character: str, base_model: str) -> list[Adapter]:
    """The character's complete adapters of this base model, in no order."""
    return [one for one in every(outputs) if (one.character, one.base_model) == (character, base_model)]


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
        "snapshot": _snapshot(folder),
        "metrics": _measured(folder),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (made / CARD).write_text(json.dumps(card, indent=2) + "\n")
    for file in made.iterdir():
        files.sync(file)
    files.sync(made)
    made.replace(published)
    files.sync(outputs)
    return published


def every(outputs: Path) -> list[Adapter]:
    """All complete adapters, of whatever character and base model, in no order."""
    found = []
    for folder in outputs.iterdir():
        match = NAME.fullmatch(folder.name)
        if match and all((folder / name).is_file() for name in (CARD, *WEIGHTS)):
            with contextlib.suppress(*ODD):  # somebody's own folder, not one of ours
                card = _card(folder)
                named_by = (folder.name, match["character"], match["method"], int(match["number"]))
                found.append(Adapter(*named_by, folder, str(card["base_model"]), int(card["run"]), card))
    return found


def _card(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / CARD).read_text(), parse_constant=str)
    return card


def _measured(folder: Path) -> dict[str, Any] | None:
    """What the run's last stage measured at its end, if its script wrote that down."""
    with contextlib.suppress(*ODD):
        summary = json.loads((folder / "summary.json").read_text(), parse_constant=str)  # JSON knows no NaN
        return {name: value for name, value in summary["stages"][-1]["after"].items() if name != "probes"}
    return None


def _snapshot(folder: Path) -> str | None:
    """The SHA-256 of the manifest of what the run was trained on."""
    manifests = sorted((folder / "data").glob(f"*{ENDING}"))
    return hashlib.sha256(manifests[0].read_bytes()).hexdigest() if manifests else None
