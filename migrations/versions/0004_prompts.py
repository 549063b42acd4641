"""A queue of prompts, whose candidates may be written ahead of time.

Revision ID: 0004
Revises: 0003
Create Date: 2026-11-25
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # only INTEGER is SQLite's row id


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "prompts",
        sa.Column("id", ID, nullable=False),
        sa.Column("character", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("context", sa.JSON(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("generation_id", ID, nullable=True),
        sa.Column("disagreement", sa.Double(), nullable=True),
        sa.Column("lot", sa.Integer(), nullable=False),
        sa.Column("taken_at", sa.DateTime(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.CheckConstraint("state IN ('waiting', 'ready', 'taken', 'failed')", name=op.f("ck_prompts_state")),
        sa.ForeignKeyConstraint(["character"], ["characters.slug"], name=op.f("fk_prompts_character_characters")),
        sa.ForeignKeyConstraint(
            ["generation_id"], ["generations.id"], name=op.f("fk_prompts_generation_id_generations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prompts")),
        sqlite_autoincrement=True,
    )
    for columns in (
        ["character", "id"],
        ["character", "state", "id"],
        ["character", "state", "lot"],
        ["character", "digest"],
        ["character", "taken_at"],
        ["generation_id"],
    ):
        op.create_index(op.f(f"ix_prompts_{'_'.join(columns)}"), "prompts", columns)


def downgrade() -> None:
    """Forget the prompts; generations and choices stay."""
    op.drop_table("prompts")
