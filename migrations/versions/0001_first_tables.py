"""The first tables, and the first character."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # only INTEGER is SQLite's row id


def upgrade() -> None:
    """Apply."""
    characters = op.create_table(
        "characters",
        sa.Column("slug", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("slug", name=op.f("pk_characters")),
    )
    op.bulk_insert(characters, [{"slug": "li", "created_at": datetime.now(UTC).replace(tzinfo=None)}])
    op.create_table(
        "annotations",
        sa.Column("id", ID, nullable=False),
        sa.Column("character", sa.String(), nullable=False),
        sa.Column("mode", sa.String(), nullable=False),
        sa.Column("system_prompt", sa.String(), nullable=False),
        sa.Column("context", sa.JSON(), nullable=False),
        sa.Column("human_input", sa.String(), nullable=False),
        sa.Column("chosen", sa.String(), nullable=False),
        sa.Column("chosen_thinking", sa.String(), nullable=True),
        sa.Column("rejected", sa.String(), nullable=True),
        sa.Column("rejected_thinking", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.CheckConstraint("mode = 'multi' OR rejected IS NOT NULL", name=op.f("ck_annotations_single_has_rejected")),
        sa.CheckConstraint("mode IN ('single', 'multi')", name=op.f("ck_annotations_mode")),
        sa.ForeignKeyConstraint(["character"], ["characters.slug"], name=op.f("fk_annotations_character_characters")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_annotations")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_annotations_character_mode"), "annotations", ["character", "mode"])

    op.create_table(
        "generations",
        sa.Column("id", ID, nullable=False),
        sa.Column("character", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("context", sa.JSON(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("adapter", sa.String(), nullable=True),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["character"], ["characters.slug"], name=op.f("fk_generations_character_characters")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_generations")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "runs",
        sa.Column("id", ID, nullable=False),
        sa.Column("character", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("adapter", sa.String(), nullable=True),
        sa.Column("started_at", sa.DateTime(), nullable=False),
        sa.Column("ended_at", sa.DateTime(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.CheckConstraint("state IN ('running', 'succeeded', 'failed', 'stopped')", name=op.f("ck_runs_state")),
        sa.ForeignKeyConstraint(["character"], ["characters.slug"], name=op.f("fk_runs_character_characters")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "candidates",
        sa.Column("id", ID, nullable=False),
        sa.Column("generation_id", ID, nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("thinking", sa.String(), nullable=True),
        sa.Column("content", sa.String(), nullable=False),
        sa.Column("finish_reason", sa.String(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["generation_id"], ["generations.id"], name=op.f("fk_candidates_generation_id_generations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_candidates")),
        sa.UniqueConstraint("generation_id", "ordinal", name=op.f("uq_candidates_generation_id_ordinal")),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("candidates")
    op.drop_table("runs")
    op.drop_table("generations")
    op.drop_index(op.f("ix_annotations_character_mode"), "annotations")
    op.drop_table("annotations")
    op.drop_table("characters")
