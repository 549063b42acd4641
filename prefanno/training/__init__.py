"""Runs: the trainer's process, its log, its adapters."""
