"""Tests of `web`, one file for each module."""
