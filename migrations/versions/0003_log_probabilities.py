"""Candidates are recorded with the seed that made them and what the model itself held of them.

Revision ID: 0003
Revises: 0002
Create Date: 2026-11-25
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; what there is has none of it."""
    op.add_column("candidates", sa.Column("seed", sa.BigInteger(), nullable=True))
    op.add_column("candidates", sa.Column("mean_logprob", sa.Double(), nullable=True))


def downgrade() -> None:
    """Forget it."""
    op.drop_column("candidates", "mean_logprob")
    op.drop_column("candidates", "seed")
