"""Runs that went on from a checkpoint.

Revision ID: 0005
Revises: 0004
Create Date: 2026-11-27
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Runs of before were never resumed."""
    op.add_column("runs", sa.Column("resumed_at", sa.DateTime(), nullable=True))


def downgrade() -> None:
    """The runs stay."""
    op.drop_column("runs", "resumed_at")
