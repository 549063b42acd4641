"""Two adapters answer the same prompts, and people vote.

Revision ID: 0006
Revises: 0005
Create Date: 2026-11-27
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # only INTEGER is SQLite's row id


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "comparisons",
        sa.Column("id", ID, nullable=False),
        sa.Column("character", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("adapter", sa.String(), nullable=False),
        sa.Column("against", sa.String(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("promotes", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("left_out", sa.Integer(), nullable=False),
        sa.Column("promotion", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("ended_at", sa.DateTime(), nullable=True),
        sa.CheckConstraint("state IN ('answering', 'open', 'failed')", name=op.f("ck_comparisons_state")),
        sa.CheckConstraint("promotion IN ('due', 'done', 'failed')", name=op.f("ck_comparisons_promotion")),
        sa.ForeignKeyConstraint(["character"], ["characters.slug"], name=op.f("fk_comparisons_character_characters")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparisons")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_comparisons_character_id"), "comparisons", ["character", "id"])
    _make_rounds()


def _make_rounds() -> None:
    op.create_table(
        "rounds",
        sa.Column("id", ID, nullable=False),
        sa.Column("comparison_id", ID, nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("context", sa.JSON(), nullable=False),
        sa.Column("system_prompt", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("adapter_reply", sa.String(), nullable=True),
        sa.Column("adapter_thinking", sa.String(), nullable=True),
        sa.Column("against_reply", sa.String(), nullable=True),
        sa.Column("against_thinking", sa.String(), nullable=True),
        sa.Column("swapped", sa.Boolean(), nullable=False),
        sa.Column("vote", sa.String(), nullable=True),
        sa.Column("annotation_id", ID, nullable=True),
        sa.Column("annotator", sa.String(), nullable=True),
        sa.Column("voted_at", sa.DateTime(), nullable=True),
        sa.CheckConstraint("vote IN ('adapter', 'against', 'tie')", name=op.f("ck_rounds_vote")),
        sa.ForeignKeyConstraint(
            ["comparison_id"], ["comparisons.id"], name=op.f("fk_rounds_comparison_id_comparisons")
        ),
        sa.ForeignKeyConstraint(
            ["annotation_id"], ["annotations.id"], name=op.f("fk_rounds_annotation_id_annotations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rounds")),
        sa.UniqueConstraint("comparison_id", "ordinal", name=op.f("uq_rounds_comparison_id_ordinal")),
        sqlite_autoincrement=True,
    )
    for column in ("digest", "annotation_id"):
        op.create_index(op.f(f"ix_rounds_{column}"), "rounds", [column])


def downgrade() -> None:
    """Forget the comparisons and their votes; the pairs that votes made stay."""
    op.drop_table("rounds")
    op.drop_table("comparisons")
