"""What is said of adapters beside what they are: which was promoted, in what order, and notes.

It lies with the adapters, in `outputs/adapters.json`, since a database may be shared by homes that have other adapters.
"The adapter" of a character is the one promoted last, else the newest complete one. Everything here blocks.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from prefanno import files
from prefanno.errors import Conflict, InvalidInput, RegistryDamaged
from prefanno.training import adapters
from prefanno.training.adapters import Adapter

FILE = "adapters.json"
MOST = 100  # promotions of a character that can be taken back
DELETED = ".deleted-"  # begins the name of a folder that is about to be removed
BASE = "base"  # in place of an adapter's name: the base model as it is


@dataclass(frozen=True)
class Promotion:
    """An adapter of the character, or BASE, that was made the one to load with this base model."""

    character: str
    base_model: str
    adapter: str


@dataclass
class Registry:
    """What the file holds; `promotions` are in their order."""

    promotions: list[Promotion] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    def of(self, character: str, base_model: str) -> list[str]:
        """The character's promoted adapters, the one in force last."""
        made = (character, base_model)
        return [one.adapter for one in self.promotions if (one.character, one.base_model) == made]


@dataclass(frozen=True)
class Listed:
    """An adapter, and what is said of it."""

    adapter: Adapter
    note: str
    promoted: bool  # the last one of its character and base model
    chosen: bool  # a load takes it by itself


def read(outputs: Path) -> Registry:
    """What is said. Raises RegistryDamaged where the file is none that this could have written."""
    try:
        text = (outputs / FILE).read_text()
        said = json.loads(text)
        json.dumps(said, ensure_ascii=False).encode()  # it may say half a character, which no answer could hold
        notes = {str(name): str(text) for name, text in said["notes"].items()}
        return Registry([Promotion(**one) for one in said["promotions"]], notes)
    except FileNotFoundError:
        return Registry()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RegistryDamaged(
            f"{outputs / FILE} cannot be read ({error}); mend it, or move it away, and promote again",
            f"{FILE} 无法读取：请修复或移走该文件，再重新启用 adapter",
        ) from error


def chosen(outputs: Path, character: str, base_model: str) -> Adapter | None:
    """The adapter to load: the promoted one, else the newest; None: the base model alone. Raises RegistryDamaged."""
    fitting = {one.name: one for one in adapters.fitting(outputs, character, base_model)}
    for name in reversed(read(outputs).of(character, base_model)):
        if name == BASE:
            return None
        if name in fitting:
            return fitting[name]
    return max(fitting.values(), key=lambda one: one.number, default=None)


def listed(outputs: Path, character: str, base_model: str) -> list[Listed]:
    """The character's adapters of every base model, the newest first; chosen is one of this. Raises RegistryDamaged."""
    said, taken = read(outputs), chosen(outputs, character, base_model)
    mine = [one for one in adapters.every(outputs) if one.character == character]
    return [
        Listed(
            one,
            note=said.notes.get(one.name, ""),
            promoted=said.of(character, one.base_model)[-1:] == [one.name],
            chosen=taken is not None and taken.name == one.name,
        )
        for one in sorted(mine, key=lambda one: one.number, reverse=True)
    ]


def meant(outputs: Path, character: str, base_model: str, name: str | None) -> Adapter | None:
    """The adapter of this name; of None the one to load, of BASE none. Raises InvalidInput, and as `chosen`."""
    if name is None:
        return chosen(outputs, character, base_model)
    found = adapters.named(outputs, character, base_model, name)
    if found is None and name != BASE:
        raise InvalidInput(
            {"adapter": [f"角色 {character} 没有基于当前基础模型的 adapter {name}"]},
            english=f"{character} has no adapter {name} of this base model",
        )
    return found


def promote(outputs: Path, character: str, base_model: str, name: str) -> None:
    """Make this the one to load from now on. Raises InvalidInput or RegistryDamaged."""

    def change(registry: Registry) -> None:
        meant(outputs, character, base_model, name)
        given = registry.of(character, base_model)
        if given[-1:] != [name]:
            registry.promotions.append(Promotion(character, base_model, name))
        if len(given) >= MOST:
            registry.promotions.remove(Promotion(character, base_model, given[0]))

    _changed(outputs, change)


def roll_back(outputs: Path, character: str, base_model: str) -> None:
    """Take the last promotion back: the one before is in force again. Raises Conflict where there is none.

    Also RegistryDamaged, as whatever changes the file.
    """

    def change(registry: Registry) -> None:
        given = registry.of(character, base_model)
        if not given:
            raise Conflict(f"no adapter of {character} is promoted", f"角色 {character} 没有已启用的 adapter")
        last = max(
            place
            for place, one in enumerate(registry.promotions)
            if (one.character, one.base_model) == (character, base_model)
        )
        del registry.promotions[last]

    _changed(outputs, change)


def note(outputs: Path, name: str, text: str) -> None:
    """Keep a note with the adapter, in place of the one before; an empty one is none. Raises NotFound."""

    def change(registry: Registry) -> None:
        adapters.get(outputs, name)
        registry.notes.pop(name, None)
        if text:
            registry.notes[name] = text

    _changed(outputs, change)


def take_away(outputs: Path, name: str) -> Path:
    """Take an adapter out of the list, with what is said of it; the folder that is left to be removed.

    Raises NotFound, and Conflict where it is promoted.
    """
    away = outputs / f"{DELETED}{name}-{secrets.token_hex(4)}"

    def change(registry: Registry) -> None:
        found = adapters.get(outputs, name)
        if registry.of(found.character, found.base_model)[-1:] == [name]:
            raise Conflict(
                f"{name} is promoted; promote another or roll back first", f"{name} 已启用，请先启用其他 adapter 或回退"
            )
        registry.promotions = [one for one in registry.promotions if one.adapter != name]
        registry.notes.pop(name, None)
        found.folder.replace(away)  # it is there or not, whenever this is broken off

    _changed(outputs, change)
    return away


def _changed(outputs: Path, change: Callable[[Registry], None]) -> None:
    with files.locked(outputs):
        registry = read(outputs)
        change(registry)
        text = json.dumps(asdict(registry), ensure_ascii=False, indent=1) + "\n"
        files.replace(outputs / FILE, text.encode())
