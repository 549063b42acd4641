"""What comparing two adapters blindly means: the votes, and what they prove."""
