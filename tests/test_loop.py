"""What needs two stations, with a real database and real runs of a stub script."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import func, select

from prefanno import persona
from prefanno.ahead import Ahead
from prefanno.db.engine import Database
from prefanno.db.models import Candidate, Character, Generation, Run
from prefanno.errors import EngineFailed, ModelLoaded, NothingToTrain, PrefannoError, TrainingRunning
from prefanno.generation.config import SEEDS, Finished, GenerationConfig, Reply, Request
from prefanno.generation.engine import Engine, Loaded
from prefanno.generation.job import Job
from prefanno.loop import Loop
from prefanno.prompting import Message
from prefanno.recording import Answered
from prefanno.settings import Settings
from prefanno.training import adapters
from prefanno.training.supervisor import Supervisor
from tests.annotation.test_dataset import MULTI, SINGLE, add, rows

WAIT_S = 60.0
OPTIONS = {"system_prompt": "You are Mia.", "temperature": 0.5}
CONFIG = GenerationConfig(**OPTIONS)  # type: ignore[arg-type]
LI = Character(slug="li", name="离")
CONTEXT: list[Message] = [{"role": "assistant", "content": "欢迎~"}]
SCRIPT = """
while [ ! -e go ]; do sleep 0.05; done
mkdir adapter
echo '{}' > adapter/adapter_config.json
echo weights > adapter/adapter_model.safetensors
"""


class Voice:
    """Stands in for the engine: answers at once, always the same."""

    def __init__(self) -> None:
        self.state = "unloaded"
        self.loaded: Loaded | None = None
        self.fault: PrefannoError | None = None

    async def load(self, config: GenerationConfig, adapter: str | None, character: str) -> Loaded:
        """Load."""
        self.state, self.loaded = "loaded", Loaded(config, adapter, character, "cpu", 512)
        return self.loaded

    async def unload(self) -> None:
        """Unload."""
        self.state, self.loaded = "unloaded", None

    def submit(self, request: Request) -> Job:
        """Two replies."""
        job = Job(request)
        if self.fault:
            job.fail(self.fault)
            return job
        job.put(Finished(1, Reply("hm", f"{request.message} {request.seed}", "stop", 5, 2**62, -1.5)))
        job.put(Finished(2, Reply(None, "……", "length", 64, 1, None)))
        job.put(None)
        return job

    async def base_model(self) -> str:
        """Where the base model lies."""
        return "/cache/base"


@pytest.fixture
def voice() -> Voice:
    """An engine without a model."""
    return Voice()


@pytest.fixture
async def loop(settings: Settings, database: Database, voice: Voice) -> AsyncIterator[Loop]:
    """The loop; its runs wait for a file named `go` in their folder."""
    script = settings.home / "stub.sh"
    script.write_text(SCRIPT)
    settings = replace(settings, model="base", train_script=str(script))
    training = Supervisor(settings, database)
    ahead = Ahead(settings, database, cast(Engine, voice))
    yield Loop(settings, database, cast(Engine, voice), ahead, training)
    if training.running:
        await training.stop()
    await training.close()


async def _all(database: Database, table: type[Any]) -> list[Any]:
    async with database.read() as session:
        return list((await session.scalars(select(table).order_by(table.id))).all())


async def _done(loop: Loop, run: Run) -> Run:
    """Let the run end well."""
    (loop.settings.runs / str(run.id) / "go").touch()
    async with asyncio.timeout(WAIT_S):
        await loop.training.wait()
    assert loop.training.last_run is not None
    return loop.training.last_run


def _adapter(settings: Settings, name: str, base: str) -> str:
    folder = settings.outputs / name
    folder.mkdir()
    for file in adapters.WEIGHTS:
        (folder / file).write_text("{}")
    (folder / adapters.CARD).write_text(json.dumps({"run": 1, "base_model": base}))
    return str(folder)


async def test_the_persona_is_the_loaded_one_else_the_default(loop: Loop, voice: Voice) -> None:
    """The persona in force is that of the loaded model; without one it is the operator's or the default."""
    assert loop.persona(LI) == persona.CHINESE
    await loop.load(OPTIONS)
    assert loop.persona(LI) == "You are Mia."
    await voice.unload()
    loop.settings = replace(loop.settings, system_prompt="Be brief.")
    assert loop.persona(LI) == "Be brief."


