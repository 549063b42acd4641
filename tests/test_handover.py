"""The memory goes from the model to a run and back, with a real database and real runs of a stub script."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno import handover as module
from prefanno.db.models import Character, Run
from prefanno.errors import (
    EngineFailed,
    InvalidInput,
    ModelLoaded,
    ModelLoading,
    NotFound,
    NothingToTrain,
    SnapshotDamaged,
    TrainingRunning,
)
from prefanno.loop import Loop
from prefanno.training.config import Plan
from tests.annotation.test_dataset import MULTI, SINGLE, add
from tests.looping import CONFIG, OPTIONS, WAIT_S, Voice, done, everything, put_adapter


async def test_a_load_is_refused_during_a_run(loop: Loop) -> None:
    """While a run is under way no model is loaded beside it; afterwards it is, with the adapter that was made."""
    await add(loop.database, SINGLE)
    run = await loop.handover.start()
    with pytest.raises(TrainingRunning):
        await loop.load(OPTIONS)
    assert (await done(loop, run)).state == "succeeded"
    assert (await loop.load(OPTIONS)).adapter == str(loop.settings.outputs / "li-simpo-1")


async def test_a_load_is_refused_while_a_run_is_being_prepared(loop: Loop, voice: Voice) -> None:
    """From the moment a run is asked for, its memory is spoken for."""
    await add(loop.database, SINGLE)
    starting = asyncio.create_task(loop.handover.start())
    await asyncio.sleep(0)
    with pytest.raises(TrainingRunning):
        await loop.load(OPTIONS)
    await starting
    assert voice.state == "unloaded"


@pytest.mark.parametrize("state", ["loaded", "loading"])
async def test_training_is_refused_beside_a_model(loop: Loop, voice: Voice, state: str) -> None:
    """With a model in memory, or on its way there, no run starts; with it gone, one does."""
    await add(loop.database, SINGLE)
    await loop.load(OPTIONS)
    voice.state = state
    with pytest.raises(ModelLoaded):
        await loop.handover.start()
    await voice.unload()
    assert (await loop.handover.start()).state == "running"


async def test_training_on_nothing_is_refused(loop: Loop) -> None:
    """Without an annotation there is nothing to train on; with the first one there is."""
    with pytest.raises(NothingToTrain):
        await loop.handover.start()
    assert await everything(loop.database, Run) == [] and not loop.handover.is_busy
    await add(loop.database, MULTI)
    assert (await loop.handover.start()).adapter == "li-sft-1"


async def test_of_two_starts_at_once_one_runs(loop: Loop) -> None:
    """Two requests that arrive together make one run; a third during the run is refused too."""
    await add(loop.database, SINGLE)
    results = await asyncio.gather(*(loop.handover.start() for _ in range(2)), return_exceptions=True)
    assert [type(result) for result in results] == [Run, TrainingRunning]
    with pytest.raises(TrainingRunning):
        await loop.handover.start()
    assert len(await everything(loop.database, Run)) == 1


async def test_a_start_that_fails_gives_way_to_the_next(loop: Loop) -> None:
    """When the export cannot be written, no run is begun, and once it can, one starts."""
    await add(loop.database, SINGLE)
    way = loop.settings.data / "li_preference.json"
    way.mkdir()
    with pytest.raises(OSError, match="li_preference"):
        await loop.handover.start()
    assert not loop.handover.is_busy and await everything(loop.database, Run) == []
    way.rmdir()
    assert (await loop.handover.start()).state == "running"


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
    run = await loop.handover.start()
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
    assert (await done(loop, await loop.handover.start())).adapter == "li-sft-1"
    await add(loop.database, SINGLE)
    assert (await loop.handover.start()).adapter == "li-simpo-2"
    await loop.training.stop()
    await done(loop, await loop.handover.start())
    made = sorted(folder.name for folder in loop.settings.outputs.iterdir())
    assert made == ["li-sft-1", "li-simpo-2"]
    for file in (loop.settings.outputs / "li-simpo-2").iterdir():
        file.unlink()
    (loop.settings.outputs / "li-simpo-2").rmdir()
    assert (await loop.handover.start()).adapter == "li-simpo-3"
    async with loop.database.read() as session:
        assert (await session.execute(select(func.count()).select_from(Run))).scalar_one() == 4


async def test_a_start_unloads_when_asked(loop: Loop, voice: Voice) -> None:
    """With `unload` a run starts beside a loaded model, which is gone before it."""
    await add(loop.database, SINGLE)
    await loop.load(OPTIONS)
    assert (await loop.handover.start(unload=True)).state == "running"
    assert voice.state == "unloaded"


async def _mia(session: AsyncSession) -> None:
    """A second character."""
    session.add(Character(slug="mia", name="Mia"))


def _adopted(loop: Loop) -> Loop:
    """The stations of the next server, which has taken up what this one left."""
    successor = Loop(loop.settings, loop.database, loop.engine, loop.ahead, loop.training)
    successor.handover.adopt()
    return successor


async def _returned(voice: Voice) -> None:
    async with asyncio.timeout(WAIT_S):
        while voice.state != "loaded":  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)


async def test_the_result_is_loaded_with_the_settings_of_before(loop: Loop, voice: Voice) -> None:
    """Unload, train, reload in one call: at the end the new adapter is loaded, with the settings that were in force."""
    await add(loop.database, SINGLE)
    await loop.load(OPTIONS)
    run = await loop.handover.start(unload=True, reload=True)
    await done(loop, run)
    await _returned(voice)
    assert voice.loaded and voice.loaded.adapter == str(loop.settings.outputs / "li-simpo-1")
    assert voice.loaded.config == CONFIG


async def test_after_a_run_that_was_stopped_the_model_of_before_is_back(loop: Loop, voice: Voice) -> None:
    """A run without a result gives the memory back all the same, to the adapter that was there."""
    await add(loop.database, SINGLE)
    before = put_adapter(loop.settings, "li-sft-1", "base")
    await loop.load(OPTIONS)
    await loop.handover.start(unload=True, reload=True)
    await loop.training.stop()
    await _returned(voice)
    assert voice.loaded and voice.loaded.adapter == before


async def test_what_was_unloaded_for_a_start_that_fails_is_loaded_again(loop: Loop, voice: Voice) -> None:
    """A run that cannot begin leaves the model in memory, whether the fault was found before or after the unload."""
    await add(loop.database, SINGLE)
    loaded = await loop.load(OPTIONS)
    with pytest.raises(InvalidInput, match="li-simpo-7"):
        await loop.handover.start(Plan(adapter="li-simpo-7"), unload=True)
    assert voice.loaded is loaded
    loop.settings.runs.rmdir()
    loop.settings.runs.write_text("no folder")
    with pytest.raises(OSError, match="runs"):
        await loop.handover.start(unload=True)
    assert voice.loaded == loaded and not loop.handover.is_busy
    loop.settings.runs.unlink()
    assert (await loop.handover.start(unload=True)).state == "running"


async def test_a_load_that_fails_after_a_run_leaves_all_usable(loop: Loop, voice: Voice) -> None:
    """Where the result cannot be loaded, nothing is; a later load, and a later run, find everything free."""
    await add(loop.database, SINGLE)
    works = voice.load

    async def fails(*_given: Any) -> Any:
        raise EngineFailed("no memory")

    voice.load = fails  # type: ignore[method-assign, assignment]
    run = await loop.handover.start(reload=True)
    await done(loop, run)
    assert loop.handover._returning is not None
    await loop.handover._returning
    assert voice.state == "unloaded" and not loop.handover.is_busy
    voice.load = works  # type: ignore[method-assign]
    assert (await loop.load(OPTIONS)).adapter == str(loop.settings.outputs / "li-simpo-1")


async def test_a_server_that_takes_up_the_run_gives_the_memory_back(loop: Loop, voice: Voice) -> None:
    """What is to be loaded at the end lies in the run's folder, so a server that was restarted loads it, too."""
    await add(loop.database, SINGLE)
    run = await loop.handover.start(reload=True)
    await loop.handover.close()
    _adopted(loop)
    await done(loop, run)
    await _returned(voice)
    assert voice.loaded and voice.loaded.adapter == str(loop.settings.outputs / "li-simpo-1")


