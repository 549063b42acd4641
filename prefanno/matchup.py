"""A comparison before its replies: who is to answer, with which settings, and what."""

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from prefanno import persona
from prefanno.db import characters
from prefanno.db.comparisons import SIDES, Side
from prefanno.db.engine import Database
from prefanno.db.models import Character, Comparison, Round
from prefanno.db.prompts import digest
from prefanno.errors import InvalidInput
from prefanno.generation.config import SEEDS, GenerationConfig
from prefanno.generation.engine import Loaded
from prefanno.settings import Settings
from prefanno.training import registry
from prefanno.training.adapters import Adapter
from prefanno.training.held_out import Asked
from prefanno.unseen import prompts_for, queued

COUNT = 40  # prompts by default: of 20, three verdicts in ten come for a true win rate of 75 %; docs/comparisons.md
Folders = dict[Side, str | None]  # of adapters


@dataclass(frozen=True)
class Asking:
    """What a person asks for.

    Without `against` the other side is what a load takes; without `prompts` they are found, at most `count`; without
    `character` it is the loaded one, else the current one. `promotes`: where the adapter is found better.
    """

    adapter: str
    against: str | None = None
    character: str | None = None
    prompts: Sequence[Asked] | None = None
    count: int = COUNT
    seed: int | None = None
    promotes: bool = False


async def matchup(
    settings: Settings, database: Database, loaded: Loaded | None, asking: Asking
) -> tuple[Comparison, list[Round], Folders]:
    """The comparison and its rounds, to be stored. Raises InvalidInput, RegistryDamaged or Conflict."""
    async with database.read() as session:
        slug = loaded.character if loaded is not None and asking.character is None else asking.character
        character = await characters.get(session, slug)
    config, sides = _config(settings, character, loaded), _sides(settings, character.slug, asking)
    names = [side.name if side else registry.BASE for side in sides]
    prompts = asking.prompts
    if prompts is None:
        queue = await queued(database, character.slug, config.system_prompt)
        prompts = await prompts_for(settings, database, names, queue, asking.count)
    comparison = Comparison(
        character=character.slug,
        base_model=settings.model,
        adapter=names[0],
        against=names[1],
        settings=asdict(config),
        seed=secrets.randbelow(SEEDS) if asking.seed is None else asking.seed,
        promotes=asking.promotes,
    )
    rounds = [_round(ordinal, one, config) for ordinal, one in enumerate(prompts, 1)]
    return comparison, rounds, {name: str(one.folder) if one else None for name, one in zip(SIDES, sides, strict=True)}


def _config(settings: Settings, character: Character, loaded: Loaded | None) -> GenerationConfig:
    """What is loaded for this character, else the defaults of a load; one reply to a prompt."""
    if loaded is not None and loaded.character == character.slug:
        return replace(loaded.config, mode="single", num_responses=1)
    return GenerationConfig(persona.of(character, settings), num_responses=1)


def _sides(settings: Settings, slug: str, asking: Asking) -> tuple[Adapter | None, Adapter | None]:
    """The adapter on trial and the other one, None where it is the base model alone."""
    where = (settings.outputs, slug, settings.model)
    adapter = registry.meant(*where, asking.adapter)
    if asking.against is None:
        chosen = registry.chosen(*where)
        against = None if adapter is not None and adapter == chosen else chosen
    else:
        try:
            against = registry.meant(*where, asking.against)
        except InvalidInput as error:
            raise InvalidInput({"against": error.fields["adapter"]}, english=str(error)) from error
    if adapter == against:
        raise InvalidInput({"against": ["必须与 adapter 不同，请指定另一个 adapter 或 base"]})
    return adapter, against


def _round(ordinal: int, asked: Asked, config: GenerationConfig) -> Round:
    """`swapped` is a coin of its own: nobody can reckon it from the seed, which is shown."""
    return Round(
        ordinal=ordinal,
        message=asked.message,
        context=[dict(turn) for turn in asked.context],
        system_prompt=asked.system_prompt or config.system_prompt,
        digest=digest(asked.message, asked.context),
        swapped=bool(secrets.randbelow(2)),
    )
