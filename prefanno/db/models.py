"""The tables.

Times are UTC without a zone. Ids are integers that grow with each insert and are never used again, so they sort by
time. Every row that a person or a model made belongs to a character.
"""

import random
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, Index, Integer, MetaData, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DEFAULT_CHARACTER = "li"
# SQLite's integers have 64 bits by any name, but only INTEGER is its row id.
LOT_BITS = 31
ID = BigInteger().with_variant(Integer(), "sqlite")


def now() -> datetime:
    """The time, in UTC, as the tables hold it."""
    return datetime.now(UTC).replace(tzinfo=None)


class Base(DeclarativeBase):
    """Names every constraint, so that a migration can name it too."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Character(Base):
    """A persona that owns annotations, generations, runs and adapters; `slug` is the prefix of their files.

    `system_prompt` is null where the default persona is meant. The one selected last is the current one.
    """

    __tablename__ = "characters"

    slug: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    system_prompt: Mapped[str | None]
    selected_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Annotation(Base):
    """One choice by a person, as it stands now; how it came to be so is in `events`.

    `context` holds the earlier turns as [{"role", "content"}]. `replies` holds what the choice was among, as
    [{"content", "thinking", "rank", "candidate"}]: `annotation/choices.py` says what ranks and verdict mean, and
    `candidate` is the ordinal of the candidate that the reply was. `listed` says whether it counts in its dataset: it
    is not deleted and has a best reply. `weight` is shared by the pairs that follow from it.
    """

    __tablename__ = "annotations"
    __table_args__ = (
        CheckConstraint("mode IN ('single', 'multi')", name="mode"),
        CheckConstraint("verdict IN ('best', 'ranking', 'good', 'bad', 'edit', 'skip')", name="verdict"),
        Index(None, "character", "mode", "listed", "id"),
        Index(None, "character", "id"),
        UniqueConstraint("generation_id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    character: Mapped[str] = mapped_column(ForeignKey("characters.slug"), default=DEFAULT_CHARACTER)
    mode: Mapped[str]
    system_prompt: Mapped[str]
    context: Mapped[list[dict[str, str]]] = mapped_column(JSON)
    human_input: Mapped[str]
    verdict: Mapped[str]
    replies: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    weight: Mapped[float] = mapped_column(default=1.0)
    reasons: Mapped[list[str]] = mapped_column(JSON, default=list)
    note: Mapped[str | None]
    annotator: Mapped[str | None]
    adapter: Mapped[str | None]
    generation_id: Mapped[int | None] = mapped_column(ID, ForeignKey("generations.id"))
    listed: Mapped[bool] = mapped_column(default=True)
    deleted_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Step(Base):
    """One thing that a person did to annotations, however many it touched; it is undone and redone as a whole.

    `state` places it: done (undo takes the last of these), undone (redo takes the first that is newer than all done),
    dropped (undone, and never to be redone), final (an undo or a redo itself: part of the history, not to be undone).
    """

    __tablename__ = "steps"
    __table_args__ = (
        CheckConstraint(
            "kind IN ('add', 'choose', 'edit', 'delete', 'restore', 'import', 'undo', 'redo')", name="kind"
        ),
        CheckConstraint("state IN ('done', 'undone', 'dropped', 'final')", name="state"),
        Index(None, "character", "state", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    character: Mapped[str] = mapped_column(ForeignKey("characters.slug"))
    kind: Mapped[str]
    state: Mapped[str] = mapped_column(default="done")
    annotator: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Event(Base):
    """What a step changed in one annotation: the changed fields before and after. Never changed, only erased."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "annotation_id"), Index(None, "step_id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    step_id: Mapped[int] = mapped_column(ID, ForeignKey("steps.id"))
    annotation_id: Mapped[int] = mapped_column(ID, ForeignKey("annotations.id"))
    before: Mapped[dict[str, Any]] = mapped_column(JSON)
    after: Mapped[dict[str, Any]] = mapped_column(JSON)


class Count(Base):
    """How many annotations of a mode are listed: counting a million rows at each add would take longer than the add."""

    __tablename__ = "counts"

    character: Mapped[str] = mapped_column(ForeignKey("characters.slug"), primary_key=True)
    mode: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int]


