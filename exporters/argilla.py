"""Argilla flat records."""
