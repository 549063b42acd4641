"""Choices among several replies, characters with a persona, conversations, history, search, safe retry."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # only INTEGER is SQLite's row id
BATCH = 1000
KEPT = ("id", "character", "mode", "system_prompt", "context", "human_input", "created_at")
SIDES = ("chosen", "chosen_thinking", "rejected", "rejected_thinking")
VERDICTS = "verdict IN ('best', 'ranking', 'good', 'bad', 'edit', 'skip')"
# As the program of this schema has it (db/search.py); later schemas may have another.
CREATE_FTS5 = "CREATE VIRTUAL TABLE annotation_search USING fts5(tokens, content='', tokenize='ascii')"
CREATE_BIGRAMS = (
    "CREATE TABLE annotation_search (rowid BIGINT NOT NULL, texts TEXT[] NOT NULL, bigrams BIGINT[] NOT NULL)",
    "ALTER TABLE annotation_search ADD CONSTRAINT pk_annotation_search PRIMARY KEY (rowid)",
    "CREATE INDEX ix_annotation_search_bigrams ON annotation_search USING gin (bigrams)",
)
# The last id that was given is not given again, also where its row is gone; moved rows bring their ids.
SEQUENCE_POSTGRESQL = ("SELECT setval('annotations_id_seq', last_value, is_called) FROM annotations_0001_id_seq",)
SEQUENCE_SQLITE = (
    "DELETE FROM sqlite_sequence WHERE name = 'annotations'",
    "INSERT INTO sqlite_sequence SELECT 'annotations', seq FROM sqlite_sequence WHERE name = 'annotations_0001'",
)
KINDS = "kind IN ('add', 'choose', 'edit', 'delete', 'restore', 'import', 'undo', 'redo')"


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("characters") as characters:
        characters.add_column(sa.Column("name", sa.String(), nullable=True))
        characters.add_column(sa.Column("system_prompt", sa.String(), nullable=True))
        characters.add_column(sa.Column("selected_at", sa.DateTime(), nullable=True))
    op.execute("UPDATE characters SET name = CASE slug WHEN 'li' THEN '离' ELSE slug END, selected_at = created_at")
    with op.batch_alter_table("characters") as characters:
        characters.alter_column("name", existing_type=sa.String(), nullable=False)
    for name in ("parent_id", "conversation_id"):  # not as a batch, which would lose AUTOINCREMENT and the key's name
        key, kind = f"fk_generations_{name}_generations", "BIGINT" if _postgresql() else "INTEGER"
        op.execute(f"ALTER TABLE generations ADD COLUMN {name} {kind} CONSTRAINT {key} REFERENCES generations (id)")
        op.create_index(op.f(f"ix_generations_{name}"), "generations", [name])
    op.drop_index(op.f("ix_annotations_character_mode"), "annotations")
    op.rename_table("annotations", "annotations_0001")
    if _postgresql():  # where these have names of their own
        op.execute("ALTER INDEX pk_annotations RENAME TO pk_annotations_0001")
        op.execute("ALTER SEQUENCE annotations_id_seq RENAME TO annotations_0001_id_seq")
    _create_annotations()
    _create_history()
    for statement in CREATE_BIGRAMS if _postgresql() else (CREATE_FTS5,):
        op.execute(statement)
    _move(op.get_bind())
    for statement in SEQUENCE_POSTGRESQL if _postgresql() else SEQUENCE_SQLITE:
        op.execute(statement)
    op.drop_table("annotations_0001")


def downgrade() -> None:
    """Refused: the first tables have no room for rankings, skips and history."""
    raise NotImplementedError("restore the backup that was made before this migration: prefanno db restore")


def _postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _create_annotations() -> None:
    op.create_table(
        "annotations",
        sa.Column("id", ID, nullable=False),
        sa.Column("character", sa.String(), nullable=False),
        sa.Column("mode", sa.String(), nullable=False),
        sa.Column("system_prompt", sa.String(), nullable=False),
        sa.Column("context", sa.JSON(), nullable=False),
        sa.Column("human_input", sa.String(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("replies", sa.JSON(), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("note", sa.String(), nullable=True),
        sa.Column("annotator", sa.String(), nullable=True),
        sa.Column("adapter", sa.String(), nullable=True),
        sa.Column("generation_id", ID, nullable=True),
        sa.Column("listed", sa.Boolean(), nullable=False),
        sa.Column("deleted_at", sa.DateTime(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.CheckConstraint("mode IN ('single', 'multi')", name=op.f("ck_annotations_mode")),
        sa.CheckConstraint(VERDICTS, name=op.f("ck_annotations_verdict")),
        sa.ForeignKeyConstraint(["character"], ["characters.slug"], name=op.f("fk_annotations_character_characters")),
        sa.ForeignKeyConstraint(
            ["generation_id"], ["generations.id"], name=op.f("fk_annotations_generation_id_generations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_annotations")),
        sa.UniqueConstraint("generation_id", name=op.f("uq_annotations_generation_id")),
        sqlite_autoincrement=True,
    )
    columns = ["character", "mode", "listed", "id"]
    op.create_index(op.f("ix_annotations_character_mode_listed_id"), "annotations", columns)
    op.create_index(op.f("ix_annotations_character_id"), "annotations", ["character", "id"])


def _create_history() -> None:
    op.create_table(
        "steps",
        sa.Column("id", ID, nullable=False),
        sa.Column("character", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("annotator", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.CheckConstraint(KINDS, name=op.f("ck_steps_kind")),
        sa.CheckConstraint("state IN ('done', 'undone', 'dropped', 'final')", name=op.f("ck_steps_state")),
        sa.ForeignKeyConstraint(["character"], ["characters.slug"], name=op.f("fk_steps_character_characters")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_steps")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_steps_character_state_id"), "steps", ["character", "state", "id"])
    op.create_table(
        "events",
        sa.Column("id", ID, nullable=False),
        sa.Column("step_id", ID, nullable=False),
        sa.Column("annotation_id", ID, nullable=False),
        sa.Column("before", sa.JSON(), nullable=False),
        sa.Column("after", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["annotation_id"], ["annotations.id"], name=op.f("fk_events_annotation_id_annotations")
        ),
        sa.ForeignKeyConstraint(["step_id"], ["steps.id"], name=op.f("fk_events_step_id_steps")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_events_annotation_id"), "events", ["annotation_id"])
    op.create_index(op.f("ix_events_step_id"), "events", ["step_id"])
    op.create_table(
        "counts",
        sa.Column("character", sa.String(), nullable=False),
        sa.Column("mode", sa.String(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["character"], ["characters.slug"], name=op.f("fk_counts_character_characters")),
        sa.PrimaryKeyConstraint("character", "mode", name=op.f("pk_counts")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_idempotency_keys")),
    )


def _move(connection: sa.Connection) -> None:
    """The old rows, word for word: one pair is two ranked replies, a reply without a worse one is a good one."""
    insert = sa.text(
        "INSERT INTO annotations (id, character, mode, system_prompt, context, human_input, created_at, verdict,"
        " replies, weight, reasons, listed) VALUES (:id, :character, :mode, :system_prompt, :context, :human_input,"
        " :created_at, :verdict, :replies, 1.0, '[]', true)"
    )
    for rows in _batches(connection):
        moved = [
            {**{name: row[name] for name in KEPT}, "context": _text(row["context"]), **_choice(row)} for row in rows
        ]
        connection.execute(insert, moved)
        connection.execute(*_into_index({row["id"]: _words(row) for row in rows}))
    connection.execute(
        sa.text(
            "INSERT INTO counts (character, mode, count) SELECT slug, modes.mode,"
            " (SELECT count(*) FROM annotations a WHERE a.character = slug AND a.mode = modes.mode)"
            " FROM characters, (SELECT 'single' AS mode UNION SELECT 'multi') AS modes"
        )
    )


def _batches(connection: sa.Connection) -> Iterator[list[sa.RowMapping]]:
    names = ", ".join(KEPT + SIDES)
    query = sa.text(f"SELECT {names} FROM annotations_0001 WHERE id > :last ORDER BY id LIMIT {BATCH}")  # noqa: S608
    last = 0
    while rows := list(connection.execute(query, {"last": last}).mappings()):
        yield rows
        last = rows[-1]["id"]


def _choice(row: sa.RowMapping) -> dict[str, Any]:
    replies = [{"content": row["chosen"], "thinking": row["chosen_thinking"], "rank": 1, "candidate": None}]
    if row["rejected"] is not None:
        rejected = {"content": row["rejected"], "thinking": row["rejected_thinking"], "rank": 2, "candidate": None}
        replies.append(rejected)
    verdict = "good" if row["rejected"] is None else "best"
    return {"verdict": verdict, "replies": json.dumps(replies, ensure_ascii=False)}


def _text(stored: Any) -> str:
    """JSON as text; PostgreSQL's driver gives it parsed."""
    return stored if isinstance(stored, str) else json.dumps(stored, ensure_ascii=False)