async def test_a_load_takes_the_newest_adapter_of_this_base(loop: Loop) -> None:
    """Of the adapters in outputs/ the newest one that was trained on this base model is loaded, with its full path."""
    assert (await loop.load(OPTIONS)).adapter is None
    expected = _adapter(loop.settings, "li-simpo-2", "base")
    _adapter(loop.settings, "li-sft-1", "base")
    _adapter(loop.settings, "li-simpo-3", "another base")
    (loop.settings.outputs / "li-simpo-4").mkdir()  # half-written
    assert (await loop.load(OPTIONS)).adapter == expected
    assert Path(expected).is_absolute()


async def test_a_load_is_refused_during_a_run(loop: Loop) -> None:
    """While a run is under way no model is loaded beside it; afterwards it is, with the adapter that was made."""
    await add(loop.database, SINGLE)
    run = await loop.start_training()
    with pytest.raises(TrainingRunning):
        await loop.load(OPTIONS)
    assert (await _done(loop, run)).state == "succeeded"
    assert (await loop.load(OPTIONS)).adapter == str(loop.settings.outputs / "li-simpo-1")


async def _ask(loop: Loop, message: str = "hello", context: Sequence[Message] = (), seed: int | None = 7) -> Answered:
    *_, answered = [event async for event in loop.generate(message, list(context), seed)]
    assert isinstance(answered, Answered)
    return answered


async def test_a_load_is_refused_while_a_run_is_being_prepared(loop: Loop, voice: Voice) -> None:
    """From the moment a run is asked for, its memory is spoken for."""
    await add(loop.database, SINGLE)
    starting = asyncio.create_task(loop.start_training())
    await asyncio.sleep(0)
    with pytest.raises(TrainingRunning):
        await loop.load(OPTIONS)
    await starting
    assert voice.state == "unloaded"


async def test_a_generation_is_stored_with_all_it_was_made_with(loop: Loop) -> None:
    """Message, context, settings, base model, adapter and seed are stored, and every candidate in its place."""
    _adapter(loop.settings, "li-simpo-2", "base")
    await loop.load(OPTIONS)
    answered = await _ask(loop, "你是谁？", CONTEXT)
    generation_id, seed = answered.generation.id, answered.generation.seed
    assert (seed, len(answered.replies)) == (7, 2)
    (stored,) = await _all(loop.database, Generation)
    assert (stored.id, stored.message, stored.context, stored.seed) == (generation_id, "你是谁？", CONTEXT, 7)
    assert (stored.base_model, stored.adapter, stored.character) == ("base", "li-simpo-2", "li")
    assert GenerationConfig(**stored.settings) == CONFIG
    fields = [each.name for each in dataclasses.fields(Reply)]
    candidates = [
        [getattr(row, name) for name in ("generation_id", "ordinal", *fields)]
        for row in await _all(loop.database, Candidate)
    ]
    assert candidates == [
        [generation_id, 1, "hm", "你是谁？ 7", "stop", 5, 2**62, -1.5],
        [generation_id, 2, None, "……", "length", 64, 1, None],
    ]


async def test_the_thinking_of_a_choice_is_found_among_what_was_generated(loop: Loop) -> None:
    """An annotation that chooses a candidate by its text gets the thinking of that candidate."""
    await loop.load(OPTIONS)
    await _ask(loop)
    await add(loop.database, replace(SINGLE, chosen="hello 7"))
    (row,) = await rows(loop.database)
    assert row.chosen_thinking == "hm"


async def test_without_a_seed_each_generation_has_its_own(loop: Loop) -> None:
    """Seeds are drawn from the whole range, stored and told; 0 is a seed like any other."""
    await loop.load(OPTIONS)
    seeds = [(await _ask(loop, seed=None)).generation.seed for _ in range(5)]
    assert len(set(seeds)) > 1 and all(0 <= seed < SEEDS for seed in seeds)
    assert (await _ask(loop, seed=0)).generation.seed == 0
    assert [row.seed for row in await _all(loop.database, Generation)] == [*seeds, 0]


