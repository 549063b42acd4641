"""Both sides of a comparison answer: in which order, with what, and what ends it early."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from typing import Any, cast

import pytest

from prefanno import prompts
from prefanno.ahead import Ahead
from prefanno.comparing import ENDED, LOADED, STOPPED, TRAINS, UNLOADED
from prefanno.db import comparisons
from prefanno.db.engine import Database
from prefanno.db.models import Comparison, Round
from prefanno.errors import (
    ComparisonRunning,
    Conflict,
    EngineFailed,
    InvalidInput,
    ModelLoaded,
    ModelLoading,
    NotFound,
    TrainingRunning,
)
from prefanno.generation.config import Finished
from prefanno.generation.engine import Engine, Loaded
from prefanno.loop import Asking as NextPrompt
from prefanno.loop import Loop
from prefanno.matchup import Asking
from prefanno.prompts import NewPrompt
from prefanno.settings import Settings
from prefanno.training.held_out import Asked
from tests.annotation.test_dataset import SINGLE, add
from tests.looping import CONFIG, OPTIONS, SCRIPT, WAIT_S, everything, put_adapter
from tests.speaking import SAME, TOO_LONG, Speaker, looped

NEW, OLD = "li-simpo-2", "li-sft-1"


@pytest.fixture
def speaker() -> Speaker:
    """An engine without a model."""
    return Speaker()


@pytest.fixture
async def loop(settings: Settings, database: Database, speaker: Speaker) -> AsyncIterator[Loop]:
    """The loop, with two adapters and a train.sh that waits."""
    script = settings.home / "stub.sh"
    script.write_text(SCRIPT)
    settings = replace(settings, model="base", train_script=str(script))
    made = looped(settings, database, speaker)
    for number, name in enumerate((OLD, NEW), 1):
        put_adapter(settings, name, "base", number)
    yield made
    speaker.release()
    await made.comparing.give_way(ENDED)
    await made.handover.close()
    if made.training.running:
        await made.training.stop()
    await made.training.close()


def _asking(*messages: str, **fields: Any) -> Asking:
    asked = [Asked("", [], message) for message in messages or ("a", "b", "c")]
    given: dict[str, Any] = {"against": OLD, "prompts": asked, "seed": 7}
    return Asking(NEW, **given | fields)


async def _ended(loop: Loop) -> Comparison:
    """The newest comparison, when nothing is answered any more."""
    async with asyncio.timeout(WAIT_S):
        while loop.comparing.answering is not None:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)
    newest: Comparison = (await everything(loop.database, Comparison))[-1]
    return newest


async def _held(speaker: Speaker, jobs: int) -> None:
    """So many jobs are held back."""
    async with asyncio.timeout(WAIT_S):
        while len(speaker.held) < jobs:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)


async def _replies(loop: Loop) -> list[tuple[str | None, str | None]]:
    return [(one.adapter_reply, one.against_reply) for one in await everything(loop.database, Round)]


def _loaded(speaker: Speaker) -> Loaded | None:
    """What is loaded, which a type checker does not take for what it was."""
    return speaker.loaded


async def test_both_sides_answer_every_prompt_alike(loop: Loop, speaker: Speaker) -> None:
    """The adapter, then the other, with the same seed and settings; what was loaded before is loaded again."""
    before = await loop.load(OPTIONS, adapter=OLD)
    comparison = await loop.comparing.start(_asking("a", "b"))
    assert (comparison.state, loop.comparing.in_force) == ("answering", before)
    ended = await _ended(loop)
    assert (ended.state, ended.reason, ended.ended_at is not None) == ("open", None, True)
    assert await _replies(loop) == [(f"{NEW}: a 8", f"{OLD}: a 8"), (f"{NEW}: b 9", f"{OLD}: b 9")]
    assert speaker.loads == [OLD, NEW, OLD, OLD] and speaker.loaded == before
    assert {request.config for request in speaker.requests} == {replace(CONFIG, mode="single", num_responses=1)}
    assert ended.settings == asdict(replace(CONFIG, num_responses=1))


async def test_without_a_model_the_defaults_answer_and_the_memory_is_free_again(loop: Loop, speaker: Speaker) -> None:
    """Where nothing was loaded the character's persona and a load's defaults hold, and nothing is loaded afterwards."""
    await loop.comparing.start(_asking("a", against="base"))
    ended = await _ended(loop)
    assert (ended.state, ended.against) == ("open", "base")
    assert speaker.loads == [NEW, None] and _loaded(speaker) is None
    assert ended.settings["max_new_tokens"] == 512 and ended.settings["num_responses"] == 1


async def test_a_round_has_the_persona_that_its_row_was_exported_with(loop: Loop, speaker: Speaker) -> None:
    """What was held out is asked as it was exported, other prompts with the persona in force."""
    await loop.load(OPTIONS)
    asked = [Asked("You are Li.", [], "a"), Asked("", [{"role": "assistant", "content": "hm"}], "b")]
    await loop.comparing.start(_asking(prompts=asked))
    await _ended(loop)
    assert [one.config.system_prompt for one in speaker.requests[:2]] == ["You are Li.", "You are Mia."]
    assert [list(one.context) for one in speaker.requests[:2]] == [[], [{"role": "assistant", "content": "hm"}]]
    assert [one.system_prompt for one in await everything(loop.database, Round)] == ["You are Li.", "You are Mia."]


async def test_a_round_can_be_voted_on_before_all_are_answered(loop: Loop, speaker: Speaker) -> None:
    """Each reply is stored as it is written; what is told of progress counts them."""
    speaker.holds = True
    number = (await loop.comparing.start(_asking())).id
    await _held(speaker, 3)
    speaker.release(3)
    await _held(speaker, 3)
    speaker.release(1)
    await _written(loop, number, 4)
    tally = await _tally(loop, number)
    assert (tally.rounds, tally.answered, tally.replies) == (3, 1, 4)
    async with loop.database.read() as session:
        found, remaining = await comparisons.next_round(session, number)
    assert found is not None and (found.message, remaining) == ("a", 1)


async def _written(loop: Loop, number: int, replies: int) -> None:
    """So many replies are stored."""
    async with asyncio.timeout(WAIT_S):
        while (await _tally(loop, number)).replies < replies:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)


async def _tally(loop: Loop, number: int) -> comparisons.Tally:
    async with loop.database.read() as session:
        return await comparisons.tally(session, number)


async def test_a_prompt_that_the_model_cannot_read_is_left_out(loop: Loop) -> None:
    """It is no error of the comparison; it is counted."""
    number = (await loop.comparing.start(_asking("a", TOO_LONG, "b"))).id
    ended = await _ended(loop)
    assert (ended.state, ended.left_out) == ("open", 1)
    assert (await _tally(loop, number)).answered == 2


async def test_equal_replies_are_a_tie_by_themselves(loop: Loop) -> None:
    """Nobody is asked which of two equal texts is better."""
    number = (await loop.comparing.start(_asking("a", SAME))).id
    await _ended(loop)
    assert (await _tally(loop, number)).votes == (0, 0, 1)
    async with loop.database.read() as session:
        assert (await comparisons.next_round(session, number))[1] == 1


async def _load(loop: Loop) -> None:
    await loop.load(OPTIONS, adapter="base")


async def _unload(loop: Loop) -> None:
    await loop.unload()


async def _train(loop: Loop) -> None:
    await add(loop.database, SINGLE)
    await loop.handover.start(unload=True)


async def _stop(loop: Loop) -> None:
    assert loop.comparing.answering is not None
    await loop.comparing.stop(loop.comparing.answering)


async def _end(loop: Loop) -> None:
    await loop.comparing.give_way(ENDED)


@pytest.mark.parametrize("after", [0, 2, 3, 5], ids="{} replies".format)
@pytest.mark.parametrize(
    "way", [(_load, LOADED, "base"), (_unload, UNLOADED, None), (_train, TRAINS, None), (_stop, STOPPED, OLD)]
)
async def test_who_needs_the_engine_ends_it(
    loop: Loop, speaker: Speaker, way: tuple[Any, str, str | None], after: int
) -> None:
    """At any point; what is written stays, and the engine is whose who came, or as it was before."""
    ends, reason, loaded = way
    await loop.load(OPTIONS, adapter=OLD)
    speaker.holds = True
    number = (await loop.comparing.start(_asking())).id
    for written in range(after):
        await _held(speaker, 3 - written % 3)
        speaker.release(1)
        await _written(loop, number, written + 1)
    await _held(speaker, 3 - after % 3)
    await ends(loop)
    assert loop.comparing.answering is None and not loop.ahead.is_paused
    (ended,) = await everything(loop.database, Comparison)
    assert (ended.state, ended.reason) == ("failed", reason)
    assert sum(reply is not None for one in await _replies(loop) for reply in one) == after
    assert (speaker.name or ("base" if speaker.loaded else None)) == loaded


async def test_a_load_that_is_refused_ends_nothing(loop: Loop, speaker: Speaker) -> None:
    """A load of an adapter that is not there, or a run without leave to unload, leaves the comparison alone."""
    await add(loop.database, SINGLE)
    speaker.holds = True
    await loop.comparing.start(_asking())
    await _held(speaker, 3)
    with pytest.raises(InvalidInput):
        await loop.load(OPTIONS, adapter="li-simpo-9")
    with pytest.raises(ModelLoaded):
        await loop.handover.start()
    speaker.state = "loading"
    with pytest.raises(ModelLoading):
        await loop.load(OPTIONS)
    speaker.release()
    assert (await _ended(loop)).state == "open"


async def test_a_stop_before_the_first_step_is_a_stop(loop: Loop) -> None:
    """Whoever stops it at once, before its task has run at all, finds it failed and the engine free."""
    await loop.comparing.start(_asking())
    await loop.comparing.give_way(STOPPED)
    ended = await _ended(loop)
    assert (ended.state, ended.reason) == ("failed", STOPPED)


async def test_nobody_talks_to_an_adapter_that_nobody_chose(loop: Loop, speaker: Speaker) -> None:
    """Generating, chatting and a prompt without stored candidates are refused; the persona in force stays."""
    await loop.load(OPTIONS, adapter=OLD)
    await loop.database.write(lambda session: prompts.add(session, "li", [NewPrompt("?")]))
    speaker.holds = True
    await loop.comparing.start(_asking())
    await _held(speaker, 3)
    with pytest.raises(ComparisonRunning):
        await anext(loop.generate("hi", []))
    with pytest.raises(ComparisonRunning):
        loop.chat([{"role": "user", "content": "hi"}], {"seed": None, "stream": False, "stop": []})
    with pytest.raises(ComparisonRunning):
        await anext(loop.next("given"))
    assert loop.ahead.is_paused
    async with loop.database.read() as session:
        assert loop.persona(await loop.meant(session, None)) == "You are Mia."
    speaker.release()
    await _ended(loop)
    assert isinstance(await anext(loop.generate("hi", [])), Finished)
    assert isinstance(await anext(loop.next("given")), NextPrompt)


async def test_one_at_a_time_and_none_beside_a_load_or_a_run(loop: Loop, speaker: Speaker) -> None:
    """A second comparison, also one asked for at the same moment, is refused; so is one in a load or a run."""
    speaker.holds = True
    starts = await asyncio.gather(*(loop.comparing.start(_asking()) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in starts] == [Comparison, Conflict, Conflict]
    with pytest.raises(Conflict):
        await loop.comparing.start(_asking())
    await loop.unload()
    speaker.state = "loading"
    with pytest.raises(ModelLoading):
        await loop.comparing.start(_asking())
    speaker.state = "unloaded"
    await add(loop.database, SINGLE)
    await loop.handover.start()
    with pytest.raises(TrainingRunning):
        await loop.comparing.start(_asking())


async def test_a_run_that_begins_while_it_is_prepared_goes_first(loop: Loop, speaker: Speaker) -> None:
    """No adapter is loaded beside a run: the comparison is refused, and stored as failed."""
    await add(loop.database, SINGLE)
    starting = asyncio.create_task(loop.comparing.start(_asking()))
    await asyncio.sleep(0)
    loop.handover._starting = True
    with pytest.raises(TrainingRunning):
        await starting
    loop.handover._starting = False
    (ended,) = await everything(loop.database, Comparison)
    assert (ended.state, ended.reason, speaker.loads) == ("failed", TrainingRunning.detail, [])


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"adapter": "li-simpo-9"}, "adapter"),
        ({"against": "li-simpo-9"}, "against"),
        ({"against": NEW}, "against"),
        ({"adapter": "base", "against": "base"}, "against"),
        ({"character": "mia"}, "character"),
    ],
)
async def test_what_is_not_there_is_refused_with_its_field(loop: Loop, fields: dict[str, str], fault: str) -> None:
    """Nothing is stored of a comparison that cannot be."""
    with pytest.raises(InvalidInput) as caught:
        await loop.comparing.start(replace(_asking(), **fields))  # type: ignore[arg-type]
    assert set(caught.value.fields) == {fault}
    assert await everything(loop.database, Comparison) == [] and loop.comparing.answering is None


@pytest.mark.parametrize(("adapter", "against"), [(OLD, NEW), (NEW, "base"), ("base", NEW)])
async def test_the_other_side_is_what_a_load_takes(loop: Loop, adapter: str, against: str) -> None:
    """Where that is the adapter itself, it is the base model."""
    await loop.comparing.start(replace(_asking(), adapter=adapter, against=None))
    assert (await _ended(loop)).against == against


async def test_an_engine_that_fails_ends_it(loop: Loop, speaker: Speaker) -> None:
    """The reason is what the engine says; what was loaded is loaded again, and the next comparison works."""
    await loop.load(OPTIONS, adapter=OLD)
    speaker.fault = EngineFailed("boom", "推理引擎出错：boom")
    await loop.comparing.start(_asking())
    ended = await _ended(loop)
    assert (ended.state, ended.reason, speaker.name) == ("failed", "推理引擎出错：boom", OLD)
    speaker.fault = None
    await loop.comparing.start(_asking())
    assert (await _ended(loop)).state == "open"


async def test_a_load_that_fails_ends_it(loop: Loop, speaker: Speaker) -> None:
    """Also where what was loaded before cannot be loaded again."""
    await loop.load(OPTIONS)
    speaker.refuses = EngineFailed("no memory", "内存不足")
    await loop.comparing.start(_asking())
    ended = await _ended(loop)
    assert (ended.state, ended.reason) == ("failed", "内存不足")
    assert not loop.ahead.is_paused


async def test_an_adapter_that_is_compared_is_not_deleted(loop: Loop, speaker: Speaker) -> None:
    """Nor is the one that is loaded again afterwards; when it is over both can go, and the comparison stays."""
    put_adapter(loop.settings, "li-simpo-3", "base", 3)
    await loop.load(OPTIONS, adapter="li-simpo-3")
    speaker.holds = True
    await loop.comparing.start(_asking())
    await _held(speaker, 3)
    for name in (NEW, OLD, "li-simpo-3"):
        with pytest.raises(Conflict, match=name):
            await loop.delete(name)
    speaker.release()
    await _ended(loop)
    await loop.delete(NEW)
    assert (await everything(loop.database, Comparison))[0].adapter == NEW


async def test_only_what_is_answered_can_be_stopped(loop: Loop) -> None:
    """A comparison that is not there, or is over, is refused; one that a server left behind is ended."""
    with pytest.raises(NotFound):
        await loop.comparing.stop(1)
    number = (await loop.comparing.start(_asking())).id
    await _ended(loop)
    with pytest.raises(Conflict):
        await loop.comparing.stop(number)
    left = await loop.database.write(_left)
    await loop.comparing.stop(left)
    ended = (await everything(loop.database, Comparison))[-1]
    assert (ended.state, ended.reason) == ("failed", STOPPED)


async def _left(session: Any) -> int:
    """A comparison that a server was answering when it was killed."""
    names = {"character": "li", "base_model": "base", "adapter": NEW, "against": OLD}
    left = Comparison(**names, settings={}, seed=0, promotes=False)
    session.add(left)
    await session.flush()
    return left.id


async def test_what_a_killed_server_was_answering_has_failed(loop: Loop) -> None:
    """The next server says so; of several servers on one database nobody knows what the others answer."""
    await loop.database.write(_left)
    await loop.comparing.recover()
    (left,) = await everything(loop.database, Comparison)
    assert (left.state, left.reason) == (("answering", None) if loop.database.shared else ("failed", ENDED))


async def test_nothing_is_written_ahead_by_it(loop: Loop, speaker: Speaker) -> None:
    """While it answers, the queue waits; afterwards its prompts are answered by what people talk to."""
    engine = cast(Engine, speaker)
    async with Ahead.running(loop.settings, loop.database, engine) as ahead:
        loop.comparing._ahead = ahead
        await loop.load(OPTIONS, adapter=OLD)
        speaker.holds = True
        await loop.comparing.start(_asking())
        await loop.database.write(lambda session: prompts.add(session, "li", [NewPrompt("?")]))
        await _held(speaker, 3)
        ahead.wake()
        await asyncio.sleep(0.1)
        assert [request.client for request in speaker.requests] == ["", "", ""]
        speaker.release()
        await _ended(loop)
        async with asyncio.timeout(WAIT_S):
            while speaker.requests[-1].client is not None:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.005)
        assert (speaker.requests[-1].message, speaker.name) == ("?", OLD)
