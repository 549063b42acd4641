"""The tables.

Times are UTC without a zone. Ids are integers that grow with each insert and are never used again, so they sort by
time. Every row that a person or a model made belongs to a character.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, CheckConstraint, ForeignKey, Index, MetaData, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DEFAULT_CHARACTER = "li"


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
    """Who owns annotations, generations, runs and adapters; `slug` is the prefix of their files."""

    __tablename__ = "characters"

    slug: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=now)


class Annotation(Base):
    """One choice by a person. `context` holds the earlier turns as [{"role", "content"}]."""

    __tablename__ = "annotations"
    __table_args__ = (
        CheckConstraint("mode IN ('single', 'multi')", name="mode"),
        CheckConstraint("mode = 'multi' OR rejected IS NOT NULL", name="single_has_rejected"),
        Index(None, "character", "mode"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    character: Mapped[str] = mapped_column(ForeignKey("characters.slug"), default=DEFAULT_CHARACTER)
    mode: Mapped[str]
    system_prompt: Mapped[str]
    context: Mapped[list[dict[str, str]]] = mapped_column(JSON)
    human_input: Mapped[str]
    chosen: Mapped[str]
    chosen_thinking: Mapped[str | None]
    rejected: Mapped[str | None]
    rejected_thinking: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Generation(Base):
    """One message answered by candidates, with all that is needed to answer it the same way again."""

    __tablename__ = "generations"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    character: Mapped[str] = mapped_column(ForeignKey("characters.slug"), default=DEFAULT_CHARACTER)
    message: Mapped[str]
    context: Mapped[list[dict[str, str]]] = mapped_column(JSON)
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    base_model: Mapped[str]
    adapter: Mapped[str | None]
    seed: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Candidate(Base):
    """One reply of a generation; `ordinal` counts from 1."""

    __tablename__ = "candidates"
    __table_args__ = (UniqueConstraint("generation_id", "ordinal"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(primary_key=True)
    generation_id: Mapped[int] = mapped_column(ForeignKey("generations.id"))
    ordinal: Mapped[int]
    thinking: Mapped[str | None]
    content: Mapped[str]
    finish_reason: Mapped[str]
    tokens: Mapped[int]


class Run(Base):
    """One training; the files in its folder are the truth, this row indexes them."""

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint("state IN ('running', 'succeeded', 'failed', 'stopped')", name="state"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    character: Mapped[str] = mapped_column(ForeignKey("characters.slug"), default=DEFAULT_CHARACTER)
    state: Mapped[str] = mapped_column(default="running")
    base_model: Mapped[str]
    adapter: Mapped[str | None]
    started_at: Mapped[datetime] = mapped_column(default=now)
    ended_at: Mapped[datetime | None]
    exit_code: Mapped[int | None]
    reason: Mapped[str | None]
