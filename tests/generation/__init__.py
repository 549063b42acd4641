"""Tests of `generation`, one file for each module."""
