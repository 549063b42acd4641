"""Whatever a person does, in any order: the database holds what a plain model holds, after every step."""

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation import conversations, dataset, history, imports
from prefanno.annotation.export import export
from prefanno.annotation.imports import Options, Source
from prefanno.db import annotations, characters, file, search, steps, upgrade
from prefanno.db.annotations import Filters
from prefanno.db.engine import Database, Work
from prefanno.db.models import Annotation, Candidate, Event, Generation, Step
from prefanno.errors import PrefannoError
from prefanno.prompting import Message
from prefanno.rows import Mode, Row, reader, writer
from prefanno.settings import Postgres
from tests.annotation.model import (
    QUERIES,
    VERDICTS,
    Fields,
    Model,
    about,
    among,
    choices,
    contexts,
    edits,
    modes,
    people,
    places,
    slugs,
    tags,
    thoughts,
    words,
)
from tests.postgres import Refilled
from tests.properties import unhurried

WRITES, READS = writer("sharegpt"), reader("sharegpt")
PERSONA = "You are Li."
Fresh = Callable[[str], Path | Postgres]  # a new database, which may lie in this folder
BEGINNING = datetime.fromisoformat("2026-01-27T12:00:00.123456")


@dataclass(frozen=True)
class Actions:
    """What the program does at some of the rules; a control gives one that is broken."""

    edit: Callable[[AsyncSession, int, Fields], Awaitable[Annotation]] = dataset.edit
    undo: Callable[[AsyncSession, str], Awaitable[tuple[Step, int]]] = history.undo
    redo: Callable[[AsyncSession, str], Awaitable[tuple[Step, int]]] = history.redo


@dataclass(frozen=True)
class Act:
    """One request to the program, and what the model answers to the same."""

    work: Work[Any]
    expected: Callable[[], object]


