"""Tests of `training`, one file for each module."""