async def test_a_generation_that_fails_is_not_stored(loop: Loop, voice: Voice) -> None:
    """What the engine raises reaches the caller, and the database stays as it was."""
    await loop.load(OPTIONS)
    voice.fault = EngineFailed("no")
    with pytest.raises(EngineFailed):
        await _ask(loop)
    assert await _all(loop.database, Generation) == []


@pytest.mark.parametrize("state", ["loaded", "loading"])
async def test_training_is_refused_beside_a_model(loop: Loop, voice: Voice, state: str) -> None:
    """With a model in memory, or on its way there, no run starts; with it gone, one does."""
    await add(loop.database, SINGLE)
    voice.state = state
    with pytest.raises(ModelLoaded):
        await loop.start_training()
    await voice.unload()
    assert (await loop.start_training()).state == "running"


async def test_training_on_nothing_is_refused(loop: Loop) -> None:
    """Without an annotation there is nothing to train on; with the first one there is."""
    with pytest.raises(NothingToTrain):
        await loop.start_training()
    assert await _all(loop.database, Run) == [] and not loop.starting
    await add(loop.database, MULTI)
    assert (await loop.start_training()).adapter == "li-sft-1"


async def test_of_two_starts_at_once_one_runs(loop: Loop) -> None:
    """Two requests that arrive together make one run; a third during the run is refused too."""
    await add(loop.database, SINGLE)
    results = await asyncio.gather(*(loop.start_training() for _ in range(2)), return_exceptions=True)
    assert [type(result) for result in results] == [Run, TrainingRunning]
    with pytest.raises(TrainingRunning):
        await loop.start_training()
    assert len(await _all(loop.database, Run)) == 1


async def test_a_start_that_fails_gives_way_to_the_next(loop: Loop) -> None:
    """When the export cannot be written, no run is begun, and once it can, one starts."""
    await add(loop.database, SINGLE)
    way = loop.settings.data / "li_preference.json"
    way.mkdir()
    with pytest.raises(OSError, match="li_preference"):
        await loop.start_training()
    assert not loop.starting and await _all(loop.database, Run) == []
    way.rmdir()
    assert (await loop.start_training()).state == "running"


@pytest.mark.parametrize(
    ("given", "methods", "adapter"),
    [
        ([SINGLE], ["simpo"], "li-simpo-1"),
        ([MULTI], ["sft"], "li-sft-1"),
        ([SINGLE, MULTI], ["sft", "simpo"], "li-simpo-1"),
        ([replace(SINGLE, mode="multi")], ["sft", "simpo"], "li-simpo-1"),
    ],
    ids=["pairs", "conversations", "both", "ranked conversations"],
)
async def test_a_run_trains_on_what_there_is(loop: Loop, given: list[Any], methods: list[str], adapter: str) -> None:
    """SFT on the conversations if there are any, then SimPO on the pairs if there are any, on copies of the files."""
    for row in given:
        await add(loop.database, row)
    run = await loop.start_training()
    folder = loop.settings.runs / str(run.id)
    config = json.loads((folder / "config.json").read_text())
    assert [stage["method"] for stage in config["stages"]] == methods
    for stage in config["stages"]:
        assert json.loads((folder / stage["file"]).read_text(encoding="utf-8"))
    assert (run.adapter, config["adapter"]) == (adapter, adapter)
    assert (config["base_model"], config["base_model_path"], config["character"]) == ("base", "/cache/base", "li")


async def test_numbers_go_on_over_methods_and_deleted_adapters(loop: Loop) -> None:
    """Each run that made an adapter takes a number for good; one that was stopped leaves its number to the next."""
    await add(loop.database, MULTI)
    assert (await _done(loop, await loop.start_training())).adapter == "li-sft-1"
    await add(loop.database, SINGLE)
    assert (await loop.start_training()).adapter == "li-simpo-2"
    await loop.training.stop()
    await _done(loop, await loop.start_training())
    made = sorted(folder.name for folder in loop.settings.outputs.iterdir())
    assert made == ["li-sft-1", "li-simpo-2"]
    for file in (loop.settings.outputs / "li-simpo-2").iterdir():
        file.unlink()
    (loop.settings.outputs / "li-simpo-2").rmdir()
    assert (await loop.start_training()).adapter == "li-simpo-3"
    async with loop.database.read() as session:
        assert (await session.execute(select(func.count()).select_from(Run))).scalar_one() == 4
