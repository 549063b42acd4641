"""Tests of `arena`, one file for each module."""