class _Collector:
    """A format that keeps the rows and writes no file."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.counts: dict[str, int] = {}
        self.losses: dict[str, int] = {}

    def write(self, rows: Sequence[Row]) -> None:
        self.rows += rows

    def writing(self, folder: Path, character: str) -> AbstractContextManager["_Collector"]:
        return nullcontext(self)


class AnyOrder(RuleBasedStateMachine):
    """Rules do the same to a real database and to the model; after each the two are compared."""

    def __init__(self, fresh: Fresh, actions: Actions) -> None:
        super().__init__()
        self.actions = actions
        self.folder = tempfile.TemporaryDirectory()
        self.where = fresh(self.folder.name)
        self.exported: list[list[Path]] = []
        self.runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.database = self.runner.run(self._opened())
        self.model = Model(["li"], past={"li": []}, future={"li": []})

    def teardown(self) -> None:
        """Close everything; a file must be sound."""
        try:
            self.runner.run(self.database.close())
            if isinstance(self.where, Path):
                file.verify(self.where)
        finally:
            self.runner.close()
            self.folder.cleanup()

    async def _opened(self) -> Database:
        return Database(self.where)

    def _do(self, *acts: Act) -> None:
        """Ask for all of these at once; each is answered as the model answers them one after the other."""
        answers = self.runner.run(self._asked([act.work for act in acts]))
        assert answers == [act.expected() for act in acts]

    async def _asked(self, works: Sequence[Work[Any]]) -> list[object]:
        answers = await asyncio.gather(*(self.database.write(work) for work in works), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, PrefannoError):
                raise answer
        return [type(answer) if isinstance(answer, PrefannoError) else answer for answer in answers]

    def _slug(self, slug: str) -> str:
        return slug if slug in self.model.slugs else "li"

    def _number(self, place: int) -> int:
        return sorted(self.model.annotations)[-1 - place % len(self.model.annotations)]

    def _turn(self, place: int) -> int:
        return sorted(self.model.turns)[-1 - place % len(self.model.turns)]

    @initialize(two=st.booleans())
    def begin(self, two: bool) -> None:
        """With one character, or with two."""
        if two:
            self.runner.run(self.database.write(lambda session: characters.create(session, "mei", "Mei", None)))
            self.model.slugs.append("mei")
            self.model.past["mei"], self.model.future["mei"] = [], []

    @rule(slug=slugs, mode=modes, context=contexts, texts=st.tuples(words, words, thoughts, thoughts, thoughts))
    def add(self, slug: str, mode: Mode, context: list[Message], texts: Sequence[Any]) -> None:
        """A choice that came as texts."""
        slug, (question, chosen, chosen_thinking, rejected, rejected_thinking) = self._slug(slug), texts
        rejected = rejected or ("no" if mode == "single" else None)
        moment = BEGINNING + timedelta(seconds=len(self.model.annotations))
        sides = (chosen, chosen_thinking, rejected, rejected_thinking if rejected else None)
        row = Row(mode, PERSONA, context, question, *sides, created_at=moment)
        self._do(Act(lambda session: _id(dataset.add(session, slug, row)), lambda: self.model.add(slug, row)))

    @rule(slug=slugs, mode=modes, context=contexts, message=words, candidates=among)
    def generate(self, slug: str, mode: Mode, context: list[Message], message: str, candidates: list[Fields]) -> None:
        """A generation, in multi mode the first turn of a conversation."""
        about = {"character": self._slug(slug), "mode": mode, "context": context, "human_input": message}
        self._generate(about | {"adapter": None, "candidates": candidates}, None)

    @precondition(lambda self: self.model.turns)
    @rule(place=places, message=words, candidates=among)
    def branch(self, place: int, message: str, candidates: list[Fields]) -> None:
        """Going on from a turn that has a best reply; again, or from an earlier turn, is a branch."""
        number = self._turn(place)
        about = {"character": self.model.turns[number]["character"], "mode": "multi", "human_input": message}
        found = self.runner.run(self._going_on(number, about["character"]))
        assert (found if isinstance(found, type) else found[1]) == self.model.words_after(number)
        if not isinstance(found, type):
            self._generate(about | {"context": found[1], "adapter": "li-simpo-1", "candidates": candidates}, found[0])

    async def _going_on(self, number: int, slug: str) -> tuple[Generation, list[Message]] | type[PrefannoError]:
        async with self.database.read() as session:
            try:
                return await conversations.going_on(session, number, slug)
            except PrefannoError as error:
                return type(error)

    def _generate(self, about: Fields, parent: Generation | None) -> None:
        copied = {name: about[name] for name in ("character", "context", "adapter")}
        known = {"mode": about["mode"], "system_prompt": PERSONA}

        async def store(session: AsyncSession) -> int:
            turn = Generation(message=about["human_input"], settings=known, base_model="b", seed=1, **copied)
            await conversations.place(session, turn, parent)
            for one in about["candidates"]:
                texts = {"content": one["content"], "thinking": one["thinking"], "ordinal": one["candidate"]}
                session.add(Candidate(generation_id=turn.id, finish_reason="stop", tokens=1, **texts))
            return turn.id

        number = self.runner.run(self.database.write(store))
        self.model.turns[number] = about | {"system_prompt": PERSONA, "parent": parent.id if parent else None}

    @precondition(lambda self: self.model.turns)
    @rule(place=places, choice=choices(), about=about)
    def choose(self, place: int, choice: tuple[str, Fields], about: Fields) -> None:
        """Among a turn's candidates, for the first time or again."""
        self._do(self._choose(self._turn(place), choice, about))

    @precondition(lambda self: self.model.annotations)
    @rule(place=places, fields=edits)
    def edit(self, place: int, fields: Fields) -> None:
        """Some fields of an annotation."""
        self._do(self._edit(self._number(place), fields))

    @precondition(lambda self: self.model.annotations)
    @rule(chosen=st.lists(places, min_size=1, max_size=3), deleted=st.booleans())
    def delete_or_restore(self, chosen: Sequence[int], deleted: bool) -> None:
        """One, or some at once."""
        self._do(self._set_deleted([self._number(place) for place in chosen], deleted))

    @rule(slug=slugs, q=st.sampled_from(QUERIES) | st.none(), deleted=st.booleans())
    def delete_or_restore_what_is_found(self, slug: str, q: str | None, deleted: bool) -> None:
        """In bulk, by a search."""
        slug = self._slug(slug)

        async def work(session: AsyncSession) -> int:
            found = await annotations.ids(session, Filters(slug, q=q, deleted=not deleted))
            return await dataset.set_deleted(session, found, deleted)

        found = self.model.find(slug, q, deleted=not deleted)
        self._do(Act(work, lambda: self.model.set_deleted(found, deleted)))

    @rule(slug=slugs)
    def undo(self, slug: str) -> None:
        """The last step, as a whole."""
        self._do(self._undo(self._slug(slug)))

    @rule(slug=slugs)
    def redo(self, slug: str) -> None:
        """What was undone last."""
        self._do(self._redo(self._slug(slug)))

    @rule(slug=slugs, back=st.integers(1, 4), forth=st.integers(0, 4))
    def go_back_and_forth(self, slug: str, back: int, forth: int) -> None:
        """Some steps back, seeing again what was there, and some forth."""
        for act in [self._undo] * back + [self._redo] * forth:
            self._do(act(self._slug(slug)))
            self.runner.run(self._compare())

    @rule(asked=st.lists(st.tuples(st.integers(0, 5), slugs, places, edits, choices(), about), min_size=2, max_size=5))
    def ask_at_once(self, asked: Sequence[tuple[int, str, int, Fields, tuple[str, Fields], Fields]]) -> None:
        """Requests that meet in one group of the writer, some of them refused."""
        acts: list[Act] = []
        for kind, slug, place, fields, choice, said in asked:
            if self.model.annotations and kind in (2, 3):
                chosen = [self._number(place), self._number(place // 2)]
                acts.append(self._set_deleted(chosen, place % 2 == 0) if kind == 2 else self._edit(chosen[0], fields))
            elif self.model.turns and kind > 3:
                acts.append(self._choose(self._turn(place), choice, said))
            else:
                acts.append(self._undo(self._slug(slug)) if kind % 2 else self._redo(self._slug(slug)))
        self._do(*acts)

    @rule(slug=slugs)
    def export_files(self, slug: str) -> None:
        """What the files hold, read back, is what the model says."""
        slug, folder = self._slug(slug), self._new_folder()
        manifest = self.runner.run(export(self.database, "sharegpt", folder, slug))
        paths = [folder / name for name in manifest.files]
        self.exported.append(paths)
        for path, expected in zip(paths, _by_file(self.model.rows(slug)), strict=True):
            assert _sorted(_read(path)) == _sorted(expected)
            assert manifest.files[path.name].rows == len(expected)

    @precondition(lambda self: self.exported)
    @rule(slug=slugs, place=places)
    def import_what_was_exported(self, slug: str, place: int) -> None:
        """By the same or another character, now or long ago."""
        self._import(self._slug(slug), self.exported[-1 - place % len(self.exported)])

    @rule(
        slug=slugs, rows=st.lists(st.tuples(modes, contexts, words, words, thoughts, thoughts), min_size=1, max_size=3)
    )
    def import_from_elsewhere(self, slug: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Rows of a file, some without a persona, some twice."""
        slug, folder = self._slug(slug), self._new_folder()
        with WRITES.writing(folder, slug) as writing:
            for place, (mode, context, question, chosen, thinking, rejected) in enumerate(rows):
                persona, weight = ("", 1.0) if place else (PERSONA, 0.5)
                sides = (chosen, thinking, rejected, None)
                row = Row(mode, persona, context, question, *sides, created_at=BEGINNING, weight=weight)
                writing.write([row, row])
        self._import(slug, [folder / name for name in writing.counts])

    @rule()
    def restart(self) -> None:
        """Another process would find the same."""
        self.runner.run(self.database.close())
        self.database = self.runner.run(self._opened())

    @rule(
        slug=slugs,
        q=st.sampled_from(QUERIES) | st.none(),
        wanted=st.fixed_dictionaries(
            {"deleted": st.booleans()},
            optional={"mode": modes, "verdict": st.sampled_from(VERDICTS), "reason": tags, "annotator": people},
        ),
        since=places,
    )
    def search(self, slug: str, q: str | None, wanted: Fields, since: int) -> None:
        """Filters narrow what is found; pages of two follow each other without a gap."""
        slug, moment = self._slug(slug), BEGINNING + timedelta(seconds=since)
        wanted = {name: value for name, value in wanted.items() if value is not None}
        found = self.model.find(slug, q, **wanted)
        later = [number for number in found if self.model.times[number] >= moment]
        assert self.runner.run(self._pages(Filters(slug, q=q, since=moment, **wanted))) == later
        earlier = [number for number in found if number not in later]
        assert self.runner.run(self._pages(Filters(slug, q=q, until=moment, **wanted))) == earlier

    async def _pages(self, filters: Filters) -> list[int]:
        found: list[int] = []
        async with self.database.read() as session:
            while page := await annotations.page(session, filters, found[-1] if found else None, 2):
                found += [annotation.id for annotation in page]
        return found

    @invariant()
    def the_database_equals_the_model(self) -> None:
        """Every field of every annotation, counts, lists, what undo and redo will do, rows for training, search."""
        self.runner.run(self._compare())

    async def _compare(self) -> None:
        async with self.database.read() as session:
            stored = {one.id: one for one in await session.scalars(select(Annotation))}
            self.model.times = {number: one.created_at for number, one in stored.items()} | self.model.times
            assert {number: _fields(one) for number, one in stored.items()} == self.model.annotations
            assert {number: one.created_at for number, one in stored.items()} == self.model.times
            for slug in self.model.slugs:
                assert await annotations.counts(session, slug) == self.model.counts(slug)
                assert await _coming(session, slug) == self.model.coming(slug)
                for mode in ("single", "multi"):
                    newest = await annotations.newest(session, slug, mode, 3)
                    assert [one.id for one in newest] == self.model.newest(slug, mode)[:3]
                for q in QUERIES:
                    found = await annotations.page(session, Filters(slug, q=q), None, 1000)
                    assert [one.id for one in found] == self.model.find(slug, q)
        for slug in self.model.slugs:
            collected = _Collector()
            await export(self.database, "kept", Path(self.folder.name), slug, writes=collected)
            assert _sorted(collected.rows) == _sorted(self.model.rows(slug))

    def _new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder.name))

    def _import(self, slug: str, paths: Sequence[Path]) -> None:
        rows = [row for path in paths for row in _read(path)]
        rows = [replace(row, system_prompt=row.system_prompt or PERSONA) for row in rows]
        done = self.runner.run(imports.load(self.database, Source(READS, paths, slug, PERSONA), Options()))
        assert (done.added, done.duplicates) == self.model.load(slug, rows)

    def _choose(self, number: int, choice: tuple[str, Fields], about: Fields) -> Act:
        verdict, said = choice
        return Act(
            lambda session: _id(dataset.choose(session, number, verdict, **said, **about)),
            lambda: self.model.choose(number, verdict, said, about),
        )

    def _edit(self, number: int, fields: Fields) -> Act:
        return Act(
            lambda session: _id(self.actions.edit(session, number, dict(fields))),
            lambda: self.model.edit(number, fields),
        )

    def _set_deleted(self, numbers: Sequence[int], deleted: bool) -> Act:
        return Act(
            lambda session: dataset.set_deleted(session, numbers, deleted),
            lambda: self.model.set_deleted(numbers, deleted),
        )

    def _undo(self, slug: str) -> Act:
        return Act(lambda session: _kind(self.actions.undo(session, slug)), lambda: self.model.undo(slug))

    def _redo(self, slug: str) -> Act:
        return Act(lambda session: _kind(self.actions.redo(session, slug)), lambda: self.model.redo(slug))


async def _id(stored: Awaitable[Annotation | tuple[Annotation, bool]]) -> int:
    found = await stored
    return found.id if isinstance(found, Annotation) else found[0].id


async def _kind(taken_back: Awaitable[tuple[Step, int]]) -> tuple[str, int]:
    step, changed = await taken_back
    return step.kind, changed


def _fields(annotation: Annotation) -> Fields:
    names = {column.key for column in Annotation.__table__.columns} - {"id", "listed", "deleted_at", "created_at"}
    return {name: getattr(annotation, name) for name in names} | {"deleted": annotation.deleted_at is not None}


async def _coming(session: AsyncSession, slug: str) -> list[tuple[str, int] | None]:
    coming = (await steps.last_done(session, slug), await steps.first_undone(session, slug))
    return [(step.kind, len(await _changed(session, step))) if step else None for step in coming]


async def _changed(session: AsyncSession, step: Step) -> Sequence[Event]:
    return (await session.scalars(select(Event).where(Event.step_id == step.id))).all()


def _read(path: Path) -> list[Row]:
    """The rows of a file in which none is bad."""
    found = [row for _, row in READS.reading(path)]
    rows = [row for row in found if isinstance(row, Row)]
    assert rows == found
    return rows


def _by_file(rows: Sequence[Row]) -> list[list[Row]]:
    """Pairs, conversations, and replies by themselves; a conversation with a rejected reply is a pair, too."""
    pairs = [row for row in rows if row.chosen is not None and row.rejected is not None]
    whole = [row for row in rows if row.mode == "multi"]
    return [pairs, whole, [row for row in rows if row not in pairs + whole]]


def _sorted(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=repr)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new database, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "prefanno.db"
    upgrade.upgrade(path)
    return path


@pytest.fixture
def fresh(migrated: Path, database_kind: str, request: pytest.FixtureRequest) -> Fresh:
    """Makes a new database for each example, or empties one."""
    if database_kind == "sqlite":
        return lambda folder: Path(shutil.copy(migrated, folder))
    refilled: Refilled = request.getfixturevalue("refilled")

    def refill(_folder: str) -> Postgres:
        refilled.refill()
        return Postgres(refilled.url)

    return refill


@pytest.mark.parametrize(("examples", "steps_each"), [(20, 30), pytest.param(300, 60, marks=pytest.mark.long)])
def test_in_any_order_the_database_equals_the_model(fresh: Fresh, examples: int, steps_each: int) -> None:
    """Add, choose, edit, branch, delete, restore, undo, redo, import, export, restart: all as the model says."""
    much = settings(unhurried, max_examples=examples, stateful_step_count=steps_each)
    run_state_machine_as_test(_machine(fresh, Actions()), settings=much)


def _machine(fresh: Fresh, actions: Actions) -> type[RuleBasedStateMachine]:
    """What makes a machine for each example; hypothesis calls it, and its type says class."""
    return cast(type[RuleBasedStateMachine], lambda: AnyOrder(fresh, actions))


async def _undo_but_the_note(session: AsyncSession, slug: str) -> tuple[Step, int]:
    step, changed = await history.undo(session, slug)
    for event in await _changed(session, step):
        annotation = await annotations.get(session, event.annotation_id)
        annotation.note = event.after.get("note", annotation.note)
    return step, changed


async def _redo_nothing(session: AsyncSession, slug: str) -> tuple[Step, int]:
    step, changed = await history.redo(session, slug)
    await history.undo(session, slug)
    return step, changed


async def _edit_unsearchable(session: AsyncSession, number: int, fields: Fields) -> Annotation:
    annotation = await dataset.edit(session, number, fields)
    await search.take(session, {number: search.words(annotation)})
    return annotation


BROKEN = {
    "undo but the note": Actions(undo=_undo_but_the_note),
    "redo nothing": Actions(redo=_redo_nothing),
    "edit unsearchable": Actions(edit=_edit_unsearchable),
}


@pytest.mark.sqlite_only  # it is about the test above, whatever the database
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_program_is_caught(fresh: Fresh, broken: Actions) -> None:
    """Control: a program that forgets one thing in one action differs from the model soon."""
    soon = settings(unhurried, max_examples=300, stateful_step_count=30, phases=[Phase.generate], derandomize=True)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(_machine(fresh, broken), settings=soon)
