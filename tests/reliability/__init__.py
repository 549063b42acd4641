"""Real server processes that are killed, starved and damaged: what was acknowledged stays."""