class IdempotencyKey(Base):
    """The answer to a request that a client may send again; `fingerprint` tells another request under the same key."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    answer: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(default=now)


class Generation(Base):
    """One message answered by candidates, with all that is needed to answer it the same way again.

    In multi mode it is a turn of a conversation: `parent_id` is the turn that it continues, `conversation_id` the
    first turn of the tree, its own id where it is the first.
    """

    __tablename__ = "generations"
    __table_args__ = (Index(None, "parent_id"), Index(None, "conversation_id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    character: Mapped[str] = mapped_column(ForeignKey("characters.slug"), default=DEFAULT_CHARACTER)
    message: Mapped[str]
    context: Mapped[list[dict[str, str]]] = mapped_column(JSON)
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    base_model: Mapped[str]
    adapter: Mapped[str | None]
    seed: Mapped[int]
    parent_id: Mapped[int | None] = mapped_column(ID, ForeignKey("generations.id"))
    conversation_id: Mapped[int | None] = mapped_column(ID, ForeignKey("generations.id"))
    created_at: Mapped[datetime] = mapped_column(default=now)


class Candidate(Base):
    """One reply of a generation; `ordinal` counts from 1.

    `seed` made it and `mean_logprob` is what the model itself held of it (`generation/config.py`: Reply); both are null
    in what was stored before these were recorded.
    """

    __tablename__ = "candidates"
    __table_args__ = (UniqueConstraint("generation_id", "ordinal"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    generation_id: Mapped[int] = mapped_column(ID, ForeignKey("generations.id"))
    ordinal: Mapped[int]
    thinking: Mapped[str | None]
    content: Mapped[str]
    finish_reason: Mapped[str]
    tokens: Mapped[int]
    seed: Mapped[int | None] = mapped_column(BigInteger)
    mean_logprob: Mapped[float | None]


class Prompt(Base):
    """A message, after `context`, that is to be answered when a person asks for the next one; `digest` is of both.

    `state` is waiting; ready, when `generation_id` has its candidates and nobody has seen them; taken, when a person
    has it, with the candidates it was answered by; or failed, for `reason`. `disagreement` is that of the candidates
    (`recording.py`: disagreement). `lot` is its place where the order is random, `taken_at` when a person got it last.
    """

    __tablename__ = "prompts"
    __table_args__ = (
        CheckConstraint("state IN ('waiting', 'ready', 'taken', 'failed')", name="state"),
        Index(None, "character", "id"),
        Index(None, "character", "state", "id"),
        Index(None, "character", "state", "lot"),
        Index(None, "character", "digest"),
        Index(None, "character", "taken_at"),
        Index(None, "generation_id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    character: Mapped[str] = mapped_column(ForeignKey("characters.slug"))
    message: Mapped[str]
    context: Mapped[list[dict[str, str]]] = mapped_column(JSON)
    digest: Mapped[str]
    state: Mapped[str] = mapped_column(default="waiting")
    reason: Mapped[str | None]
    generation_id: Mapped[int | None] = mapped_column(ID, ForeignKey("generations.id"))
    disagreement: Mapped[float | None]
    lot: Mapped[int] = mapped_column(default=lambda: random.getrandbits(LOT_BITS))
    taken_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Comparison(Base):
    """An adapter on trial `against` another, both by their names; the base model alone has a name, too.

    `state` is answering, while the replies are written; then open, or failed, for `reason`: what was written can be
    voted on in any state. `left_out` counts the prompts that could not be answered. Where it `promotes`, `promotion`
    is due when the votes say that the adapter is better, then done, or failed.
    """

    __tablename__ = "comparisons"
    __table_args__ = (
        CheckConstraint("state IN ('answering', 'open', 'failed')", name="state"),
        CheckConstraint("promotion IN ('due', 'done', 'failed')", name="promotion"),
        Index(None, "character", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    character: Mapped[str] = mapped_column(ForeignKey("characters.slug"))
    base_model: Mapped[str]
    adapter: Mapped[str]
    against: Mapped[str]
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    seed: Mapped[int]
    promotes: Mapped[bool]
    state: Mapped[str] = mapped_column(default="answering")
    reason: Mapped[str | None]
    left_out: Mapped[int] = mapped_column(default=0)
    promotion: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    ended_at: Mapped[datetime | None]


class Round(Base):
    """One prompt of a comparison, what each side replied, and the vote; `digest` is of message and context.

    `swapped` says that the adapter's reply is shown on the right. `annotation_id` is the pair that the vote made.
    """

    __tablename__ = "rounds"
    __table_args__ = (
        CheckConstraint("vote IN ('adapter', 'against', 'tie')", name="vote"),
        UniqueConstraint("comparison_id", "ordinal"),
        Index(None, "digest"),
        Index(None, "annotation_id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    comparison_id: Mapped[int] = mapped_column(ID, ForeignKey("comparisons.id"))
    ordinal: Mapped[int]
    message: Mapped[str]
    context: Mapped[list[dict[str, str]]] = mapped_column(JSON)
    system_prompt: Mapped[str]
    digest: Mapped[str]
    adapter_reply: Mapped[str | None]
    adapter_thinking: Mapped[str | None]
    against_reply: Mapped[str | None]
    against_thinking: Mapped[str | None]
    swapped: Mapped[bool]
    vote: Mapped[str | None]
    annotation_id: Mapped[int | None] = mapped_column(ID, ForeignKey("annotations.id"))
    annotator: Mapped[str | None]
    voted_at: Mapped[datetime | None]


class Run(Base):
    """One training; the files in its folder are the truth, this row indexes them.

    `resumed_at` is when it went on from its last checkpoint, where it did; `ended_at` is null again from then on.
    """

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint("state IN ('running', 'succeeded', 'failed', 'stopped')", name="state"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    character: Mapped[str] = mapped_column(ForeignKey("characters.slug"), default=DEFAULT_CHARACTER)
    state: Mapped[str] = mapped_column(default="running")
    base_model: Mapped[str]
    adapter: Mapped[str | None]
    started_at: Mapped[datetime] = mapped_column(default=now)
    resumed_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    exit_code: Mapped[int | None]
    reason: Mapped[str | None]