async def test_a_run_that_ended_without_a_server_is_loaded_at_the_next_start(loop: Loop, voice: Voice) -> None:
    """The file that says what to load is there until it was loaded; no later start loads anything."""
    await add(loop.database, SINGLE)
    run = await loop.handover.start(reload=True)
    await loop.handover.close()
    await done(loop, run)
    assert voice.state == "unloaded"
    for expected in ("loaded", "unloaded"):
        _adopted(loop)
        if expected == "loaded":
            await _returned(voice)
            await asyncio.sleep(0.1)
            await voice.unload()
    assert voice.state == "unloaded" and not (loop.settings.runs / str(run.id) / "handover.json").exists()


async def test_what_cannot_be_written_down_is_loaded_all_the_same(
    loop: Loop, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk takes no file more, this server knows what to load; only a later one would not."""
    await add(loop.database, SINGLE)
    monkeypatch.setattr(module, "BACK", "no folder/handover.json")
    await done(loop, await loop.handover.start(reload=True))
    await _returned(voice)
    assert voice.loaded and voice.loaded.adapter == str(loop.settings.outputs / "li-simpo-1")


async def test_a_server_starts_though_it_cannot_read_what_to_load(loop: Loop, voice: Voice) -> None:
    """A file that was cut off, as by a full disk, is told in the log; nothing is loaded."""
    await add(loop.database, SINGLE)
    run = await loop.handover.start(reload=True)
    await loop.handover.close()
    (loop.settings.runs / str(run.id) / "handover.json").write_text('{"trained"')
    successor = _adopted(loop)
    await done(loop, run)
    assert successor.handover._returning is None and voice.state == "unloaded"


async def test_another_characters_model_comes_back_after_a_run_without_a_result(loop: Loop, voice: Voice) -> None:
    """Stopped, the run gives back whom it took the memory from; with a result, the trained character is loaded."""
    await loop.database.write(_mia)
    await add(loop.database, SINGLE)
    for stops, expected in ((True, "mia"), (False, "li")):
        await loop.load({"system_prompt": "You are Mia."}, "mia")
        run = await loop.handover.start(slug="li", unload=True, reload=True)
        if stops:
            await loop.training.stop()
        else:
            await done(loop, run)
        await _returned(voice)
        assert voice.loaded and voice.loaded.character == expected


async def test_a_start_waits_for_no_load(loop: Loop, voice: Voice) -> None:
    """While a model is being loaded its settings cannot be given back, so even with `unload` a start is refused."""
    await add(loop.database, SINGLE)
    voice.state = "loading"
    with pytest.raises(ModelLoading):
        await loop.handover.start(unload=True)


async def test_a_run_whose_configuration_is_gone_is_not_rebuilt(loop: Loop, voice: Voice) -> None:
    """A config.json that is another's, or names an adapter that is gone, is refused before anything is unloaded."""
    await add(loop.database, SINGLE)
    run = await done(loop, await loop.handover.start())
    file = loop.settings.runs / str(run.id) / "config.json"
    config = json.loads(file.read_text())
    loaded = await loop.load(OPTIONS)
    for content, error in (
        ("{}", SnapshotDamaged),
        ("no json", SnapshotDamaged),
        (json.dumps(config | {"start": "/gone"}), NotFound),
    ):
        file.write_text(content)
        with pytest.raises(error):
            await loop.handover.rebuild(run.id, unload=True)
    assert voice.loaded is loaded


async def _config(loop: Loop, run: Run) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((loop.settings.runs / str(run.id) / "config.json").read_text())
    return config


async def test_a_plan_reaches_the_run_whole(loop: Loop) -> None:
    """Stages with their hyperparameters and defaults, adapter, shape, length, seed and guard stand in config.json."""
    await add(loop.database, replace(SINGLE, mode="multi"))
    start = put_adapter(loop.settings, "li-sft-1", "base")
    stages: list[dict[str, Any]] = [
        {"method": "dpo", "hyperparameters": {"beta": 0.5}},
        {"method": "sft", "dataset": "preference"},
    ]
    plan = Plan(stages=stages, adapter="li-sft-1", max_length=99, seed=5, held_out=0.2, guard=False)
    config = await _config(loop, await loop.handover.start(plan))
    assert [(one["method"], one["dataset"]) for one in config["stages"]] == [
        ("dpo", "preference"),
        ("sft", "preference"),
    ]
    assert (config["stages"][0]["beta"], config["stages"][0]["loss"]) == (0.5, "sigmoid")
    assert config["start"] == start and config["adapter"] == "li-sft-2"
    assert [config[name] for name in ("max_length", "seed", "held_out", "guard")] == [99, 5, 0.2, False]


async def test_a_stage_without_rows_is_refused_by_name(loop: Loop) -> None:
    """A stage on a dataset that is empty names the stage, and the datasets that would do."""
    await add(loop.database, SINGLE)
    with pytest.raises(InvalidInput) as refused:
        await loop.handover.start(Plan(stages=[{"method": "simpo"}, {"method": "kto", "dataset": "unpaired"}]))
    assert list(refused.value.fields) == ["stages.1.dataset"]
    assert not loop.handover.is_busy and await everything(loop.database, Run) == []


async def test_a_run_is_rebuilt_from_what_it_was(loop: Loop) -> None:
    """The same snapshot, plan and seed, whatever was annotated since, and another adapter's name; or NotFound."""
    await add(loop.database, SINGLE)
    first = await done(loop, await loop.handover.start(Plan(seed=9)))
    await add(loop.database, replace(SINGLE, chosen="Something new."))
    again = await loop.handover.rebuild(first.id)
    folders = [loop.settings.runs / str(run.id) for run in (first, again)]
    assert [(folder / "data" / "li_preference.json").read_bytes() for folder in folders][1:] == [
        (folders[0] / "data" / "li_preference.json").read_bytes()
    ]
    configs = [await _config(loop, run) for run in (first, again)]
    assert configs[1] == configs[0] | {"adapter": "li-simpo-2"}
    await done(loop, again)
    with pytest.raises(NotFound):
        await loop.handover.rebuild(99)