def _words(row: sa.RowMapping) -> list[str]:
    context = [turn["content"] for turn in json.loads(_text(row["context"]))]
    return [text for text in (row["human_input"], *context, *(row[name] for name in SIDES)) if text]


def _into_index(texts: dict[int, list[str]]) -> tuple[sa.TextClause, list[dict[str, Any]]]:
    """The statement, and its rows."""
    if not _postgresql():
        statement = sa.text("INSERT INTO annotation_search (rowid, tokens) VALUES (:id, :tokens)")
        return statement, [{"id": number, "tokens": _tokens("\0".join(words))} for number, words in texts.items()]
    statement = sa.text(
        "INSERT INTO annotation_search (rowid, texts, bigrams)"
        " VALUES (:id, CAST(:texts AS text[]), CAST(:bigrams AS bigint[]))"
    )
    folded = {number: [text.casefold() for text in words] for number, words in texts.items()}
    return statement, [
        {"id": number, "texts": words, "bigrams": sorted(set().union(*map(_bigrams, words)))}
        for number, words in folded.items()
    ]


def _tokens(words: str) -> str:
    codes = [format(ord(character), "x") for character in words.casefold()]
    return " ".join(f"{first}x{second}" for first, second in pairwise(codes))


def _bigrams(folded: str) -> set[int]:
    return {ord(first) << 32 | ord(second) for first, second in pairwise(folded)}
